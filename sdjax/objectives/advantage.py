"""From the rewards of a group to the advantage of each rollout.

All take float [Q, G] and give float32 [Q, G] (float64 under x64). A group
whose rewards are all equal has advantage 0 everywhere, but for `reinforce`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

STDS = ('population', 'sample')
"""What the sum of squares is divided by in the spread of a group."""


def reinforce(reward_QG: jax.Array) -> jax.Array:
  """The reward itself, without a baseline (R. J. Williams, 1992)."""
  return jnp.asarray(reward_QG, float)


def centred(reward_QG: jax.Array) -> jax.Array:
  """R - mean: no division by the spread (Dr. GRPO, arXiv 2503.20783)."""
  reward_QG = jnp.asarray(reward_QG, float)
  gap_QG = reward_QG - reward_QG.mean(axis=1, keepdims=True)
  # The rounded mean of equal rewards need not be that reward, and dividing by
  # their spread would blow the difference up.
  flat_Q1 = jnp.ptp(reward_QG, axis=1, keepdims=True) == 0
  return jnp.where(flat_Q1, 0, gap_QG)


def group_normalised(
  reward_QG: jax.Array, std: str = 'population', epsilon: float = 1e-4
) -> jax.Array:
  """(r - mean) / (std + epsilon) within each question's group.

  Source: GRPO (arXiv 2402.03300), which names neither the divisor of the
  variance nor the constant: the single-GPU code base that the target paper
  builds on has `population` and 1e-4, verl `sample` and 1e-6, trl `sample`
  and 1e-4.

  Args:
    reward_QG: float [Q, G].
    std: the variance divides by G (`population`) or by G - 1 (`sample`). The
      latter does not exist for a group of one: as in verl the mean is then 0
      and the deviation 1.
    epsilon: added to the deviation, > 0.

  Returns:
    float32 [Q, G].

  Raises:
    ValueError: for another std.
  """
  if std not in STDS:
    raise ValueError(f'std={std!r} is not one of {STDS}.')
  reward_QG = jnp.asarray(reward_QG, float)  # float64 under x64
  sample = std == 'sample'
  if sample and reward_QG.shape[1] == 1:
    return reward_QG / (1 + epsilon)
  deviation_Q1 = reward_QG.std(axis=1, keepdims=True, ddof=int(sample))
  return centred(reward_QG) / (deviation_Q1 + epsilon)


def leave_one_out(reward_QG: jax.Array) -> jax.Array:
  """Reward minus the mean of the group's other rewards.

  Source: RLOO (arXiv 2402.14740).

  Args:
    reward_QG: float [Q, G].

  Returns:
    float32 [Q, G]; G / (G - 1) times `centred`.

  Raises:
    ValueError: for a group of one, which has no others.
  """
  num_samples = jnp.shape(reward_QG)[1]
  if num_samples < 2:
    raise ValueError('leave_one_out needs at least 2 rollouts a question.')
  return centred(reward_QG) * num_samples / (num_samples - 1)


def pass_at_k(correct_QG: jax.Array, k: int) -> jax.Array:
  """The mean advantage of a rollout over the k-subsets that contain it.

  A subset's reward is 1 if any of its k rollouts is correct; it is
  normalised by the mean and the standard deviation over subsets of the
  group. With N rollouts, W of them wrong, R = 1 - C(W, k) / C(N, k) and
  s = sqrt(R (1 - R)): a correct rollout has (1 - R) / s, a wrong one
  (1 - R - C(W - 1, k - 1) / C(N - 1, k - 1)) / s. At k = 1 it is GRPO's.

  Args:
    correct_QG: bool [Q, G].
    k: in 1..G.

  Returns:
    float32 [Q, G]; 0 where every subset has the same reward.

  Raises:
    ValueError: for another k.

  Source: "Pass@k Training", arXiv 2508.10751 (analytical form).
  """
  correct_QG = jnp.asarray(correct_QG, bool)
  num_samples = correct_QG.shape[1]
  if not 1 <= k <= num_samples:
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


def set_max(reward_QGS: jax.Array) -> jax.Array:
  """What each rollout adds to the best reward of its set.

  The reward is uncertain: each of S is as likely to be the one that counts.
  sum_s (max_j R_s(y_j) - max_{j != i} R_s(y_j)): a rollout is credited where
  it alone is best, so that covering what no other covers is what pays. A sum:
  a mean over the concepts that a group happens to cover would credit the
  common ones more.

  Args:
    reward_QGS: float [Q, G, S], each rollout's reward under each of S.

  Returns:
    float32 [Q, G], >= 0.

  Raises:
    ValueError: for a group of one.

  Source: ROSA, arXiv 2606.03962.
  """
  reward_QGS = jnp.asarray(reward_QGS, float)
  num_samples = reward_QGS.shape[1]
  if num_samples < 2:
    raise ValueError('set_max needs at least 2 rollouts a question.')
  best_QiS = reward_QGS.max(axis=1, keepdims=True)
  others = jnp.where(
    jnp.eye(num_samples, dtype=bool)[None, ..., None],
    -jnp.inf,
    reward_QGS[:, None],
  )
  gain_QGS = best_QiS - others.max(axis=2)
  return gain_QGS.sum(axis=-1)


ADVANTAGES: dict[str, Callable[..., jax.Array]] = {
  'grpo': group_normalised,
  'dr_grpo': centred,
  'rloo': leave_one_out,
  'reinforce': reinforce,
}
"""Advantages that are functions of the rewards [Q, G] alone."""

CHOICES = (*ADVANTAGES, 'pass_at_k', 'rosa')


def advantage_of(
  name: str,
  reward_QG: jax.Array,
  correct_QG: jax.Array | None = None,
  set_reward_QGS: jax.Array | None = None,
  pass_k: int = 1,
  std: str = 'population',
  std_epsilon: float = 1e-4,
) -> jax.Array:
  """Looks an advantage up and computes it.

  Args:
    name: one of `CHOICES`.
    reward_QG: float, the rewards.
    correct_QG: bool, for `pass_at_k`.
    set_reward_QGS: float, for `rosa`.
    pass_k: k of `pass_at_k`.
    std: of `grpo`, see `group_normalised`.
    std_epsilon: likewise.

  Returns:
    float32 [Q, G].

  Raises:
    ValueError: for another name.
  """
  if name not in CHOICES:
    raise ValueError(f'advantage={name!r} is not one of {CHOICES}.')
  if name == 'pass_at_k':
    assert correct_QG is not None
    return pass_at_k(correct_QG, pass_k)
  if name == 'rosa':
    assert set_reward_QGS is not None
    return set_max(set_reward_QGS)
  if name == 'grpo':
    return group_normalised(reward_QG, std, std_epsilon)
  return ADVANTAGES[name](reward_QG)


def different_share(same_QGG: jax.Array) -> jax.Array:
  """Share of a group's other rollouts that are unlike each one.

  Args:
    same_QGG: bool [Q, G, G], whether two rollouts count as alike; the
      diagonal is not read.

  Returns:
    float32 [Q, G], in 0..1; 0 for a group of one.
  """
  num_samples = same_QGG.shape[1]
  other_GG = ~jnp.eye(num_samples, dtype=bool)
  different_QG = jnp.sum(~same_QGG & other_GG, axis=-1)
  return different_QG / jnp.float32(max(num_samples - 1, 1))


def disjoint_share(member_QGS: jax.Array) -> jax.Array:
  """Share of a group's other rollouts that share no concept with each one.

  Source: the diversity reward of arXiv 2606.26091 (sec. 4.1).

  Args:
    member_QGS: bool [Q, G, S], whether a rollout names each of S concepts.

  Returns:
    float32 [Q, G], in 0..1; 0 for a group of one.
  """
  member_QGS = jnp.asarray(member_QGS, jnp.float32)
  shared_QGG = jnp.einsum('qis,qjs->qij', member_QGS, member_QGS)
  return different_share(shared_QGG > 0)
