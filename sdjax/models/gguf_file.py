"""The GGUF container: metadata and the places of tensors before the weights.

Read by hand: the package `gguf` makes a NumPy view of every string of the
vocabulary, which takes seconds where this takes a tenth of one, and sizes and
tokenizer are read without that package.
"""

import dataclasses
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.models.config_fields import CheckpointError

# The format's numbers of metadata types, with their codes in `struct`.
_SCALARS = dict(zip((*range(8), 10, 11, 12), 'BbHhIif?Qqd', strict=True))
_FLOAT32, _STRING, _ARRAY = 6, 8, 9


@dataclasses.dataclass(frozen=True)
class Stored:
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
  tensors: dict[str, Stored]

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
    name: Stored(kind, shape, first + offset)
    for name, (shape, kind, offset) in found.items()
  }
  return GgufFile(path, len(data), metadata, tensors)


def open_file(path: str | Path) -> GgufFile:
  """Reads metadata and the places of tensors of a GGUF file.

  Raises CheckpointError if it is missing, truncated or no GGUF.
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
