"""Which options make sense, alone and together.

A value that is not allowed, two options that contradict each other and an
option that would do nothing are errors that name the option.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from sdjax.config import (
  Config,
  ConfigError,
  Lora,
  PolicyGradient,
  Pretraining,
  Rollout,
  SelfDistillation,
)

ALLOWED: dict[str, tuple[str, ...]] = {
  'mode': ('train', 'eval', 'pretrain'),
  'model.dtype': ('float32', 'bfloat16'),
  'model.param_dtype': ('float32', 'bfloat16'),
  'model.remat': ('none', 'dots', 'full'),
  'method.objective': ('reverse_kl', 'forward_kl', 'jsd'),
  'method.support': ('full', 'sampled'),
  'method.teacher': ('ema', 'current', 'frozen'),
  'method.demonstrations.strategy': (
    'uniform',
    'first',
    'most_different',
    'external',
    'reference',
  ),
  'method.advantage': ('grpo',),
  'method.diversity_for': ('correct', 'all'),
  'loss.aggregation': ('token_mean', 'sequence_mean'),
  'optimizer.schedule': ('constant', 'cosine'),
}
"""The values of every option that is a choice."""

AT_LEAST: dict[str, float] = {
  'model.lora.rank': 0,
  'model.lora.alpha': 0,
  'rollout.num_questions': 1,
  'rollout.num_samples': 1,
  'rollout.max_context': 1,
  'rollout.max_new_tokens': 1,
  'rollout.temperature': 0,
  'rollout.top_k': 0,
  'method.demonstrations.count': 1,
  'method.demonstrations.max_context': 1,
  'method.clip_low': 0,
  'method.clip_high': 0,
  'method.diversity_weight': 0,
  'method.batch_size': 1,
  'method.careful_steps': 0,
  'method.max_context': 1,
  'method.num_layers': 1,
  'loss.kl_coef': 0,
  'loss.chunk': 1,
  'optimizer.learning_rate': 0,
  'optimizer.warmup_steps': 0,
  'optimizer.weight_decay': 0,
  'optimizer.clip_norm': 0,
  'train.num_steps': 1,
  'train.micro_batches': 1,
  'train.eval_every': 0,
  'train.checkpoint_every': 1,
  'train.keep_checkpoints': 1,
  'train.logged_questions': 0,
  'eval.num_questions': 1,
  'eval.num_samples': 1,
  'eval.batch_questions': 1,
  'eval.temperature': 0,
  'mesh.model': 1,
}
"""The smallest value of every option that is a size or a weight."""

EFFECTIVE_WHEN: dict[str, tuple[str, tuple[Any, ...]]] = {
  'method.ema_rate': ('method.teacher', ('ema',)),
  'method.jsd_alpha': ('method.objective', ('jsd',)),
  'method.demonstrations.file': (
    'method.demonstrations.strategy',
    ('external',),
  ),
}
"""Options that act only when another has one of the given values."""


def validate(config: Config) -> None:
  """Checks what types cannot say.

  Args:
    config: parsed, its types right.

  Raises:
    ConfigError: naming the option, the value, and what is allowed.
  """
  flat = flatten(dataclasses.asdict(config))
  for path, allowed in ALLOWED.items():
    if path in flat and flat[path] not in allowed:
      raise ConfigError(
        f'{path}={flat[path]!r} is not one of {", ".join(allowed)}'
        f'{nearest(str(flat[path]), allowed)}.'
      )
  for path, least in AT_LEAST.items():
    if path in flat and not flat[path] >= least:
      raise ConfigError(f'{path}={flat[path]} must be at least {least:g}.')
  shares = {p for p in flat if p.startswith('method.') and p.endswith('_share')}
  for path in sorted(shares | {'method.ema_rate', 'rollout.min_p'}):
    if path in flat and not 0 <= flat[path] <= 1:
      raise ConfigError(f'{path}={flat[path]} must be in 0..1.')
  defaults = flatten(dataclasses.asdict(type(config.method)()))
  for path, (switch, values) in EFFECTIVE_WHEN.items():
    if path not in flat or flat[switch] in values:
      continue
    if flat[path] != defaults[path.removeprefix('method.')]:
      raise ConfigError(
        f'{path}={flat[path]!r} does nothing when {switch}='
        f'{flat[switch]!r}; it acts for {" or ".join(map(repr, values))}. '
        'Remove one of the two.'
      )
  _validate_sections(config)
  if isinstance(config.method, SelfDistillation):
    _validate_self_distillation(config, config.method)
  if isinstance(config.method, PolicyGradient):
    method = config.method
    if method.diversity_for != 'correct' and not method.diversity_weight:
      raise ConfigError(
        f'method.diversity_for={method.diversity_for!r} does nothing when '
        'method.diversity_weight=0.'
      )
  if config.model and not config.model.lora.rank:
    for name, default in dataclasses.asdict(Lora()).items():
      if (value := getattr(config.model.lora, name)) != default:
        raise ConfigError(
          f'model.lora.{name}={value!r} does nothing when model.lora.rank=0.'
        )
  template = config.task.template
  if template and template.count('{question}') != 1:
    raise ConfigError(
      f'task.template={template!r} must hold {{question}} exactly once.'
    )
  if config.rollout:
    _validate_rollout(config, config.rollout)


def _validate_sections(config: Config) -> None:
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
  if not pretraining or config.optimizer.schedule == 'constant':
    return
  if config.optimizer.warmup_steps >= config.train.num_steps:
    raise ConfigError(
      f'optimizer.warmup_steps={config.optimizer.warmup_steps} must be below '
      f'train.num_steps={config.train.num_steps}.'
    )


def _validate_self_distillation(
  config: Config, method: SelfDistillation
) -> None:
  if method.objective == 'jsd' and not 0 < method.jsd_alpha < 1:
    raise ConfigError(
      f'method.jsd_alpha={method.jsd_alpha} must be in (0, 1); for the ends '
      "use method.objective='forward_kl' or 'reverse_kl'."
    )
  if method.support == 'sampled' and method.objective != 'reverse_kl':
    raise ConfigError(
      f"method.support='sampled' needs method.objective='reverse_kl', not "
      f'{method.objective!r}.'
    )
  shown = method.demonstrations
  if shown.strategy == 'external' and not shown.file:
    raise ConfigError(
      "method.demonstrations.strategy='external' needs "
      'method.demonstrations.file.'
    )
  if shown.template:
    for field in ('{question}', '{demonstration}'):
      if shown.template.count(field) != 1:
        raise ConfigError(
          f'method.demonstrations.template={shown.template!r} must hold '
          f'{field} exactly once.'
        )
  assert config.rollout
  peers = shown.strategy not in ('external', 'reference')
  if peers and config.rollout.num_samples < 2:
    raise ConfigError(
      f'rollout.num_samples={config.rollout.num_samples} leaves no rollout a '
      "peer to learn from; use at least 2, or method.demonstrations.strategy="
      "'external' or 'reference'."
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
  if rollout.num_questions % config.train.micro_batches:
    raise ConfigError(
      f'train.micro_batches={config.train.micro_batches} must divide '
      f'rollout.num_questions={rollout.num_questions}.'
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
