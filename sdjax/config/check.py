"""Which sections of a config make sense together.

What one section can say by itself is checked where it is made. Here: two
options that contradict each other, and an option that would do nothing.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from sdjax.config.schema import Alarm, Config, ConfigError, Pretraining
from sdjax.feedback.strategies import First, Uniform
from sdjax.objectives.anchor import NoAnchor
from sdjax.objectives.divergence import ReverseKL
from sdjax.options import is_section, nearest, refuse
from sdjax.steps import mix, rl, sd


def sections(config: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Yields every section with its dotted path, the whole config first."""
  yield path, config
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if is_section(value):
      yield from sections(value, f'{path}{field.name}.')


def validate(config: Config) -> None:
  """Checks what the types of the sections cannot say.

  Raises:
    ConfigError: naming the options that contradict each other, or one that
      would do nothing.
  """
  _validate_presence(config)
  _validate_updates(config)
  if isinstance(config.method, Pretraining):
    return
  _validate_rollout(config)
  _validate_method(config)
  _validate_reward(config)
  if config.train.keep_best:
    _validate_keep_best(config)
  if config.mode == 'forecast':
    _validate_forecast(config)


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
  if not pretraining:
    return
  updates = 'epochs', 'mini_batches', 'micro_batches'
  for section, names, why in (
    ('reward', ('name',), ', which has no rewards'),
    ('train', updates, ': every step has documents of its own'),
    ('train', ('keep_best',), ''),
    ('data', ('over_length',), ': it writes its own'),
    ('alarm', [field.name for field in dataclasses.fields(Alarm)], ''),
  ):
    try:
      refuse(getattr(config, section), names, f"when mode='pretrain'{why}.")
    except ConfigError as error:
      raise ConfigError(f'{section}.{error}') from None


def _validate_updates(config: Config) -> None:
  train, optimizer = config.train, config.optimizer
  updates = train.num_steps * train.epochs * train.mini_batches
  pretraining = isinstance(config.method, Pretraining)
  counted = pretraining or optimizer.schedule != 'constant'
  if counted and optimizer.warmup_steps >= updates:
    raise ConfigError(
      f'optimizer.warmup_steps={optimizer.warmup_steps} must be below the '
      f'{updates} updates of the run.'
    )


def parts(config: Config) -> tuple[sd.Options | None, rl.Options | None]:
  """Returns the options of the teacher and of the rewards, those there are."""
  method = config.method
  if isinstance(method, mix.Options):
    return method.sd, method.rl
  return (
    method if isinstance(method, sd.Options) else None,
    method if isinstance(method, rl.Options) else None,
  )


def path_of(config: Config, part: str) -> str:
  """Returns where the options of a part, `sd` or `rl`, stand in a config."""
  return (
    f'method.{part}' if isinstance(config.method, mix.Options) else 'method'
  )


