"""Per-token losses of reinforcement learning, and the KL to a reference."""

import jax
import jax.numpy as jnp


def clipped_policy_gradient(
  logp: jax.Array,
  behavior_logp: jax.Array,
  advantage: jax.Array,
  *,
  clip_low: float,
  clip_high: float,
) -> jax.Array:
  """-min(r A, clip(r, 1 - low, 1 + high) A) with r = exp(logp - behavior).

  At r = 1 its gradient is -A times that of `logp`. Source: PPO (arXiv
  1707.06347, eq. 7), as GRPO (2402.03300) uses it per token.

  Args:
    logp: [...], nats, of the taken token under the student.
    behavior_logp: [...], nats, under the policy that sampled it.
    advantage: [...].
    clip_low: lower clip distance, >= 0.
    clip_high: upper clip distance, >= 0.

  Returns:
    [...], the loss of each token.
  """
  ratio = jnp.exp(logp - jax.lax.stop_gradient(behavior_logp))
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  return -jnp.minimum(ratio * advantage, clipped * advantage)


def k3(logp: jax.Array, ref_logp: jax.Array) -> jax.Array:
  """exp(ref - logp) - (ref - logp) - 1, an estimate of KL(student || ref).

  Non-negative, and unbiased for tokens the student sampled (J. Schulman,
  "Approximating KL Divergence", 2020).

  Args:
    logp: [...], nats, of the taken token under the student.
    ref_logp: [...], nats, under the reference.

  Returns:
    [...], nats.
  """
  gap = jax.lax.stop_gradient(ref_logp) - logp
  return jnp.exp(gap) - gap - 1
