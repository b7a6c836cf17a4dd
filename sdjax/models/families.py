"""Model families: what a `config.json` means and what weights are called.

A family is one entry of `FAMILIES`. Whatever a configuration asks for that
the decoder does not do is an error that names the field: a model is loaded
right or not at all.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdjax.models.transformer import TransformerConfig


class CheckpointError(ValueError):
  """A checkpoint folder that cannot be read as the model it claims to be."""


@dataclasses.dataclass(frozen=True)
class Family:
  """What sdjax knows about one `model_type`.

  Attributes:
    architecture: the class name other libraries look up.
    read: fields of `config.json` to fields of `TransformerConfig`.
    write: the way back; raises if the family has no such model.
    names: our path to their name; `{}` is the layer. Weights at `.../kernel`
      and `unembedding` are stored transposed there.
  """

  architecture: str
  read: Callable[['Fields'], dict[str, Any]]
  write: Callable[[TransformerConfig], dict[str, Any]]
  names: Mapping[str, str]


class Fields:
  """The fields of a `config.json`, with errors that name file and field."""

  def __init__(self, raw: Mapping[str, Any], path: Path):
    self.raw, self.path = raw, path

  def error(self, field: str, allowed: str) -> CheckpointError:
    """Returns the error of a field with a value that is not supported."""
    value = self.raw.get(field, 'missing')
    return CheckpointError(f'{self.path}: {field} is {value!r}; {allowed}.')

  def size(self, field: str) -> int:
    """Returns a field that must be a whole number above 0."""
    value = self.raw.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise self.error(field, 'it must be a whole number above 0')
    return value

  def number(self, field: str) -> float:
    """Returns a field that must be a number above 0."""
    value = self.raw.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
      if value > 0:
        return float(value)
    raise self.error(field, 'it must be a number above 0')

  def flag(self, field: str) -> bool:
    """Returns a field that must be true or false."""
    value = self.raw.get(field)
    if not isinstance(value, bool):
      raise self.error(field, 'it must be true or false')
    return value

  def only(self, field: str, *allowed: Any) -> None:
    """Refuses a field that is present with a value not among `allowed`."""
    if field in self.raw and self.raw[field] not in allowed:
      listed = ' or '.join(repr(value) for value in allowed)
      raise self.error(field, f'sdjax runs only {listed}')

  def rope_theta(self) -> float:
    """Returns the base of plain rotary positions, old or new style."""
    merged = {'rope_theta': self.raw.get('rope_theta')}
    for field in ('rope_scaling', 'rope_parameters'):
      options = self.raw.get(field) or {}
      plain = {
        'rope_type': 'default',
        'type': 'default',
        'partial_rotary_factor': 1,
      }
      if not isinstance(options, dict) or any(
        key != 'rope_theta' and plain.get(key) != value
        for key, value in options.items()
      ):
        raise self.error(
          field, "sdjax runs only plain rotary positions, rope_type 'default'"
        )
      merged |= options
    return Fields(merged, self.path).number('rope_theta')


def _read_qwen3(fields: Fields) -> dict[str, Any]:
  fields.only('hidden_act', 'silu')
  fields.only('attention_bias', False, None)
  fields.only('quantization_config', None)
  layers, heads = fields.size('num_hidden_layers'), 'num_attention_heads'
  kv_heads = fields.size('num_key_value_heads')
  if fields.size(heads) % kv_heads:
    raise fields.error(
      heads, f'it must be a multiple of num_key_value_heads={kv_heads}'
    )
  if fields.size('head_dim') % 2:
    raise fields.error('head_dim', 'it must be even')
  kinds = fields.raw.get('layer_types')
  if kinds and set(kinds) != {'full_attention'}:
    raise fields.error('layer_types', 'sdjax runs only full_attention layers')
  window = fields.raw.get('sliding_window')
  full = fields.raw.get('max_window_layers', 0)
  sliding = fields.raw.get('use_sliding_window') and window is not None
  if sliding and not kinds and full < layers:
    raise fields.error(
      'use_sliding_window', 'sdjax has no sliding-window attention'
    )
  return {
    'vocab_size': fields.size('vocab_size'),
    'width': fields.size('hidden_size'),
    'num_layers': layers,
    'num_heads': fields.size(heads),
    'num_kv_heads': kv_heads,
    'head_dim': fields.size('head_dim'),
    'ffn_width': fields.size('intermediate_size'),
    'rope_theta': fields.rope_theta(),
    'norm_eps': fields.number('rms_norm_eps'),
    'qk_norm': True,
    'tie_embeddings': fields.flag('tie_word_embeddings'),
  }


def _write_qwen3(cfg: TransformerConfig) -> dict[str, Any]:
  if not cfg.qk_norm:
    raise CheckpointError(
      'model_type qwen3 has q/k norm; this model has qk_norm=False.'
    )
  return {
    'vocab_size': cfg.vocab_size,
    'hidden_size': cfg.width,
    'num_hidden_layers': cfg.num_layers,
    'num_attention_heads': cfg.num_heads,
    'num_key_value_heads': cfg.num_kv_heads,
    'head_dim': cfg.head_dim,
    'intermediate_size': cfg.ffn_width,
    'hidden_act': 'silu',
    'rms_norm_eps': cfg.norm_eps,
    # Both styles: transformers 5 reads the first, 4 and others the second.
    'rope_parameters': {
      'rope_type': 'default',
      'rope_theta': cfg.rope_theta,
    },
    'rope_theta': cfg.rope_theta,
    'attention_bias': False,
    'attention_dropout': 0.0,
    'layer_types': ['full_attention'] * cfg.num_layers,
    'max_window_layers': cfg.num_layers,
    'use_sliding_window': False,
    'sliding_window': None,
    'tie_word_embeddings': cfg.tie_embeddings,
  }


_DECODER_NAMES = {
  'embedding': 'model.embed_tokens.weight',
  'norm/scale': 'model.norm.weight',
  'unembedding': 'lm_head.weight',
  'layers/attn_norm/scale': 'model.layers.{}.input_layernorm.weight',
  'layers/mlp_norm/scale': 'model.layers.{}.post_attention_layernorm.weight',
  'layers/gate/kernel': 'model.layers.{}.mlp.gate_proj.weight',
  'layers/up/kernel': 'model.layers.{}.mlp.up_proj.weight',
  'layers/down/kernel': 'model.layers.{}.mlp.down_proj.weight',
  **{
    f'layers/attn/{x}/kernel': f'model.layers.{{}}.self_attn.{x}_proj.weight'
    for x in 'qkvo'
  },
}

FAMILIES: dict[str, Family] = {
  'qwen3': Family(
    architecture='Qwen3ForCausalLM',
    read=_read_qwen3,
    write=_write_qwen3,
    names=_DECODER_NAMES
    | {
      f'layers/attn/{x}_norm/scale': (
        f'model.layers.{{}}.self_attn.{x}_norm.weight'
      )
      for x in 'qk'
    },
  ),
}


def find_family(model_type: Any, path: Path | str) -> Family:
  """Looks a family up.

  Args:
    model_type: as `config.json` names it.
    path: where the name was found, for the error.

  Returns:
    The family.

  Raises:
    CheckpointError: if sdjax does not know it.
  """
  if model_type not in FAMILIES:
    raise CheckpointError(
      f'{path}: model_type is {model_type!r}; sdjax knows '
      f'{", ".join(sorted(FAMILIES))}.'
    )
  return FAMILIES[model_type]