def _validate_method(config: Config) -> None:
  assert config.rollout and config.loss
  num_samples = config.rollout.num_samples
  taught, rewarded = parts(config)
  # In the first update of a step all ratios to the sampling weights are 1; a
  # truncating sampler changes nothing about it, as the weights' own
  # log-probabilities are then computed anew.
  updates = config.train.epochs * config.train.mini_batches
  once = config.mode == 'train' and updates == 1
  idle: list[str] = []
  at_sd, at_rl = path_of(config, 'sd'), path_of(config, 'rl')
  if taught:
    taught.demonstrations.check(num_samples, f'{at_sd}.demonstrations')
    if taught.success_exponent and num_samples < 2:
      raise ConfigError(
        f'{at_sd}.success_exponent={taught.success_exponent} leaves every '
        'question without weight when rollout.num_samples=1: its pass rate is '
        '0 or 1.'
      )
    contrast = taught.demonstrations.contrast
    if contrast and not rewarded:
      raise ConfigError(
        f'method.demonstrations.contrast={contrast} does nothing but in method '
        "'mix' with rule='rlcsd'."
      )
    if taught.importance_clip not in (0, type(taught)().importance_clip):
      idle.append(f'{at_sd}.importance_clip={taught.importance_clip}')
    always = taught.demonstrations.strategy.always_there
    if always and config.rollout.resample and not rewarded:
      raise ConfigError(
        f'rollout.resample={config.rollout.resample} does nothing with '
        f'strategy={str(taught.demonstrations.strategy)!r}: every question '
        'teaches.'
      )
  if rewarded:
    rewarded.advantage.check(num_samples)
    if rewarded.diversity.by and num_samples < 2:
      raise ConfigError(
        f'{at_rl}.diversity={str(rewarded.diversity)!r} does nothing when '
        'rollout.num_samples=1: there is nothing to be unlike.'
      )
    idle += [
      f'{name} of {at_rl}.policy_loss={str(rewarded.policy_loss)!r}'
      for name in rewarded.policy_loss.idle_on_policy()
    ]
  if idle and once:
    raise ConfigError(
      f'{idle[0]} does nothing in the only update on fresh rollouts, where '
      'all ratios are 1; set train.mini_batches or train.epochs above 1, or '
      'remove it.'
    )
  if config.loss.kl.in_reward and not isinstance(config.method, rl.Options):
    raise ConfigError(
      f'loss.kl={str(config.loss.kl)!r} is for reinforcement learning; '
      f"method.name={config.method.name!r} needs one in the loss, e.g. 'k3'."
    )


def _validate_reward(config: Config) -> None:
  _, rewarded = parts(config)
  if config.reward.name == 'verifier' or config.reward.judge == 'reward':
    return
  if not (rewarded and rewarded.advantage.plain):
    raise ConfigError(
      f'reward.name={config.reward.name!r} does nothing here: the method goes '
      'by which answers are correct, not by rewards. Set '
      "reward.judge='reward'."
    )


def _validate_forecast(config: Config) -> None:
  """Refuses what the closed forms of `sdjax.forecast` do not describe."""
  method = config.method
  if not isinstance(method, sd.Options):
    raise ConfigError(
      f"mode='forecast' needs method 'sd', which says what the teacher is "
      f'shown, not {method.name!r}; RL is forecast beside it.'
    )
  assert config.rollout
  shown = method.demonstrations
  plain = {
    'divergence': (method.divergence, (ReverseKL(),)),
    'anchor': (method.anchor, (NoAnchor(),)),
    'teacher_temperature': (method.teacher_temperature, (1.0,)),
    'demonstrations.strategy': (
      shown.strategy,
      [
        kind(exclude_self=x) for kind in (Uniform, First) for x in (True, False)
      ],
    ),
    'demonstrations.feedback': (shown.feedback, ('never',)),
  }
  for name, (got, allowed) in plain.items():
    if got not in allowed:
      raise ConfigError(
        f'method.{name}={str(got)!r} has no closed form in '
        f"mode='forecast'; it must be "
        f'{" or ".join(repr(str(x)) for x in allowed)}.'
      )
  if config.rollout.temperature != config.eval.temperature:
    raise ConfigError(
      f'rollout.temperature={config.rollout.temperature} and '
      f'eval.temperature={config.eval.temperature} must be equal when '
      "mode='forecast': what is forecast is the distribution that is trained."
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
  if not 0 < train.eval_every < train.num_steps:
    raise ConfigError(
      f'train.keep_best={train.keep_best!r} does nothing when '
      f'train.eval_every={train.eval_every} and '
      f'train.num_steps={train.num_steps}: nothing is evaluated in between.'
    )


def _validate_rollout(config: Config) -> None:
  rollout = config.rollout
  assert rollout and config.loss
  if config.mode == 'train' and rollout.temperature == 0:
    raise ConfigError(
      'rollout.temperature=0 samples the same answer G times; training needs '
      'a temperature above 0.'
    )
  parts = config.train.micro_batches * config.train.mini_batches
  if rollout.num_questions % parts:
    raise ConfigError(
      f'train.micro_batches={config.train.micro_batches} must divide '
      f'rollout.num_questions={rollout.num_questions} divided by '
      f'train.mini_batches={config.train.mini_batches}.'
    )
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
