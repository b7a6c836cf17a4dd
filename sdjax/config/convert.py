"""Configs as nested dicts: for flags, for files, and back.

`configs/*.py` return `to_config_dict(Config(...))`, so that
`--config.field=value` works; `from_config_dict` turns it back, once, in
`main.py`. An unknown or mistyped option is an error that names it.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

from sdjax.config.check import sections, validate
from sdjax.config.schema import (
  METHODS,
  Config,
  ConfigError,
  Demonstrations,
  Loss,
)
from sdjax.options import Option, is_section, nearest
from sdjax.tasks.options import TaskOptions


def replace(config: Any, **changes: Any) -> Any:
  """Returns a copy with dotted fields changed.

  `optimizer__learning_rate=1e-3` reaches into the section `optimizer`.
  """
  nested: dict[str, dict[str, Any]] = {}
  flat: dict[str, Any] = {}
  for path, value in changes.items():
    head, _, rest = path.partition('__')
    if rest:
      nested.setdefault(head, {})[rest] = value
    else:
      flat[head] = value
  for head, inner in nested.items():
    flat[head] = replace(flat.get(head, getattr(config, head)), **inner)
  return dataclasses.replace(config, **flat)


def to_dict(config: Any) -> dict[str, Any]:
  """Turns a config into nested dicts of JSON values, without absent sections.

  Tuples become lists in JSON only.
  """
  values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
  return {k: _plain(v) for k, v in values.items() if v is not None}


def _plain(value: Any) -> Any:
  if is_section(value):
    return to_dict(value)
  return str(value) if isinstance(value, Option) else value


def to_json(config: Any) -> dict[str, Any]:
  """Turns a config into what `config.json` gives back, tuples as lists."""
  return json.loads(json.dumps(to_dict(config)))


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
  """What a `configs/*.py` returns, so that flags can override its fields."""
  return ml_collections.ConfigDict(to_dict(config))


def from_config_dict(
  values: Mapping[str, Any] | ml_collections.ConfigDict,
) -> Config:
  """Turns a `ConfigDict`, or the dict of a `config.json`, back into a `Config`.

  Raises:
    ConfigError: for an unknown, mistyped, conflicting or ineffective option,
      naming it.
  """
  if isinstance(values, ml_collections.ConfigDict):
    values = values.to_dict()
  config = _parse(Config, values, '')
  validate(config)
  return config


def read_section(values: Any, like: Any, name: str) -> Any:
  """Reads a section of a `config.json`, or a plain option, named `name`.

  Its kind is that of `like`; what the file lacks has its default.

  Raises:
    ConfigError: as `from_config_dict`, but not for combinations.
  """
  return _parse(type(like), values, name)


def read_like(
  values: Mapping[str, Any], config: Config, names: Iterable[str]
) -> dict[str, Any]:
  """Reads sections of a `config.json` into the kinds that a config has.

  These may be a user's own. Returned are JSON values, with the defaults of
  what the file lacks.

  Raises:
    ConfigError: as `from_config_dict`, but not for combinations.
  """
  hints = typing.get_type_hints(Config)
  plain, parsed = Config(), {}
  for name in names:
    optional = type(None) in typing.get_args(hints[name])
    own = getattr(config, name)
    value = values.get(name, None if optional else {})
    if value is None:
      continue
    if name not in values and not dataclasses.is_dataclass(own):
      parsed[name] = getattr(plain, name)
    elif not isinstance(value, Mapping) or (
      value.get('name') == getattr(own, 'name', None)
    ):
      parsed[name] = read_section(value, own, name)
    else:
      parsed[name] = _parse(hints[name], value, name)
  return json.loads(json.dumps({k: _plain(v) for k, v in parsed.items()}))


def check(config: Config, mode: str) -> None:
  """Checks a config that was made in Python as one from a file is.

  Its sections may be of a user's own kinds.

  Raises:
    ConfigError: as `from_config_dict`, or it is for another mode.
  """
  for path, section in sections(config):
    hints = typing.get_type_hints(type(section))
    for field in dataclasses.fields(section):
      value = getattr(section, field.name)
      if not is_section(value) and value is not None:
        _parse(hints[field.name], value, path + field.name)
  if config.mode != mode:
    raise ConfigError(f'mode={config.mode!r}; this is for mode={mode!r}.')
  validate(config)


def _parse(kind: Any, value: Any, path: str) -> Any:
  """Builds a value of an annotated type from JSON-like data."""
  origin = typing.get_origin(kind)
  if origin in (types.UnionType, typing.Union):
    kind = _member(typing.get_args(kind), value, path)
  if isinstance(kind, type) and issubclass(kind, TaskOptions):
    if isinstance(value, TaskOptions):
      return value
    if isinstance(value, str):
      return kind.parse(value)
    if kind is TaskOptions:
      name = value.get('name') if isinstance(value, Mapping) else None
      kind = TaskOptions.choices.get(str(name), type(Config().task))
  elif isinstance(kind, type) and issubclass(kind, Option):
    return _parse_option(kind, value, path)
  if dataclasses.is_dataclass(kind):
    return _parse_section(kind, value, path)
  if origin is tuple:
    item = typing.get_args(kind)[0]
    if not isinstance(value, (list, tuple)):
      raise ConfigError(f'{path}={value!r} must be a tuple of {item.__name__}.')
    return tuple(_parse(item, v, path) for v in value)
  if origin is typing.Literal:
    allowed = typing.get_args(kind)
    if value not in allowed:
      raise ConfigError(
        f'{path}={value!r} is not one of {", ".join(allowed)}'
        f'{nearest(str(value), allowed)}.'
      )
    return value
  if kind is float and type(value) is int:
    return float(value)
  if type(value) is not kind:
    raise ConfigError(
      f'{path}={value!r} must be of type {kind.__name__}, '
      f'not {type(value).__name__}.'
    )
  return value


def _parse_option(family: type[Option], value: Any, path: str) -> Option:
  """Reads a choice from its text."""
  if isinstance(value, family):
    return value
  if not isinstance(value, str):
    raise ConfigError(
      f'{path}={value!r} must be one of {", ".join(family.choices)}, as text'
      f'{_as_text(family, value)}.'
    )
  try:
    return family.parse(value)
  except ConfigError as error:
    now = RENAMED_VALUES.get(value, '')
    raise ConfigError(
      f'{path}={value!r}: {error}{now and f" It is {now} now."}'
    ) from None


def given_as_text() -> set[str]:
  """Returns the names of the options whose values have options of their own."""
  return {
    name
    for kind in (*METHODS.values(), Demonstrations, Loss)
    for name, hint in typing.get_type_hints(kind).items()
    if isinstance(hint, type) and issubclass(hint, Option)
  }


def _as_text(family: type[Option], value: Any) -> str:
  """Says how the options of a choice are written, if they were given alone."""
  for name, kind in family.choices.items():
    known = {field.name for field in dataclasses.fields(kind)}
    if isinstance(value, Mapping) and value and known >= set(value):
      options = ', '.join(f'{k}={v!r}' for k, v in value.items())
      return f': {name}({options})'
  return ''


RENAMED = {
  'objective': 'divergence',
  'jsd_alpha': "divergence='jsd(alpha=0.5)'",
  'jsd_normalised': "divergence='jsd(normalised=True)'",
  'pointwise_clip': "divergence='reverse_kl(clip=0.05)'",
  'top_k': "support='top_k(k=100)'",
  'tail': "support='top_k(tail=False)'",
  'ema_rate': "teacher='ema(rate=0.05)'",
  'snapshot_every': "teacher='snapshot(every=10)'",
  'trust_region': "anchor='trust_region(share=0.05)'",
  'anchor_beta': "anchor='beta(beta=2.0)'",
  'anchor_steps': "anchor='beta(beta=2.0, steps=100)'",
  'exclude_self': "strategy='uniform(exclude_self=False)'",
  'exclude_same_text': "strategy='uniform(exclude_same_text=True)'",
  'file': "strategy='external(file=...)'",
  'file_draw': "strategy='external(file=..., draw=...)'",
  'pass_k': "advantage='pass_at_k(k=4)'",
  'std': "advantage='grpo(std=...)'",
  'std_epsilon': "advantage='grpo(epsilon=...)'",
  'clip_low': "policy_loss='clip(low=0.2)'",
  'clip_high': "policy_loss='clip(high=0.28)'",
  'dual_clip': "policy_loss='clip(dual=3)'",
  'drop_low': "policy_loss='cispo(drop_low=0.2)'",
  'drop_high': "policy_loss='cispo(drop_high=0.2)'",
  'adaptive_clip': "policy_loss='adaptive_clip'",
  'diversity_weight': "diversity='add(weight=0.5)'",
  'diversity_how': "diversity='add' or 'multiply'",
  'diversity_by': "diversity='add(by=...)'",
  'diversity_for': "diversity='add(of=...)'",
  'weight': "rule='advantage(weight=0.5)'",
  'ratio_clip': "rule='rlsd(clip=0.2)'",
  'entropy_floor': "rule='antisd(entropy_floor=...)'",
  'entropy_exponent': "rule='srpo(entropy_exponent=...)'",
  'positive_only': "rule='sdpg(positive_only=True)'",
  'contrast_temperature': "rule='rlcsd(temperature=...)'",
  'contrast_clip': "rule='rlcsd(clip=...)'",
  'contrast_threshold': "rule='rlcsd(threshold=...)'",
  'touched_weight': "rule='rlcsd(touched_weight=...)'",
  'kl_coef': "kl='k3(coef=...)'",
  'kl_estimator': "kl='k3(coef=...)'",
  'kl_in': "kl='reward(coef=..., to_go=...)'",
}
"""Options that were spelled otherwise, and how they are spelled."""

RENAMED_VALUES = {
  'student_top_k': '"top_k(of=\'student\')"',
  'teacher_top_k': '"top_k(of=\'teacher\')"',
  'trust_region': "anchor='trust_region' with teacher='current'",
}
"""Values that were spelled otherwise."""


def _member(kinds: tuple[Any, ...], value: Any, path: str) -> Any:
  """Picks the dataclass of a union that the section's `name` selects."""
  sections = [k for k in kinds if k is not type(None)]
  if len(sections) == 1:
    return sections[0]
  by_name = {k.name: k for k in sections}
  if set(sections) <= set(METHODS.values()):
    by_name = METHODS  # which may hold a user's own
  name = value.get('name') if isinstance(value, Mapping) else value
  if name not in by_name:
    raise ConfigError(
      f'{path}.name={name!r} is not one of {sorted(by_name)}'
      f'{nearest(str(name), by_name)}.'
    )
  return by_name[str(name)]


