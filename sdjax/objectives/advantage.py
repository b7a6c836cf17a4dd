"""From the rewards of a group to the advantage of each rollout."""

import jax
import jax.numpy as jnp


def group_normalised(reward_QG: jax.Array) -> jax.Array:
  """(r - mean) / (std + 1e-4) within each question's group.

  Source: GRPO (arXiv 2402.03300); population std and the constant as in the
  single-GPU code base the target paper builds on. A group whose rewards are
  all equal has advantage 0.

  Args:
    reward_QG: float [Q, G].

  Returns:
    float32 [Q, G].
  """
  reward_QG = jnp.asarray(reward_QG, float)  # float64 under x64
  centred_QG = reward_QG - reward_QG.mean(axis=1, keepdims=True)
  return centred_QG / (reward_QG.std(axis=1, keepdims=True) + 1e-4)


def disjoint_share(member_QGS: jax.Array) -> jax.Array:
  """Share of a group's other rollouts that share no concept with each one.

  Source: the diversity reward of arXiv 2606.26091 (sec. 4.1).

  Args:
    member_QGS: bool [Q, G, S], whether a rollout names each of S concepts.

  Returns:
    float32 [Q, G], in 0..1; 0 for a group of one.
  """
  member_QGS = jnp.asarray(member_QGS, jnp.float32)
  num_samples = member_QGS.shape[1]
  shared_QGG = jnp.einsum('qis,qjs->qij', member_QGS, member_QGS)
  other_GG = ~jnp.eye(num_samples, dtype=bool)
  disjoint_QG = jnp.sum((shared_QGG == 0) & other_GG, axis=-1)
  return disjoint_QG / jnp.float32(max(num_samples - 1, 1))
