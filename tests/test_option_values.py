"""Options as values: text and back, bounds, and errors that help."""

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import pytest
from annotated_types import Gt, Lt

from sdjax.options import ConfigError, Option


class Shape(Option):
  """A family."""


@dataclass(frozen=True)
class Round(Shape, name='round'):
  """A choice with options."""

  share: Annotated[float, Gt(0), Lt(1)] = 0.5
  clip: Annotated[float, Gt(0)] = math.inf
  of: Literal['student', 'teacher'] = 'student'
  tail: bool = True
  file: str = ''


@dataclass(frozen=True)
class Flat(Shape, name='flat'):
  """A choice without options."""


@dataclass(frozen=True)
class Framed(Shape, name='framed'):
  """A choice that holds another."""

  size: int
  inner: Shape = Flat()


@dataclass(frozen=True)
class Section:
  """What a config has."""

  shape: Shape = Flat()


@pytest.mark.parametrize(
  'value, text',
  [
    (Flat(), 'flat'),
    (Round(), 'round'),
    (Round(share=0.3, clip=2), 'round(share=0.3, clip=2)'),
    (Round(share=1e-7), 'round(share=1e-07)'),
    (Round(share=1 / 3), 'round(share=0.3333333333333333)'),
    (
      Round(of='teacher', tail=False, file="a'b"),
      "round(of='teacher', tail=False, file=\"a'b\")",
    ),
    (Framed(3, Round(share=0.1)), 'framed(size=3, inner=round(share=0.1))'),
  ],
)
def test_text_and_back(value, text):
  assert str(value) == text
  assert Shape.parse(text) == value


def test_other_spellings_are_read():
  assert Shape.parse(' round( share = 0.5 , clip = inf ) ') == Round()
  assert Shape.parse('flat()') == Flat()


@pytest.mark.parametrize(
  'text, words',
  [
    (
      'rond',
      r"'rond' is not one of round, flat, framed \(did you mean 'round'",
    ),
    ('round(shore=1)', "round has no option 'shore' .did you mean 'share'"),
    ('flat(size=1)', "flat has no option 'size'; it has none"),
    ('round(share=3)', r'round\(share=3.0\) must be below 1'),
    ('round(share=1)', r'round\(share=1.0\) must be below 1'),
    ("round(share='x')", r"round\(share='x'\) must be a valid number"),
    ('round(tail=1)', r'round\(tail=1\) must be a valid boolean'),
    ("round(of='both')", "must be 'student' or 'teacher'"),
    ('round(0.3)', r"'round\(0.3\)' is not a choice; write name or name\("),
    ('round(share=a)', 'a in .* is not a value; give a number, True'),
    ('framed', r"'framed' lacks size; write framed\(size=...\)"),
    ('framed(size=1, inner=rund)', "'rund' is not one of round"),
    ('1 +', 'is not a choice'),
    ('', 'is not a choice'),
    ('__import__("os").getcwd()', 'is not a choice'),
  ],
)
def test_errors_name_the_value_and_what_there_is(text, words):
  with pytest.raises(ConfigError, match=words):
    Shape.parse(text)


def test_python_is_held_to_the_same_bounds():
  with pytest.raises(ConfigError, match=r'round\(share=2\) must be below'):
    Round(share=2)
  with pytest.raises(ConfigError, match='must be finite|below 1'):
    Round(share=math.nan)
  assert isinstance(Round(clip=2).clip, float)


def test_a_config_holds_a_choice_or_its_text():
  read = pydantic.TypeAdapter(Section).validate_python
  assert read({'shape': 'round(share=0.1)'}) == Section(Round(share=0.1))
  assert read({'shape': Flat()}) == Section()
  with pytest.raises(pydantic.ValidationError, match='did you mean .flat'):
    read({'shape': 'flut'})


def test_names_are_given_once():
  with pytest.raises(ValueError, match="'flat' is already Flat"):

    class Again(Shape, name='flat'):
      """Taken."""
