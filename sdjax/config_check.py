"""Which options make sense, alone and together.

A value that is not allowed, two options that contradict each other and an
option that would do nothing are errors that name the option.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sdjax.config import (
  Alarm,
  Config,
  ConfigError,
  Demonstrations,
  Mix,
  PolicyGradient,
  Pretraining,
  Rollout,
  SelfDistillation,
)
from sdjax.config_method import PEER_STRATEGIES
from sdjax.config_rules import (
  ALLOWED,
  AT_LEAST,
  EFFECTIVE_WHEN,
  NEEDS_OLD_ROLLOUTS,
  SHAPES_THE_LOSS,
  SHARES,
)


def sections(config: Any, path: str = '') -> Iterator[tuple[str, Any]]:
  """Yields every section with its dotted path, the whole config first."""
  yield path, config
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
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
  template = config.task.template
  if template and template.count('{question}') != 1:
    raise ConfigError(
      f'task.template={template!r} must hold {{question}} exactly once.'
    )
  if config.rollout:
    _validate_rollout(config, config.rollout)
  if config.train.keep_best:
    _validate_keep_best(config)
  if config.mode == 'forecast':
    _validate_forecast(config)
  for path, section in sections(config):
    if isinstance(section, SelfDistillation):
      _validate_self_distillation(config, section, path)
    if isinstance(section, PolicyGradient):
      _validate_policy_gradient(config, section, path)
    if isinstance(section, Mix):
      _validate_mix(section, path)


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


def is_changed(section: Any, name: str) -> bool:
  """Returns whether an option has another value than its default."""
  return getattr(section, name) != getattr(type(section)(), name)


def _refuse(section: Any, path: str, names: Iterable[str], why: str) -> None:
  """Refuses options that are set and do nothing."""
  for name in names:
    if is_changed(section, name):
      raise ConfigError(
        f'{path}{name}={getattr(section, name)!r} does nothing {why}'
      )


def is_on_policy(config: Config) -> bool:
  """Returns whether all ratios to the sampling weights are 1.

  They are in the first update of a step; a truncating sampler changes nothing
  about it, as the weights' own log-probabilities are then computed anew.

  Args:
    config: of training.
  """
  return config.train.epochs * config.train.mini_batches == 1


def _refuse_clips(config: Config, section: Any, path: str, kind: type) -> None:
  if config.mode == 'train' and is_on_policy(config):
    _refuse(
      section,
      path,
      # 0 switches off, which is what happens anyway.
      [name for name in NEEDS_OLD_ROLLOUTS[kind] if getattr(section, name)],
      'in the only update on fresh rollouts, where all ratios are 1; set '
      'train.mini_batches or train.epochs above 1, or remove it.',
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
    plain = ('grpo', 'dr_grpo', 'rloo', 'reinforce')
    used = isinstance(method, PolicyGradient) and method.advantage in plain
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
    _refuse(
      config.reward,
      'reward.',
      ('name',),
      "when mode='pretrain', which has no rewards.",
    )
  if pretraining:
    _refuse(
      config.train,
      'train.',
      ('epochs', 'mini_batches', 'micro_batches'),
      "when mode='pretrain': every step has documents of its own.",
    )
    for section, path, names in (
      (config.train, 'train.', ('keep_best',)),
      (config.alarm, 'alarm.', [f.name for f in dataclasses.fields(Alarm)]),
    ):
      _refuse(section, path, names, "when mode='pretrain'.")
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


def _validate_self_distillation(
  config: Config, method: SelfDistillation, path: str
) -> None:
  if method.objective == 'jsd' and not 0 < method.jsd_alpha < 1:
    raise ConfigError(
      f'{path}jsd_alpha={method.jsd_alpha} must be in (0, 1); for the ends '
      f"use {path}objective='forward_kl' or 'reverse_kl'."
    )
  if method.support == 'sampled' and method.objective != 'reverse_kl':
    raise ConfigError(
      f"{path}support='sampled' needs {path}objective='reverse_kl', not "
      f'{method.objective!r}.'
    )
  shown = method.demonstrations
  if method.objective == 'score_weighted':
    _refuse(
      method,
      path,
      ('support', 'pointwise_clip', 'credit_discount'),
      f"when {path}objective='score_weighted', which compares no laws.",
    )
  if method.teacher == 'trust_region' and method.anchor_beta != 1:
    raise ConfigError(
      f"{path}anchor_beta={method.anchor_beta} and {path}teacher='trust_region'"
      ' both mix the teacher with the reference; choose one.'
    )
  assert config.rollout
  if method.success_exponent and config.rollout.num_samples < 2:
    raise ConfigError(
      f'{path}success_exponent={method.success_exponent} leaves every question '
      'without weight when rollout.num_samples=1: its pass rate is 0 or 1.'
    )
  if method.pooling != 'loss' and shown.count == 1:
    raise ConfigError(
      f'{path}pooling={method.pooling!r} does nothing when '
      f'{path}demonstrations.count=1; a mixture needs at least 2.'
    )
  if not method.teacher_temperature > 0:
    raise ConfigError(
      f'{path}teacher_temperature={method.teacher_temperature} must be above '
      "0; 1 leaves the teacher's law as it is."
    )
  _refuse_clips(config, method, path, SelfDistillation)
  _validate_demonstrations(config, shown, f'{path}demonstrations.')


def _validate_forecast(config: Config) -> None:
  """Refuses what the closed forms of `sdjax.forecast` do not describe."""
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


def _validate_demonstrations(
  config: Config, shown: Demonstrations, path: str
) -> None:
  if shown.strategy == 'external' and not shown.file:
    raise ConfigError(f"{path}strategy='external' needs {path}file.")
  if shown.strategy == 'none' and shown.feedback == 'never':
    raise ConfigError(
      f"{path}strategy='none' shows the teacher nothing; set {path}feedback."
    )
  for name, fields in (
    ('template', ('{question}', '{demonstration}')),
    ('feedback_template', ('{question}', '{feedback}')),
    ('both_template', ('{question}', '{demonstration}', '{feedback}')),
  ):
    template = getattr(shown, name)
    for field in fields if template else ():
      if template.count(field) != 1:
        raise ConfigError(
          f'{path}{name}={template!r} must hold {field} exactly once.'
        )
  for name, foreign in (
    ('template', '{feedback}'),
    ('feedback_template', '{demonstration}'),
  ):
    if foreign in getattr(shown, name):
      raise ConfigError(
        f'{path}{name}={getattr(shown, name)!r} must not hold {foreign}; '
        f'{path}both_template is for both.'
      )
  assert config.rollout
  peers = shown.strategy in PEER_STRATEGIES
  most = config.rollout.num_samples - shown.exclude_self
  if shown.strategy == 'reference':
    most = 1
  if (peers or shown.strategy == 'reference') and shown.count > max(most, 1):
    raise ConfigError(
      f'{path}count={shown.count} is more than there can be: {max(most, 1)} '
      f'with {path}strategy={shown.strategy!r} and rollout.num_samples='
      f'{config.rollout.num_samples}.'
    )
  if shown.strategy in ('reference', 'external'):
    if shown.feedback == 'without_peer':
      raise ConfigError(
        f"{path}feedback='without_peer' does nothing when {path}strategy="
        f"{shown.strategy!r}: there is always an answer to show; use 'always'."
      )
    if config.rollout.resample and isinstance(config.method, SelfDistillation):
      raise ConfigError(
        f'rollout.resample={config.rollout.resample} does nothing when '
        f'{path}strategy={shown.strategy!r}: every question teaches.'
      )
  if shown.strategy == 'none' and shown.both_template:
    raise ConfigError(
      f"{path}both_template does nothing when {path}strategy='none'."
    )
  if peers and shown.exclude_self and config.rollout.num_samples < 2:
    raise ConfigError(
      f'rollout.num_samples={config.rollout.num_samples} leaves no rollout a '
      f"peer to learn from; use at least 2, or {path}strategy='external' or "
      "'reference'."
    )
  if shown.contrast and not (
    isinstance(config.method, Mix) and config.method.rule == 'rlcsd'
  ):
    raise ConfigError(
      f"{path}contrast={shown.contrast} does nothing but in method 'mix' with "
      "method.rule='rlcsd'."
    )


def _validate_policy_gradient(
  config: Config, method: PolicyGradient, path: str
) -> None:
  rollout = config.rollout
  assert rollout
  if method.advantage == 'pass_at_k' and method.pass_k >= rollout.num_samples:
    raise ConfigError(
      f'{path}pass_k={method.pass_k} must be below rollout.num_samples='
      f'{rollout.num_samples}: the set of all has nothing to be compared to.'
    )
  if method.advantage != 'reinforce' and rollout.num_samples < 2:
    raise ConfigError(
      f'rollout.num_samples={rollout.num_samples} leaves {path}advantage='
      f"{method.advantage!r} nothing to compare; use at least 2, or "
      "'reinforce'."
    )
  if method.diversity_weight and rollout.num_samples < 2:
    raise ConfigError(
      f'{path}diversity_weight={method.diversity_weight} does nothing when '
      'rollout.num_samples=1: there is nothing to be unlike.'
    )
  multiplied = method.diversity_how == 'multiply'
  if multiplied and not 0 < method.diversity_weight <= 1:
    raise ConfigError(
      f'{path}diversity_weight={method.diversity_weight} must be in (0, 1] '
      f"when {path}diversity_how='multiply'."
    )
  if multiplied or method.diversity_by == 'solution':
    # A wrong rollout has no solution, and no reward to multiply.
    _refuse(method, path, ('diversity_for',), 'for wrong rollouts then.')
  if 0 < method.dual_clip <= 1:
    raise ConfigError(
      f'{path}dual_clip={method.dual_clip} must be above 1, or 0 for none.'
    )
  if method.adaptive_clip:
    _refuse(
      method, path, ('clip_low', 'clip_high'), f'when {path}adaptive_clip=True.'
    )
  _refuse_clips(config, method, path, PolicyGradient)


def _validate_mix(method: Mix, path: str) -> None:
  if method.rule in ('advantage', 'debiased', 'rlsd', 'antisd', 'rlcsd'):
    _refuse(
      method.sd,
      f'{path}sd.',
      SHAPES_THE_LOSS,
      f'when {path}rule={method.rule!r}, which uses only what the teacher '
      'says of the sampled tokens.',
    )
  if method.sd.objective == 'score_weighted':
    raise ConfigError(
      f"{path}sd.objective='score_weighted' is not a loss per token that "
      'could be mixed; choose a divergence.'
    )
  shares = method.rule in ('advantage', 'debiased', 'loss', 'rlsd')
  if shares and method.weight > 1:
    raise ConfigError(f'{path}weight={method.weight} must be in 0..1.')
  shown = method.sd.demonstrations
  if method.rule == 'rlcsd':
    if not shown.contrast:
      raise ConfigError(
        f"{path}rule='rlcsd' needs {path}sd.demonstrations.contrast above 0."
      )
    _refuse(
      method.sd, f'{path}sd.', ('pooling',), f"when {path}rule='rlcsd'."
    )
    for name in ('contrast_temperature', 'contrast_clip'):
      if not getattr(method, name) > 0:
        raise ConfigError(f'{path}{name} must be above 0.')
    if method.contrast_threshold >= method.contrast_clip:
      raise ConfigError(
        f'{path}contrast_threshold={method.contrast_threshold} must be below '
        f'{path}contrast_clip={method.contrast_clip}, or nothing is added.'
      )
  schedule = method.schedule
  if schedule.hold and not schedule.fall:
    raise ConfigError(
      f'{path}schedule.hold={schedule.hold} does nothing when '
      f'{path}schedule.fall=0: the weight stays at 1 anyway.'
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
  if config.eval.num_questions % config.eval.batch_questions:
    raise ConfigError(
      f'eval.batch_questions={config.eval.batch_questions} must divide '
      f'eval.num_questions={config.eval.num_questions}.'
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


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns a hint at the name that may have been meant, or nothing."""
  close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f' (did you mean {close[0]!r}?)' if close else ''
