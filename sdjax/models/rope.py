"""Rotary positions: which frequencies a model turns its heads by.

Long-context models change the frequencies once, when they are made, so a
scaling is a table of numbers and nothing else.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int

from sdjax.types import Array

SCALINGS = ('default', 'linear', 'llama3', 'yarn')


@dataclasses.dataclass(frozen=True)
class Rope:
  """Frequencies of one kind of layer.

  Attributes:
    theta: base of the geometric series of wavelengths.
    scaling: `default` (none), `linear` (all wavelengths times `factor`),
      `llama3` (the long ones only, with a smooth passage) or `yarn` (the
      long ones only, by the turns they make in the original context).
    factor: how much longer the context became.
    original_context: tokens of the context before it was made longer.
    low: `llama3`: wavelengths above original_context / low are scaled whole.
      `yarn`: so are those with fewer turns than this in the original context.
    high: the other end: shorter ones, or those with more turns, are kept.
    magnitude: factor of the turned queries and keys.
    truncate: `yarn`: whether the ends of the passage are whole dimensions.
  """

  theta: float = 10000.0
  scaling: str = 'default'
  factor: float = 1.0
  original_context: int = 0
  low: float = 1.0
  high: float = 4.0
  magnitude: float = 1.0
  truncate: bool = True


def frequencies(rope: Rope, head_dim: int) -> Float32[np.ndarray, 'half']:
  """Radians a token of every pair of a head's dimensions, falling.

  Source: arXiv 2104.09864 (rotary positions), arXiv 2309.00071 (YaRN), the
  release notes of Llama 3.1 (llama3).
  """
  exponent = np.arange(0, head_dim, 2, dtype=np.float32) / head_dim
  plain = np.float32(1) / np.float32(rope.theta) ** exponent
  if rope.scaling == 'default':
    return plain
  scaled = plain / np.float32(rope.factor)
  if rope.scaling == 'linear':
    return scaled
  if rope.scaling == 'llama3':
    turns = rope.original_context * plain / np.float32(2 * math.pi)
    kept = (turns - rope.low) / (rope.high - rope.low)
  elif rope.scaling == 'yarn':
    first, last = (_dimension(rope, head_dim, x) for x in (rope.high, rope.low))
    if rope.truncate:
      first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    width = last - first or 1e-3
    kept = 1 - (np.arange(head_dim // 2, dtype=np.float32) - first) / width
  else:
    raise ValueError(f'scaling={rope.scaling!r} is not one of {SCALINGS}.')
  kept = np.clip(kept, 0, 1).astype(np.float32)
  return scaled * (1 - kept) + plain * kept


def _dimension(rope: Rope, head_dim: int, turns: float) -> float:
  """The pair that makes so many turns in the original context."""
  wavelength = rope.original_context / (turns * 2 * math.pi)
  return head_dim * math.log(wavelength) / (2 * math.log(rope.theta))


def rotate(
  x: Float[jax.Array, 'Q G T heads H'],
  position: Int[jax.Array, 'Q G T'],
  frequency: Float[Array, 'H//2'],
  magnitude: Float[Array, ''] | float = 1.0,
) -> Float[jax.Array, 'Q G T heads H']:
  """Rotates halves of each head by the token's position.

  Positions count real tokens only; frequencies are radians a token, and
  `magnitude` is a factor of the result, which has the dtype of `x`. The pairing
  (i, i + H/2) is that of Hugging Face checkpoints.
  """
  angle = position[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle) * magnitude, jnp.sin(angle) * magnitude
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
  return turned.astype(x.dtype)
