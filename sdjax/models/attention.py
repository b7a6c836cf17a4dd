"""Attention over segments: pieces of context that are laid out differently.

A completion token sees three pieces: its question's prefix (one copy, shared
by the G samples), the cached part of its own completion, and the block of
tokens being computed. Their scores are made piece by piece, normalised
together, and applied piece by piece; so the prefix is never repeated.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

MASKED = -1e30  # finite, so that a row with no visible key stays finite


class Segment(NamedTuple):
  """Keys and values of one piece of context, and who sees them.

  They are without the axis G when a question's samples share them. In the mask,
  True = visible.
  """

  k: Float[jax.Array, 'Q *G S M H']
  v: Float[jax.Array, 'Q *G S M H']
  mask: Bool[jax.Array, '#Q #G #T S']


class Visible(NamedTuple):
  """Which keys of a piece of context a query may see, whatever the layer.

  Attributes:
    mask: broadcasts to [Q, G, T, S]; True = real and not later.
    age: broadcasts to it too: tokens from the key to the query.
  """

  mask: Bool[jax.Array, '...']
  age: Int[jax.Array, '...']

  def within(self, window: Int[jax.Array, '']) -> Bool[jax.Array, '...']:
    """Returns the mask of a layer that sees the last `window` tokens."""
    return self.mask & (self.age < window)


def attend(
  q_QGTNH: Float[jax.Array, 'Q G T N H'],
  segments: Sequence[Segment],
  scale: float,
) -> Float[jax.Array, 'Q G T N H']:
  """Grouped-query attention over several segments as if they were one.

  N is a multiple of M, and `scale` a factor of the scores. The softmax is
  float32, the result in the dtype of the queries.
  """
  num_q, num_g, num_t, num_n, dim = q_QGTNH.shape
  num_m = segments[0].k.shape[-2]
  q = q_QGTNH.reshape(num_q, num_g, num_t, num_m, num_n // num_m, dim)
  q = q * scale
  scores = []
  for k, _, mask in segments:
    keys = 'qsmh' if k.ndim == 4 else 'qgsmh'
    score = jnp.einsum(
      f'qgtmrh,{keys}->qgmrts', q, k, preferred_element_type=jnp.float32
    )
    scores.append(jnp.where(mask[:, :, None, None], score, MASKED))
  probs = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
  parts, start = [], 0
  for _, v, _ in segments:
    values = 'qsmh' if v.ndim == 4 else 'qgsmh'
    size = v.shape[-3]
    part = probs[..., start : start + size].astype(v.dtype)
    parts.append(
      jnp.einsum(
        f'qgmrts,{values}->qgtmrh', part, v, preferred_element_type=jnp.float32
      )
    )
    start += size
  out = functools.reduce(jnp.add, parts)
  return out.astype(q_QGTNH.dtype).reshape(q_QGTNH.shape)
