"""GGUF files, read as the Hugging Face folders they were made from.

One file holds sizes, weights and tokenizer, under the names of llama.cpp.
Whatever it asks for that such a folder could not say is an error: a model is
loaded right or not at all.
"""

import dataclasses
import math
import mmap
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.models.families import CheckpointError

ARCHITECTURES = {
  'llama': 'LlamaForCausalLM',
  'qwen2': 'Qwen2ForCausalLM',
  'qwen3': 'Qwen3ForCausalLM',
}

# Each key stands under the name of the architecture, as in `llama.vocab_size`.
_KNOWN_KEYS = {
  'attention.head_count',
  'attention.head_count_kv',
  'attention.key_length',
  'attention.layer_norm_rms_epsilon',
  'attention.value_length',
  'block_count',
  'context_length',
  'embedding_length',
  'feed_forward_length',
  'rope.dimension_count',
  'rope.freq_base',
  'rope.scaling.factor',
  'rope.scaling.finetuned',
  'rope.scaling.original_context_length',
  'rope.scaling.type',
  'tensor_data_layout',
  'vocab_size',
}

_EMBEDDING, _HEAD = 'token_embd.weight', 'output.weight'
_LAYER = re.compile(r'blk\.(\d+)\.(\w+)')
_NAMES = {
  'token_embd': 'model.embed_tokens',
  'output_norm': 'model.norm',
  'output': 'lm_head',
}
_LAYER_NAMES = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'attn_output': 'self_attn.o_proj',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
}

# The format's numbers of metadata types, with their codes in `struct`.
_SCALARS = dict(zip((*range(8), 10, 11, 12), 'BbHhIif?Qqd', strict=True))
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


TOKENIZER = 'tokenizer.ggml.'


