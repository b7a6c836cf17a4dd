"""From the rewards of a group to the advantage of each rollout.

A group whose rewards are all equal has advantage 0 everywhere, but for the
reward itself. All results are float32 [Q, G] (float64 under x64).
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Bool, Float

from sdjax.options import ConfigError, Option, Size
from sdjax.types import Array, Rewards


def centred(reward_QG: Float[Array, 'Q G']) -> Float[Array, 'Q G']:
  """R - mean, exactly 0 in a group of equal rewards."""
  reward_QG = jnp.asarray(reward_QG, float)
  gap_QG = reward_QG - reward_QG.mean(axis=1, keepdims=True)
  # The rounded mean of equal rewards need not be that reward, and dividing by
  # their spread would blow the difference up.
  flat_Q1 = jnp.ptp(reward_QG, axis=1, keepdims=True) == 0
  return jnp.where(flat_Q1, 0, gap_QG)


class Advantage(Option):
  """What a rollout's reward is worth within its group.

  Attributes:
    plain: whether it is a function of the rewards alone, so that bonuses and
      penalties added to them act.
    needs_sets: whether it asks for the rewards of each strategy.
    smallest_group: rollouts a question must have.
  """

  plain: ClassVar[bool] = True
  needs_sets: ClassVar[bool] = False
  smallest_group: ClassVar[int] = 2

  def __call__(self, rewards: Rewards) -> Float[Array, 'Q G']:
    """Returns the advantage of each rollout."""
    raise NotImplementedError

  def baseline(self, cost_QG: Float[Array, 'Q G']) -> Float[Array, 'Q G']:
    """Takes from a cost that is added to the rewards what groups share."""
    return centred(cost_QG)

  def check(self, num_samples: int) -> None:
    """Raises a `ConfigError` for groups that are too small."""
    if num_samples < self.smallest_group:
      raise ConfigError(
        f'rollout.num_samples={num_samples} leaves advantage={str(self)!r} '
        f'nothing to compare; use at least {self.smallest_group}, or '
        "'reinforce'."
      )


@dataclass(frozen=True)
class RewardItself(Advantage, name='reinforce'):
  """The reward itself, without a baseline (R. J. Williams, 1992)."""

  smallest_group: ClassVar[int] = 1
  said = 'R'

  def __call__(self, rewards):
    """Returns [Q, G]."""
    return jnp.asarray(rewards.reward, float)

  def baseline(self, cost_QG):
    """Returns the cost: there is no baseline."""
    return jnp.asarray(cost_QG, float)


@dataclass(frozen=True)
class DrGRPO(Advantage, name='dr_grpo'):
  """R - mean: no division by the spread (Dr. GRPO, arXiv 2503.20783)."""

  said = 'R - mean'

  def __call__(self, rewards):
    """Returns [Q, G]."""
    return centred(rewards.reward)


@dataclass(frozen=True)
class GRPO(Advantage, name='grpo'):
  """(R - mean) / (std + epsilon) within each question's group.

  Source: GRPO (arXiv 2402.03300), which names neither the divisor of the
  variance nor the constant: the single-GPU code base that the target paper
  builds on has `population` and 1e-4, verl `sample` and 1e-6, trl `sample`
  and 1e-4.

  Attributes:
    std: the variance divides by G (`population`) or by G - 1 (`sample`). The
      latter does not exist for a group of one: as in verl the mean is then 0
      and the deviation 1.
    epsilon: added to the deviation: equal rewards have none to divide by.
  """

  std: Literal['population', 'sample'] = 'population'
  epsilon: Annotated[float, Gt(0)] = 1e-4

  def __call__(self, rewards):
    """Returns [Q, G]."""
    reward_QG = jnp.asarray(rewards.reward, float)
    sample = self.std == 'sample'
    if sample and reward_QG.shape[1] == 1:
      return reward_QG / (1 + self.epsilon)
    deviation_Q1 = reward_QG.std(axis=1, keepdims=True, ddof=int(sample))
    return centred(reward_QG) / (deviation_Q1 + self.epsilon)

  def words(self) -> str:
    """Says what it is, for a person."""
    sample = 'sample ' if self.std == 'sample' else ''
    return f'(R - mean) / ({sample}std + {self.epsilon})'


@dataclass(frozen=True)
class RLOO(Advantage, name='rloo'):
  """Reward minus the mean of the group's others: G / (G - 1) times centred.

  Source: RLOO (arXiv 2402.14740).
  """

  said = 'R - mean of the others'

  def __call__(self, rewards):
    """Returns [Q, G]; an error for a group of one, which has no others."""
    return self.baseline(rewards.reward)

  def baseline(self, cost_QG):
    """Returns the cost less the others' mean."""
    num_samples = jnp.shape(cost_QG)[1]
    if num_samples < 2:
      raise ValueError('rloo needs at least 2 rollouts a question.')
    return centred(cost_QG) * num_samples / (num_samples - 1)


