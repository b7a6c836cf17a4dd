"""Estimates of KL(student || reference) from the tokens a student sampled.

  name   value                      mean of its gradient as a loss
  k1     log p - log r              that of KL(student || reference)
  k2     (log p - log r)^2 / 2      that of KL(student || reference)
  k3     r/p - 1 - log(r/p)         that of KL(reference || student)

with p the student's and r the reference's probability of the token. All three
are unbiased, or nearly so, as VALUES; as losses they are not the same. The
plain gradient of k1 has mean zero, so here k1 has its value and the
policy-gradient form of its slope ("k1 in the reward").
`sdjax.steps.score.View.kl_ref` is the fourth, `full`: the exact sum over the
vocabulary.

Source: J. Schulman, "Approximating KL Divergence", 2020; the gradients: ours.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sdjax.objectives.policy_gradient import LARGEST_GAP


def k1(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
  """Log p - log r, with slope (log p - log r) d(log p).

  Args:
    logp: [...], nats, of the taken token under the student.
    ref_logp: [...], nats, under the reference.

  Returns:
    [...], nats, of either sign.
  """
  gap = jax.lax.stop_gradient(logp - ref_logp)
  return gap + gap * (logp - jax.lax.stop_gradient(logp))


def k2(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
  """(log p - log r)^2 / 2.

  Args:
    logp: [...], nats, of the taken token under the student.
    ref_logp: [...], nats, under the reference.

  Returns:
    [...], nats, >= 0.
  """
  return jnp.square(logp - jax.lax.stop_gradient(ref_logp)) / 2


def k3(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
  """exp(ref - logp) - (ref - logp) - 1.

  Beyond a log-ratio of `LARGEST_GAP` the exponential goes on along its
  tangent: it stays finite, and its slope, held at that of the edge, goes on
  pulling the student towards the reference.

  Args:
    logp: [...], nats, of the taken token under the student.
    ref_logp: [...], nats, under the reference.

  Returns:
    [...], nats, >= 0; convex, with a slope of 1 - exp(min(ref - logp,
    `LARGEST_GAP`)) in `logp`.
  """
  gap = jax.lax.stop_gradient(ref_logp) - logp
  near = jnp.minimum(gap, LARGEST_GAP)
  return jnp.exp(near) * (1 + gap - near) - gap - 1


KL_ESTIMATORS: dict[str, Callable[..., jax.Array]] = {
  'k1': k1,
  'k2': k2,
  'k3': k3,
}

DESCENDED = {
  'k1': 'reverse_kl',
  'k2': 'reverse_kl',
  'k3': 'forward_kl',
  'full': 'reverse_kl',
}
"""Which KL each descends as a loss, as `forecast.closed_forms` names it."""
