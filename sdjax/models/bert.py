"""BERT: an encoder whose tokens see each other in both directions.

Sentence encoders are made of it. The weights keep the names and shapes that
Hugging Face's `BertModel` gives them, those of the layers stacked on axis 0.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sdjax.models import hf
from sdjax.models.attention import Segment, attend
from sdjax.models.config_fields import CheckpointError, Fields
from sdjax.models.weights import Safetensors, is_buffer

BertParams = dict[str, jax.Array]

WORDS = 'embeddings.word_embeddings.weight'
POSITIONS = 'embeddings.position_embeddings.weight'
TYPES = 'embeddings.token_type_embeddings.weight'
LAYER = 'encoder.layer.'
POOLER = 'pooler.'
"""Of tensors that a sentence vector has no use for."""


@dataclasses.dataclass(frozen=True)
class BertConfig:
  """Sizes of an encoder.

  Attributes:
    num_positions: the most tokens of a text.
    num_types: kinds of segments; a text by itself is of kind 0.
  """

  vocab_size: int  # V
  width: int  # D
  num_layers: int  # L
  num_heads: int  # N, a divisor of D
  ffn_width: int  # F
  num_positions: int
  num_types: int
  norm_eps: float


def load_bert_config(folder: Path) -> BertConfig:
  """Reads the sizes of an encoder from a Hugging Face folder.

  Raises CheckpointError for a missing file, another `model_type`, or a field
  with a value this encoder does not do.
  """
  path = folder / hf.CONFIG
  raw = hf.raw_config(folder)
  if raw.get('model_type') != 'bert':
    raise CheckpointError(
      f'{path}: model_type is {raw.get("model_type")!r}; sdjax runs sentence '
      "encoders of model_type 'bert' only."
    )
  fields = Fields(raw, path)
  fields.only('hidden_act', 'gelu')
  fields.only('position_embedding_type', 'absolute')
  fields.only('is_decoder', False)
  width = fields.size('hidden_size')
  num_heads = fields.size('num_attention_heads')
  if width % num_heads:
    raise fields.error('hidden_size', f'{num_heads} heads must divide it')
  return BertConfig(
    vocab_size=fields.size('vocab_size'),
    width=width,
    num_layers=fields.size('num_hidden_layers'),
    num_heads=num_heads,
    ffn_width=fields.size('intermediate_size'),
    num_positions=fields.size('max_position_embeddings'),
    num_types=fields.size('type_vocab_size'),
    norm_eps=fields.number('layer_norm_eps'),
  )


def bert_shapes(cfg: BertConfig) -> dict[str, tuple[int, ...]]:
  """Returns the shape of each weight, those of the layers without layer."""
  width, ffn = cfg.width, cfg.ffn_width
  shapes: dict[str, tuple[int, ...]] = {
    WORDS: (cfg.vocab_size, width),
    POSITIONS: (cfg.num_positions, width),
    TYPES: (cfg.num_types, width),
  }
  linear = {
    'attention.self.query': (width, width),
    'attention.self.key': (width, width),
    'attention.self.value': (width, width),
    'attention.output.dense': (width, width),
    'intermediate.dense': (ffn, width),
    'output.dense': (width, ffn),
  }
  for name, shape in linear.items():
    shapes[f'{LAYER}{name}.weight'] = shape
    shapes[f'{LAYER}{name}.bias'] = shape[:1]
  norms = ('attention.output.LayerNorm', 'output.LayerNorm')
  for name in ('embeddings.LayerNorm', *(f'{LAYER}{name}' for name in norms)):
    shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (width,)
  return shapes


def load_bert_params(folder: Path, cfg: BertConfig) -> BertParams:
  """Reads an encoder's weights: float32, by the names of `bert_shapes`.

  Raises CheckpointError for a missing or truncated file, and for a tensor that
  is missing, unexpected, of another shape or not finite.
  """
  tensors = Safetensors(folder)
  unread = {
    x for x in tensors.names if not (x.startswith(POOLER) or is_buffer(x))
  }
  params = {}
  for name, shape in bert_shapes(cfg).items():
    names = [name]
    if name.startswith(LAYER):
      rest = name.removeprefix(LAYER)
      names = [f'{LAYER}{i}.{rest}' for i in range(cfg.num_layers)]
    parts = [_read(tensors, folder, each, shape) for each in names]
    unread -= set(names)
    whole = np.stack(parts) if name.startswith(LAYER) else parts[0]
    params[name] = jnp.asarray(whole)
  if unread:
    raise CheckpointError(
      f'{folder}: {len(unread)} tensors have no place in the encoder that '
      f'{hf.CONFIG} describes, the first is {min(unread)}.'
    )
  return params


def _read(
  tensors: Safetensors, folder: Path, name: str, shape: tuple[int, ...]
) -> np.ndarray:
  found = tensors.shape(name) if name in tensors.names else 'missing'
  if found != shape:
    raise CheckpointError(
      f'{folder}: the shape of {name} is {found}, but {hf.CONFIG} makes it '
      f'{shape}; the two do not belong together.'
    )
  value = tensors.read(name, tuple(slice(None) for _ in shape))
  if not np.isfinite(value).all():
    raise CheckpointError(f'{folder}: {name} has values that are not finite.')
  return np.asarray(value, np.float32)


def bert_hidden(
  cfg: BertConfig,
  params: BertParams,
  ids_BT: Int[jax.Array, 'B T'],
  length_B: Int[jax.Array, 'B'],
) -> Float[jax.Array, 'B T D']:
  """Returns the state of each token in the last layer.

  Rows are right-padded, T at most `num_positions`, each of at least one token;
  behind its end a row's states mean nothing.

  Source: Devlin et al. 2018 (arXiv 1810.04805), with the exact GELU.
  """
  num_b, num_t = ids_BT.shape
  real_BT = jnp.arange(num_t) < length_B[:, None]
  x_BTD = params[WORDS][ids_BT] + params[POSITIONS][:num_t] + params[TYPES][0]
  x_BTD = _norm(x_BTD, params, 'embeddings.LayerNorm', cfg.norm_eps)
  stacked = {
    name.removeprefix(LAYER): value
    for name, value in params.items()
    if name.startswith(LAYER)
  }

  def layer(x_BTD: jax.Array, weights: BertParams) -> tuple[jax.Array, None]:
    # As attention has it: a completion [B, 1, T] that sees itself alone.
    q, k, v = (
      _linear(x_BTD, weights, f'attention.self.{name}').reshape(
        num_b, num_t, cfg.num_heads, -1
      )
      for name in ('query', 'key', 'value')
    )
    seen = Segment(k, v, real_BT[:, None, None])
    out = attend(q[:, None], [seen], q.shape[-1] ** -0.5)
    out_BTD = _linear(
      out.reshape(x_BTD.shape), weights, 'attention.output.dense'
    )
    x_BTD = _norm(
      x_BTD + out_BTD, weights, 'attention.output.LayerNorm', cfg.norm_eps
    )
    inner_BTF = _linear(x_BTD, weights, 'intermediate.dense')
    inner_BTF = jax.nn.gelu(inner_BTF, approximate=False)
    out_BTD = _linear(inner_BTF, weights, 'output.dense')
    x_BTD = _norm(x_BTD + out_BTD, weights, 'output.LayerNorm', cfg.norm_eps)
    return x_BTD, None

  return jax.lax.scan(layer, x_BTD, stacked)[0]


def mean_vector(
  hidden_BTD: Float[jax.Array, 'B T D'], length_B: Int[jax.Array, 'B']
) -> Float[jax.Array, 'B D']:
  """Returns the mean state of each row's real tokens, of length 1.

  Source: Reimers and Gurevych 2019 (arXiv 1908.10084), mean pooling.
  """
  real_BT = jnp.arange(hidden_BTD.shape[1]) < length_B[:, None]
  total_BD = jnp.where(real_BT[..., None], hidden_BTD, 0.0).sum(axis=1)
  # The number of tokens drops out of a vector of length 1.
  return total_BD / jnp.linalg.norm(total_BD, axis=-1, keepdims=True)


def _linear(x: jax.Array, weights: BertParams, name: str) -> jax.Array:
  return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']


def _norm(
  x: jax.Array, weights: BertParams, name: str, eps: float
) -> jax.Array:
  x = jax.nn.standardize(x, axis=-1, epsilon=eps)
  return x * weights[f'{name}.weight'] + weights[f'{name}.bias']
