"""Which options make sense, alone and together.

A value that is not allowed, two options that contradict each other and an
option that would do nothing are errors that name the option.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sdjax.config.check_method import (
  is_changed,
  refuse,
  validate_method,
)
from sdjax.config.method import PLAIN_ADVANTAGES
from sdjax.config.rules import ALLOWED, AT_LEAST, EFFECTIVE_WHEN, SHARES
from sdjax.config.schema import (
  Alarm,
  Config,
  ConfigError,
  Mix,
  PolicyGradient,
  Pretraining,
  Rollout,
  SelfDistillation,
)
from sdjax.options import is_section, nearest


def sections(config: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Yields every section with its dotted path, the whole config first."""
  yield path, config
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if is_section(value):
      yield from sections(value, f'{path}{field.name}.')


def validate(config: Config) -> None:
  """Checks what types cannot say.

  Args:
    config: parsed, its types right.

  Raises:
    ConfigError: naming the option, the value, and what is allowed.
  """
  for path, section in sections(config):
    for kind in type(section).__mro__:  # a user's section may extend ours
      _validate_section(path, section, kind)
  _validate_presence(config)
  if config.rollout:
    _validate_rollout(config, config.rollout)
  if config.train.keep_best:
    _validate_keep_best(config)
  if config.mode == 'forecast':
    _validate_forecast(config)
  for path, section in sections(config):
    validate_method(config, section, path)


def _validate_section(path: str, section: Any, kind: type) -> None:
  for name, allowed in ALLOWED.get(kind, {}).items():
    value = getattr(section, name)
    if value not in allowed:
      raise ConfigError(
        f'{path}{name}={value!r} is not one of {", ".join(allowed)}'
        f'{nearest(str(value), allowed)}.'
      )
  for name, least in AT_LEAST.get(kind, {}).items():
    if not getattr(section, name) >= least:
      raise ConfigError(
        f'{path}{name}={getattr(section, name)} must be at least {least:g}.'
      )
  for name in SHARES.get(kind, ()):
    if not 0 <= getattr(section, name) <= 1:
      raise ConfigError(
        f'{path}{name}={getattr(section, name)} must be in 0..1.'
      )
  for name, (switch, values) in EFFECTIVE_WHEN.get(kind, {}).items():
    setting = getattr(section, switch)
    if values(setting) if callable(values) else setting in values:
      continue
    if is_changed(section, name):
      acts = (
        ''
        if callable(values)
        else f'; it acts for {" or ".join(map(repr, values))}'
      )
      raise ConfigError(
        f'{path}{name}={getattr(section, name)!r} does nothing when '
        f'{path}{switch}={setting!r}{acts}. Remove one of the two.'
      )


def _validate_presence(config: Config) -> None:
  pretraining = isinstance(config.method, Pretraining)
  if pretraining != (config.mode == 'pretrain'):
    raise ConfigError(
      f'mode={config.mode!r} and method.name={config.method.name!r} '
      "contradict each other: mode 'pretrain' goes with method 'pretrain' "
      '(configs/concept_graph.py:pretrain), and only with it.'
    )
  for name in ('model', 'rollout', 'loss'):
    if (getattr(config, name) is None) != pretraining:
      need = 'has no' if pretraining else 'needs the'
      raise ConfigError(f'mode={config.mode!r} {need} section {name!r}.')
  if config.reward.name != 'verifier':
    needed = config.reward.name
    if not getattr(config.reward, needed):
      raise ConfigError(f'reward.name={needed!r} needs reward.{needed}.')
    method = config.method
    if isinstance(method, Mix):
      method = method.rl
    used = (
      isinstance(method, PolicyGradient)
      and method.advantage in PLAIN_ADVANTAGES
    )
    if config.reward.judge == 'verifier' and not used:
      raise ConfigError(
        f'reward.name={needed!r} does nothing here: the method goes by which '
        "answers are correct, not by rewards. Set reward.judge='reward'."
      )
    if config.reward.timeout <= 0:
      raise ConfigError(
        f'reward.timeout={config.reward.timeout} must be above 0 seconds.'
      )
  if pretraining:
    for section, path, names, why in (
      (config.reward, 'reward.', ('name',), ', which has no rewards'),
      (
        config.train,
        'train.',
        ('epochs', 'mini_batches', 'micro_batches'),
        ': every step has documents of its own',
      ),
      (config.train, 'train.', ('keep_best',), ''),
      (config.data, 'data.', ('over_length',), ': it writes its own'),
      (config.alarm, 'alarm.', [f.name for f in dataclasses.fields(Alarm)], ''),
    ):
      refuse(section, path, names, f"when mode='pretrain'{why}.")
  updates = (
    config.train.num_steps * config.train.epochs * config.train.mini_batches
  )
  if config.optimizer.schedule == 'constant' and not pretraining:
    return
  if config.optimizer.warmup_steps >= updates:
    raise ConfigError(
      f'optimizer.warmup_steps={config.optimizer.warmup_steps} must be below '
      f'the {updates} updates of the run.'
    )


