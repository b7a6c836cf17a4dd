"""What every method shares: the student's forward, masks, the reference.

The functions of this room name alike what they take: `apply_fn`, the model;
`params`, the student's weights, the only ones that are differentiated;
`teacher_params` and `ref_params`, those of the teacher and of the reference,
None without a use for them (of both a loss uses the heads alone); `prompts`,
the student's contexts, and `rollout`, what was sampled from them; `evidence`,
what the method gathered about it; `signal`, the target that its `signal_step`
makes of that; `weight_QGT`, each token's weight in the loss, from
`token_weights`; `temperature`, which divides all logits; `chunk`, how many
completion tokens have logits at once.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from sdjax.objectives.divergence import ReverseKL
from sdjax.objectives.policy_loss import truncated_ratio
from sdjax.objectives.reference_kl import NoKL, ReferenceKL
from sdjax.options import Count, NonNegative, Section, Size
from sdjax.steps.sampling import Sampling
from sdjax.steps.score import (
  log_softmax,
  over_token_chunks,
  student_hidden,
  take_token,
  token_logp,
)
from sdjax.types import ApplyFn, Array, Params, Prompts, Rollout, length_mask


@dataclass(frozen=True)
class Loss(Section):
  """What all methods share in the loss.

  Attributes:
    aggregation: `token_mean` over all counted tokens of the batch; or the
      mean over rollouts of the mean over their tokens (`sequence_mean`), of
      their sum (`sequence_sum`) or of their sum over the longest length
      allowed (`sequence_sum_norm`).
    kl: to the reference, the weights the run began with.
    skip_tokens: first tokens of each rollout that do not count.
    mask_truncated: rollouts that were cut off do not count; their rewards
      still enter their group's mean.
    sampler_clip: above 0, tokens are weighted by min(p / s, this), with p
      their probability under the weights that sampled and s under the
      sampler, which truncation or another machine's arithmetic make differ.
    chunk: completion tokens whose vocabulary logits exist at once.
  """

  aggregation: Literal[
    'token_mean', 'sequence_mean', 'sequence_sum', 'sequence_sum_norm'
  ] = 'token_mean'
  kl: ReferenceKL = NoKL()
  skip_tokens: Count = 0
  mask_truncated: bool = False
  sampler_clip: NonNegative = 0.0
  chunk: Size = 16


@dataclass(frozen=True)
class Shared(Loss):
  """`Loss`, and how the rollouts were sampled.

  Attributes:
    sampling: its temperature divides all logits. Where it truncates, the
      log-probabilities that ratios need are computed anew.
  """

  sampling: Sampling = Sampling()

  @property
  def temperature(self) -> float:
    """Divides all logits."""
    return self.sampling.temperature


@struct.dataclass
class Signal:
  """The target of an update, all of it constant under differentiation.

  Attributes:
    sample_mask: bool [Q, G], True for rollouts that have a target.
    token_mask: bool [Q, G, T], tokens that may count, or None: all of them.
    weight: float32 [Q, G, T], factor of each token's loss, or None.
    old_logp: float32 [Q, G, T], nats, of each token under the weights that
      sampled it, without the sampler's truncation; or None: what the sampler
      says (`Rollout.behavior_logp`) stands for it.
    ref_logp: float32 [Q, G, T], nats, of each token under the reference
      model, or None when no KL to the reference is asked for.
    ref_hidden: [Q, G, T, D], the reference's final hidden states, or None
      when the KL to it is not over the vocabulary.
  """

  sample_mask: Array
  token_mask: Array | None = None
  weight: Array | None = None
  old_logp: Array | None = None
  ref_logp: Array | None = None
  ref_hidden: Array | None = None

  def weighted(self, weight: Array | None) -> Any:
    """Returns the signal with every token's loss multiplied by a factor."""
    if weight is None:
      return self
    if self.weight is not None:
      weight = weight * self.weight
    return replace(self, weight=weight)


def counted_tokens(rollout: Rollout, signal: Signal) -> jax.Array:
  """Bool [Q, G, T]: tokens inside their completion that may count."""
  mask_QGT = length_mask(rollout.length, rollout.ids.shape[-1])
  if signal.token_mask is not None:
    mask_QGT &= signal.token_mask
  return mask_QGT


def importance_base(rollout: Rollout, signal: Signal) -> Array:
  """The log-probabilities that ratios are taken to, [Q, G, T], nats."""
  return rollout.behavior_logp if signal.old_logp is None else signal.old_logp


