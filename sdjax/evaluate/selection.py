"""Giving one answer of k: by majority vote, or by the best reward.

pass@k asks whether a right answer is among k. These ask whether a rule that
cannot see which is right would pick it. Both are exact means over all subsets
of k of a question's n answers, not over some random ones.
"""

import collections
from collections.abc import Hashable, Sequence

import numpy as np

from sdjax.evaluate.pass_at_k import pass_at_k

CHUNK = 256
"""Questions voted on at once: it bounds the memory."""

NEGLIGIBLE = 1e-18
"""Numbers of winning votes less likely than this are not looked at."""


def maj_at_k(
  keys: Sequence[Sequence[Hashable]],
  correct: Sequence[Sequence[bool]] | np.ndarray,
  k: int,
) -> np.ndarray:
  """Returns maj@k of each question: how often k answers elect a right one.

  The key that most of the k answers have is elected. Of keys that tie one is
  elected at random, so a tie counts as the mean over the keys that tie. A key
  is as right as its answers: the share of them that is correct, 0 or 1 if the
  key decides. An answer without a key ('' or None) votes for a candidate of
  its own, shared with the others that have none.

  The mean over all C(n, k) subsets is exact. For each number s of votes that
  may win, keys with fewer than s answers together have C(r, a) ways to give a
  of their r answers; the others are added one by one to a table by the votes
  given.

  `keys` and `correct` are Q rows of one entry an answer, which may differ in
  length; float64 [Q]. At k = 1 it is pass@1. Raises ValueError for a k outside
  1..n, or when a question's rows differ in length.

  Source: Wang et al. 2022 (arXiv 2203.11171) for the vote; the exact mean
  and its ties: ours.
  """
  ballots = [
    _ballot(row, right) for row, right in zip(keys, correct, strict=True)
  ]
  size_Q = np.asarray([sum(sizes) for sizes, _ in ballots], np.int64)
  _check_k(k, size_Q)
  result_Q = np.zeros(len(ballots))
  for n in np.unique(size_Q).tolist():
    chance = _binomials(n, k)
    of_size = np.flatnonzero(size_Q == n)
    for start in range(0, len(of_size), CHUNK):
      part = of_size[start : start + CHUNK]
      width = max(len(ballots[q][0]) for q in part)
      size_QJ = np.zeros((len(part), width), np.int64)
      credit_QJ = np.zeros((len(part), width))
      for i, q in enumerate(part):
        sizes, credits = ballots[q]
        size_QJ[i, : len(sizes)] = sizes
        credit_QJ[i, : len(sizes)] = credits
      result_Q[part] = _elect(size_QJ, credit_QJ, k, chance)
  return np.clip(result_Q, 0.0, 1.0)


def best_of_k(
  rewards: Sequence[Sequence[float]] | np.ndarray,
  values: Sequence[Sequence[float]] | np.ndarray,
  k: int,
) -> np.ndarray:
  """Returns the mean value of the answer with the best reward of k.

  Of answers whose rewards tie one is taken at random. The mean over all
  C(n, k) subsets is exact. `rewards` and `values` are Q rows of one entry an
  answer, which may differ in length: what it is chosen by, and what it is
  worth, e.g. whether it is correct; float64 [Q], in the units of values.

  Raises ValueError for a k outside 1..n, when a question's rows differ in
  length, or for a reward that is not finite.

  Source: the order statistics of sampling without replacement; ours.
  """
  _check_k(k, np.asarray([len(row) for row in rewards], np.int64))
  means = []
  for row, worth in zip(rewards, values, strict=True):
    reward_G = np.asarray(row, np.float64)
    value_G = np.asarray(worth, np.float64)
    if reward_G.shape != value_G.shape or not np.isfinite(reward_G).all():
      raise ValueError(
        f'rewards have shape {reward_G.shape}, values {value_G.shape}: they '
        'must be the same, and every reward finite.'
      )
    _, level_G = np.unique(-reward_G, return_inverse=True)  # 0 is the best.
    size_L = np.bincount(level_G)
    value_L = np.bincount(level_G, value_G) / size_L
    # The chance that one of the k is at this level or better.
    reached_L = pass_at_k(len(reward_G), np.cumsum(size_L), k)
    means.append(np.sum(np.diff(reached_L, prepend=0.0) * value_L))
  return np.asarray(means, np.float64)