def _validate_forecast(config: Config) -> None:
  """Refuses what the closed forms of `sdjax.forecast.run` do not describe."""
  method = config.method
  if not isinstance(method, SelfDistillation):
    raise ConfigError(
      f"mode='forecast' needs method 'sd', which says what the teacher is "
      f'shown, not {method.name!r}; RL is forecast beside it.'
    )
  assert config.rollout
  for name, got, allowed in (
    ('objective', method.objective, ('reverse_kl',)),
    ('teacher', method.teacher, ('ema', 'current', 'frozen', 'snapshot')),
    ('anchor_beta', method.anchor_beta, (1.0,)),
    ('teacher_temperature', method.teacher_temperature, (1.0,)),
    (
      'demonstrations.strategy',
      method.demonstrations.strategy,
      ('uniform', 'first'),
    ),
    (
      'demonstrations.feedback',
      method.demonstrations.feedback,
      ('never',),
    ),
    (
      'demonstrations.exclude_same_text',
      method.demonstrations.exclude_same_text,
      (False,),
    ),
  ):
    if got not in allowed:
      raise ConfigError(
        f"method.{name}={got!r} has no closed form in mode='forecast'; it "
        f'must be {" or ".join(map(repr, allowed))}.'
      )
  if config.rollout.temperature != config.eval.temperature:
    raise ConfigError(
      f'rollout.temperature={config.rollout.temperature} and '
      f'eval.temperature={config.eval.temperature} must be equal when '
      "mode='forecast': the law that is trained is the law that is forecast."
    )
  if not config.eval.temperature:
    raise ConfigError(
      "eval.temperature=0 has one answer a question; mode='forecast' needs a "
      'temperature above 0.'
    )


def _validate_keep_best(config: Config) -> None:
  train, during = config.train, config.eval.during
  name = train.keep_best.removeprefix('-').partition('/')[0]
  if name not in during:
    raise ConfigError(
      f'train.keep_best={train.keep_best!r} must begin with a set that is '
      f'evaluated during training, one of eval.during={during}'
      f'{nearest(name, during)}, e.g. {[*during, "SET"][0] + "/pass@1"!r}.'
    )
  if train.eval_every >= train.num_steps:
    raise ConfigError(
      f'train.keep_best={train.keep_best!r} does nothing when '
      f'train.eval_every={train.eval_every} and '
      f'train.num_steps={train.num_steps}: nothing is evaluated in between.'
    )


def _validate_rollout(config: Config, rollout: Rollout) -> None:
  if not 0 < rollout.top_p <= 1 or not 0 < config.eval.top_p <= 1:
    raise ConfigError('rollout.top_p and eval.top_p must be in (0, 1].')
  if config.mode == 'train' and rollout.temperature == 0:
    raise ConfigError(
      'rollout.temperature=0 samples the same answer G times; training needs '
      'a temperature above 0.'
    )
  buckets = rollout.context_buckets
  if not buckets or list(buckets) != sorted(set(buckets)):
    raise ConfigError(
      f'rollout.context_buckets={buckets} must be rising widths.'
    )
  if buckets[-1] != rollout.max_context:
    raise ConfigError(
      f'the last of rollout.context_buckets={buckets} must equal '
      f'rollout.max_context={rollout.max_context}.'
    )
  parts = config.train.micro_batches * config.train.mini_batches
  if rollout.num_questions % parts:
    raise ConfigError(
      f'train.micro_batches={config.train.micro_batches} must divide '
      f'rollout.num_questions={rollout.num_questions} divided by '
      f'train.mini_batches={config.train.mini_batches}.'
    )
  assert config.loss
  if config.loss.skip_tokens >= rollout.max_new_tokens:
    raise ConfigError(
      f'loss.skip_tokens={config.loss.skip_tokens} leaves no token of '
      f'rollout.max_new_tokens={rollout.max_new_tokens}.'
    )


def flatten(values: Mapping[str, Any], path: str = '') -> dict[str, Any]:
  """Turns nested dicts into one with dotted names."""
  flat: dict[str, Any] = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f'{path}{name}.')
    else:
      flat[path + name] = value
  return flat
