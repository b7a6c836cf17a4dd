# pyright: reportIncompatibleVariableOverride=false
"""The teacher's distribution of the next token, and what it says of tokens."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Int

from sdjax.objectives.anchor import Anchor, geometric_mixture
from sdjax.objectives.mixing import TeacherTokens
from sdjax.objectives.pooling import Pooling, mean_over_teachers
from sdjax.options import Option, Share, Size
from sdjax.steps.score import (
  completion_hidden,
  log_softmax,
  over_token_chunks,
  student_hidden,
  take_token,
)
from sdjax.types import (
  ApplyFn,
  Array,
  Params,
  Prompts,
  Rollout,
  TeacherContexts,
)


class Teacher(Option):
  """Whose weights the teacher has.

  Attributes:
    weights: the student's `current` ones, those the run began with
      (`initial`), or an `average` that is in the training state.
    rate: share of the student that enters the average at a step.
    every: steps between two changes of the average.
  """

  weights: ClassVar[Literal['current', 'initial', 'average']] = 'current'
  rate: float = 0.0
  every: int = 1


@dataclass(frozen=True)
class EMA(Teacher, name='ema'):
  """A moving average of the student."""

  rate: Share = 0.05
  weights: ClassVar[Literal['average']] = 'average'
  said = 'a moving average of the student (rate {rate:g})'


@dataclass(frozen=True)
class Current(Teacher, name='current'):
  """The student's own weights as they are."""

  said = "the student's own current weights"


@dataclass(frozen=True)
class Frozen(Teacher, name='frozen'):
  """The weights the run began with."""

  weights: ClassVar[Literal['initial']] = 'initial'
  said = 'the weights the run began with'


@dataclass(frozen=True)
class Snapshot(Teacher, name='snapshot'):
  """A copy of the student, renewed now and then."""

  every: Size = 10
  rate: ClassVar[float] = 1.0
  weights: ClassVar[Literal['average']] = 'average'
  said = 'a copy of the student, renewed every {every} steps'


@struct.dataclass
class TeacherStates:
  """What the teacher's next-token distributions are made of.

  Attributes:
    hidden: [Q, G, T, K, D] in the model's dtype, the teacher's final hidden
      states that predict each token under each of its K demonstrations.
    mask: bool [Q, G, K], which of the K exist.
    log_weight: float32 [Q, G, T, K], nats, how much each teacher counts in
      their mixture at each token, up to a constant; or None: alike.
    anchor_hidden: [Q, G, T, K or 1, D], the reference's, where the teacher's
      distribution is mixed with the reference's; or None.
    anchor_weight: float32 [Q], the reference's share in that mixture.
  """

  hidden: Array
  mask: Array
  log_weight: Array | None = None
  anchor_hidden: Array | None = None
  anchor_weight: Array | None = None

  def by_token(self) -> 'TeacherStates':
    """Returns the parts with T as axis 2 of each: what chunks are cut of."""
    shape_QGTK = self.hidden.shape[:-1]
    weight_QGT = None
    if self.anchor_hidden is not None:
      assert self.anchor_weight is not None
      weight_QGT = jnp.broadcast_to(
        self.anchor_weight[:, None, None], shape_QGTK[:-1]
      )
    return self.replace(  # pyright: ignore[reportAttributeAccessIssue]
      mask=jnp.broadcast_to(self.mask[:, :, None], shape_QGTK),
      anchor_weight=weight_QGT,
    )


def teacher_states(
  apply_fn: ApplyFn,
  teacher_params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  evidence: TeacherContexts,
  anchor: Anchor,
) -> TeacherStates:
  """Runs the teacher, and the reference where it anchors."""
  num_q, num_g, num_k = evidence.context_index.shape

  def in_context(params):
    hidden = completion_hidden(
      apply_fn,
      params,
      evidence.context_ids,
      evidence.context_length,
      jnp.repeat(rollout.ids, num_k, axis=1),
      evidence.context_index.reshape(num_q, num_g * num_k),
    )
    width = rollout.ids.shape[-1]
    hidden_QGKTD = hidden.reshape(num_q, num_g, num_k, width, -1)
    return jnp.moveaxis(hidden_QGKTD, 2, 3)

  states = TeacherStates(in_context(teacher_params), evidence.context_mask)
  if not anchor.reads:
    return states
  if ref_params is None:
    raise ValueError(f'anchor={str(anchor)!r} needs ref_params.')
  share = evidence.teacher_share
  if share is None:
    share = jnp.full(num_q, anchor.share_at(0), jnp.float32)
  if anchor.reads == 'teacher':
    hidden = in_context(ref_params)
  else:
    hidden_QGTD = student_hidden(apply_fn, ref_params, prompts, rollout.ids)
    hidden = hidden_QGTD[:, :, :, None]
  return replace(states, anchor_hidden=hidden, anchor_weight=1 - share)


