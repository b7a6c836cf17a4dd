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

MASKED = -1e30  # finite, so that a row with no visible key stays finite


class Segment(NamedTuple):
  """Keys and values of one piece of context, and who sees them.

  Attributes:
    k: [Q, S, M, H] when shared by a question's samples, or [Q, G, S, M, H].
    v: as `k`.
    mask: bool, broadcasts to [Q, G, T, S]; True = visible.
  """

  k: jax.Array
  v: jax.Array
  mask: jax.Array


def rope(x: jax.Array, position: jax.Array, theta: float) -> jax.Array:
  """Rotates halves of each head by the token's position.

  Args:
    x: [Q, G, T, heads, H].
    position: int32 [Q, G, T], counts real tokens only.
    theta: base of the geometric series of wavelengths.

  Returns:
    As `x`. The pairing (i, i + H/2) is that of Hugging Face checkpoints.
  """
  half = x.shape[-1] // 2
  frequency = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angle = position[..., None, None].astype(jnp.float32) * frequency
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(
    x.dtype
  )


def attend(q_QGTNH: jax.Array, segments: Sequence[Segment]) -> jax.Array:
  """Grouped-query attention over several segments as if they were one.

  Args:
    q_QGTNH: queries; N is a multiple of M.
    segments: what they may see.

  Returns:
    [Q, G, T, N, H] in the dtype of the queries; the softmax is float32.
  """
  num_q, num_g, num_t, num_n, dim = q_QGTNH.shape
  num_m = segments[0].k.shape[-2]
  q = q_QGTNH.reshape(num_q, num_g, num_t, num_m, num_n // num_m, dim)
  q = q * dim**-0.5
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
