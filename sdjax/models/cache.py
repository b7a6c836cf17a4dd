"""Keys and values that outlive a forward pass, as plain arrays.

A `Prefix` is read-only and shared by the samples of a question. A `Suffix`
belongs to the samples and grows by one column a decoded token.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Float, Int

from sdjax.types import Array


@struct.dataclass
class KV:
  """Keys (rotated already) and values of tokens, of one layer or all L."""

  k: Float[Array, '*L Q G T M H']
  v: Float[Array, '*L Q G T M H']


@struct.dataclass
class Prefix:
  """E contexts of each question, ready to be attended to.

  Attributes:
    kv: block with E in the place of G and C in the place of T.
    length: real tokens of each context.
    index: which of the E contexts a sample has, or None when E is 1.
  """

  kv: KV
  length: Int[Array, 'Q E']
  index: Int[Array, 'Q G'] | None = None

  def sample_length(self) -> Int[Array, 'Q G']:
    """Returns the tokens before a completion; G is 1 without an index."""
    if self.index is None:
      return self.length
    return jnp.take_along_axis(self.length, self.index, axis=1)


@struct.dataclass
class Suffix:
  """What was decoded so far of T columns: `filled` of them hold a token."""

  kv: KV
  filled: Int[Array, '']


def empty_suffix(prefix: Prefix, num_samples: int, width: int) -> Suffix:
  """Makes room for `width` tokens of G samples of each question."""
  layers, questions, _, _, heads, dim = prefix.kv.k.shape
  zeros = jnp.zeros(
    (layers, questions, num_samples, width, heads, dim), prefix.kv.k.dtype
  )
  return Suffix(kv=KV(k=zeros, v=zeros), filled=jnp.zeros((), jnp.int32))


def append(suffix: Suffix, new: KV) -> Suffix:
  """Writes a block [L, Q, G, S, M, H] behind the filled columns."""

  def write(old, block):
    return jax.lax.dynamic_update_slice_in_dim(
      old, block.astype(old.dtype), suffix.filled, axis=3
    )

  return Suffix(
    kv=jax.tree.map(write, suffix.kv, new),
    filled=suffix.filled + new.k.shape[3],
  )
