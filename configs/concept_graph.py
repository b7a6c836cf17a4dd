"""Concept graphs with the shipped model: self-distillation and RL.

  python -m sdjax.main --config=configs/concept_graph.py:sd --workdir=runs/sd

The part after the colon is the method: `sd`, `sd_k3`, `rl`, `rl_diversity`,
or `pretrain`, the recipe of the shipped model. The four twins share every
value except those in METHODS. A name of `sdjax.presets` (`sdpo`, `dapo`, ...)
gives that method with the sizes, optimizer and sampling of this config.
"""

from sdjax import config as c
from sdjax import presets
from sdjax.config_dict import to_config_dict

# ------------------------------------------------- where the twins differ
METHODS = {
  # The teacher's average moves slowly: at the paper's 0.05 this small model
  # loses its accuracy before step 100.
  'sd': c.SelfDistillation(ema_rate=0.01),
  'sd_k3': c.SelfDistillation(
    ema_rate=0.01, demonstrations=c.Demonstrations(count=3)
  ),
  'rl': c.PolicyGradient(),
  'rl_diversity': c.PolicyGradient(diversity_weight=0.5),
}
# -------------------------------------------------------------------------


def get_config(method: str = 'sd'):
  """Returns the config of one method, as a `ConfigDict`."""
  if method == 'pretrain':
    return to_config_dict(pretraining())
  if method in METHODS:
    return to_config_dict(c.Config(method=METHODS[method]))
  if method in presets.PRESETS:
    return to_config_dict(presets.apply(c.Config(), method))
  raise c.ConfigError(
    f'configs/concept_graph.py:{method} does not exist; choose one of '
    f'{", ".join([*METHODS, "pretrain", *presets.PRESETS])}.'
  )


def pretraining() -> c.Config:
  """The recipe of `builtin:concept_graph_base`."""
  return c.Config(
    mode='pretrain',
    model=None,
    rollout=None,
    loss=None,
    task=c.ConceptGraph(part='dev'),
    method=c.Pretraining(),
    optimizer=c.Optimizer(
      learning_rate=2.5e-3, warmup_steps=100, schedule='cosine', b2=0.95
    ),
    train=c.Train(num_steps=2600, eval_every=250, checkpoint_every=250),
  )
