"""The values that flow through a training step, and the key to their shapes.

Array locals carry their shape as a suffix (`logp_QGT`); fields of these
structs carry none, their shape is in the docstring.

  Q  questions in a batch
  G  samples (rollouts) of a question
  E  distinct contexts of a question (demonstrations, for a teacher; else 1)
  K  demonstrations a rollout is scored under
  C  context tokens, left-padded
  T  completion tokens, right-padded
  V  vocabulary
  L  layers
  D  model width
  N  query heads
  M  key-value heads
  H  head dimension
  F  feed-forward width
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
  Array = Any  # what holds for one of the two may not for the other
else:
  Array = jax.Array | np.ndarray
"""A JAX array on a device or in a trace, or a NumPy array on the host."""

Params = Any
"""A nested dict of arrays, as `flax.linen` makes it."""

ApplyFn = Callable[..., Any]
"""`apply_fn(params, *args, method=name)` with the methods `hidden` and `head`.

See `sdjax.models.transformer.Transformer` for what each takes and gives.
"""


@struct.dataclass
class Prompts:
  """Contexts of a batch of questions.

  Attributes:
    ids: token ids, left-padded.
    length: real tokens of each row, in 1..C.
    question_id: names the question's random stream.
  """

  ids: Int[Array, 'Q C']
  length: Int[Array, 'Q']
  question_id: Int[Array, 'Q']


@struct.dataclass
class Rollout:
  """G sampled completions of each question.

  Attributes:
    ids: completion tokens, right-padded; a finished completion's last token
      is an end-of-sequence token.
    length: tokens that count, the end-of-sequence token included, in 1..T.
    behavior_logp: nats, of each token under the distribution it was SAMPLED
      from (temperature and truncation included); 0 where padded.
    entropy: nats, of the model's own next-token distribution (temperature 1,
      no truncation); 0 where padded.
    finished: whether it ended with an end-of-sequence token.
  """

  ids: Int[Array, 'Q G T']
  length: Int[Array, 'Q G']
  behavior_logp: Float[Array, 'Q G T']
  entropy: Float[Array, 'Q G T']
  finished: Bool[Array, 'Q G']


@struct.dataclass
class TeacherContexts:
  """What self-distillation gathers about a batch of rollouts.

  Attributes:
    context_ids: int32 [Q, E, C], left-padded teacher contexts, one per
      distinct demonstration of the question.
    context_length: int32 [Q, E], real tokens; 1 for an unused row.
    context_index: int32 [Q, G, K], in 0..E-1: which context is the k-th that
      scores rollout g.
    context_mask: bool [Q, G, K], True where there is such a context.
    correct: bool [Q, G], the verifier's word, or None.
    teacher_share: float32 [Q], the teacher's share at this step where it is
      anchored to the reference, or None: the anchor's at its first step.
  """

  context_ids: Array
  context_length: Array
  context_index: Array
  context_mask: Array
  correct: Array | None = None
  teacher_share: Array | None = None


@struct.dataclass
class Rewards:
  """What reinforcement learning gathers about a batch of rollouts.

  Attributes:
    reward: float32 [Q, G].
    correct: bool [Q, G], the verifier's word, or None.
    set_reward: float32 [Q, G, S], each rollout's reward if only the s-th of
      the group's strategies counted, or None.
  """

  reward: Array
  correct: Array | None = None
  set_reward: Array | None = None


@dataclasses.dataclass(frozen=True)
class Gathered:
  """What a method gathered, and what a person may want to read of it.

  Attributes:
    evidence: what the signal step asks for, host arrays.
    shown: Q lists of G tuples, the demonstrations each rollout is scored
      under, as text.
    useful: bool [Q], whether the question teaches anything: another one may
      be asked in place of one that does not.
    metrics: worth logging.
  """

  evidence: Any
  shown: Sequence[Sequence[tuple[str, ...]]]
  useful: Any
  metrics: Mapping[str, float]


@struct.dataclass
class TrainState:
  """Everything a step reads and writes on the device.

  Attributes:
    step: steps made so far, of one or more updates each.
    params: the student's weights.
    opt_state: optimizer state.
    teacher_params: an average or an earlier copy of the student, in float32,
      or None when the teacher is neither.
  """

  step: Int[Array, '']
  params: Params
  opt_state: Any
  teacher_params: Params | None = None


def length_mask(
  length: Int[Array, '*batch'], size: int
) -> Bool[jax.Array, '*batch size']:
  """Marks the first `length` of `size` columns, the tokens that count."""
  return jax.numpy.arange(size) < jax.numpy.asarray(length)[..., None]
