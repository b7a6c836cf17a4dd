"""A decoder whose one forward is: a shared prefix and its completions.

RMSNorm, rotary positions, grouped-query attention, a gated feed-forward, tied
or untied head; layers stacked and scanned. What tells model families apart is
declared in `TransformerConfig`. Prefill, scoring, decoding and training are
the same call with different arguments.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Float, Int, Key

from sdjax.models.attention import MASKED, Segment, Visible, attend
from sdjax.models.cache import KV, Prefix, Suffix
from sdjax.models.rope import Rope, frequencies, rotate
from sdjax.types import Array

EVERYTHING = 2**30  # a window that no context fills


@dataclasses.dataclass(frozen=True)
class AttentionKind:
  """The window and rotary positions of the layers of one kind.

  `window` counts the tokens a query sees, itself included; 0: all of them.
  """

  window: int = 0
  rope: Rope = Rope()


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """Sizes and numerics of a decoder.

  Attributes:
    num_tokens: ids that mean something; the head gives the others, which
      only pad the embedding to a round size, no probability. 0: all do.
    attention: one kind for each layer, or a single one for all.
    qkv_bias: queries, keys and values have a bias.
    o_bias: so has the attention's output.
    mlp_bias: so have the three matrices of the feed-forward.
    qk_norm: RMSNorm of queries and keys: `none`, of each `head`, or of the
      whole `projection`.
    query_scale: factor of the scores; None: H^-1/2.
    norms: where a layer normalises: `pre` (what enters attention and
      feed-forward), `post` (what leaves them) or `both`.
    norm_offset: added to the stored scale of every RMSNorm.
    norm_eps: added to the mean square in RMSNorm.
    activation: of the gate: `silu` or `gelu_tanh`.
    embedding_scale: factor of the embedded tokens.
    tie_embeddings: the head is the transposed embedding.
    dtype: of matrix products.
    param_dtype: of the weights.
    remat: `none`, `dots` or `full`.
  """

  vocab_size: int  # V
  width: int  # D
  num_layers: int  # L
  num_heads: int  # N
  num_kv_heads: int  # M, a divisor of N
  head_dim: int  # H
  ffn_width: int  # F
  num_tokens: int = 0
  attention: tuple[AttentionKind, ...] = (AttentionKind(),)
  qkv_bias: bool = False
  o_bias: bool = False
  mlp_bias: bool = False
  qk_norm: str = 'head'
  query_scale: float | None = None
  norms: str = 'pre'
  norm_offset: float = 0.0
  norm_eps: float = 1e-6
  activation: str = 'silu'
  embedding_scale: float = 1.0
  tie_embeddings: bool = True
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'none'

  def __post_init__(self):
    """Refuses a choice that does not exist."""
    for name, allowed in (
      ('qk_norm', ('none', 'head', 'projection')),
      ('norms', ('pre', 'post', 'both')),
      ('activation', tuple(ACTIVATIONS)),
      ('remat', tuple(REMAT)),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r} is not one of {allowed}.'
        )
    if len(self.attention) not in (1, self.num_layers):
      raise ValueError(
        f'attention has {len(self.attention)} kinds for {self.num_layers} '
        'layers; give one for all, or one for each.'
      )


ACTIVATIONS = {
  'silu': nn.silu,
  'gelu_tanh': lambda x: nn.gelu(x, approximate=True),
}

REMAT = {
  'none': None,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'full': jax.checkpoint_policies.nothing_saveable,
}


class RMSNorm(nn.Module):
  """Divides by the root mean square, in float32, and scales."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, '*batch D']
  ) -> Float[jax.Array, '*batch D']:
    """Normalises the last axis of `x` and keeps its dtype."""
    cfg = self.cfg
    init = nn.initializers.constant(1 - cfg.norm_offset)
    scale = self.param('scale', init, (x.shape[-1],), cfg.param_dtype)
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(wide * wide, axis=-1, keepdims=True)
    wide = wide * jax.lax.rsqrt(mean_square + cfg.norm_eps)
    wide = wide * (scale.astype(jnp.float32) + cfg.norm_offset)
    return wide.astype(x.dtype)


