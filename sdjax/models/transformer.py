"""A decoder whose one forward is: a shared prefix and its completions.

RMSNorm, rotary positions, grouped-query attention with optional q/k norm,
SwiGLU, tied or untied head; layers stacked and scanned. Prefill, scoring,
decoding and training are the same call with different arguments.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from sdjax.models.attention import Segment, attend, rope
from sdjax.models.cache import KV, Prefix, Suffix


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and numerics of a decoder.

  Attributes:
    vocab_size: V.
    width: D.
    num_layers: L.
    num_heads: N.
    num_kv_heads: M, a divisor of N.
    head_dim: H.
    ffn_width: F.
    rope_theta: base of the rotary wavelengths.
    norm_eps: added to the mean square in RMSNorm.
    qk_norm: RMSNorm of each head's query and key.
    tie_embeddings: the head is the transposed embedding.
    dtype: of matrix products.
    param_dtype: of the weights.
    remat: `none`, `dots` or `full`.
  """

  vocab_size: int
  width: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  ffn_width: int
  rope_theta: float = 10000.0
  norm_eps: float = 1e-6
  qk_norm: bool = True
  tie_embeddings: bool = True
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'none'


REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class RMSNorm(nn.Module):
  """Divides by the root mean square, in float32, and scales."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalises the last axis of `x` and keeps its dtype."""
    scale = self.param(
      'scale', nn.initializers.ones, (x.shape[-1],), self.cfg.param_dtype
    )
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(mean_square + self.cfg.norm_eps)
    return wide.astype(x.dtype) * scale.astype(x.dtype)


class Dense(nn.Module):
  """A matrix product over the last axis, without bias."""

  cfg: TransformerConfig
  features: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [..., features]."""
    cfg = self.cfg
    kernel = self.param(
      'kernel',
      nn.initializers.lecun_normal(),
      (x.shape[-1], self.features),
      cfg.param_dtype,
    )
    # Two-dimensional: XLA's CPU backend is several times slower at the
    # gradient of a product with more axes.
    rows = x.reshape(-1, x.shape[-1]).astype(cfg.dtype)
    out = rows @ kernel.astype(cfg.dtype)
    return out.reshape(*x.shape[:-1], self.features)


class Attention(nn.Module):
  """Grouped-query attention over the prefix, the suffix and the block."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x_QGTD, position_QGT, masks, prefix, index, suffix):
    """Returns the layer's output [Q, G, T, D] and the block's own KV."""
    cfg = self.cfg

    def heads(name, count):
      flat = Dense(cfg, count * cfg.head_dim, name=name)(x_QGTD)
      return flat.reshape(*x_QGTD.shape[:-1], count, cfg.head_dim)

    q = heads('q', cfg.num_heads)
    k = heads('k', cfg.num_kv_heads)
    v = heads('v', cfg.num_kv_heads)
    if cfg.qk_norm:
      q = RMSNorm(cfg, name='q_norm')(q)
      k = RMSNorm(cfg, name='k_norm')(k)
    q = rope(q, position_QGT, cfg.rope_theta)
    k = rope(k, position_QGT, cfg.rope_theta)
    segments = [Segment(k, v, masks['block'])]
    if suffix is not None:
      segments.insert(0, Segment(suffix.k, suffix.v, masks['suffix']))
    if prefix is not None:
      pk, pv = (_of_sample(x, index) for x in (prefix.k, prefix.v))
      segments.insert(0, Segment(pk, pv, masks['prefix']))
    out = attend(q, segments).reshape(*x_QGTD.shape[:-1], -1)
    return Dense(cfg, cfg.width, name='o')(out), KV(k=k, v=v)


def _of_sample(x_QECMH: jax.Array, index_QG: jax.Array | None) -> jax.Array:
  """Each sample's own context, or the one that all samples share."""
  if index_QG is None:
    return x_QECMH[:, 0]
  return jnp.take_along_axis(x_QECMH, index_QG[..., None, None, None], axis=1)


class Block(nn.Module):
  """One decoder layer, shaped for `nn.scan`."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x, position, masks, index, prefix, suffix):
    """Returns the new residual stream and this layer's KV of the block."""
    cfg = self.cfg
    h = RMSNorm(cfg, name='attn_norm')(x)
    h, kv = Attention(cfg, name='attn')(
      h, position, masks, prefix, index, suffix
    )
    x = x + h
    h = RMSNorm(cfg, name='mlp_norm')(x)
    gate = Dense(cfg, cfg.ffn_width, name='gate')(h)
    up = Dense(cfg, cfg.ffn_width, name='up')(h)
    h = Dense(cfg, cfg.width, name='down')(nn.silu(gate) * up)
    return x + h, kv