@dataclasses.dataclass(frozen=True)
class _Stored:
  """A tensor of the file: number of its type, rows-first shape, first byte."""

  kind: int
  shape: tuple[int, ...]
  start: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
  """What stands before the weights of a file, and how many bytes it has."""

  path: Path
  size: int
  metadata: dict[str, Any]
  tensors: dict[str, _Stored]

  @property
  def architecture(self) -> Any:
    """Returns the family the file names, which may be no known one."""
    return self.metadata.get('general.architecture')

  def error(self, key: str, allowed: str) -> CheckpointError:
    """Returns the error of metadata with a value that cannot be used."""
    value = self.metadata.get(key, 'missing')
    shown = repr(value)
    if len(shown) > 80:
      shown = f'{shown[:80]}...'
    return CheckpointError(f'{self.path}: {key} is {shown}; {allowed}.')

  def key(self, name: str) -> str:
    """Returns the whole key of a size of the model."""
    return f'{self.architecture}.{name}'

  def count(self, name: str, default: int | None = None) -> int:
    """Returns a size that must be a whole number above 0."""
    value = self.metadata.get(self.key(name), default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise self.error(
        self.key(name), 'it must be one whole number above 0 for all layers'
      )
    return value

  def number(self, name: str, default: float | None = None) -> float:
    """Returns a size that must be a number above 0."""
    value = self.metadata.get(self.key(name), default)
    if isinstance(value, int | float) and not isinstance(value, bool):
      if value > 0:
        return float(value)
    raise self.error(self.key(name), 'it must be a number above 0')

  def texts(self, key: str) -> list[str]:
    """Returns metadata that must be a list of strings."""
    value = self.metadata.get(key)
    if isinstance(value, list) and all(isinstance(x, str) for x in value):
      return value
    raise self.error(key, 'it must be a list of strings')

  def flag(self, key: str, default: bool) -> bool:
    """Returns metadata that must be true or false."""
    value = self.metadata.get(key, default)
    if not isinstance(value, bool):
      raise self.error(key, 'it must be true or false')
    return value


class _Cursor:
  """Takes the values of a header, one after the other."""

  def __init__(self, data: mmap.mmap):
    self.data, self.position = data, 0

  def take(self, code: str) -> tuple[Any, ...]:
    values = struct.unpack_from(f'<{code}', self.data, self.position)
    self.position += struct.calcsize(f'<{code}')
    return values

  def text(self) -> str:
    (size,) = self.take('Q')
    return self.take(f'{size}s')[0].decode()

  def value(self, kind: int) -> Any:
    if kind == _STRING:
      return self.text()
    if kind == _ARRAY:
      inner, count = self.take('IQ')
      if inner in _SCALARS:
        return list(self.take(f'{count}{_SCALARS[inner]}'))
      return [self.value(inner) for _ in range(count)]
    if kind not in _SCALARS:
      raise ValueError(f'there is no metadata type {kind}')
    (value,) = self.take(_SCALARS[kind])
    # The shortest decimal of the float32: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value))) if kind == _FLOAT32 else value


def _parse(path: Path, data: mmap.mmap) -> GgufFile:
  cursor = _Cursor(data)
  magic, version = cursor.take('4sI')
  if magic != b'GGUF' or version not in (2, 3):
    raise CheckpointError(
      f'{path} starts with {bytes(data[:8])!r}; sdjax reads GGUF of version 2 '
      'or 3, little-endian: convert it again.'
    )
  num_tensors, num_values = cursor.take('QQ')
  metadata = {}
  for _ in range(num_values):
    key = cursor.text()
    metadata[key] = cursor.value(*cursor.take('I'))
  found = {}
  for _ in range(num_tensors):
    name = cursor.text()
    shape = cursor.take(f'{cursor.take("I")[0]}Q')
    found[name] = (shape[::-1], *cursor.take('IQ'))
  alignment = metadata.get('general.alignment', 32)
  first = -(-cursor.position // alignment) * alignment
  tensors = {
    name: _Stored(kind, shape, first + offset)
    for name, (shape, kind, offset) in found.items()
  }
  return GgufFile(path, len(data), metadata, tensors)


def open_file(path: str | Path) -> GgufFile:
  """Reads what stands before the weights of a file.

  Args:
    path: a GGUF file.

  Returns:
    Its metadata and the places of its tensors.

  Raises:
    CheckpointError: the file is missing, truncated or no GGUF.
  """
  path = Path(path)
  try:
    with (
      path.open('rb') as file,
      mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
      return _parse(path, data)
  except CheckpointError:
    raise
  except FileNotFoundError:
    raise CheckpointError(
      f'there is no file {path}; give a .gguf file (models are not downloaded).'
    ) from None
  # Wrong bytes can surface as anything: sizes are read from the file itself.
  except Exception as error:
    raise CheckpointError(
      f'{path} cannot be read as GGUF ({error}); it is probably truncated: '
      'copy or download it again.'
    ) from error


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
    'architectures': [ARCHITECTURES[architecture]],
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
  """Reads the sizes of a model.

  Args:
    path: a GGUF file.

  Returns:
    The fields that `config.json` has in the model's Hugging Face folder. The
    vocabulary is as large as the embedding, and the embedding is tied if the
    file has no other head.

  Raises:
    CheckpointError: the file cannot be read, holds another architecture than
      `ARCHITECTURES` or a part of a model, lacks a size, or asks for what
      the fields cannot say.

  Source: the GGUF specification in the ggml repository; what a missing key
  means is what llama.cpp makes of it.
  """
  return _config(open_file(path))


def eos_ids(path: str | Path) -> tuple[int, ...]:
  """Reads the ids that end a completion.

  Args:
    path: a GGUF file.

  Returns:
    Distinct ids, rising: end of sequence, of turn and of message, as far as
    the file names them.

  Raises:
    CheckpointError: the file cannot be read or names none.
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
  stem, _, kind = name.rpartition('.')
  layer = _LAYER.fullmatch(stem)
  if kind not in ('weight', 'bias'):
    return None
  if layer is None:
    return f'{_NAMES[stem]}.{kind}' if stem in _NAMES else None
  if layer[2] not in _LAYER_NAMES:
    return None
  return f'model.layers.{int(layer[1])}.{_LAYER_NAMES[layer[2]]}.{kind}'


def _rotate_halves(tensor: np.ndarray, heads: int) -> np.ndarray:
  """Brings the rows of each head from pairs (2i, 2i+1) to (i, i+H/2)."""
  pairs = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
  return pairs.swapaxes(1, 2).reshape(tensor.shape)


class GgufTensors:
  """The weights of a GGUF file under their Hugging Face names.

  Nothing is kept open or in memory: each tensor is read when asked for.

  Attributes:
    names: of all its tensors.
  """

  def __init__(self, path: str | Path):
    """Finds the tensors.

    Args:
      path: a GGUF file.

    Raises:
      CheckpointError: as `read_config`, and for a tensor that is no part of
        the architecture, of an unknown type, or cut off.
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
    self._stored: dict[str, tuple[_Stored, Any, tuple[int, ...]]] = {}
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
    """Looks a tensor's shape up.

    Args:
      name: one of `names`.

    Returns:
      The shape, (out, in) for a matrix.
    """
    return self._stored[name][0].shape

  def read(self, name: str, index: tuple[slice, ...] = ()) -> np.ndarray:
    """Reads one tensor.

    Args:
      name: one of `names`.
      index: the part of it to return.

    Returns:
      float32, whatever it is stored as. Rows of q and k projections come in
      the order of Hugging Face: pairs of a rotation are half a head apart.

    Raises:
      CheckpointError: the file changed, or gguf cannot expand the type.
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
