"""How evenly a question's correct answers spread over its solutions.

Counting distinct solutions, one that came up once in 64 samples weighs as
much as one that came up 63 times. The entropy over the correct answers, and
its exponential, the effective number of solutions, weigh them by how often
they come up.
"""

import collections
import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Variety:
  """The solutions among the correct answers of each question.

  Attributes:
    distinct: int64 [Q], different solutions; 0 without a correct answer.
    entropy: float64 [Q], nats, of the shares of the solutions; 0 where one
      solution, or no answer, is correct.
    effective: float64 [Q], exp(entropy): in 1..distinct, equal to distinct
      when all come up equally often; 0 without a correct answer, so that a
      model that solves nothing is not diverse.
  """

  distinct: np.ndarray
  entropy: np.ndarray
  effective: np.ndarray


def variety(
  solutions: Sequence[Sequence[Hashable]],
  correct: Sequence[Sequence[bool]] | np.ndarray,
) -> Variety:
  """Returns the number, entropy and effective number of correct solutions.

  The entropy is that of the shares found. It is too small on average, the
  more so the fewer the answers: compare only equally many.

  Args:
    solutions: Q rows, for each answer the identity of its solution; not read
      where the answer is wrong. Rows may differ in length.
    correct: Q rows of bool, one an answer.

  Returns:
    One value a question of each.

  Raises:
    ValueError: when rows differ in length, or a correct answer has no
      identity ('' or None).

  Source: ours; the effective number is Hill's of order 1 (Hill 1973).
  """
  distinct, entropy = [], []
  for q, (row, right) in enumerate(zip(solutions, correct, strict=True)):
    counts: collections.Counter[Hashable] = collections.Counter()
    for g, (name, counted) in enumerate(zip(row, right, strict=True)):
      if counted and (name is None or name == ''):
        raise ValueError(
          f'sample {g} of question {q} is correct but its solution is empty; '
          'name what tells two correct answers apart.'
        )
      if counted:
        counts[name] += 1
    share = np.fromiter(counts.values(), np.float64) / max(counts.total(), 1)
    distinct.append(len(counts))
    # Adding 0 makes the entropy of a single solution 0.0 and not -0.0.
    entropy.append(float(-np.sum(share * np.log(share))) + 0.0)
  distinct_Q = np.asarray(distinct, np.int64)
  entropy_Q = np.asarray(entropy, np.float64)
  effective_Q = np.where(distinct_Q > 0, np.exp(entropy_Q), 0.0)
  return Variety(distinct_Q, entropy_Q, effective_Q)
