"""What to try when a run goes wrong, given what it already does."""

from collections.abc import Callable, Iterator
from typing import Any

from sdjax.config import schema as config_lib
from sdjax.config.check import parts, path_of
from sdjax.config.schema import Config
from sdjax.feedback.strategies import Balanced
from sdjax.objectives.divergence import ForwardKL
from sdjax.objectives.diversity_reward import Bonus, Scale
from sdjax.objectives.pooling import SequenceMixture
from sdjax.options import Option
from sdjax.steps.teacher import EMA, Current, Snapshot

SLOWER = 5
"""By how much a teacher that moves too fast is to be slowed down."""


def advise(kind: str, config: Config) -> str:
  """Says what to try, as a list in words to stand after `Try `.

  What the run already does is not advised; an option that could be moved
  further is named with the value it has.
  """
  told: list[str] = []
  for advice in ADVICE[kind]:
    if isinstance(advice, str):
      told.append(advice.format(**vars(config)))
    else:
      told += advice(config)
  *first, last = told
  return f'{", ".join(first)}, or {last}' if first else last


def _distilling(
  config: Config,
) -> list[tuple[str, config_lib.SelfDistillation]]:
  """Returns the section on self-distillation, and its path, if there is one."""
  return _part(config, parts(config)[0], 'sd')


def _rewarding(config: Config) -> list[tuple[str, config_lib.PolicyGradient]]:
  """Returns the section on rewards, and its path, if there is one."""
  return _part(config, parts(config)[1], 'rl')


def _part(config: Config, options: Any, name: str) -> list[tuple[str, Any]]:
  return [(f'{path_of(config, name)}.', options)] if options else []


def _keep_variety(config: Config) -> Iterator[str]:
  for path, method in _distilling(config):
    lacking = []
    if not isinstance(method.demonstrations.strategy, Balanced):
      lacking.append(f"{path}demonstrations.strategy='balanced'")
    if method.demonstrations.count < 3:
      lacking.append(f'{path}demonstrations.count=3')
    if not isinstance(method.pooling, SequenceMixture):
      lacking.append(f"{path}pooling='sequence_mixture'")
    rule = getattr(config.method, 'rule', None)
    # A rule on the advantage compares no distributions.
    in_loss = rule is None or rule.on_loss
    if in_loss and not isinstance(method.divergence, ForwardKL):
      lacking.append(f"{path}divergence='forward_kl'")
    if lacking:
      yield ' with '.join(filter(None, [lacking[0], ' and '.join(lacking[1:])]))
    if not _rewarding(config):
      yield "rewards beside it (method 'mix')"
  yield from _diversity_reward(config)


def _now(path: str, name: str, value: Option) -> str:
  """Names an option with the value to try and the one it has."""
  return f'{path}{name}={str(value)!r}'


def _diversity_reward(config: Config) -> Iterator[str]:
  for path, method in _rewarding(config):
    if isinstance(method.diversity, Bonus | Scale):
      now = method.diversity.weight
      yield f'a higher weight of {path}diversity (now {now:g})'
    elif method.advantage.plain:
      yield _now(path, 'diversity', Bonus(0.5))


def _slower_teacher(config: Config) -> Iterator[str]:
  for path, method in _distilling(config):
    teacher = method.teacher
    if isinstance(teacher, EMA) and teacher.rate:
      slower = EMA(float(f'{teacher.rate / SLOWER:.2g}'))
      now = f'{teacher.rate:g}'
    elif isinstance(teacher, Snapshot):
      slower, now = Snapshot(teacher.every * SLOWER), f'{teacher.every}'
    elif isinstance(teacher, Current):
      slower, now = EMA(), str(teacher)
    else:
      continue
    yield f'a slower teacher: {_now(path, "teacher", slower)} (now {now})'


def _overlong(config: Config) -> Iterator[str]:
  for path, method in _rewarding(config):
    if not method.overlong_share and method.advantage.plain:
      yield f'{path}overlong_share=0.2'


def _anchor(config: Config) -> Iterator[str]:
  assert config.loss
  if config.loss.kl.coef:
    yield f'a higher coef than loss.kl={str(config.loss.kl)!r}'
  else:
    yield "loss.kl='k3(coef=0.001)' as an anchor"


def _whole_reasoning(config: Config) -> Iterator[str]:
  if _distilling(config):
    yield 'demonstrations that show the whole reasoning'


def _other_demonstrations(config: Config) -> Iterator[str]:
  for path, method in _distilling(config):
    if not method.demonstrations.strategy.always_there:
      yield f"{path}demonstrations.strategy='reference' or 'external(...)'"


def _resample(config: Config) -> Iterator[str]:
  assert config.rollout
  if not config.rollout.resample:
    yield 'rollout.resample'


def _best_step(config: Config) -> Iterator[str]:
  if config.train.keep_best:
    yield f'the best step by {config.train.keep_best}, in checkpoints_best/'
  else:
    yield 'train.keep_best, to keep the best step'


def _fixed_divisor(config: Config) -> Iterator[str]:
  assert config.loss
  if config.loss.aggregation != 'sequence_sum_norm':
    yield "loss.aggregation='sequence_sum_norm'"


def _mask_truncated(config: Config) -> Iterator[str]:
  assert config.loss
  if not config.loss.mask_truncated:
    yield 'loss.mask_truncated=True'


LOWER_RATE = 'a lower optimizer.learning_rate (now {optimizer.learning_rate:g})'
LIMIT = 'rollout.max_new_tokens (now {rollout.max_new_tokens})'
REPETITION = 'a look at rollouts.jsonl for repetition'
STOP = 'stop here'
LOSING = _best_step, LOWER_RATE, _slower_teacher, _anchor, STOP

ADVICE: dict[str, tuple[str | Callable[[Config], Iterator[str]], ...]] = {
  'variety': (_keep_variety, _slower_teacher, STOP),
  'entropy': (
    'a look at concepts_correct and distinct_paths of the evaluations',
    LOWER_RATE,
    _keep_variety,
  ),
  'longer': (f'a lower {LIMIT}', _overlong, _fixed_divisor, REPETITION),
  'shorter': (
    _whole_reasoning,
    _anchor,
    'a look at rollouts.jsonl for answers that are only guessed',
  ),
  'truncated': (f'a higher {LIMIT}', _overlong, _mask_truncated, REPETITION),
  'all_wrong': (
    'easier questions',
    'more rollouts a question (rollout.num_samples, now {rollout.num_samples})',
    _other_demonstrations,
    _resample,
  ),
  'all_right': ('harder questions', _resample, _diversity_reward, STOP),
  'success': LOSING,
  'reward': LOSING,
}
"""What to try by the kind of alarm: text with values of a config, or rules."""
