"""Rows of tokens in batches of few shapes, so that few programs compile."""

from collections.abc import Iterator, Sequence

import numpy as np

SHORTEST = 32
"""Tokens in the smallest batch's rows."""


def padded_batches(
  rows: Sequence[Sequence[int]], batch_tokens: int, multiple: int = 1
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
  """Yields rows of like length together, in the order of their length.

  B and T are powers of two, B rounded up to a multiple of `multiple`, the
  devices that share the rows. About `batch_tokens` tokens go together, padding
  included; a longer row goes alone.

  Yields which rows these are, at most B, their ids, int32 [B, T], right-padded
  with 0, and their lengths, int32 [B], 1 for rows that are none.
  """
  by_width: dict[int, list[int]] = {}
  for i, row in enumerate(rows):
    width = max(SHORTEST, _power_of_two(len(row)))
    by_width.setdefault(width, []).append(i)
  for width, members in sorted(by_width.items()):
    most = max(1, batch_tokens // width)
    for start in range(0, len(members), most):
      part = members[start : start + most]
      count = min(most, _power_of_two(len(part)))
      count = -(-count // multiple) * multiple
      ids_BT = np.zeros((count, width), np.int32)
      length_B = np.ones(count, np.int32)
      for b, i in enumerate(part):
        ids_BT[b, : len(rows[i])] = rows[i]
        length_B[b] = len(rows[i])
      yield part, ids_BT, length_B


def _power_of_two(size: int) -> int:
  """Returns the smallest power of two that is not below a size above 0."""
  return 1 << (size - 1).bit_length()
