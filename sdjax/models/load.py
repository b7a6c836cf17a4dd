"""A model ready to use: weights, forward, tokenizer and where answers end."""

import dataclasses
import functools
import hashlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sdjax.models import hf
from sdjax.models import tokenizer as tokenizer_lib
from sdjax.models.sharding import path_name, state_sharding
from sdjax.models.transformer import (
  TransformerConfig,
  init_params,
  make_apply_fn,
)
from sdjax.options import ConfigError, Count, NonNegative, Section, refuse
from sdjax.types import ApplyFn, Params


@dataclasses.dataclass(frozen=True)
class Lora(Section):
  """Training a low-rank adapter instead of the weights.

  The teacher that is an average is then one of the adapter, the frozen
  teacher and the reference are the model without it.

  Attributes:
    rank: columns of the factors; 0 trains the weights themselves.
    alpha: the adapter is scaled by alpha / rank.
    targets: regex searched in the paths of the layers' matrices, which are
      `layers/attn/{q,k,v,o}/kernel` and `layers/{gate,up,down}/kernel`.
  """

  rank: Count = 0
  alpha: NonNegative = 32.0
  targets: str = 'kernel'

  def __post_init__(self):
    """Refuses what does nothing without an adapter."""
    super().__post_init__()
    if not self.rank:
      refuse(self, ('alpha', 'targets'), 'when rank=0.')


@dataclasses.dataclass(frozen=True)
class Model(Section):
  """Which weights to start from and how to run them.

  Attributes:
    path: a Hugging Face checkpoint folder, `owner/model` for one on the hub,
      or `builtin:NAME` for a model shipped inside the package.
    dtype: what matrix products run in; norms, softmax and losses are float32.
    param_dtype: what the trained weights are stored in.
    remat: what the backward pass recomputes: `none` (keep everything),
      `dots` (keep matrix products only), `full` (keep layer inputs only).
    lora: an adapter to train in their place.
    thinking: whether a chat template that has the choice (`enable_thinking`)
      lets the model think before it answers. Either way student and teacher
      get the same, and demonstrations are shown without the thinking.
  """

  path: str = 'builtin:concept_graph_base'
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  param_dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: Literal['none', 'dots', 'full'] = 'none'
  thinking: bool = False
  lora: Lora = Lora()


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """What `load` finds in a checkpoint folder.

  Attributes:
    config: sizes and numerics.
    apply_fn: `apply_fn(params, *args, method=name)`, as the steps take it.
    params: the weights, on the default device or over a mesh.
    tokenizer: a fast tokenizer of `transformers`, or None if there is none.
    eos_ids: tokens that end a completion.
  """

  config: TransformerConfig
  apply_fn: ApplyFn
  params: Params
  tokenizer: Any
  eos_ids: tuple[int, ...]


def load(
  path: str,
  *,
  dtype: str = 'float32',
  param_dtype: str = 'float32',
  remat: str = 'none',
  mesh: Any = None,
) -> LanguageModel:
  """Loads a checkpoint, split over the devices of a mesh if one is given.

  `path` is as in `Model`, or a `.gguf` file; `dtype`, `param_dtype` and `remat`
  are as there. Raises ValueError (a `CheckpointError`) naming what is missing,
  damaged or not supported.
  """
  found = hf.resolve(path)
  cfg = hf.load_config(found, dtype=dtype, param_dtype=param_dtype, remat=remat)
  tokenizer, eos_ids = None, ()
  if hf.is_gguf(found) or any(found.glob('tokenizer*')):
    tokenizer = tokenizer_lib.load_tokenizer(found)
    eos_ids = tokenizer_lib.eos_ids(found, tokenizer)
    hf.check_vocabulary(cfg, tokenizer)
    known = min(hf.num_tokens(tokenizer), cfg.vocab_size)
    cfg = dataclasses.replace(cfg, num_tokens=known)
  places = None
  if mesh is not None:
    shapes = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
    places = state_sharding(shapes, mesh)
  return LanguageModel(
    config=cfg,
    apply_fn=make_apply_fn(cfg),
    params=hf.load_params(found, cfg, places),
    tokenizer=tokenizer,
    eos_ids=eos_ids,
  )


def load_from_config(model: Model, mesh: Any = None) -> LanguageModel:
  """Loads the model a run's config names."""
  loaded = load(
    model.path,
    dtype=model.dtype,
    param_dtype=model.param_dtype,
    remat=model.remat,
    mesh=mesh,
  )
  if loaded.tokenizer is None:
    raise ConfigError(
      f'model.path={model.path!r} has no tokenizer files; training and '
      'evaluation need tokenizer.json and tokenizer_config.json.'
    )
  return loaded


@jax.jit
def _checksums(params: Params) -> Params:
  def checksum(x: jax.Array) -> jax.Array:
    word = jnp.uint16 if x.dtype.itemsize == 2 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(x, word).astype(jnp.uint32)
    place = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape)
    mixed = (bits ^ (bits >> 15)) * (place * jnp.uint32(0x9E3779B1) | 1)
    # Whole numbers: the sum is the same in any order, on any mesh.
    return jnp.stack(
      [jnp.sum(y, dtype=jnp.uint32) for y in (mixed, mixed ^ (mixed >> 13))]
    )

  return jax.tree.map(checksum, params)


def fingerprint(params: Params) -> str:
  """Tells weights from others, in a moment and wherever they are.

  Returns 32 characters that are the same for the same weights in the same
  dtype, over any mesh. Not safe against somebody who wants others to have the
  same.
  """
  digest = hashlib.sha256()
  sums = jax.device_get(_checksums(params))
  leaves = jax.tree_util.tree_leaves_with_path(params)
  for (path, leaf), checksum in zip(leaves, jax.tree.leaves(sums), strict=True):
    digest.update(path_name(path).encode())
    digest.update(f'{leaf.shape} {leaf.dtype} {checksum.tolist()};'.encode())
  return digest.hexdigest()[:32]


_forward: Any = functools.cache(jax.jit)


def logits(model: LanguageModel, ids: Any) -> Float[jax.Array, '*B T V']:
  """The plain forward of a research script.

  `ids` are int [T] or [B, T], without padding. Returns float32 logits: row t
  predicts token t + 1.
  """
  ids = jnp.asarray(ids, jnp.int32)
  logits_BTV = _forward(model.apply_fn)(model.params, jnp.atleast_2d(ids))
  return logits_BTV[0] if ids.ndim == 1 else logits_BTV