def _elsewhere(kind: Any, name: str, hints: Iterable[str]) -> str:
  """Hints at the name that was meant, or at the methods that have it."""
  if kind in METHODS.values():
    others = [
      repr(method)
      for method, section in METHODS.items()
      if any(field.name == name for field in dataclasses.fields(section))
    ]
    if others:
      return f', which is one of method {" and ".join(others)}'
  return nearest(name, hints)


def _parse_section(kind: Any, value: Any, path: str) -> Any:
  if not isinstance(value, Mapping):
    raise ConfigError(f'{path}={value!r} must be a section of options.')
  hints = {
    name: hint
    for name, hint in typing.get_type_hints(kind).items()
    if name in {field.name for field in dataclasses.fields(kind)}
  }
  dotted = {name: f'{path}.{name}'.lstrip('.') for name in {*hints, *value}}
  for name in value:
    if name not in hints:
      now = RENAMED.get(name)
      now = f' (it is {now} now)' if now and now.split('=')[0] in hints else ''
      raise ConfigError(
        f'unknown option {dotted[name]}{now or _elsewhere(kind, name, hints)}; '
        f'{path or "a config"} has {", ".join(sorted(hints))}.'
      )
  parsed = {}
  for name, hint in hints.items():
    if name in value:
      parsed[name] = _parse(hint, value[name], dotted[name])
    elif type(None) in typing.get_args(hint):
      parsed[name] = None
  # What is absent keeps its default: a run that began before an option
  # existed goes on as it was.
  try:
    return kind(**parsed)
  except ConfigError as error:
    # Some sections name themselves in what they say.
    said = str(error).removeprefix(f'{path.rpartition(".")[2]}.')
    raise ConfigError(f'{path}.{said}'.lstrip('.')) from None
