"""GGUF files, read as the Hugging Face folders they were made from.

One file holds sizes, weights and tokenizer, under the names of llama.cpp.
Whatever it asks for that such a folder could not say is an error: a model is
loaded right or not at all.
"""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.models.config_fields import CheckpointError
from sdjax.models.families import FAMILIES
from sdjax.models.gguf_file import GgufFile, Stored, open_file

ARCHITECTURES = ('llama', 'qwen2', 'qwen3')

# Each key stands under the name of the architecture, as in `llama.vocab_size`.
_KNOWN_KEYS = """
  attention.head_count attention.head_count_kv attention.key_length
  attention.layer_norm_rms_epsilon attention.value_length block_count
  context_length embedding_length feed_forward_length rope.dimension_count
  rope.freq_base rope.scaling.factor rope.scaling.finetuned
  rope.scaling.original_context_length rope.scaling.type tensor_data_layout
  vocab_size
""".split()

_EMBEDDING, _HEAD = 'token_embd.weight', 'output.weight'
_NAME = re.compile(r'(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)')
_NAMES = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
}
_LAYER_NAMES = {
  'attn_norm': 'input_layernorm',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  **{f'attn_{x}': f'self_attn.{x}_proj' for x in 'qkv'},
  **{f'attn_{x}_norm': f'self_attn.{x}_norm' for x in 'qk'},
  **{f'ffn_{x}': f'mlp.{x}_proj' for x in ('gate', 'up', 'down')},
}

TOKENIZER = 'tokenizer.ggml.'


def _rope_parameters(file: GgufFile) -> dict[str, Any]:
  if 'rope_freqs.weight' in file.tensors:
    raise CheckpointError(
      f'{file.path}: rope_freqs.weight scales the rotary positions (as llama3 '
      'does), and the file does not say by which rule; use the Hugging Face '
      'folder of this model.'
    )
  theta = file.number('rope.freq_base', 10000.0)
  plain = {'rope_type': 'default', 'rope_theta': theta}
  # A factor without a type is linear, and a factor of 0 is none.
  scaling = file.metadata.get(file.key('rope.scaling.type'), 'linear')
  factor = file.metadata.get(file.key('rope.scaling.factor'), 0) or 1.0
  if scaling == 'none' or (scaling == 'linear' and factor == 1):
    return plain
  if scaling != 'linear':
    raise file.error(
      file.key('rope.scaling.type'),
      'sdjax reads none and linear; use the Hugging Face folder of this model',
    )
  factor = file.number('rope.scaling.factor')
  return plain | {'rope_type': 'linear', 'factor': factor}


def _eos_ids(file: GgufFile) -> tuple[int, ...]:
  keys = (f'{TOKENIZER}{name}_token_id' for name in ('eos', 'eot', 'eom'))
  return tuple(sorted({file.metadata[k] for k in keys if k in file.metadata}))


