"""The fields of a model's `config.json`, read with errors that name them."""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjax.models.advice import from_transformers
from sdjax.models.rope import Rope
from sdjax.models.transformer import AttentionKind


class CheckpointError(ValueError):
  """A checkpoint folder that cannot be read as the model it claims to be."""


class Fields:
  """The fields of a `config.json`, with errors that name file and field.

  Attributes:
    given: what the file says.
    raw: the same with the family's defaults filled in, in the newest style.
  """

  def __init__(self, given: Mapping[str, Any], path: Path | str):
    """Has `transformers` fill in the defaults of the file's `model_type`."""
    self.given, self.path = given, path
    for field in _SIZES:
      self._size(given, field)
    self.raw = _with_defaults(given, path)

  def error(self, field: str, allowed: str) -> CheckpointError:
    """Returns the error of a field with a value that is not supported."""
    value = self.given.get(field, self.raw.get(field, 'missing'))
    return CheckpointError(f'{self.path}: {field} is {value!r}; {allowed}.')

  def _size(self, raw: Mapping[str, Any], field: str) -> int:
    value = raw.get(field, 'missing')
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
      raise CheckpointError(
        f'{self.path}: {field} is {value!r}; it must be a whole number above 0.'
      )
    return value

  def size(self, field: str) -> int:
    """Returns a field that must be a whole number above 0."""
    return self._size(self.raw, field)

  def number(self, field: str) -> float:
    """Returns a field that must be a number above 0."""
    value = self.raw.get(field)
    if isinstance(value, int | float) and not isinstance(value, bool):
      if value > 0:
        return float(value)
    raise self.error(field, 'it must be a number above 0')

  def flag(self, field: str) -> bool:
    """Returns a field that must be true or false; absent is false."""
    value = self.raw.get(field, False)
    if not isinstance(value, bool):
      raise self.error(field, 'it must be true or false')
    return value

  def only(self, field: str, *allowed: Any) -> None:
    """Refuses a field that is present with a value not among `allowed`."""
    if field in self.raw and self.raw[field] not in allowed:
      listed = ' or '.join(repr(value) for value in allowed)
      raise self.error(field, f'sdjax runs only {listed}')


_SIZES = (
  'vocab_size',
  'hidden_size',
  'num_hidden_layers',
  'num_attention_heads',
  'intermediate_size',
)
"""What every file must say itself: a default would be another model's."""


def _with_defaults(
  given: Mapping[str, Any], path: Path | str
) -> dict[str, Any]:
  mapping = from_transformers('CONFIG_MAPPING')
  try:
    config = mapping[given['model_type']].from_dict(dict(given))
  # Whatever the library's own checks raise.
  except Exception as error:
    reason = ' '.join(str(error).split())
    raise CheckpointError(
      f'{path} is not accepted as a {given["model_type"]} configuration by '
      f'transformers: {reason}'
    ) from error
  return config.to_dict()


_LONGER = ('factor', 'original_max_position_embeddings')
_YARN = ('attention_factor', 'mscale', 'mscale_all_dim', 'truncate')
_ROPE_FIELDS = {
  'default': (),
  'linear': ('factor',),
  'llama3': (*_LONGER, 'low_freq_factor', 'high_freq_factor'),
  'yarn': (*_LONGER, 'beta_fast', 'beta_slow', *_YARN),
}
_PLAIN = {'partial_rotary_factor': 1}


def _rope(fields: Fields, options: Any) -> Rope:
  """Reads one set of rotary options, refusing what would change the model."""
  old = fields.given.get('rope_scaling')
  field = 'rope_scaling' if old else 'rope_parameters'
  if not isinstance(options, dict):
    raise fields.error(field, 'it must be an object')
  options = {k: v for k, v in options.items() if v is not None}
  kind = options.pop('rope_type', options.pop('type', 'default'))
  options.pop('type', None)
  if kind not in _ROPE_FIELDS:
    raise fields.error(
      field, f'sdjax runs the rope types {", ".join(_ROPE_FIELDS)}'
    )
  theta = options.pop('rope_theta', None)
  if not isinstance(theta, int | float) or theta <= 0:
    raise fields.error('rope_theta', 'it must be a number above 0')
  for name, value in options.items():
    if name in _PLAIN and value == _PLAIN[name]:
      continue
    # Left in the file by some exporters although the type has no use for it.
    unused = kind == 'default' and name in _ROPE_FIELDS['yarn']
    if name not in _ROPE_FIELDS[kind] and not unused:
      raise fields.error(
        field, f'sdjax does not know {name!r} in rope type {kind!r}'
      )

  def get(name, default=None):
    value = options.get(name, default)
    if not isinstance(value, int | float) or value <= 0:
      raise fields.error(field, f'{name} must be a number above 0')
    return value

  rope = functools.partial(Rope, theta=float(theta), scaling=kind)
  if kind == 'default':
    return rope()
  if kind == 'linear':
    return rope(factor=get('factor'))
  original = int(get('original_max_position_embeddings'))
  rope = functools.partial(rope, original_context=original)
  if kind == 'llama3':
    low, high = get('low_freq_factor'), get('high_freq_factor')
    return rope(factor=get('factor'), low=low, high=high)
  longest = fields.raw.get('max_position_embeddings') or original
  factor = get('factor', longest / original)
  magnitude = options.get('attention_factor')
  if magnitude is None:
    top, bottom = options.get('mscale'), options.get('mscale_all_dim')
    if top and bottom:
      magnitude = _magnitude(factor, top) / _magnitude(factor, bottom)
    else:
      magnitude = _magnitude(factor, 1.0)
  return rope(
    factor=factor,
    low=get('beta_slow', 1),
    high=get('beta_fast', 32),
    magnitude=float(magnitude),
    truncate=bool(options.get('truncate', True)),
  )


def _magnitude(factor: float, weight: float) -> float:
  """YaRN's answer to the flatter attention of a longer context."""
  return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


_KINDS = ('full_attention', 'sliding_attention')


def attention_kinds(fields: Fields) -> tuple[AttentionKind, ...]:
  """Reads the window and the rotary positions of every layer."""
  layers = fields.size('num_hidden_layers')
  kinds = fields.raw.get('layer_types')
  if kinds is None:
    limited = fields.raw.get('sliding_window') is not None
    sliding = limited and fields.raw.get('use_sliding_window', True)
    kinds = [_KINDS[bool(sliding)]] * layers
  if not isinstance(kinds, list) or len(kinds) != layers:
    raise fields.error(
      'layer_types', f'it must list a kind for each of the {layers} layers'
    )
  if unknown := set(kinds) - set(_KINDS):
    raise fields.error(
      'layer_types',
      f'sdjax runs {" and ".join(_KINDS)} layers, not {min(unknown)!r}',
    )
  window = fields.size('sliding_window') if _KINDS[1] in kinds else 0
  ropes = fields.raw.get('rope_parameters')
  if not isinstance(ropes, dict):
    raise fields.error('rope_parameters', 'it must be an object')
  by_kind = {}
  for kind in set(kinds):
    options = ropes.get(kind) if set(ropes) & set(_KINDS) else ropes
    by_kind[kind] = AttentionKind(
      window=window if kind == _KINDS[1] else 0,
      rope=_rope(fields, options),
    )
  if len(by_kind) == 1:
    return tuple(by_kind.values())
  return tuple(by_kind[kind] for kind in kinds)
