# pyright: reportIncompatibleVariableOverride=false
"""The KL to the reference model: what it costs to leave it.

  name    value                      mean of its gradient as a loss
  k1      log p - log r              that of KL(student || reference)
  k2      (log p - log r)^2 / 2      that of KL(student || reference)
  k3      r/p - 1 - log(r/p)         that of KL(reference || student)
  full    the sum over the vocabulary, exact

with p the student's and r the reference's probability of the sampled token.
The first three are unbiased, or nearly so, as VALUES; as losses they are not
the same. The plain gradient of k1 has mean zero, so here k1 has its value and
the policy-gradient form of its slope.

`reward` charges the KL to whole answers instead. The gradient of
E[R] - coef KL(student || reference) over whole answers is

  E[(R - coef sum_t (log p_t - log r_t)) grad log p(answer)]:

what an answer's log-ratio costs is one more reward, held constant. (The log p
in it has a slope of its own, E[grad log p], which is 0.) A loss with a KL of
each token lacks the part of this gradient in which a token pays for the tokens
that it makes likely behind it.

Source: J. Schulman, "Approximating KL Divergence", 2020; the gradients: ours;
the optimum pi0 exp(R / coef): arXiv 2606.26091, Prop. 1; the KL as a reward:
RLHF, e.g. arXiv 2203.02155.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Bool, Float

from sdjax.objectives.advantages import Advantage
from sdjax.objectives.policy_loss import LARGEST_GAP
from sdjax.options import Option
from sdjax.types import Array

Coef = Annotated[float, Gt(0)]


class ReferenceKL(Option):
  """How the student is held near the weights the run began with.

  Attributes:
    coef: weight, in nats of the loss (or of the reward) per nat; 0: none.
    over_vocabulary: whether it needs the reference's whole distributions.
    in_reward: whether it is charged to the advantage, not to the loss.
    descends: the KL whose gradient it has as a loss.
  """

  coef: float  # without a default, so that a text without it is told
  over_vocabulary: ClassVar[bool] = False
  in_reward: ClassVar[bool] = False
  descends: ClassVar[str] = 'reverse_kl'
  said = '; + {coef:g} x KL(student || reference), {name}'

  def __call__(
    self, logp: Float[Array, '*B'], ref_logp: Float[Array, '*B']
  ) -> Float[Array, '*B']:
    """The estimate at each token, from its log-probabilities, all in nats."""
    raise NotImplementedError


@dataclass(frozen=True)
class NoKL(ReferenceKL, name='none'):
  """Nothing holds the student."""

  coef: ClassVar[float] = 0.0
  said = ''


def _k1(logp, ref_logp):
  gap = jax.lax.stop_gradient(logp - ref_logp)
  return gap + gap * (logp - jax.lax.stop_gradient(logp))


@dataclass(frozen=True)
class K1(ReferenceKL, name='k1'):
  """Log p - log r, with slope (log p - log r) d(log p); of either sign."""

  coef: Coef

  def __call__(self, logp, ref_logp):
    """Returns nats."""
    return _k1(logp, ref_logp)


@dataclass(frozen=True)
class K2(ReferenceKL, name='k2'):
  """(log p - log r)^2 / 2, at least 0."""

  coef: Coef

  def __call__(self, logp, ref_logp):
    """Returns nats."""
    return jnp.square(logp - jax.lax.stop_gradient(ref_logp)) / 2


@dataclass(frozen=True)
class K3(ReferenceKL, name='k3'):
  """exp(ref - logp) - (ref - logp) - 1, at least 0 and convex.

  Beyond a log-ratio of `LARGEST_GAP` the exponential goes on along its
  tangent: it stays finite, and its slope, held at that of the edge, goes on
  pulling the student towards the reference. The slope in `logp` is
  1 - exp(min(ref - logp, `LARGEST_GAP`)).
  """

  coef: Coef
  descends: ClassVar[str] = 'forward_kl'

  def __call__(self, logp, ref_logp):
    """Returns nats."""
    gap = jax.lax.stop_gradient(ref_logp) - logp
    near = jnp.minimum(gap, LARGEST_GAP)
    return jnp.exp(near) * (1 + gap - near) - gap - 1


@dataclass(frozen=True)
class FullKL(ReferenceKL, name='full'):
  """KL(student || reference) over the whole vocabulary."""

  coef: Coef
  over_vocabulary: ClassVar[bool] = True


@dataclass(frozen=True)
class KLReward(ReferenceKL, name='reward'):
  """The KL of whole answers, charged to the advantage of RL.

  A rollout's K = sum_t (log p_t - log r_t) is a cost in its reward, less what
  the advantage takes as its baseline: with `dr_grpo`, `rloo` or `reinforce`
  and an aggregation that does not divide by a rollout's own length, the
  optimum is the reference times exp(R / coef). `grpo` divides rewards by
  their standard deviation s; K is not divided, so the weight counts s times
  itself. (Dividing R - coef K by its own spread would pull a group of equal
  rewards towards the reference by as much for any coef.)

  Attributes:
    to_go: each token is charged what comes from it on. The tokens before it
      are none of its doing, so the mean gradient is the same; but the noise
      of R and of K then no longer cancel where R - coef K is the same for all
      answers, which is at the optimum. The baseline is that of each column, a
      rollout that has ended having nothing to go.
  """

  coef: Coef
  to_go: bool = False
  in_reward: ClassVar[bool] = True

  def __call__(self, logp, ref_logp):
    """Returns nats, to be measured."""
    return _k1(logp, ref_logp)

  def charge(
    self,
    logp: Float[Array, 'Q G T'],
    ref_logp: Float[Array, 'Q G T'],
    mask: Bool[Array, 'Q G T'],
    advantage: Advantage,
  ) -> Float[Array, 'Q G T']:
    """Nats that each token's advantage loses for each unit of the weight.

    From its log-probabilities under the weights that sampled and under the
    reference, the tokens that count, and the baseline of the rewards'
    advantage.
    """
    gap_QGT = jnp.where(mask, logp - ref_logp, 0)
    if self.to_go:
      total_QGT = jax.lax.cumsum(gap_QGT, axis=2, reverse=True)
    else:
      total_QG1 = gap_QGT.sum(axis=-1, keepdims=True)
      total_QGT = jnp.broadcast_to(total_QG1, gap_QGT.shape)
    return jax.vmap(advantage.baseline, in_axes=2, out_axes=2)(total_QGT)

  def words(self) -> str:
    """Says what the advantage loses, for a person."""
    over = 'from the token on' if self.to_go else 'over the rollout'
    return (
      f'; A less {self.coef:g} x K, K = the sum of log student - log '
      f'reference {over}, less the baseline of A, if any'
    )