class Dense(nn.Module):
  """A matrix product over the last axis, with or without a bias.

  Where the weights hold `lora_a` and `lora_b` beside `kernel`, the product
  with the two is added (see `sdjax.models.lora`).
  """

  cfg: TransformerConfig
  features: int
  bias: bool = False

  @nn.compact
  def __call__(
    self, x: Float[jax.Array, '*batch inputs']
  ) -> Float[jax.Array, '*batch {self.features}']:
    """Multiplies the last axis of `x` by the matrix."""
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

    def product(rows, matrix, dtype):
      return jnp.matmul(
        rows, matrix.astype(cfg.dtype), preferred_element_type=dtype
      )

    if self.has_variable('params', 'lora_a'):
      a = self.get_variable('params', 'lora_a')
      b = self.get_variable('params', 'lora_b')
      # Rounded once, together: what a small adapter adds is less than the
      # spacing of bfloat16 around the frozen product.
      wide = jnp.promote_types(cfg.dtype, jnp.float32)
      thin = product(product(rows, a, cfg.dtype), b, wide)
      out = (product(rows, kernel, wide) + thin).astype(cfg.dtype)
    else:
      out = product(rows, kernel, cfg.dtype)
    if self.bias:
      bias = self.param(
        'bias', nn.initializers.zeros, (self.features,), cfg.param_dtype
      )
      out += bias.astype(cfg.dtype)
    return out.reshape(*x.shape[:-1], self.features)


class Attention(nn.Module):
  """Grouped-query attention over the prefix, the suffix and the block."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(
    self, x_QGTD, layer, position_QGT, visible, prefix, index, suffix
  ):
    """Returns the layer's output [Q, G, T, D] and the block's own KV."""
    cfg = self.cfg

    def heads(name, count, norm='none'):
      x = Dense(cfg, count * cfg.head_dim, cfg.qkv_bias, name=name)(x_QGTD)
      if norm == 'projection':
        x = RMSNorm(cfg, name=f'{name}_norm')(x)
      x = x.reshape(*x_QGTD.shape[:-1], count, cfg.head_dim)
      return RMSNorm(cfg, name=f'{name}_norm')(x) if norm == 'head' else x

    def turned(name, count):
      x = heads(name, count, cfg.qk_norm)
      return rotate(x, position_QGT, layer['frequency'], layer['magnitude'])

    q, k = turned('q', cfg.num_heads), turned('k', cfg.num_kv_heads)
    v = heads('v', cfg.num_kv_heads)
    masks = {
      piece: seen.within(layer['window']) for piece, seen in visible.items()
    }
    segments = [Segment(k, v, masks['block'])]
    if suffix is not None:
      segments.insert(0, Segment(suffix.k, suffix.v, masks['suffix']))
    if prefix is not None:
      pk, pv = (_of_sample(x, index) for x in (prefix.k, prefix.v))
      segments.insert(0, Segment(pk, pv, masks['prefix']))
    scale = cfg.query_scale
    scale = cfg.head_dim**-0.5 if scale is None else scale
    out = attend(q, segments, scale).reshape(*x_QGTD.shape[:-1], -1)
    return Dense(cfg, cfg.width, cfg.o_bias, name='o')(out), KV(k=k, v=v)


def _of_sample(x_QECMH: jax.Array, index_QG: jax.Array | None) -> jax.Array:
  """Each sample's own context, or the one that all samples share."""
  if index_QG is None:
    return x_QECMH[:, 0]
  return jnp.take_along_axis(x_QECMH, index_QG[..., None, None, None], axis=1)


class Block(nn.Module):
  """One decoder layer, shaped for `nn.scan`."""

  cfg: TransformerConfig

  @nn.compact
  def __call__(self, x, position, visible, index, layer, prefix, suffix):
    """Returns the new residual stream and this layer's KV of the block."""
    cfg = self.cfg

    def norm(h, name, place):
      if cfg.norms not in (place, 'both'):
        return h
      return RMSNorm(cfg, name=name)(h)

    h = norm(x, 'attn_norm', 'pre')
    h, kv = Attention(cfg, name='attn')(
      h, layer, position, visible, prefix, index, suffix
    )
    x = x + norm(h, 'attn_post_norm', 'post')
    h = norm(x, 'mlp_norm', 'pre')
    gate = Dense(cfg, cfg.ffn_width, cfg.mlp_bias, name='gate')(h)
    up = Dense(cfg, cfg.ffn_width, cfg.mlp_bias, name='up')(h)
    h = ACTIVATIONS[cfg.activation](gate) * up
    h = Dense(cfg, cfg.width, cfg.mlp_bias, name='down')(h)
    return x + norm(h, 'mlp_post_norm', 'post'), kv