def _ballot(
  row: Sequence[Hashable], right: Sequence[bool] | np.ndarray
) -> tuple[list[int], list[float]]:
  """Answers of each key, most first, and the share of them that is right."""
  votes: collections.Counter[Hashable] = collections.Counter()
  hits: collections.Counter[Hashable] = collections.Counter()
  for key, hit in zip(row, right, strict=True):
    name = None if key == '' else key
    votes[name] += 1
    hits[name] += bool(hit)
  ranked = votes.most_common()
  return [n for _, n in ranked], [hits[name] / n for name, n in ranked]


def _check_k(k: int, size_Q: np.ndarray) -> None:
  if k < 1:
    raise ValueError(f'k is {k}; it must be at least 1.')
  if size_Q.size and k > size_Q.min():
    raise ValueError(
      f'k is {k}, but a question has only {size_Q.min()} answers; give every '
      'question at least k or ask for a smaller k.'
    )


def _binomials(n: int, k: int) -> np.ndarray:
  """Returns the chance of a of m answers, each with chance k / n; [n+1, k+1].

  Given that k answers are drawn in all, drawing each by itself makes every
  subset of k as likely as any other. Unlike C(m, a) these neither overflow
  nor vanish.
  """
  p = k / n
  chance = np.zeros((n + 1, k + 1))
  chance[0, 0] = 1.0
  for m in range(1, n + 1):
    chance[m] = (1 - p) * chance[m - 1]
    chance[m, 1:] += p * chance[m - 1, :-1]
  return chance


def _elect(
  size_QJ: np.ndarray, credit_QJ: np.ndarray, k: int, chance: np.ndarray
) -> np.ndarray:
  """Mean credit of the key elected, [Q]; sizes fall along each row."""
  n = len(chance) - 1
  if k == n:  # One subset; the table below would be at its largest.
    top_QJ = size_QJ == size_QJ[:, :1]
    return (credit_QJ * top_QJ).sum(axis=1) / top_QJ.sum(axis=1)
  at_most = np.cumsum(chance, axis=1)
  at_least = np.cumsum(chance[:, ::-1], axis=1)[:, ::-1]
  least = NEGLIGIBLE * chance[n, k]
  result_Q = np.zeros(len(size_QJ))
  for s in range(1, min(k, int(size_QJ.max())) + 1):
    # Can s be the most votes of a key? Some key must have s answers, and
    # all keys with at most s votes must be able to give k together.
    can = np.minimum(size_QJ, s).sum(axis=1) >= k
    can &= size_QJ[:, 0] >= s
    # And is it likelier than rounding errors? Bounds on the chances that no
    # key has more than s votes, and that one has s.
    can &= at_most[size_QJ, s].prod(axis=1) > least
    can &= at_least[size_QJ, s].sum(axis=1) > least
    asked = np.flatnonzero(can)
    if not asked.size:
      continue
    size_BJ, credit_BJ = size_QJ[asked], credit_QJ[asked]
    small_B = n - np.where(size_BJ >= s, size_BJ, 0).sum(axis=1)
    rounds = int((size_BJ >= s).sum(axis=1).max())
    # A key that ties with t - 1 others is elected with chance 1 / t, the
    # integral of y^(t-1) over 0..1, which these nodes give exactly. So each
    # key with s votes is a factor y, and ties need not be counted.
    ties = min(k // s, rounds)
    node_Y, width_Y = np.polynomial.legendre.leggauss((ties + 1) // 2)
    node_Y, width_Y = (node_Y + 1) / 2, width_Y / 2
    # Axes: question, votes given so far, node.
    way = np.zeros((len(asked), k + 1, len(node_Y)))
    way[:] = chance[small_B][:, :, None]
    credit = np.zeros_like(way)  # Times the credits of the keys with s votes.
    for j in range(rounds):
      has = np.flatnonzero(size_BJ[:, j] >= s)
      give_B = chance[size_BJ[has, j], : s + 1]
      old_way, old_credit = way[has], credit[has]
      new_way, new_credit = np.zeros_like(old_way), np.zeros_like(old_way)
      for a in range(s + 1):
        share = give_B[:, a, None, None] * (node_Y if a == s else 1.0)
        new_way[:, a:] += share * old_way[:, : k + 1 - a]
        new_credit[:, a:] += share * old_credit[:, : k + 1 - a]
      won = (give_B[:, s] * credit_BJ[has, j])[:, None, None]
      new_credit[:, s:] += won * old_way[:, : k + 1 - s]
      way[has], credit[has] = new_way, new_credit
    result_Q[asked] += credit[:, k] @ width_Y
  return result_Q / chance[n, k]
