"""The KL to the reference as a reward, charged to whole answers.

The gradient of E[R] - beta KL(student || reference) over whole answers is

  E[(R - beta sum_t (log p_t - log r_t)) grad log p(answer)]:

what an answer's log-ratio costs is one more reward, held constant. (The log p
in it has a slope of its own, E[grad log p], which is 0.) As in a reward, only
what an answer costs beyond the others of its group matters. A loss with a KL
of each token lacks the part of this gradient in which a token pays for the
tokens that it makes likely behind it.

Source: arXiv 2606.26091, Prop. 1 (the optimum, pi0 exp(R / beta)); the reward
is that of RLHF, e.g. arXiv 2203.02155.
"""

import jax
import jax.numpy as jnp

from sdjax.objectives.advantage import ADVANTAGES, centred

PLACES = ('loss', 'reward', 'reward_to_go')
"""Where a KL to the reference may be."""

LINEAR = ('dr_grpo', 'rloo', 'reinforce')
"""Advantages of a sum of rewards that are the sum of their advantages."""


def kl_charge(
  logp: jax.Array,
  ref_logp: jax.Array,
  mask: jax.Array,
  *,
  to_go: bool = False,
  advantage: str = 'dr_grpo',
) -> jax.Array:
  """What each token's advantage loses for each unit of the KL's weight.

  A rollout's K = sum_t (log p_t - log r_t), less the group's mean of it as
  its reward is: with an advantage in `LINEAR`, A(R) - beta times this is
  A(R - beta K). Other advantages divide by the spread of the rewards. K is
  not divided: beta is then in units of the advantage, as it is in a loss, and
  in units of the reward it is beta times that spread. (Dividing R - beta K by
  its own spread would pull a group of equal rewards towards the reference by
  as much for any beta.)

  Args:
    logp: float32 [Q, G, T], nats, of each token under the student.
    ref_logp: float32 [Q, G, T], nats, under the reference.
    mask: bool [Q, G, T], tokens that count.
    to_go: each token is charged what comes from it on. The tokens before it
      are none of its doing, so the mean gradient is the same; but the noise
      of R and of K then no longer cancel where R - beta K is the same for all
      answers, which is at the optimum. The baseline is that of each column, a
      rollout that has ended having nothing to go.
    advantage: the one of the rewards, whose baseline is used: that of the
      others (`rloo`), none (`reinforce`), and else the group's mean.

  Returns:
    float32 [Q, G, T], nats.
  """
  gap_QGT = jnp.where(mask, logp - ref_logp, 0)
  if to_go:
    total_QGT = jax.lax.cumsum(gap_QGT, axis=2, reverse=True)
  else:
    total_QG1 = gap_QGT.sum(axis=-1, keepdims=True)
    total_QGT = jnp.broadcast_to(total_QG1, gap_QGT.shape)
  baseline = ADVANTAGES[advantage] if advantage in LINEAR else centred
  return jax.vmap(baseline, in_axes=2, out_axes=2)(total_QGT)
