"""Options as values: a choice with options of its own is one small object.

A family of choices (divergences, advantages, teachers ...) is a class derived
from `Option`; each choice is a frozen dataclass derived from the family, with
the name it has on the command line and in `config.json`:

  class Divergence(Option): ...

  @dataclass(frozen=True)
  class JSD(Divergence, name='jsd'):
    alpha: Annotated[float, Gt(0), Lt(1)] = 0.5

  Divergence.parse('jsd(alpha=0.3)') == JSD(alpha=0.3)
  str(JSD(alpha=0.3)) == 'jsd(alpha=0.3)'

A value of the wrong type or outside its bounds cannot be made, neither from
text nor in Python. Needs no JAX: verifiers in worker processes import it.
"""

import ast
import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self

import pydantic
from annotated_types import Ge, Le
from pydantic_core import core_schema


class ConfigError(ValueError):
  """An option that cannot mean what its author wanted."""


def nearest(name: str, names: Iterable[str]) -> str:
  """Returns a hint at the name that may have been meant, or nothing."""
  close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f' (did you mean {close[0]!r}?)' if close else ''


PLAIN = (
  ('greater than or equal to', 'at least'),
  ('less than or equal to', 'at most'),
  ('greater than', 'above'),
  ('less than', 'below'),
)
"""How bounds are named, in place of how pydantic names them."""


class Option:
  """A family of named choices; see the module.

  Attributes:
    name: of the choice, in text.
    choices: of the family, by name.
    said: what it is, for a person, with `{option}` for an option's value.
    section: whether a config holds it as a section of plain options, not as
      text.
  """

  name: ClassVar[str] = ''
  said: ClassVar[str] = ''
  section: ClassVar[bool] = False
  choices: ClassVar[dict[str, type[Any]]] = {}

  def __init_subclass__(cls, name: str = '', **rest: Any):
    """Starts a family, or enters a choice into its family by its name."""
    super().__init_subclass__(**rest)
    if Option in cls.__bases__:
      cls.choices = {}
    cls.name = name or vars(cls).get('name', '')
    if name:
      if name in cls.choices:
        raise ValueError(f'{name!r} is already {cls.choices[name].__name__}.')
      cls.choices[name] = cls

  def __post_init__(self):
    """Holds every field to its type and its bounds.

    Raises:
      ConfigError: naming the option, its value and what is allowed.
    """
    check_fields(self, self.name)

  def __str__(self) -> str:
    """Returns the text that `parse` reads; defaults are left out."""
    changed = [
      f'{field.name}={_literal(getattr(self, field.name))}'
      for field in dataclasses.fields(typing.cast(Any, self))
      if getattr(self, field.name) != field.default
    ]
    return f'{self.name}({", ".join(changed)})' if changed else self.name

  def words(self) -> str:
    """Says what it is, for a person; empty where nothing is to be said."""
    return self.said.format(**{'name': self.name, **vars(self)})

  @classmethod
  def parse(cls, text: str) -> Self:
    """Reads a choice of this family from text, strictly.

    The text is `name`, or `name(option=value, ...)` with values as in Python.

    Raises:
      ConfigError: for another form, name, option or value; it names the
        nearest one and what there is.
    """
    try:
      node = ast.parse(text.strip(), mode='eval').body
    except SyntaxError:
      node = None
    return _build(cls, node, text)

  @classmethod
  def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
    """Lets a config hold a choice, or its text, where the family is asked."""
    del source, handler

    def read(value: Any) -> Any:
      value = cls.parse(value) if isinstance(value, str) else value
      if not isinstance(value, cls):
        raise ConfigError(
          f'{value!r} is not one of {", ".join(cls.choices)} or its text.'
        )
      return value

    return core_schema.no_info_plain_validator_function(
      read, serialization=core_schema.to_string_ser_schema()
    )


