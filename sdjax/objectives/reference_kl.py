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

  Args:
    logp: [...], nats, of the taken token under the student.
    ref_logp: [...], nats, under the reference.

  Returns:
    [...], nats, >= 0.
  """
  gap = jax.lax.stop_gradient(ref_logp) - logp
  # Beyond exp(20) a token is an accident, or padding: it must not be inf.
  return jnp.exp(jnp.clip(gap, -LARGEST_GAP, LARGEST_GAP)) - gap - 1


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
"""Which KL each descends as a loss, by its name in `sdjax.theory.ANCHORS`."""
