"""Token-level advantages made of a reward's and a teacher's.

A is the advantage from rewards; u = log q - log p is the teacher's log-ratio
of the taken token (the token's pointwise conditional mutual information with
the demonstration). All results are constants of the update.
"""

import jax
import jax.numpy as jnp


def mixed(
  advantage: jax.Array, log_ratio: jax.Array, weight: jax.Array | float
) -> jax.Array:
  """Weight * A + (1 - weight) * u.

  At weight 1 it is the reward's advantage, at 0 the gradient of the sampled
  reverse KL to the teacher.

  Args:
    advantage: [...], A.
    log_ratio: [...], nats, u.
    weight: in [0, 1].

  Returns:
    [...].

  Source: SDPO, arXiv 2601.20802, eq. 3.
  """
  return weight * advantage + (1 - weight) * log_ratio


def debiased(
  log_ratio: jax.Array, mask: jax.Array, strategy: jax.Array
) -> jax.Array:
  """The log-ratio without its liking for one strategy over another.

  The sum of u over a rollout's tokens is its PCMI with what the teacher was
  shown, and that is what tilts the optimum among correct answers. Its mean
  over the group's correct rollouts of one strategy is the tilt of that
  strategy; here every strategy gets the mean of them all. Within a strategy,
  and for wrong rollouts, nothing changes. What is added to a rollout is
  spread over its tokens in proportion to |u|: it is taken away where it came
  in, at the token that decides.

  Args:
    log_ratio: float32 [Q, G, T], nats, u; 0 where there is no teacher.
    mask: bool [Q, G, T], the tokens that count.
    strategy: int [Q, G], the same for correct rollouts of one strategy, -1
      for rollouts that are wrong or have no teacher.

  Returns:
    float32 [Q, G, T]; u itself in a group with at most one strategy.

  Source: ours, after the ratio in Remark 1 of arXiv 2606.26091.
  """
  u_QGT = jnp.where(mask, log_ratio, 0)
  some_QG = strategy >= 0
  alike_QGG = (strategy[:, :, None] == strategy[:, None, :]) & (
    some_QG[:, :, None] & some_QG[:, None, :]
  )
  count_QG = alike_QGG.sum(axis=-1)
  tilt_QG = jnp.einsum('qgh,qh->qg', alike_QGG, u_QGT.sum(-1)) / jnp.maximum(
    count_QG, 1
  )
  # Each strategy once, however many rollouts it has.
  once_QG = jnp.where(some_QG, 1 / jnp.maximum(count_QG, 1), 0)
  mean_Q1 = jnp.sum(once_QG * tilt_QG, axis=-1, keepdims=True) / jnp.maximum(
    jnp.sum(once_QG, axis=-1, keepdims=True), 1
  )
  change_QG = jnp.where(some_QG, mean_Q1 - tilt_QG, 0)
  size_QGT = jnp.abs(u_QGT)
  total_QG1 = size_QGT.sum(axis=-1, keepdims=True)
  share_QGT = size_QGT / jnp.where(total_QG1 > 0, total_QG1, 1)
  return log_ratio + change_QG[..., None] * share_QGT


def rlsd(
  advantage: jax.Array,
  log_ratio: jax.Array,
  weight: jax.Array | float,
  *,
  clip: float = 0.2,
) -> jax.Array:
  """A [(1 - weight) + weight * clip(exp(sign(A) u), 1 - clip, 1 + clip)].

  The verifier gives the direction, the teacher only the size.

  Args:
    advantage: [...], A.
    log_ratio: [...], nats, u.
    weight: in [0, 1]; 0 is the reward's advantage.
    clip: how far from 1 the factor may be.

  Returns:
    [...], with the sign of A.

  Source: RLSD, arXiv 2604.03128.
  """
  factor = jnp.exp(jnp.clip(jnp.sign(advantage) * log_ratio, -20, 20))
  factor = jnp.clip(factor, 1 - clip, 1 + clip)
  return advantage * ((1 - weight) + weight * factor)


def antisd(
  advantage: jax.Array, log_ratio: jax.Array, weight: jax.Array | float
) -> jax.Array:
  """A - weight * (softplus(u) - log 2) / 2: away from what the teacher likes.

  Args:
    advantage: [...], A.
    log_ratio: [...], nats, u; 0 (no teacher) changes nothing.
    weight: >= 0; 0 is the reward's advantage.

  Returns:
    [...].

  Source: AntiSD, arXiv 2605.11609.
  """
  return advantage - weight * (jax.nn.softplus(log_ratio) - jnp.log(2.0)) / 2


def rlcsd(
  advantage: jax.Array,
  contrast: jax.Array,
  weight: jax.Array | float,
  *,
  temperature: float = 0.02,
  largest: float = 2.0,
  threshold: float = 0.02,
) -> tuple[jax.Array, jax.Array]:
  """Adds a bounded contrast of teachers where it is decided.

  With e = log q(shown a right answer) - log mean q(shown a wrong one), the
  bonus is clip(weight * tanh(e / temperature), -largest, largest). Where it
  exceeds the threshold the advantage becomes A + bonus, but never changes
  its sign; where A is 0 it stays 0.

  Args:
    advantage: [...], A.
    contrast: [...], nats, e; 0 where a side is missing.
    weight: >= 0; 0 is the reward's advantage.
    temperature: nats, scale of the contrast.
    largest: bound of the bonus.
    threshold: smaller bonuses are dropped.

  Returns:
    The new advantage, and bool [...], the tokens that it touched.

  Source: RLCSD, arXiv 2606.11709 and its code.
  """
  bonus = jnp.clip(weight * jnp.tanh(contrast / temperature), -largest, largest)
  touched = jnp.abs(bonus) > threshold
  raised = advantage + jnp.where(touched, bonus, 0)
  kept = jnp.where(
    advantage > 0, jnp.maximum(raised, 0), jnp.minimum(raised, 0)
  )
  return jnp.where(advantage == 0, 0, kept), touched


def future_sum(value: jax.Array, mask: jax.Array, discount: float) -> jax.Array:
  """sum_{s > t} discount^(s - t) value_s over the tokens that count.

  Args:
    value: [..., T].
    mask: bool [..., T].
    discount: in [0, 1].

  Returns:
    [..., T]; 0 for the last token.
  """
  steps = jnp.moveaxis(jnp.where(mask, value, 0), -1, 0)

  def back(later, now):
    later = discount * later
    return later + now, later

  _, out = jax.lax.scan(back, jnp.zeros_like(steps[0]), steps, reverse=True)
  return jnp.moveaxis(out, 0, -1)