class Transformer(nn.Module):
  """The decoder. `apply_fn` in the steps is this module's `apply`."""

  cfg: TransformerConfig

  def setup(self):
    """Declares the embedding, the scanned layers and the head."""
    cfg = self.cfg
    # A standard deviation of 0.02 starves a model of a hundred dimensions.
    init = nn.initializers.normal(cfg.width**-0.5)
    self.embedding = self.param(
      'embedding', init, (cfg.vocab_size, cfg.width), cfg.param_dtype
    )
    block = Block
    if cfg.remat != 'none':
      block = nn.remat(Block, policy=REMAT[cfg.remat], prevent_cse=False)
    self.layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      # flax annotates a single int, but documents one entry an argument.
      in_axes=(  # pyright: ignore[reportArgumentType]
        nn.broadcast,
        nn.broadcast,
        nn.broadcast,
        0,
        0,
      ),
      length=cfg.num_layers,
    )(cfg)
    self.norm = RMSNorm(cfg)
    if not cfg.tie_embeddings:
      self.unembedding = self.param(
        'unembedding', init, (cfg.width, cfg.vocab_size), cfg.param_dtype
      )

  def hidden(
    self,
    ids_QGT: jax.Array,
    *,
    prefix: Prefix | None = None,
    suffix: Suffix | None = None,
    pad_QG: jax.Array | None = None,
  ) -> tuple[jax.Array, KV]:
    """Runs a block of tokens behind a prefix and a partial completion.

    Args:
      ids_QGT: int32, the block; causal within itself.
      prefix: the contexts, or None when the block IS the context.
      suffix: the tokens between the prefix and the block, or None.
      pad_QG: int32, columns of left padding of each row of the block.

    Returns:
      Final hidden states [Q, G, T, D] in `cfg.dtype` (after the last norm;
      column t is what predicts token t + 1), and the block's keys and
      values. Padding columns hold finite values without meaning.
    """
    width = ids_QGT.shape[-1]
    column = jnp.arange(width)
    position = jnp.broadcast_to(column, ids_QGT.shape)
    causal = column[:, None] >= column
    masks = {'block': causal[None, None]}
    if pad_QG is not None:
      position = jnp.maximum(position - pad_QG[..., None], 0)
      masks['block'] = causal & (column >= pad_QG[..., None, None])
    index = None
    if prefix is not None:
      index = prefix.index
      length_QG = prefix.sample_length()
      size = prefix.kv.k.shape[3]
      position = position + length_QG[..., None]
      visible = jnp.arange(size) >= size - length_QG[..., None]
      masks['prefix'] = visible[:, :, None]
    if suffix is not None:
      position = position + suffix.filled
      filled = jnp.arange(suffix.kv.k.shape[3]) < suffix.filled
      masks['suffix'] = filled[None, None, None]
    x = self.embedding[ids_QGT].astype(self.cfg.dtype)
    x, kv = self.layers(
      x,
      position,
      masks,
      index,
      None if prefix is None else prefix.kv,
      None if suffix is None else suffix.kv,
    )
    return self.norm(x), kv

  def head(self, hidden: jax.Array) -> jax.Array:
    """Logits of the next token.

    Args:
      hidden: [..., D], as `hidden` gives them.

    Returns:
      float32 [..., V], accumulated in float32 whatever `cfg.dtype` is.
    """
    if self.cfg.tie_embeddings:
      weight_DV = self.embedding.T
    else:
      weight_DV = self.unembedding
    logits = jnp.matmul(
      hidden.reshape(-1, hidden.shape[-1]),
      weight_DV.astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    return logits.reshape(*hidden.shape[:-1], -1)

  def __call__(self, ids_BT: jax.Array) -> jax.Array:
    """The plain forward of a research script: float32 logits [B, T, V]."""
    return self.head(self.hidden(ids_BT[:, None])[0][:, 0])


def init_params(cfg: TransformerConfig, key: jax.Array) -> Any:
  """Draws weights for a model that is to be trained from nothing.

  Args:
    cfg: sizes.
    key: PRNG key.

  Returns:
    The nested dict of weights.
  """
  return Transformer(cfg).init(key, jnp.zeros((1, 2), jnp.int32))['params']


def make_apply_fn(cfg: TransformerConfig):
  """Returns `apply_fn(params, *args, method=name, **kwargs)` for the steps."""
  module = Transformer(cfg)

  def apply_fn(params, *args, method='__call__', **kwargs):
    return module.apply({'params': params}, *args, method=method, **kwargs)

  return apply_fn
