"""Percentile bootstrap intervals, resampling questions (Efron 1979)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

BLOCK = 2_000_000
"""Draws held at once, about: it bounds the memory, not the result."""


def bootstrap_interval(
  values: ArrayLike,
  statistic: Callable[[np.ndarray], float] | None = None,
  seed: int = 0,
  num: int = 1000,
  level: float = 0.95,
) -> tuple[float, float]:
  """Percentile bootstrap interval of a statistic, resampling questions.

  It covers which questions happened to be asked. It does not cover the
  training seed: compare runs of several seeds for that. The values have a row
  for each question, [Q, ...]; `statistic` maps resampled rows to a float, None
  being their mean. The same seed resamples the same questions.

  Returns the ends that hold the share `level` of the resamples. Raises
  ValueError without a question, or for a level or num out of range.
  """
  values_Q = np.asarray(values, np.float64)
  shares = _checked_shares(values_Q, num, level)
  size = len(values_Q)
  draws = np.random.default_rng(seed).integers(size, size=(num, size))
  if statistic is None:
    results = values_Q[draws].reshape(num, -1).mean(axis=1)
  else:
    results = np.asarray([statistic(values_Q[draw]) for draw in draws])
  low, high = np.quantile(results, shares)
  return float(low), float(high)


def mean_intervals(
  values: ArrayLike,
  seed: int = 0,
  num: int = 1000,
  level: float = 0.95,
  weights: ArrayLike | None = None,
) -> np.ndarray:
  """Returns an interval of the mean of each column of [Q, M], resampling rows.

  Every column is resampled by the same questions, those of
  `bootstrap_interval` with the same seed. A question that has no
  value in a column (NaN) is drawn like any other and left out of its mean.
  Weights [Q, M] say how much each value counts in the mean of its column, for
  instance its tokens; None: all the same.

  Returns float64 [M, 2], lower and upper ends; NaN for a column without a
  value. Raises ValueError as `bootstrap_interval`.
  """
  values_QM = np.asarray(values, np.float64)
  shares = _checked_shares(values_QM, num, level)
  if values_QM.ndim != 2:
    raise ValueError(f'values has shape {values_QM.shape}; it must be [Q, M].')
  size, width = values_QM.shape
  has_QM = np.isfinite(values_QM)
  weights_QM = np.where(has_QM, 1.0 if weights is None else weights, 0.0)
  totals_QM = np.where(has_QM, values_QM, 0.0) * weights_QM
  both = np.concatenate([totals_QM, weights_QM], axis=1)
  generator = np.random.default_rng(seed)
  means = np.full((num, width), np.nan)
  step = max(1, BLOCK // size)
  for start in range(0, num, step):
    rows = min(step, num - start)
    draws = generator.integers(size, size=(rows, size))
    # How often each question was drawn makes all means one product.
    draws += np.arange(rows)[:, None] * size
    times = np.bincount(draws.ravel(), minlength=rows * size)
    totals, drawn = np.split(
      times.reshape(rows, size).astype(np.float64) @ both, 2, axis=1
    )
    np.divide(totals, drawn, out=means[start : start + rows], where=drawn > 0)
  ends = np.full((width, 2), np.nan)
  for m in np.flatnonzero(has_QM.any(axis=0)):
    # By chance a resample may hold none of the few questions with a value.
    ends[m] = np.nanquantile(means[:, m], shares)
  return ends


def _checked_shares(
  values_Q: np.ndarray, num: int, level: float
) -> tuple[float, float]:
  """The shares of resamples below either end of the interval."""
  if not values_Q.ndim or not len(values_Q):
    raise ValueError(
      f'values has shape {values_Q.shape} and holds no question; give at '
      'least one row.'
    )
  if not 0 < level < 1 or num < 1:
    raise ValueError(
      f'level is {level} and num is {num}; level must lie in (0, 1) and num '
      'must be at least 1.'
    )
  tail = (1 - level) / 2
  return tail, 1 - tail
