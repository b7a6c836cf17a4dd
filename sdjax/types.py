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
class Evidence:
  """What a method gathered on the host about a batch of rollouts.

  Self-distillation fills the contexts, reinforcement learning the reward.

  Attributes:
    reward: float32 [Q, G], shaped reward, or None.
    correct: bool [Q, G], the verifier's word, or None.
    set_reward: float32 [Q, G, S], each rollout's reward if only the s-th of
      the group's concepts counted, or None.
    strategy: int32 [Q, G], the same for correct rollouts of a question that
      take one strategy, -1 for wrong ones, or None.
    strength: float32 [Q], the method's scheduled weight at this step (the
      same for every question), or None where nothing is scheduled.
    teacher_share: float32 [Q], the teacher's share where its distribution is
      mixed with the reference's.
    context_ids: int32 [Q, E, C], left-padded teacher contexts, one per
      distinct demonstration of the question, or None.
    context_length: int32 [Q, E], real tokens; 1 for an unused row.
    context_index: int32 [Q, G, K], in 0..E-1: which context is the k-th that
      scores rollout g.
    context_mask: bool [Q, G, K], True where there is such a context.
  """

  reward: Array = None
  correct: Array = None
  set_reward: Array = None
  strategy: Array = None
  strength: Array = None
  teacher_share: Array = None
  context_ids: Array = None
  context_length: Array = None
  context_index: Array = None
  context_mask: Array = None


@dataclasses.dataclass(frozen=True)
class Gathered:
  """What a method gathered, and what a person may want to read of it.

  Attributes:
    evidence: arrays for the signal step, still on the host.
    shown: Q lists of G tuples, the demonstrations each rollout is scored
      under, as text.
    useful: bool [Q], whether the question teaches anything: another one may
      be asked in place of one that does not.
    metrics: worth logging.
  """

  evidence: Evidence
  shown: Sequence[Sequence[tuple[str, ...]]]
  useful: Any
  metrics: Mapping[str, float]


@struct.dataclass
class Signal:
  """The target of an update, all of it constant under differentiation.

  Attributes:
    sample_mask: bool [Q, G], True for rollouts that have a target.
    token_mask: bool [Q, G, T], tokens that may count, or None: all of them.
    old_logp: float32 [Q, G, T], nats, of each token under the weights that
      sampled it, without the sampler's truncation; or None: what the sampler
      says (`Rollout.behavior_logp`) stands for it.
    advantage: float32 [Q, G, T], or None (reinforcement learning).
    rl_weight: float32 [Q, G, T], factor of each token's policy loss, or None.
    clip_width: float32 [Q, G, T], each token's own clip distance, or None.
    teacher_hidden: [Q, G, T, K, D] in the model's dtype, the teacher's final
      hidden states that predict each completion token under each of its K
      demonstrations, or None (self-distillation).
    teacher_mask: bool [Q, G, K], or None.
    teacher_log_weight: float32 [Q, G, T, K], nats, how much each teacher
      counts in their mixture at each token, up to a constant; or None: alike.
    anchor_hidden: [Q, G, T, K or 1, D], the reference's, where the teacher's
      distribution is mixed with the reference's; or None.
    anchor_weight: float32 [Q], the reference's share in that mixture.
    sd_weight: float32 [Q, G, T], factor of each token's distillation loss,
      or None.
    ref_logp: float32 [Q, G, T], nats, of each token under the reference
      model, or None when no KL to the reference is asked for.
    ref_hidden: [Q, G, T, D], the reference's final hidden states, or None
      when the KL to it is not the full one.
  """

  sample_mask: Array
  token_mask: Array = None
  old_logp: Array = None
  advantage: Array = None
  rl_weight: Array = None
  clip_width: Array = None
  teacher_hidden: Array = None
  teacher_mask: Array = None
  teacher_log_weight: Array = None
  anchor_hidden: Array = None
  anchor_weight: Array = None
  sd_weight: Array = None
  ref_logp: Array = None
  ref_hidden: Array = None


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
  """Marks the tokens that count in right-padded rows.

  Args:
    length: tokens that count.
    size: the padded width.

  Returns:
    True for the first `length` columns.
  """
  return jax.numpy.arange(size) < jax.numpy.asarray(length)[..., None]
