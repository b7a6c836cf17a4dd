"""What a known distribution of answers gives: the means that samples estimate.

`measures` counts drawn answers. Where the probability of each of Y answers is
known nothing need be drawn: these are the means of the same measures over all
possible draws. What is no distribution raises a ValueError.
"""

from collections.abc import Collection, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike


def pass_at_k(distribution: ArrayLike, correct: ArrayLike, k: int) -> float:
  """The chance that at least one of k independent draws is correct.

  That is 1 - (1 - p)^k, p being the probability [Y] of the `correct` [Y].
  """
  p_Y = _checked(distribution, correct)
  return _found(float(p_Y[np.asarray(correct, bool)].sum()), k)


def expected_distinct(
  distribution: ArrayLike, items: Sequence[Collection[Hashable]], num_draws: int
) -> float:
  """How many different items some independent draws are expected to hold.

  `items` are what each answer holds, empty for one that counts nothing. The
  number is the sum over items of 1 - (1 - p)^num_draws, p being the
  probability of the answers that hold it.
  """
  p_Y = _checked(distribution, items)
  mass: dict[Hashable, float] = {}
  for p, held in zip(p_Y.tolist(), items, strict=True):
    for item in set(held):
      mass[item] = mass.get(item, 0.0) + p
  return sum(_found(p, num_draws) for p in mass.values())


def effective_number(distribution: ArrayLike, correct: ArrayLike) -> float:
  """The exponential of the entropy over the correct answers.

  No two of the answers may be one solution. In 1..the number of correct
  answers; 0 where none has a probability.

  Source: Hill 1973, order 1; `measures` has it of samples.
  """
  part = _checked(distribution, correct)[np.asarray(correct, bool)]
  part = part[part > 0]
  if not part.size:
    return 0.0
  share = part / part.sum()
  return float(np.exp(-np.sum(share * np.log(share))))


def _found(p: float, num_draws: int) -> float:
  """The chance to meet, in some draws, what has probability p."""
  if num_draws < 1:
    raise ValueError(f'{num_draws} draws; there must be at least 1.')
  # A sum of probabilities may exceed 1 by a rounding error.
  return 1 - (1 - min(p, 1.0)) ** num_draws


def _checked(
  distribution: ArrayLike, other: ArrayLike | Sequence
) -> np.ndarray:
  p_Y = np.asarray(distribution, np.float64)
  if p_Y.ndim != 1 or len(p_Y) != len(other):  # pyright: ignore
    raise ValueError(
      f'distribution has shape {p_Y.shape}; it must be [Y] with one entry an '
      'answer.'
    )
  if not ((p_Y >= 0).all() and abs(p_Y.sum() - 1) <= 1e-6):
    raise ValueError(
      'distribution must be probabilities that sum to 1, not to '
      f'{p_Y.sum():.6g}.'
    )
  return p_Y