class Target(NamedTuple):
  """How teachers become the distribution that is distilled.

  Attributes:
    pooling: of several teachers.
    temperature: the pooled distribution is raised to 1 over this, and
      normalised. Below 1 its slips fade, while solutions to which it gives
      the same probability keep the same (ours).
  """

  pooling: Pooling
  temperature: float


def teacher_distribution(
  apply_fn: ApplyFn,
  teacher_params: Params,
  ref_params: Params | None,
  states: TeacherStates,
  target: Target,
  temperature: float,
) -> tuple[jax.Array, jax.Array]:
  """The teachers' log-probabilities, anchored and pooled as asked.

  The states are a chunk of c tokens of `TeacherStates.by_token`. Returns
  float32 [Q, G, c, K, V], nats, constant, and bool [Q, G, c, K], which of
  them exist; K is 1 for a mixture.
  """
  logits = apply_fn(teacher_params, states.hidden, method='head')
  if states.anchor_hidden is not None:
    assert states.anchor_weight is not None
    anchor = apply_fn(ref_params, states.anchor_hidden, method='head')
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    logits = geometric_mixture(
      logits.astype(wide),
      anchor.astype(wide),
      states.anchor_weight[..., None],
    )
  logp, mask = target.pooling(
    log_softmax(logits, temperature), states.mask, states.log_weight
  )
  if target.temperature != 1:
    logp = log_softmax(logp, target.temperature)
  return jax.lax.stop_gradient(logp), mask


class Comparison(NamedTuple):
  """How far the student is from its teachers, token by token.

  Attributes:
    each: [Q, G, T], the divergence; over the sampled token it is none, but
      its slope is that of one.
    log_ratio: [Q, G, T], nats, log q - log p of the taken token, the mean
      over teachers.
  """

  each: jax.Array
  log_ratio: jax.Array


def comparison(
  divergence: Callable[..., jax.Array],
  distribution: Callable[[TeacherStates], tuple[jax.Array, jax.Array]],
) -> Callable[..., Comparison]:
  """Makes the function that compares a chunk of the student with the teacher.

  The divergence is `sdjax.objectives.support.Support.compare` with its first
  argument bound, the distribution `teacher_distribution` with all but the
  states. Returns `f(student_logp [Q, G, c, V], ids [Q, G, c], states) ->
  Comparison`.
  """

  def compare(student, ids_QGT, states):
    teacher, mask_QGTK = distribution(states)
    logp_QGT1 = take_token(student, ids_QGT)[..., None]
    teacher_logp_QGTK = take_token(teacher, ids_QGT[..., None])
    each_QGTK = divergence(
      student[..., None, :], teacher, logp_QGT1, teacher_logp_QGTK
    )
    return Comparison(
      each=mean_over_teachers(each_QGTK, mask_QGTK),
      log_ratio=mean_over_teachers(
        teacher_logp_QGTK - jax.lax.stop_gradient(logp_QGT1), mask_QGTK
      ),
    )

  return compare


def teacher_tokens(
  apply_fn: ApplyFn,
  teacher_params: Params,
  ref_params: Params | None,
  states: TeacherStates,
  ids_QGT: Int[Array, 'Q G T'],
  target: Target,
  *,
  temperature: float = 1.0,
  chunk: int = 16,
) -> TeacherTokens:
  """What the teachers say of the taken tokens; see `sdjax.steps.student`."""

  def part(states: Any, ids: Any) -> Any:
    logp, mask = teacher_distribution(
      apply_fn, teacher_params, ref_params, states, target, temperature
    )
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return TeacherTokens(take_token(logp, ids[..., None]), entropy, mask)

  return over_token_chunks(part, chunk, states.by_token(), ids_QGT)
