"""Model families: what a `config.json` means and what weights are called.

A family is one function from the configuration to `TransformerConfig` and one
table of weight names. Whatever a configuration asks for that the decoder does
not do is an error that names the field: a model is loaded right or not at all.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sdjax.models.config_fields import CheckpointError, Fields, attention_kinds
from sdjax.models.transformer import TransformerConfig


@dataclasses.dataclass(frozen=True)
class Family:
  """What sdjax knows about one `model_type`.

  Attributes:
    architecture: the class name other libraries look up.
    read: fields of `config.json` to fields of `TransformerConfig`.
    names: our path to their name; `{}` is the layer. Weights at `.../kernel`
      and `unembedding` are stored transposed there. A path the model does
      not have (a bias, say) is not looked for.
  """

  architecture: str
  read: Callable[[Fields], dict[str, Any]]
  names: Mapping[str, str]


def _decoder(
  fields: Fields, *, activation: str = 'hidden_act'
) -> dict[str, Any]:
  """Reads what all families have."""
  fields.only('quantization_config', None)
  gates = {'silu': 'silu', 'gelu_pytorch_tanh': 'gelu_tanh'}
  fields.only(activation, *gates)
  heads = fields.size('num_attention_heads')
  kv_heads = heads
  if fields.raw.get('num_key_value_heads') is not None:
    kv_heads = fields.size('num_key_value_heads')
  if heads % kv_heads:
    raise fields.error(
      'num_attention_heads',
      f'it must be a multiple of num_key_value_heads={kv_heads}',
    )
  width = fields.size('hidden_size')
  if fields.raw.get('head_dim') is None:
    if width % heads:
      raise fields.error(
        'hidden_size', f'it must be a multiple of num_attention_heads={heads}'
      )
    head_dim = width // heads
  else:
    head_dim = fields.size('head_dim')
  if head_dim % 2:
    raise fields.error('head_dim', f'it must be even, not {head_dim}')
  return {
    'vocab_size': fields.size('vocab_size'),
    'width': width,
    'num_layers': fields.size('num_hidden_layers'),
    'num_heads': heads,
    'num_kv_heads': kv_heads,
    'head_dim': head_dim,
    'ffn_width': fields.size('intermediate_size'),
    'attention': attention_kinds(fields),
    'norm_eps': fields.number('rms_norm_eps'),
    'qk_norm': 'none',
    'activation': gates[fields.raw[activation]],
    'tie_embeddings': fields.flag('tie_word_embeddings'),
  }


def _attention_bias(fields: Fields) -> dict[str, Any]:
  return dict.fromkeys(('qkv_bias', 'o_bias'), fields.flag('attention_bias'))


def _read_qwen3(fields: Fields) -> dict[str, Any]:
  return _decoder(fields) | _attention_bias(fields) | {'qk_norm': 'head'}


def _read_qwen2(fields: Fields) -> dict[str, Any]:
  return _decoder(fields) | {'qkv_bias': True}


def _read_llama(fields: Fields) -> dict[str, Any]:
  mlp = {'mlp_bias': fields.flag('mlp_bias')}
  return _decoder(fields) | _attention_bias(fields) | mlp


def _read_olmo2(fields: Fields) -> dict[str, Any]:
  norms = {'qk_norm': 'projection', 'norms': 'post'}
  return _decoder(fields) | _attention_bias(fields) | norms


def _read_gemma3(fields: Fields) -> dict[str, Any]:
  fields.only('final_logit_softcapping', None)
  fields.only('attn_logit_softcapping', None)
  fields.only('use_bidirectional_attention', False, None)
  sizes = _decoder(fields, activation='hidden_activation')
  return (
    sizes
    | _attention_bias(fields)
    | {
      'qk_norm': 'head',
      'norms': 'both',
      'norm_offset': 1.0,
      'query_scale': fields.number('query_pre_attn_scalar') ** -0.5,
      'embedding_scale': math.sqrt(fields.size('hidden_size')),
    }
  )


_LAYER = 'model.layers.{}.'
_MATRICES = {x: f'mlp.{x}' for x in ('gate', 'up', 'down')}
_MATRICES |= {f'attn/{x}': f'self_attn.{x}' for x in 'qkvo'}
_NAMES = {
  'embedding': 'model.embed_tokens.weight',
  'norm/scale': 'model.norm.weight',
  'unembedding': 'lm_head.weight',
  'layers/attn/q_norm/scale': f'{_LAYER}self_attn.q_norm.weight',
  'layers/attn/k_norm/scale': f'{_LAYER}self_attn.k_norm.weight',
  **{
    f'layers/{ours}/{leaf}': f'{_LAYER}{theirs}_proj.{name}'
    for ours, theirs in _MATRICES.items()
    for leaf, name in (('kernel', 'weight'), ('bias', 'bias'))
  },
}


def _norms(**names: str) -> dict[str, str]:
  return {
    f'layers/{ours}/scale': f'{_LAYER}{theirs}_layernorm.weight'
    for ours, theirs in names.items()
  }


_PRE = _NAMES | _norms(attn_norm='input', mlp_norm='post_attention')
_POST = _NAMES | _norms(
  attn_post_norm='post_attention', mlp_post_norm='post_feedforward'
)
_BOTH = _NAMES | _norms(
  attn_norm='input',
  attn_post_norm='post_attention',
  mlp_norm='pre_feedforward',
  mlp_post_norm='post_feedforward',
)

FAMILIES: dict[str, Family] = {
  'qwen3': Family('Qwen3ForCausalLM', _read_qwen3, _PRE),
  'qwen2': Family('Qwen2ForCausalLM', _read_qwen2, _PRE),
  'llama': Family('LlamaForCausalLM', _read_llama, _PRE),
  'mistral': Family('MistralForCausalLM', _decoder, _PRE),
  'olmo2': Family('Olmo2ForCausalLM', _read_olmo2, _POST),
  'olmo3': Family('Olmo3ForCausalLM', _read_olmo2, _POST),
  'gemma3_text': Family('Gemma3ForCausalLM', _read_gemma3, _BOTH),
}
"""`model_type` to its family; SmolLM2 is a llama."""


def find_family(model_type: Any, path: Path | str) -> Family:
  """Looks a family up; the error names the path the name was found at.

  Raises CheckpointError if sdjax does not know it.
  """
  if model_type not in FAMILIES:
    raise CheckpointError(
      f'{path}: model_type is {model_type!r}; sdjax knows '
      f'{", ".join(sorted(FAMILIES))}.'
    )
  return FAMILIES[model_type]


def new_config(cfg: TransformerConfig) -> dict[str, Any]:
  """Describes a model that was made here, not loaded, as a Qwen3.

  Returns the content of its `config.json`. Raises CheckpointError if that
  family has no such model.
  """
  raw = {
    'model_type': 'qwen3',
    'architectures': [FAMILIES['qwen3'].architecture],
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
      'rope_theta': cfg.attention[0].rope.theta,
    },
    'rope_theta': cfg.attention[0].rope.theta,
    'attention_bias': False,
    'attention_dropout': 0.0,
    'initializer_range': 0.02,
    'layer_types': ['full_attention'] * cfg.num_layers,
    'max_position_embeddings': 32768,
    'max_window_layers': cfg.num_layers,
    'use_sliding_window': False,
    'sliding_window': None,
    'tie_word_embeddings': cfg.tie_embeddings,
    'use_cache': True,
  }
  check_config(raw, cfg, 'new_config')
  return raw


def check_config(
  raw: Mapping[str, Any], cfg: TransformerConfig, path: Path | str
) -> None:
  """Refuses the content of a `config.json` that describes another model.

  Raises CheckpointError with the path and the first difference.
  """
  sizes = find_family(raw.get('model_type'), path).read(Fields(raw, path))
  described = TransformerConfig(**sizes)
  for field in dataclasses.fields(cfg):
    name = field.name
    if name in ('num_tokens', 'dtype', 'param_dtype', 'remat'):
      continue
    ours, theirs = getattr(cfg, name), getattr(described, name)
    if ours != theirs:
      raise CheckpointError(
        f'{path} ({raw["model_type"]}) describes a model with '
        f'{name}={theirs!r}, but this one has {name}={ours!r}.'
      )
