"""Remedies for the loss of variety, on concept graphs with the shipped model.

  python -m sdjax.main --config=configs/concept_graph_remedies.py:balanced \
    --workdir=runs/balanced

The part after the colon is a key of METHODS. All share model, questions,
optimizer, sampling and length with the twins of `configs/concept_graph.py`;
they differ in what stands here. `launch/remedies.py` runs them all.
"""

from typing import Any

from sdjax import config as c
from sdjax import presets
from sdjax.config_dict import replace, to_config_dict

EMA = 0.01
"""The teacher's average moves slowly, see `configs/concept_graph.py`."""


def sd(**options: Any) -> c.SelfDistillation:
  """Self-distillation as the twin `sd` has it, with changes."""
  return c.SelfDistillation(ema_rate=EMA, **options)


def published(name: str) -> c.Config:
  """A preset; where its teacher is an average, at the rate of the twins."""
  config = presets.apply(c.Config(), name)
  method = config.method
  if isinstance(method, c.SelfDistillation) and method.teacher == 'ema':
    config = replace(config, method__ema_rate=EMA)
  if isinstance(method, c.Mix) and method.sd.teacher == 'ema':
    config = replace(config, method__sd__ema_rate=EMA)
  return config


METHODS: dict[str, c.Config] = {
  # What is to be mended, and what it is compared with.
  'sd': c.Config(method=sd()),
  'sd_k3': c.Config(method=sd(demonstrations=c.Demonstrations(count=3))),
  'rl': c.Config(method=c.PolicyGradient()),
  'rl_diversity': c.Config(method=c.PolicyGradient(diversity_weight=0.5)),
  # One change to `sd` each.
  'mixture': c.Config(
    method=sd(pooling='mixture', demonstrations=c.Demonstrations(count=3))
  ),
  'most_different': c.Config(
    method=sd(demonstrations=c.Demonstrations(strategy='most_different'))
  ),
  'kl_anchor': c.Config(
    method=sd(), loss=c.Loss(kl_coef=0.1, kl_estimator='full')
  ),
  'debiased': c.Config(method=c.Mix(rule='debiased', weight=0.0, sd=sd())),
  # Rewards beside it.
  'lambda_diversity': c.Config(
    method=c.Mix(weight=0.9, sd=sd(), rl=c.PolicyGradient(diversity_weight=0.5))
  ),
  # As `sdjax.presets` has them: as published but for what is marked `ours`
  # there (the last two: all of it). Optimizer, sampling, sizes and the rate of
  # an averaging teacher are those of the twins.
  **{
    name: published(name)
    for name in (
      'rlsd',
      'srpo',
      'rlcsd',
      'antisd',
      'beta_opsd',
      'sc_sdpo',
      'rosa',
      'balanced',
      'balanced_rl',
    )
  },
}


def get_config(name: str):
  """Returns the config of one method, as a `ConfigDict`."""
  if name not in METHODS:
    raise c.ConfigError(
      f'configs/concept_graph_remedies.py:{name} does not exist; choose one '
      f'of {", ".join(METHODS)}.'
    )
  config = replace(
    METHODS[name],
    train__eval_every=75,
    eval__sets=('in_distribution', 'harder'),
  )
  return to_config_dict(config)
