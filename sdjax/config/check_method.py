"""Which options of a method make sense together.

`sdjax.config.check` asks for every section that belongs to a method.
"""

from collections.abc import Iterable
from typing import Any

from sdjax.config.method import ADVANTAGE_RULES, PEER_STRATEGIES
from sdjax.config.rules import NEEDS_OLD_ROLLOUTS, SHAPES_THE_LOSS
from sdjax.config.schema import (
  Config,
  ConfigError,
  Demonstrations,
  Loss,
  Mix,
  PolicyGradient,
  SelfDistillation,
)

FIELDS = ('{question}', '{demonstration}', '{feedback}')
"""What a template may hold."""


def validate_method(config: Config, section: Any, path: str) -> None:
  """Checks a section against the others; does nothing if it is no method's.

  Args:
    config: the whole.
    section: of it.
    path: where it stands: empty, or dotted names and a last dot.

  Raises:
    ConfigError: naming the option, the value, and what is allowed.
  """
  if isinstance(section, SelfDistillation):
    _validate_self_distillation(config, section, path)
  if isinstance(section, PolicyGradient):
    _validate_policy_gradient(config, section, path)
  if isinstance(section, Mix):
    _validate_mix(section, path)
  if isinstance(section, Loss):
    _validate_loss(config, section, path)


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
    refuse(
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


def _validate_demonstrations(
  config: Config, shown: Demonstrations, path: str
) -> None:
  if shown.strategy == 'external' and not shown.file:
    raise ConfigError(f"{path}strategy='external' needs {path}file.")
  if shown.strategy == 'none' and shown.feedback == 'never':
    raise ConfigError(
      f"{path}strategy='none' shows the teacher nothing; set {path}feedback."
    )
  for name, needed in (
    ('template', ('{question}', '{demonstration}')),
    ('feedback_template', ('{question}', '{feedback}')),
    ('both_template', FIELDS),
  ):
    template = getattr(shown, name)
    check_template(path + name, template, needed)
    for foreign in FIELDS:
      if foreign in template and foreign not in needed:
        raise ConfigError(
          f'{path}{name}={template!r} must not hold {foreign}; '
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
  if shown.strategy == 'reference':
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
  if shown.exclude_same_text and not shown.exclude_self:
    raise ConfigError(
      f'{path}exclude_self=False does nothing when {path}exclude_same_text='
      "True: a rollout's own text is never shown to it."
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
      f'{method.advantage!r} nothing to compare; use at least 2, or '
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
    refuse(method, path, ('diversity_for',), 'for wrong rollouts then.')
  if not method.std_epsilon > 0:
    raise ConfigError(
      f'{path}std_epsilon={method.std_epsilon} must be above 0: equal rewards '
      'have no spread to divide by.'
    )
  if 0 < method.dual_clip <= 1:
    raise ConfigError(
      f'{path}dual_clip={method.dual_clip} must be above 1, or 0 for none.'
    )
  if method.adaptive_clip:
    refuse(
      method, path, ('clip_low', 'clip_high'), f'when {path}adaptive_clip=True.'
    )
  _refuse_clips(config, method, path, PolicyGradient)


def _validate_mix(method: Mix, path: str) -> None:
  if method.rule in ADVANTAGE_RULES:
    refuse(
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
    refuse(method.sd, f'{path}sd.', ('pooling',), f"when {path}rule='rlcsd'.")
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


def _validate_loss(config: Config, loss: Loss, path: str) -> None:
  if loss.kl_in != 'loss':
    if not isinstance(config.method, PolicyGradient):
      raise ConfigError(
        f'{path}kl_in={loss.kl_in!r} is an option of reinforcement learning; '
        f"method.name={config.method.name!r} needs {path}kl_in='loss'."
      )
    refuse(
      loss,
      path,
      ('kl_estimator',),
      f'when {path}kl_in={loss.kl_in!r}, which takes log p - log r of the '
      'sampled tokens.',
    )


def check_template(name: str, template: str, needed: Iterable[str]) -> None:
  """Refuses a template that lacks a field or repeats it; not an empty one.

  Args:
    name: the option, dotted.
    template: its value.
    needed: fields it must hold.

  Raises:
    ConfigError: naming the field.
  """
  for field in needed if template else ():
    if template.count(field) != 1:
      raise ConfigError(f'{name}={template!r} must hold {field} exactly once.')


def is_changed(section: Any, name: str) -> bool:
  """Returns whether an option has another value than its default."""
  return getattr(section, name) != getattr(type(section)(), name)


def refuse(section: Any, path: str, names: Iterable[str], why: str) -> None:
  """Refuses options that are set and do nothing.

  Args:
    section: of a config.
    path: where it stands: empty, or dotted names and a last dot.
    names: of its options.
    why: they do nothing, after the words "does nothing".

  Raises:
    ConfigError: one of them has another value than its default.
  """
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
    refuse(
      section,
      path,
      # 0 switches off, which is what happens anyway.
      [name for name in NEEDS_OLD_ROLLOUTS[kind] if getattr(section, name)],
      'in the only update on fresh rollouts, where all ratios are 1; set '
      'train.mini_batches or train.epochs above 1, or remove it.',
    )
