"""The teacher's law of the next token, and its distance from the student's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdjax.objectives.divergence import NO_CLIP, divergence, sampled_reverse_kl
from sdjax.objectives.pooling import arithmetic_mixture, geometric_mixture
from sdjax.objectives.support import SUPPORTS, on_support
from sdjax.steps.score import log_softmax, over_token_chunks, take_token
from sdjax.types import ApplyFn, Array, Params, Signal

POOLINGS = ('loss', 'mixture', 'sequence_mixture')


class TeacherInputs(NamedTuple):
  """What of a signal the teacher's law is made of, T being axis 2.

  Attributes:
    hidden: [Q, G, T, K, D].
    mask: bool [Q, G, T, K].
    log_weight: float32 [Q, G, T, K], of each teacher, or None.
    anchor_hidden: [Q, G, T, K or 1, D], or None.
    anchor_weight: float32 [Q, G, T], or None.
  """

  hidden: Array
  mask: Array
  log_weight: Array
  anchor_hidden: Array
  anchor_weight: Array


class Comparison(NamedTuple):
  """How far the student is from its teachers, token by token.

  Attributes:
    each: [Q, G, T], the objective's value; in the sampled form it is not a
      divergence, but its slope is that of one.
    log_ratio: [Q, G, T], nats, log q - log p of the taken token, the mean
      over teachers.
  """

  each: jax.Array
  log_ratio: jax.Array


def teacher_inputs(signal: Signal) -> TeacherInputs:
  """Brings what makes the teacher's law into one shape.

  Args:
    signal: of self-distillation.

  Returns:
    The parts, each with T as axis 2.
  """
  shape_QGTK = signal.teacher_hidden.shape[:-1]
  weight_QGT = None
  if signal.anchor_hidden is not None:
    weight_QGT = jnp.broadcast_to(
      signal.anchor_weight[:, None, None], shape_QGTK[:-1]
    )
  return TeacherInputs(
    hidden=signal.teacher_hidden,
    mask=jnp.broadcast_to(signal.teacher_mask[:, :, None], shape_QGTK),
    log_weight=signal.teacher_log_weight,
    anchor_hidden=signal.anchor_hidden,
    anchor_weight=weight_QGT,
  )


def teacher_law(
  apply_fn: ApplyFn,
  teacher_params: Params,
  ref_params: Params | None,
  inputs: TeacherInputs,
  temperature: float,
  pooling: str,
  teacher_temperature: float,
) -> tuple[jax.Array, jax.Array]:
  """The teachers' log-probabilities, anchored and pooled as asked.

  Args:
    apply_fn: the model.
    teacher_params: the teacher's weights.
    ref_params: the reference's, where there is an anchor.
    inputs: a chunk of them.
    temperature: divides the logits.
    pooling: `loss`: K laws, whose losses are averaged; `mixture`: one law,
      their arithmetic mean; `sequence_mixture`: one law, their mean with the
      weights of the inputs.
    teacher_temperature: each pooled law is raised to 1 over this. What is
      rare becomes rarer, while modes of equal weight stay equal.

  Returns:
    float32 [Q, G, c, K, V], nats, constant, and bool [Q, G, c, K], which of
    them exist; K is 1 for a mixture.

  Raises:
    ValueError: for another pooling.
  """
  if pooling not in POOLINGS:
    raise ValueError(f'pooling={pooling!r} is not one of {POOLINGS}.')
  logits = apply_fn(teacher_params, inputs.hidden, method='head')
  if inputs.anchor_hidden is not None:
    anchor = apply_fn(ref_params, inputs.anchor_hidden, method='head')
    wide = jnp.promote_types(logits.dtype, jnp.float32)
    logits = geometric_mixture(
      logits.astype(wide),
      anchor.astype(wide),
      inputs.anchor_weight[..., None],
    )
  logp, mask = log_softmax(logits, temperature), inputs.mask
  if pooling != 'loss':
    logp = arithmetic_mixture(logp, mask, inputs.log_weight)[..., None, :]
    mask = mask.any(axis=-1, keepdims=True)
  if teacher_temperature != 1:
    logp = log_softmax(logp, teacher_temperature)
  return jax.lax.stop_gradient(logp), mask


def comparison(
  apply_fn: ApplyFn,
  teacher_params: Params,
  ref_params: Params | None,
  *,
  objective: str,
  jsd_alpha: float = 0.5,
  jsd_normalised: bool = False,
  pointwise_clip: float = 0.0,
  support: str = 'full',
  top_k: int = 100,
  tail: bool = True,
  pooling: str = 'loss',
  teacher_temperature: float = 1.0,
  temperature: float = 1.0,
) -> Callable[..., Comparison]:
  """Makes the function that compares a chunk of the student with the teacher.

  Args:
    apply_fn: the model.
    teacher_params: the teacher's weights (its head is what is used).
    ref_params: the reference's, where there is an anchor.
    objective: see `sdjax.steps.sd.loss`.
    jsd_alpha: likewise.
    jsd_normalised: likewise.
    pointwise_clip: likewise.
    support: likewise.
    top_k: likewise.
    tail: likewise.
    pooling: likewise.
    teacher_temperature: likewise.
    temperature: divides both sides' logits.

  Returns:
    `f(student_logp [Q, G, c, V], ids [Q, G, c], inputs) -> Comparison`.

  Raises:
    ValueError: for an option, or a pair of them, that is not defined.
  """
  if support not in (*SUPPORTS, 'sampled'):
    raise ValueError(
      f'support={support!r} is not one of {", ".join([*SUPPORTS, "sampled"])}.'
    )
  if support == 'sampled' and objective != 'reverse_kl':
    raise ValueError(
      f"support='sampled' is defined for objective='reverse_kl' only, not "
      f"{objective!r}; use support='full'."
    )
  clip = pointwise_clip or NO_CLIP
  distance = divergence(objective, jsd_alpha, jsd_normalised, clip)

  def compare(student, ids_QGT, inputs: TeacherInputs):
    teacher, mask_QGTK = teacher_law(
      apply_fn,
      teacher_params,
      ref_params,
      inputs,
      temperature,
      pooling,
      teacher_temperature,
    )
    logp_QGT1 = take_token(student, ids_QGT)[..., None]
    teacher_logp_QGTK = take_token(teacher, ids_QGT[..., None])
    if support == 'sampled':
      each_QGTK = sampled_reverse_kl(logp_QGT1, teacher_logp_QGTK)
    else:
      each_QGTK = distance(
        *on_support(
          student[..., None, :],
          teacher,
          support=support,
          top_k=top_k,
          tail=tail,
        )
      )
    return Comparison(
      each=mean_over_teachers(each_QGTK, mask_QGTK),
      log_ratio=mean_over_teachers(
        teacher_logp_QGTK - jax.lax.stop_gradient(logp_QGT1), mask_QGTK
      ),
    )

  return compare


def mean_over_teachers(value: jax.Array, mask: jax.Array) -> jax.Array:
  """Mean over the last axis of what exists; 0 where nothing does."""
  count = jnp.maximum(mask.sum(axis=-1), 1)
  return jnp.where(mask, value, 0).sum(axis=-1) / count


def teacher_tokens(
  apply_fn: ApplyFn,
  teacher_params: Params,
  ref_params: Params | None,
  signal: Signal,
  ids_QGT: jax.Array,
  *,
  pooling: str = 'loss',
  teacher_temperature: float = 1.0,
  temperature: float = 1.0,
  chunk: int = 16,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What the teachers say of the taken tokens.

  Args:
    apply_fn: the model.
    teacher_params: the teacher's weights.
    ref_params: the reference's, where there is an anchor.
    signal: from `sdjax.steps.sd.signal_step`.
    ids_QGT: int32, the tokens.
    pooling: see `teacher_law`.
    teacher_temperature: see `teacher_law`.
    temperature: divides the logits.
    chunk: tokens whose logits exist at once.

  Returns:
    float32 [Q, G, T, K], nats, of each token; float32 [Q, G, T, K], nats, of
    the teachers' entropy; bool [Q, G, T, K], which exist. K is 1 for a
    mixture.
  """

  def part(inputs: Any, ids: Any) -> Any:
    logp, mask = teacher_law(
      apply_fn,
      teacher_params,
      ref_params,
      inputs,
      temperature,
      pooling,
      teacher_temperature,
    )
    entropy = -jnp.sum(jnp.exp(logp) * logp, axis=-1)
    return take_token(logp, ids[..., None]), entropy, mask

  return over_token_chunks(part, chunk, teacher_inputs(signal), ids_QGT)
