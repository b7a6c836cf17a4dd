"""The methods that are compared for what they leave of variety.

  python -m sdjax.main --config=configs/concept_graph_remedies.py:balanced \
    --workdir=runs/balanced

The part after the colon is one of NAMES or LONGER. Each is the config of that
name in `configs/concept_graph.py`, evaluated less often while it trains; its
result is the same. `launch/remedies.py` runs them all.
"""

import importlib.util
from pathlib import Path
from types import ModuleType

from sdjax.config import schema as c

NAMES = (
  # What is to be mended, and what it is compared with.
  'sd',
  'sd_k3',
  'rl',
  'rl_diversity',
  # The same with the paper's KL to the start.
  'sd_kl',
  'rl_kl',
  'rl_diversity_kl',
  # One change to `sd` each.
  'mixture',
  'most_different',
  'other_text',
  'kl_anchor',
  'debiased',
  # Rewards beside it.
  'lambda_diversity',
  # As `sdjax.config.presets` has them: as published but for what it marks
  # `ours` (the last two: all of it). Optimizer, sampling, sizes and the rate of
  # an averaging teacher are those of the twins.
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

"""What `launch/remedies.py` trains."""

LONGER = ('sd_long', 'rl_diversity_long', 'balanced_rl_long')
"""Twice as many steps; `launch/remedies.py --only=...` trains them."""


def _twins() -> ModuleType:
  """The config file beside this one; `configs` is no package."""
  path = Path(__file__).with_name('concept_graph.py')
  spec = importlib.util.spec_from_file_location('concept_graph', path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def get_config(name: str):
  """Returns the config of one method, as a `ConfigDict`."""
  if name not in NAMES + LONGER:
    raise c.ConfigError(
      f'configs/concept_graph_remedies.py:{name} does not exist; choose one '
      f'of {", ".join(NAMES + LONGER)}.'
    )
  config = _twins().get_config(name)
  config.train.eval_every = 75
  return config