def _config(file: GgufFile) -> dict[str, Any]:
  architecture = file.architecture
  if str(architecture) not in ARCHITECTURES:
    raise file.error(
      'general.architecture', f'sdjax reads {", ".join(ARCHITECTURES)}'
    )
  if file.metadata.get('split.count', 1) != 1:
    raise file.error(
      'split.count',
      'sdjax reads models in one file: join the parts with llama-gguf-split',
    )
  prefix = file.key('')
  for key in file.metadata:
    name = key.removeprefix(prefix)
    if key.startswith(prefix) and name not in _KNOWN_KEYS:
      raise file.error(key, 'sdjax does not know what it asks of the model')
  if _EMBEDDING not in file.tensors:
    raise CheckpointError(
      f'{file.path}: {_EMBEDDING} is missing; the file holds no language model.'
    )
  width, heads = file.count('embedding_length'), 'attention.head_count'
  num_heads = file.count(heads)
  head_dim = file.count('attention.key_length', width // num_heads)
  for name in ('attention.value_length', 'rope.dimension_count'):
    if file.count(name, head_dim) != head_dim:
      raise file.error(
        file.key(name), f'it must be the size of a head, {head_dim}'
      )
  eos = list(_eos_ids(file))
  config = {
    'model_type': architecture,
    'architectures': [FAMILIES[architecture].architecture],
    # Not the key vocab_size, which most files lack and others have wrong.
    'vocab_size': file.tensors[_EMBEDDING].shape[0],
    'hidden_size': width,
    'intermediate_size': file.count('feed_forward_length'),
    'num_hidden_layers': file.count('block_count'),
    'num_attention_heads': num_heads,
    'num_key_value_heads': file.count('attention.head_count_kv', num_heads),
    'head_dim': head_dim,
    'hidden_act': 'silu',
    'rms_norm_eps': file.number('attention.layer_norm_rms_epsilon'),
    'rope_parameters': _rope_parameters(file),
    'max_position_embeddings': file.count('context_length'),
    'tie_word_embeddings': _HEAD not in file.tensors,
    'bos_token_id': file.metadata.get(f'{TOKENIZER}bos_token_id'),
    'eos_token_id': eos if len(eos) > 1 else next(iter(eos), None),
    'pad_token_id': file.metadata.get(f'{TOKENIZER}padding_token_id'),
  }
  if architecture != 'qwen2':  # There, biases are part of the family.
    config['attention_bias'] = 'blk.0.attn_q.bias' in file.tensors
  if architecture == 'llama':
    config['mlp_bias'] = 'blk.0.ffn_down.bias' in file.tensors
  else:
    config['use_sliding_window'] = False
  return config


def read_config(path: str | Path) -> dict[str, Any]:
  """Reads the fields that `config.json` has in the model's folder.

  The vocabulary is as large as the embedding, and the embedding is tied if the
  file has no other head. Raises CheckpointError if the file cannot be read,
  holds another architecture than `ARCHITECTURES` or a part of a model, lacks a
  size, or asks for what the fields cannot say.

  Source: the GGUF specification in the ggml repository; what a missing key
  means is what llama.cpp makes of it.
  """
  return _config(open_file(path))


def eos_ids(path: str | Path) -> tuple[int, ...]:
  """Reads the ids that end a completion, distinct and rising.

  They are those of end of sequence, of turn and of message that the file names.
  Raises CheckpointError if it cannot be read or names none.
  """
  file = open_file(path)
  ids = _eos_ids(file)
  if not ids:
    raise file.error(
      f'{TOKENIZER}eos_token_id', 'it must name the token that ends an answer'
    )
  return ids


def _package() -> Any:
  try:
    import gguf
  except ImportError as error:
    raise ImportError(
      'the weights of GGUF files are read with the package gguf: '
      "pip install 'sdjax[gguf]'."
    ) from error
  return gguf


def _hugging_face_name(name: str) -> str | None:
  match = _NAME.fullmatch(name)
  if match is None:
    return None
  layer, stem, kind = match.groups()
  if layer is None:
    return f'{_NAMES[stem]}.{kind}' if stem in _NAMES else None
  theirs = _LAYER_NAMES.get(stem)
  return theirs and f'model.layers.{int(layer)}.{theirs}.{kind}'


def _rotate_halves(tensor: np.ndarray, heads: int) -> np.ndarray:
  """Brings the rows of each head from pairs (2i, 2i+1) to (i, i+H/2)."""
  pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
  return pairs.swapaxes(1, 2).reshape(tensor.shape)


class GgufTensors:
  """The weights of a GGUF file under their Hugging Face `names`.

  Nothing is kept open or in memory: each tensor is read when asked for.
  """

  def __init__(self, path: str | Path):
    """Finds the tensors.

    Raises:
      CheckpointError: as `read_config`, and for a tensor that is no part of the
        architecture, of an unknown type, or cut off.
      ImportError: the package gguf is not installed.
    """
    package = _package()
    file = open_file(path)
    config = _config(file)
    self._file = file.path
    self._heads = {}
    if file.architecture == 'llama':
      self._heads = {
        'q_proj': config['num_attention_heads'],
        'k_proj': config['num_key_value_heads'],
      }
    self._stored: dict[str, tuple[Stored, Any, tuple[int, ...]]] = {}
    for name, stored in file.tensors.items():
      full = _hugging_face_name(name)
      if full is None:
        raise CheckpointError(
          f'{path}: tensor {name!r} has no place in a {file.architecture} '
          'model.'
        )
      try:
        kind = package.GGMLQuantizationType(stored.kind)
        byte_shape = package.quant_shape_to_byte_shape(stored.shape, kind)
      except (ValueError, LookupError) as error:
        raise CheckpointError(
          f'{path}: tensor {name!r} of type {stored.kind} and shape '
          f'{stored.shape} cannot be read ({error}); a newer gguf may do.'
        ) from error
      end = stored.start + math.prod(byte_shape)
      if end > file.size:
        raise CheckpointError(
          f'{path} is truncated: tensor {name!r} ends at byte {end} of '
          f'{file.size}; copy or download it again.'
        )
      self._stored[full] = stored, kind, byte_shape
    self.names = set(self._stored)

  def path(self, name: str) -> Path:
    """Returns the file, which holds them all."""
    del name
    return self._file

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns a tensor's shape, (out, in) for a matrix."""
    return self._stored[name][0].shape

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """Reads a tensor, or the part at `index`, as float32.

    Rows of q and k projections come in the order of Hugging Face: pairs of a
    rotation are half a head apart. Raises CheckpointError if the file changed
    or gguf cannot expand the type.
    """
    stored, kind, byte_shape = self._stored[name]
    try:
      raw = np.fromfile(
        self._file, np.uint8, math.prod(byte_shape), offset=stored.start
      )
      tensor = _package().dequantize(raw.reshape(byte_shape), kind)
    except (OSError, ValueError, NotImplementedError) as error:
      raise CheckpointError(
        f'{self._file}: {name} of type {kind.name} cannot be read ({error}).'
      ) from error
    heads = self._heads.get(name.split('.')[-2])
    if heads is not None:
      tensor = _rotate_halves(tensor, heads)
    return tensor[index]