def layer_table(cfg: TransformerConfig) -> dict[str, np.ndarray]:
  """What differs from layer to layer, layers on axis 0, for the scan."""
  kinds = cfg.attention
  if len(kinds) == 1:
    kinds = kinds * cfg.num_layers
  return {
    'window': np.array([k.window or EVERYTHING for k in kinds], np.int32),
    'magnitude': np.array([k.rope.magnitude for k in kinds], np.float32),
    'frequency': np.stack([frequencies(k.rope, cfg.head_dim) for k in kinds]),
  }


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
    # flax annotates a single int, but documents one entry an argument.
    in_axes: Any = (nn.broadcast,) * 3 + (0,) * 3
    self.layers = nn.scan(
      block,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=in_axes,
      length=cfg.num_layers,
    )(cfg)
    self.norm = RMSNorm(cfg)
    if not cfg.tie_embeddings:
      self.unembedding = self.param(
        'unembedding', init, (cfg.width, cfg.vocab_size), cfg.param_dtype
      )

  def hidden(
    self,
    ids_QGT: Int[Array, 'Q G T'],
    *,
    prefix: Prefix | None = None,
    suffix: Suffix | None = None,
    pad_QG: Int[Array, 'Q G'] | None = None,
  ) -> tuple[Float[jax.Array, 'Q G T D'], KV]:
    """Runs a block of tokens behind a prefix and a partial completion.

    Args:
      ids_QGT: the block; causal within itself.
      prefix: the contexts, or None when the block IS the context.
      suffix: the tokens between the prefix and the block, or None.
      pad_QG: columns of left padding of each row of the block.

    Returns:
      Final hidden states in `cfg.dtype` (after the last norm; column t is what
      predicts token t + 1), and the block's keys and values. Padding columns
      hold finite values without meaning.
    """
    width = ids_QGT.shape[-1]
    column = jnp.arange(width)
    position = jnp.broadcast_to(column, ids_QGT.shape)
    age = column[:, None] - column
    mask = (age >= 0)[None, None]
    if pad_QG is not None:
      position = jnp.maximum(position - pad_QG[..., None], 0)
      mask = mask & (column >= pad_QG[..., None, None])
    visible = {'block': Visible(mask, age)}
    index, before = None, column[:, None]
    if suffix is not None:
      position = position + suffix.filled
      before = before + suffix.filled
      place = jnp.arange(suffix.kv.k.shape[3])
      filled = (place < suffix.filled)[None, None, None]
      visible['suffix'] = Visible(filled, before - place)
    if prefix is not None:
      index = prefix.index
      length_QG = prefix.sample_length()
      position = position + length_QG[..., None]
      size = prefix.kv.k.shape[3]
      place = jnp.arange(size)
      real = (place >= size - length_QG[..., None])[:, :, None]
      visible['prefix'] = Visible(real, before + size - place)
    x = self.embedding[ids_QGT].astype(self.cfg.dtype)
    x *= jnp.asarray(self.cfg.embedding_scale, x.dtype)
    x, kv = self.layers(
      x,
      position,
      visible,
      index,
      jax.tree.map(jnp.asarray, layer_table(self.cfg)),
      None if prefix is None else prefix.kv,
      None if suffix is None else suffix.kv,
    )
    return self.norm(x), kv

  def logits(
    self, hidden: Float[jax.Array, '*batch D']
  ) -> Float[jax.Array, '*batch V']:
    """Logits of every row of the embedding, those that only pad it included.

    Accumulated in float32 whatever `cfg.dtype` is.
    """
    tied = self.cfg.tie_embeddings
    weight_DV = self.embedding.T if tied else self.unembedding
    logits = jnp.matmul(
      hidden.reshape(-1, hidden.shape[-1]),
      weight_DV.astype(hidden.dtype),
      preferred_element_type=jnp.float32,
    )
    return logits.reshape(*hidden.shape[:-1], -1)

  def head(
    self, hidden: Float[jax.Array, '*batch D']
  ) -> Float[jax.Array, '*batch V']:
    """Float32 logits of the next token, for sampling and for every loss.

    Ids that are no token have a logit of -1e30.
    """
    logits = self.logits(hidden)
    if not 0 < self.cfg.num_tokens < self.cfg.vocab_size:
      return logits
    is_token = jnp.arange(self.cfg.vocab_size) < self.cfg.num_tokens
    return jnp.where(is_token, logits, MASKED)

  def __call__(self, ids_BT: Int[Array, 'B T']) -> Float[jax.Array, 'B T V']:
    """The plain forward of a research script: float32 logits."""
    return self.logits(self.hidden(ids_BT[:, None])[0][:, 0])


def init_params(cfg: TransformerConfig, key: Key[jax.Array, '']) -> Any:
  """Draws weights for a model that is to be trained from nothing."""
  return Transformer(cfg).init(key, jnp.zeros((1, 2), jnp.int32))['params']


def make_apply_fn(cfg: TransformerConfig):
  """Returns `apply_fn(params, *args, method=name, **kwargs)` for the steps."""
  module = Transformer(cfg)

  def apply_fn(params, *args, method='__call__', **kwargs):
    return module.apply({'params': params}, *args, method=method, **kwargs)

  return apply_fn
