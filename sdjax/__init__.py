"""On-policy self-distillation and the RL it is compared with, in JAX.

The step functions are pure and take a model as `apply_fn`:

  rollout_step   sample G completions of each question
  sd, rl         mirror images: `Options`, `Evidence`, `signal_step`, `loss`
  mix            the same, with rewards and a teacher together
  update_step    gradient, optimizer, EMA teacher

`load` makes one of a checkpoint, `logits` is its plain forward. Between the
steps, on the host: `decode_answers` gives the rollouts' texts, `demonstrate`
makes of correct ones what a teacher is shown. `train` runs it all.
"""

from typing import Any

from sdjax.feedback.demonstrations import demonstrate
from sdjax.feedback.grading import decode_answers
from sdjax.models.load import LanguageModel, load, logits
from sdjax.models.transformer import (
  Transformer,
  TransformerConfig,
  init_params,
  make_apply_fn,
)
from sdjax.steps import mix, rl, sd
from sdjax.steps.rollout import rollout_step
from sdjax.steps.sampling import Sampling
from sdjax.steps.score import completion_hidden, token_logp
from sdjax.steps.update import update_step
from sdjax.types import Prompts, Rollout, TrainState, length_mask

__all__ = [
  'LanguageModel',
  'Prompts',
  'Rollout',
  'Sampling',
  'TrainState',
  'Transformer',
  'TransformerConfig',
  'completion_hidden',
  'decode_answers',
  'demonstrate',
  'init_params',
  'length_mask',
  'load',
  'logits',
  'make_apply_fn',
  'mix',
  'rl',
  'rollout_step',
  'sd',
  'token_logp',
  'train',
  'update_step',
]


def train(*args: Any, **options: Any) -> None:
  """Runs, or goes on with, a run; see `sdjax.training.loop.train`."""
  from sdjax.training import loop  # checkpoints and data sets: not light

  loop.train(*args, **options)