def new_signal(
  apply_fn: ApplyFn,
  params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  shared: Shared,
  *,
  ratios: bool,
) -> dict[str, Any]:
  """The fields of `Signal`: masks, the reference, the weights that sampled.

  `ratios`: whether the method takes ratios to the latter.
  """

  def logp_of(params, hidden):
    options = {'temperature': shared.temperature, 'chunk': shared.chunk}
    return token_logp(apply_fn, params, hidden, rollout.ids, **options)

  shape = rollout.ids.shape
  ones = jnp.ones(shape[:2], bool)
  fields: dict[str, Any] = {
    'sample_mask': rollout.finished if shared.mask_truncated else ones
  }
  if shared.skip_tokens:
    kept_T = jnp.arange(shape[-1]) >= shared.skip_tokens
    fields['token_mask'] = jnp.broadcast_to(kept_T, shape)
  if ref_params is not None:
    hidden = student_hidden(apply_fn, ref_params, prompts, rollout.ids)
    if shared.kl.over_vocabulary:
      fields['ref_hidden'] = hidden
    else:
      fields['ref_logp'] = logp_of(ref_params, hidden)
  if shared.sampler_clip or ratios and shared.sampling.truncates:
    hidden = student_hidden(apply_fn, params, prompts, rollout.ids)
    fields['old_logp'] = old = logp_of(params, hidden)
    if shared.sampler_clip:
      fields['weight'] = truncated_ratio(
        old, rollout.behavior_logp, shared.sampler_clip
      )
  return fields


class Student(NamedTuple):
  """What the student says of each token, and what compares it with.

  Attributes:
    logp: [Q, G, T], nats, of the token.
    entropy: [Q, G, T], nats, of the student's distribution.
    kl_ref: [Q, G, T], nats, KL(student || reference) over the vocabulary, or
      None where the reference's hidden states are not in the signal.
    compared: what the caller's function gave.
  """

  logp: jax.Array
  entropy: jax.Array
  kl_ref: jax.Array | None
  compared: Any


def student_tokens(
  apply_fn: ApplyFn,
  params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  shared: Shared,
  compare: Callable[..., Any] | None = None,
  inputs: tuple[Any, ...] = (),
) -> Student:
  """Runs the student over its rollouts, its logits a chunk at a time.

  `compare(student_logp [Q, G, c, V], ids [Q, G, c], *inputs)` is called for
  each chunk of c tokens with the inputs, trees of arrays with T as axis 2, cut
  to it.
  """
  hidden = student_hidden(apply_fn, params, prompts, rollout.ids)

  def part(hidden_QGTD, ids_QGT, ref_hidden_QGTD, inputs):
    student = log_softmax(
      apply_fn(params, hidden_QGTD, method='head'), shared.temperature
    )
    kl_ref = None
    if ref_hidden_QGTD is not None:
      reference = log_softmax(
        apply_fn(ref_params, ref_hidden_QGTD, method='head'),
        shared.temperature,
      )
      kl_ref = ReverseKL()(student, jax.lax.stop_gradient(reference))
    return Student(
      logp=take_token(student, ids_QGT),
      entropy=-jnp.sum(jnp.exp(student) * student, axis=-1),
      kl_ref=kl_ref,
      compared=compare(student, ids_QGT, *inputs) if compare else None,
    )

  return over_token_chunks(
    part, shared.chunk, hidden, rollout.ids, signal.ref_hidden, inputs
  )


def with_reference_kl(
  total: jax.Array,
  metrics: dict[str, jax.Array],
  student: Student,
  signal: Signal,
  weight_QGT: jax.Array,
  kl: ReferenceKL,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Adds the KL to the reference to a loss, and its metrics to those.

  They are `kl_ref` and `entropy`. A KL in the reward is measured, and not
  added.

  Raises:
    ValueError: if the KL has a weight but the signal no reference.
  """
  metrics = metrics | {'entropy': jnp.sum(weight_QGT * student.entropy)}
  if not kl.coef:
    return total, metrics
  each = student.kl_ref
  if not kl.over_vocabulary and signal.ref_logp is not None:
    each = kl(student.logp, signal.ref_logp)
  if each is None:
    raise ValueError(
      f'kl={str(kl)!r} needs a reference, but the signal has none: give '
      "signal_step the ref_params and the same kl, or kl='none'."
    )
  kl_ref = jnp.sum(weight_QGT * each)
  if not kl.in_reward:
    total += kl.coef * kl_ref
  return total, metrics | {'kl_ref': kl_ref}
