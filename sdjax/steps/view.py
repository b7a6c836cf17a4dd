"""What every method has in common: the student's view, masks, the anchor."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from sdjax.objectives.divergence import reverse_kl
from sdjax.objectives.policy_gradient import truncated_ratio
from sdjax.objectives.reference_kl import KL_ESTIMATORS
from sdjax.steps.score import (
  log_softmax,
  over_token_chunks,
  student_hidden,
  take_token,
  token_logp,
)
from sdjax.types import ApplyFn, Params, Prompts, Rollout, Signal, length_mask


def counted_tokens(rollout: Rollout, signal: Signal) -> jax.Array:
  """Bool [Q, G, T]: tokens inside their completion that may count."""
  mask_QGT = length_mask(rollout.length, rollout.ids.shape[-1])
  if signal.token_mask is not None:
    mask_QGT &= signal.token_mask
  return mask_QGT


def importance_base(rollout: Rollout, signal: Signal) -> jax.Array:
  """The log-probabilities that ratios are taken to, [Q, G, T]."""
  if signal.old_logp is not None:
    return signal.old_logp
  return rollout.behavior_logp


def new_signal(
  apply_fn: ApplyFn,
  params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  *,
  kl_estimator: str = 'k3',
  skip_tokens: int = 0,
  mask_truncated: bool = False,
  sampler_clip: float = 0.0,
  recompute: bool = False,
  temperature: float = 1.0,
  chunk: int = 16,
) -> Signal:
  """What a signal holds whatever the method: masks, reference, old weights.

  Args:
    apply_fn: the model.
    params: the weights that sampled the rollout.
    ref_params: the reference's weights, or None without a KL to it.
    prompts: the student's contexts.
    rollout: what was sampled.
    kl_estimator: `full` keeps the reference's hidden states, the others its
      log-probabilities.
    skip_tokens: first tokens of every completion that do not count.
    mask_truncated: rollouts that were cut off do not count.
    sampler_clip: above 0, tokens are weighted by min(p / s, this), with p
      their probability under the weights that sampled and s under the
      sampler, which truncation or another machine's arithmetic make differ.
    recompute: log-probabilities under the weights that sampled are computed
      anew; implied by `sampler_clip`.
    temperature: divides the logits.
    chunk: tokens whose logits exist at once.

  Returns:
    A signal without a target.
  """
  options = {'temperature': temperature, 'chunk': chunk}
  num_q, num_g, width = rollout.ids.shape
  ones = jnp.ones((num_q, num_g), bool)
  signal = Signal(sample_mask=rollout.finished if mask_truncated else ones)
  if skip_tokens:
    kept_T = jnp.arange(width) >= skip_tokens
    mask_QGT = jnp.broadcast_to(kept_T, rollout.ids.shape)
    signal = replace(signal, token_mask=mask_QGT)
  if ref_params is not None:
    hidden = student_hidden(apply_fn, ref_params, prompts, rollout.ids)
    if kl_estimator == 'full':
      signal = replace(signal, ref_hidden=hidden)
    else:
      logp = token_logp(apply_fn, ref_params, hidden, rollout.ids, **options)
      signal = replace(signal, ref_logp=logp)
  if recompute or sampler_clip:
    hidden = student_hidden(apply_fn, params, prompts, rollout.ids)
    old = token_logp(apply_fn, params, hidden, rollout.ids, **options)
    signal = replace(signal, old_logp=old)
    if sampler_clip:
      weight = truncated_ratio(old, rollout.behavior_logp, sampler_clip)
      signal = replace(signal, rl_weight=weight, sd_weight=weight)
  return signal


class View(NamedTuple):
  """What the student says of each token, and what compares it with.

  Attributes:
    logp: [Q, G, T], nats, of the token.
    entropy: [Q, G, T], nats, of the student's law.
    kl_ref: [Q, G, T], nats, KL(student || reference) over the vocabulary, or
      None where the reference's hidden states are not in the signal.
    extra: what the caller's function gave.
  """

  logp: jax.Array
  entropy: jax.Array
  kl_ref: jax.Array | None
  extra: Any


def student_view(
  apply_fn: ApplyFn,
  params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  *,
  compare: Callable[..., Any] | None = None,
  inputs: tuple[Any, ...] = (),
  temperature: float = 1.0,
  chunk: int = 16,
) -> View:
  """Runs the student over its rollouts, its logits a chunk at a time.

  Args:
    apply_fn: the model.
    params: the student's weights.
    ref_params: the reference's weights; its head is used where the signal
      has the reference's hidden states.
    prompts: the student's contexts.
    rollout: its completions.
    signal: their target.
    compare: `compare(student_logp [Q, G, c, V], ids [Q, G, c], *inputs cut to
      the chunk)`, called for each chunk of c tokens.
    inputs: trees of arrays with T as axis 2, for `compare`.
    temperature: divides all logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The student's view of each token.
  """
  hidden = student_hidden(apply_fn, params, prompts, rollout.ids)

  def part(hidden_QGTD, ids_QGT, ref_hidden_QGTD, inputs):
    student = log_softmax(
      apply_fn(params, hidden_QGTD, method='head'), temperature
    )
    kl_ref = None
    if ref_hidden_QGTD is not None:
      reference = jax.lax.stop_gradient(
        log_softmax(
          apply_fn(ref_params, ref_hidden_QGTD, method='head'), temperature
        )
      )
      kl_ref = reverse_kl(student, reference)
    return View(
      logp=take_token(student, ids_QGT),
      entropy=-jnp.sum(jnp.exp(student) * student, axis=-1),
      kl_ref=kl_ref,
      extra=compare(student, ids_QGT, *inputs) if compare else None,
    )

  return over_token_chunks(
    part, chunk, hidden, rollout.ids, signal.ref_hidden, inputs
  )


def add_reference_kl(
  total: jax.Array,
  metrics: dict[str, jax.Array],
  view: View,
  signal: Signal,
  weight_QGT: jax.Array,
  kl_coef: float,
  kl_estimator: str,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Anchors a loss to the reference model, in all methods alike.

  Args:
    total: the loss without it.
    metrics: of the loss.
    view: the student's.
    signal: holds the reference's log-probabilities or hidden states.
    weight_QGT: of each token in the loss.
    kl_coef: weight of KL(student || reference); 0: nothing is added, and
      it is measured where the signal has what that takes.
    kl_estimator: a key of `KL_ESTIMATORS`, or `full`.

  Returns:
    The loss, and the metrics with `kl_ref` and `entropy` among them.

  Raises:
    ValueError: if there is a weight but no reference, or no such estimator.
  """
  metrics = metrics | {'entropy': jnp.sum(weight_QGT * view.entropy)}
  if kl_estimator != 'full' and kl_estimator not in KL_ESTIMATORS:
    raise ValueError(
      f'kl_estimator={kl_estimator!r} is not one of '
      f'{", ".join([*KL_ESTIMATORS, "full"])}.'
    )
  each = view.kl_ref
  if kl_estimator != 'full':
    each = signal.ref_logp
    if each is not None:
      each = KL_ESTIMATORS[kl_estimator](view.logp, each)
  if each is None and not kl_coef:
    return total, metrics
  if each is None:
    raise ValueError(
      f'kl_coef={kl_coef} needs a reference, but the signal has none: give '
      f'signal_step the ref_params and kl_estimator={kl_estimator!r}, or set '
      'kl_coef=0.'
    )
  kl_ref = jnp.sum(weight_QGT * each)
  if kl_coef:
    total += kl_coef * kl_ref
  return total, metrics | {'kl_ref': kl_ref}