@dataclass(frozen=True)
class PassAtK(Advantage, name='pass_at_k'):
  """The mean advantage of a rollout over the k-subsets that contain it.

  A subset's reward is 1 if any of its k rollouts is correct; it is
  normalised by the mean and the standard deviation over subsets of the
  group. With N rollouts, W of them wrong, R = 1 - C(W, k) / C(N, k) and
  s = sqrt(R (1 - R)): a correct rollout has (1 - R) / s, a wrong one
  (1 - R - C(W - 1, k - 1) / C(N - 1, k - 1)) / s. At k = 1 it is GRPO's. 0
  where every subset has the same reward.

  Source: "Pass@k Training", arXiv 2508.10751 (analytical form).
  """

  k: Size = 4
  plain: ClassVar[bool] = False
  said = 'its part in pass@{k}'

  def __call__(self, rewards):
    """Returns [Q, G]; an error where k exceeds the group."""
    correct_QG = jnp.asarray(rewards.correct, bool)
    num_samples, k = correct_QG.shape[1], self.k
    if k > num_samples:
      raise ValueError(f'k={k} must be in 1..{num_samples}, the group size.')
    wrong_Q1 = (~correct_QG).sum(axis=1, keepdims=True)

    def share(n, m, k):
      """C(n, k) / C(m, k): no correct rollout among k of m, n of them wrong."""
      i = jnp.arange(k)
      return jnp.prod(jnp.maximum(n[..., None] - i, 0) / (m - i), axis=-1)

    failed_Q1 = share(wrong_Q1, num_samples, k)
    with_me_Q1 = share(wrong_Q1 - 1, num_samples - 1, k - 1)
    spread_Q1 = jnp.sqrt(failed_Q1 * (1 - failed_Q1))
    raw_QG = failed_Q1 - jnp.where(correct_QG, 0, with_me_Q1)
    flat_Q1 = spread_Q1 == 0
    return jnp.where(flat_Q1, 0, raw_QG / jnp.where(flat_Q1, 1, spread_Q1))

  def check(self, num_samples: int) -> None:
    """Refuses a k that leaves one set."""
    super().check(num_samples)
    if self.k >= num_samples:
      raise ConfigError(
        f'pass_at_k(k={self.k}) must have k below rollout.num_samples='
        f'{num_samples}: the set of all has nothing to be compared to.'
      )


@dataclass(frozen=True)
class MaxRL(Advantage, name='maxrl'):
  """(r - k/G) / (k/G), r being 1 for the k correct of G rollouts, else 0.

  Where `GRPO` divides by the standard deviation, this divides by the mean:
  the rarer a right answer, the more it counts, up to G - 1. In place of
  pass@1 it raises the sum of pass@n / n over n below G. 0 in a group without
  a correct rollout.

  Source: MaxRL, arXiv 2602.02710.
  """

  plain: ClassVar[bool] = False
  said = '(r - m) / m, r 1 for a correct rollout, m their share'

  def __call__(self, rewards):
    """Returns [Q, G], at least -1."""
    correct_QG = jnp.asarray(rewards.correct, float)
    share_Q1 = correct_QG.mean(axis=1, keepdims=True)
    return centred(correct_QG) / jnp.where(share_Q1 > 0, share_Q1, 1)


@dataclass(frozen=True)
class ROSA(Advantage, name='rosa'):
  """What each rollout adds to the best reward of its set.

  The reward is uncertain: each of S is as likely to be the one that counts.
  sum_s (max_j R_s(y_j) - max_{j != i} R_s(y_j)): a rollout is credited where
  it alone is best, so that covering what no other covers is what pays. A sum:
  a mean over the strategies that a group happens to cover would credit the
  common ones more.

  Source: ROSA, arXiv 2606.03962.
  """

  plain: ClassVar[bool] = False
  needs_sets: ClassVar[bool] = True
  said = 'what it adds to the best of its set under an uncertain reward'

  def __call__(self, rewards):
    """Returns [Q, G], at least 0; an error for a group of one."""
    reward_QGS = jnp.asarray(rewards.set_reward, float)
    num_samples = reward_QGS.shape[1]
    if num_samples < 2:
      raise ValueError('rosa needs at least 2 rollouts a question.')
    best_Q1S = reward_QGS.max(axis=1, keepdims=True)
    others = jnp.where(
      jnp.eye(num_samples, dtype=bool)[None, ..., None],
      -jnp.inf,
      reward_QGS[:, None],
    )
    return (best_Q1S - others.max(axis=2)).sum(axis=-1)


def different_share(same_QGG: Bool[Array, 'Q G G']) -> Float[Array, 'Q G']:
  """Share of a group's other rollouts that are not the same as each one.

  0 for a group of one; the diagonal is not read.
  """
  num_samples = same_QGG.shape[1]
  other_GG = ~jnp.eye(num_samples, dtype=bool)
  different_QG = jnp.sum(~same_QGG & other_GG, axis=-1)
  return different_QG / jnp.float32(max(num_samples - 1, 1))


def disjoint_share(member_QGS: Bool[Array, 'Q G S']) -> Float[Array, 'Q G']:
  """Share of a group's other rollouts that share no strategy with each one.

  Each names some of S strategies; 0 for a group of one.

  Source: the diversity reward of arXiv 2606.26091 (sec. 4.1).
  """
  member_QGS = jnp.asarray(member_QGS, jnp.float32)
  shared_QGG = jnp.einsum('qis,qjs->qij', member_QGS, member_QGS)
  return different_share(shared_QGG > 0)
