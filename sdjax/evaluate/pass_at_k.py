"""pass@k: the chance that at least one of k samples is correct."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def pass_at_k(
  num_samples: ArrayLike, num_correct: ArrayLike, k: int
) -> np.ndarray:
  """Estimates pass@k of each question without bias from n >= k samples.

  The share of the k-subsets of the n samples that hold a correct one,

    1 - C(n - c, k) / C(n, k) = 1 - prod_{i = n-c+1}^{n} (1 - k / i),

  by the product, which never forms a large binomial. It is exactly 1 where
  fewer than k samples are wrong (the product then holds the factor i = k) and
  exactly 0 where c = 0 (the product is empty).

  `num_samples` n and `num_correct` c are int [Q] or scalars; float64 of the
  broadcast shape. Raises ValueError for a k outside 1..n or a c outside 0..n,
  with the value.

  Source: Chen et al. 2021 (arXiv 2107.03374), eq. 1 and its stable form.
  """
  n, c = np.broadcast_arrays(
    _whole(num_samples, 'num_samples'), _whole(num_correct, 'num_correct')
  )
  k = int(_whole(k, 'k'))
  if k < 1:
    raise ValueError(f'k is {k}; pass@k needs k >= 1.')
  if n.size and k > n.min():
    raise ValueError(
      f'k is {k}, but a question has only {n.min()} samples; draw at least k '
      'samples of every question or ask for a smaller k.'
    )
  wrong_range = (c < 0) | (c > n)
  if wrong_range.any():
    raise ValueError(
      f'num_correct is {c[wrong_range][0]} where num_samples is '
      f'{n[wrong_range][0]}; it must lie in 0..num_samples.'
    )
  i = np.arange(1, (n.max() if n.size else 0) + 1)
  counted = (i > (n - c)[..., None]) & (i <= n[..., None])
  return 1.0 - np.where(counted, 1.0 - k / i, 1.0).prod(axis=-1)


def pass_slope(curve: ArrayLike, ks: Sequence[int]) -> np.ndarray:
  """Returns how much pass@k rises each time k doubles.

  The least-squares slope of pass@k, `curve` [..., K], against log2 k: a scalar
  of functional diversity, float64 [...]. It is linear in the curve, so the
  mean of the questions' slopes is the slope of their mean curve. Raises
  ValueError when shapes differ, or there are not two different k.

  Source: arXiv 2606.26091 for the notion of a slope; the scalar: ours.
  """
  curve = np.asarray(curve, np.float64)
  if len(set(ks)) < 2 or min(ks) < 1 or curve.shape[-1:] != (len(ks),):
    raise ValueError(
      f'ks is {tuple(ks)} and the curve has shape {curve.shape}; a slope '
      'needs two different k >= 1 and a value at each.'
    )
  x = np.log2(np.asarray(ks, np.float64))
  x -= x.mean()
  return curve @ x / (x @ x)


def powers_of_two(n: int) -> tuple[int, ...]:
  """Returns 1, 2, 4, ... up to n, at least 1: the k of a pass@k curve."""
  if n < 1:
    raise ValueError(f'n is {n}; a pass@k curve needs at least one sample.')
  return tuple(2**e for e in range(int(n).bit_length()))


def _whole(value: ArrayLike, name: str) -> np.ndarray:
  array = np.asarray(value)
  if not np.issubdtype(array.dtype, np.integer):
    raise ValueError(f'{name} has dtype {array.dtype}; it must hold integers.')
  return array.astype(np.int64)
