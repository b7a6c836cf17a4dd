"""What to try when a run goes wrong, given what it already does."""

from collections.abc import Iterator
from typing import Any

from sdjax.config import schema as config_lib
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
  """Says what to try.

  What the run already does is not advised; an option that could be moved
  further is named with the value it has.

  Args:
    kind: of alarm, a key of `ADVICE`.
    config: the run's.

  Returns:
    A list in words, to stand after `Try `.
  """
  *first, last = list(ADVICE[kind](config))
  return f'{", ".join(first)}, or {last}' if first else last


def _variety(config: Config) -> Iterator[str]:
  yield from _keep_variety(config)
  yield from _slower_teacher(config)
  yield 'stop here'


def _entropy(config: Config) -> Iterator[str]:
  yield 'a look at concepts_correct and distinct_paths of the evaluations'
  yield _lower_rate(config)
  yield from _keep_variety(config)


def _longer(config: Config) -> Iterator[str]:
  assert config.rollout and config.loss
  yield f'a lower rollout.max_new_tokens (now {config.rollout.max_new_tokens})'
  yield from _overlong(config)
  if config.loss.aggregation != 'sequence_sum_norm':
    yield "loss.aggregation='sequence_sum_norm'"
  yield 'a look at rollouts.jsonl for repetition'


def _shorter(config: Config) -> Iterator[str]:
  if _distilling(config):
    yield 'demonstrations that show the whole reasoning'
  yield _anchor(config)
  yield 'a look at rollouts.jsonl for answers that are only guessed'


def _truncated(config: Config) -> Iterator[str]:
  assert config.rollout and config.loss
  yield f'a higher rollout.max_new_tokens (now {config.rollout.max_new_tokens})'
  yield from _overlong(config)
  if not config.loss.mask_truncated:
    yield 'loss.mask_truncated=True'
  yield 'a look at rollouts.jsonl for repetition'


def _all_wrong(config: Config) -> Iterator[str]:
  assert config.rollout
  yield 'easier questions'
  yield (
    'more rollouts a question '
    f'(rollout.num_samples, now {config.rollout.num_samples})'
  )
  for path, method in _distilling(config):
    if method.demonstrations.strategy.from_peers:
      yield f"{path}demonstrations.strategy='reference' or 'external(...)'"
  if not config.rollout.resample:
    yield 'rollout.resample'


def _all_right(config: Config) -> Iterator[str]:
  assert config.rollout
  yield 'harder questions'
  if not config.rollout.resample:
    yield 'rollout.resample'
  yield from _diversity_reward(config)
  yield 'stop here'


def _losing(config: Config) -> Iterator[str]:
  if config.train.keep_best:
    yield f'the best step by {config.train.keep_best}, in checkpoints_best/'
  else:
    yield 'train.keep_best, to keep the best step'
  yield _lower_rate(config)
  yield from _slower_teacher(config)
  yield _anchor(config)
  yield 'stop here'


ADVICE = {
  'variety': _variety,
  'entropy': _entropy,
  'longer': _longer,
  'shorter': _shorter,
  'truncated': _truncated,
  'all_wrong': _all_wrong,
  'all_right': _all_right,
  'success': _losing,
  'reward': _losing,
}
"""What to try, by the kind of alarm."""


def _distilling(
  config: Config,
) -> list[tuple[str, config_lib.SelfDistillation]]:
  """Returns the section on self-distillation, and its path, if there is one."""
  method: Any = config.method
  if isinstance(method, config_lib.SelfDistillation):
    return [('method.', method)]
  if isinstance(method, config_lib.Mix):
    return [('method.sd.', method.sd)]
  return []


def _rewarding(config: Config) -> list[tuple[str, config_lib.PolicyGradient]]:
  """Returns the section on rewards, and its path, if there is one."""
  method: Any = config.method
  if isinstance(method, config_lib.PolicyGradient):
    return [('method.', method)]
  if isinstance(method, config_lib.Mix):
    return [('method.rl.', method.rl)]
  return []


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


def _lower_rate(config: Config) -> str:
  rate = config.optimizer.learning_rate
  return f'a lower optimizer.learning_rate (now {rate:g})'


def _anchor(config: Config) -> str:
  assert config.loss
  if config.loss.kl.coef:
    return f'a higher coef than loss.kl={str(config.loss.kl)!r}'
  return "loss.kl='k3(coef=0.001)' as an anchor"