def check_fields(value: Any, name: str = '') -> None:
  """Holds the fields of a frozen dataclass to their types and bounds.

  Whole numbers become floats where those are wanted.

  Raises:
    ConfigError: naming the field, its value and what is allowed.
  """
  for field, check in _checks(type(value)).items():
    got = getattr(value, field)
    what = f'{field}={got!r}'
    what = f'{name}({what})' if name else what
    try:
      object.__setattr__(value, field, check.validate_python(got, strict=True))
    except pydantic.ValidationError as error:
      first = error.errors()[0]
      told = first['msg'].removeprefix('Value error, ')
      if told == first['msg']:
        told = f'{what} must {told.removeprefix("Input should ")}'
        for long, short in PLAIN:
          told = told.replace(long, short)
      else:  # of a choice, which does not know the field that it is for
        told = f'{what}: {told}'
      raise ConfigError(f'{told.rstrip(".")}.') from None


def refuse(value: Any, names: Iterable[str], why: str) -> None:
  """Refuses fields that differ from their defaults and do nothing.

  Raises:
    ConfigError: one does; it ends with why, after "does nothing".
  """
  plain = {field.name: field.default for field in dataclasses.fields(value)}
  for name in names:
    got = getattr(value, name)
    if got != plain[name]:
      raise ConfigError(f'{name}={got!r} does nothing {why}')


def is_section(value: Any) -> bool:
  """Whether a config holds a value as a section of plain options."""
  return dataclasses.is_dataclass(value) and (
    not isinstance(value, Option) or value.section
  )


@functools.cache
def _checks(kind: type) -> dict[str, pydantic.TypeAdapter[Any]]:
  hints = typing.get_type_hints(kind, include_extras=True)
  return {
    field.name: pydantic.TypeAdapter(hints[field.name])
    for field in dataclasses.fields(kind)
  }


def _literal(value: Any) -> str:
  if isinstance(value, Option):
    return str(value)
  # `0.00001` is written `1e-05`, unless something would be lost.
  short = isinstance(value, float) and float(f'{value:g}') == value
  return f'{value:g}' if short else repr(value)


def _build(family: type[Option], node: Any, text: str) -> Any:
  """Makes a choice of what Python's parser has read."""
  call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
  called = call.func
  if not isinstance(called, ast.Name) or call.args:
    some = next(iter(family.choices), 'name')
    raise ConfigError(
      f'{text!r} is not a choice; write name or name(option=value), e.g. '
      f'{some}; there is {", ".join(family.choices)}.'
    )
  kind = family.choices.get(called.id)
  if kind is None:
    raise ConfigError(
      f'{called.id!r} is not one of {", ".join(family.choices)}'
      f'{nearest(called.id, family.choices)}.'
    )
  hints = typing.get_type_hints(kind)
  known = [field.name for field in dataclasses.fields(kind)]
  values = {}
  for keyword in call.keywords:
    if keyword.arg not in known:
      has = f'it has {", ".join(known)}' if known else 'it has none'
      raise ConfigError(
        f'{called.id} has no option {keyword.arg!r}'
        f'{nearest(str(keyword.arg), known)}; {has}.'
      )
    values[keyword.arg] = _value(hints[keyword.arg], keyword.value, text)
  missing = [
    field.name
    for field in dataclasses.fields(kind)
    if field.default is dataclasses.MISSING and field.name not in values
  ]
  if missing:
    raise ConfigError(
      f'{text!r} lacks {missing[0]}; write {called.id}({missing[0]}=...).'
    )
  return kind(**values)


def _value(hint: Any, node: ast.expr, text: str) -> Any:
  if isinstance(hint, type) and issubclass(hint, Option):
    return _build(hint, node, text)
  if isinstance(node, ast.Name) and node.id == 'inf':
    return float('inf')
  try:
    value = ast.literal_eval(node)
  except ValueError:
    raise ConfigError(
      f'{ast.unparse(node)} in {text!r} is not a value; give a number, True, '
      'False, or text in quotes.'
    ) from None
  return float(value) if hint is float and type(value) is int else value


Count = Annotated[int, Ge(0)]
Size = Annotated[int, Ge(1)]
Share = Annotated[float, Ge(0), Le(1)]
NonNegative = Annotated[float, Ge(0)]


class Section:
  """Options that belong together, held to their types and bounds."""

  def __post_init__(self):
    """Refuses a value out of bounds, naming it and what is allowed."""
    check_fields(self)
