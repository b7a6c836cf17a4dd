"""Reads judged answers of any system: JSON lines, one answer a line."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Name = str | int
"""What tells questions, solutions or strategies apart."""


class RolloutError(ValueError):
  """A line that cannot be read: says file, line and what is wrong."""


@dataclasses.dataclass
class Answers:
  """The answers of Q questions, in rows, in the order they were met.

  Of each answer its text; whether it is correct; its solution, None where it
  has none; the names of its strategies; the demonstrations it was shown; and
  what a judge gave it. Each of the last four is None when no line has any;
  of the correct answers all have a solution, or none has. `steps` are the
  different steps of training of the lines that were read, rising.
  """

  question_ids: list[Name]
  answer: list[list[str]]
  correct: list[list[bool]]
  solution: list[list[Name | None]] | None
  strategies: list[list[tuple[Name, ...]]] | None
  demonstrations: list[list[tuple[str, ...]]] | None
  score: list[list[float]] | None
  steps: list[int]


class _Line(NamedTuple):
  """What is read of one line; None for a field that it has not."""

  number: int
  answer: str
  correct: bool
  solution: Name | None
  strategies: tuple[Name, ...]
  demonstrations: tuple[str, ...]
  score: float | None
  reward: float | None

  @property
  def identity(self) -> Name | None:
    """The solution; '' is none, though it says that solutions are told."""
    return None if self.solution == '' else self.solution


def read_answers(
  path: str | os.PathLike[str], step: int | None = None
) -> Answers:
  """Reads a file of answers.

  A line is an object with

    question_id     str or int; lines of one question need not be together
    answer          str, may be empty
    correct         true or false; 1 and 0 will do
    solution        optional str or int: two correct answers with the same
                    one are the same solution; '' and null: none
    strategy        optional str or int, or a list of them; `concepts`, a
                    list, where there is no strategy; '', null and []: none
    demonstration   optional str; `demonstrations`, a list, likewise; '' and
                    null: none
    step            optional int, of the training the answer is from
    score           optional number, higher is better, in every line or in
                    none; `reward` where no line has a score, unless it is the
                    verdict itself, which picks no answer

  and whatever else, which is not read. That is also what a run leaves in
  `rollouts.jsonl`. Empty lines are skipped; of the others only those whose
  `step` is the one asked for, None: all. Raises RolloutError for a line that
  is not as above, or when some correct answers have a solution and others have
  not, or some answers a score.
  """
  questions: dict[Name, list[_Line]] = {}
  known: dict[tuple, tuple] = {}  # Equal tuples are kept once.
  steps: set[int] = set()
  for number, record in read_records(path):
    at = record.get('step')
    if isinstance(at, int):
      steps.add(at)
    if step is not None and at != step:
      continue
    try:
      name = _field(record, 'question_id', _is_name, _NAME, needed=True)
      line = _line(number, record, known)
    except ValueError as error:
      raise RolloutError(f'{path}, line {number}: {error}') from None
    questions.setdefault(name, []).append(line)
  if not questions:
    raise RolloutError(
      f'{path} holds no answer; give at least one line.'
      if step is None
      else f'{path} holds no answer of step {step}, {_range(steps)}.'
    )
  lines = [line for row in questions.values() for line in row]
  right = [line for line in lines if line.correct]
  unnamed = [line.number for line in right if line.identity is None]
  if unnamed and len(unnamed) < len(right):
    raise RolloutError(
      f'{path}, line {min(unnamed)}: the answer is correct but has no '
      f'solution, though {len(right) - len(unnamed)} correct answers have one; '
      'give one to every correct answer, or to none.'
    )
  # Without a correct answer nothing is missing: there are zero solutions.
  solved = any(line.solution is not None for line in lines) and not unnamed

  def rows(field: str, known: bool = True) -> Any:
    if not known:
      return None
    return [
      [getattr(line, field) for line in row] for row in questions.values()
    ]

  score = _field_of_every_line(path, lines)
  return Answers(
    question_ids=list(questions),
    answer=rows('answer'),
    correct=rows('correct'),
    solution=rows('identity', solved),
    strategies=rows('strategies', any(line.strategies for line in lines)),
    demonstrations=rows(
      'demonstrations', any(line.demonstrations for line in lines)
    ),
    score=rows(score, bool(score)),
    steps=sorted(steps) if step is None else [step],
  )


def _range(steps: set[int]) -> str:
  if not steps:
    return 'and no line has a step'
  return f'but of {len(steps)} steps in {min(steps)}..{max(steps)}'


def _field_of_every_line(
  path: str | os.PathLike[str], lines: list[_Line]
) -> str:
  """The first of the scores that is there: two are never mixed; '' if none."""
  for field in ('score', 'reward'):
    values = [getattr(line, field) for line in lines]
    lacking = [line.number for line in lines if getattr(line, field) is None]
    given = len(lines) - len(lacking)
    if not given or (
      field == 'reward' and values == [line.correct for line in lines]
    ):
      continue
    if lacking:
      raise RolloutError(
        f'{path}, line {min(lacking)}: the answer has no {field}, though '
        f'{given} answers have one; give one to every answer, or to none.'
      )
    return field
  return ''


def read_records(
  path: str | os.PathLike[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the objects of a file of JSON lines, with their line numbers.

  Lines count from 1; empty ones are skipped. Raises RolloutError for a line
  that is not a JSON object.
  """
  with open(path, 'rb') as file:
    for number, line in enumerate(file, 1):
      if not line.strip():
        continue
      try:
        record = json.loads(line)
      except ValueError as error:
        raise RolloutError(
          f'{path}, line {number}: not JSON ({error}); one object a line, in '
          'UTF-8, is needed.'
        ) from None
      if not isinstance(record, dict):
        raise RolloutError(
          f'{path}, line {number}: a {type(record).__name__}, not an object '
          'with its question_id and answer.'
        )
      yield number, record


def read_verdict(record: dict[str, Any]) -> bool:
  """Reads whether an answer is correct; ValueError when it does not say."""
  return bool(
    _field(
      record,
      'correct',
      # In Python 1 and 1.0 are both equal to true.
      lambda x: isinstance(x, (bool, int, float)) and x in (False, True),
      'it must be true or false (1 and 0 will do)',
      needed=True,
    )
  )


_NAME = 'it must be a string or integer'


def _is_name(value: Any) -> bool:
  # In Python true is an int.
  return isinstance(value, (str, int)) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _is_number(value: Any) -> bool:
  # The bound leaves out NaN, infinities and integers no float can hold.
  largest = sys.float_info.max
  return isinstance(value, (int, float)) and -largest <= value <= largest


def _list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
  return lambda value: isinstance(value, list) and all(map(fits, value))


def _field(
  record: dict[str, Any],
  key: str,
  fits: Callable[[Any], bool],
  must: str,
  needed: bool = False,
) -> Any:
  """A field's value; what need not be there may be null."""
  if needed and key not in record:
    raise ValueError(f'{key} is missing; {must}.')
  value = record.get(key)
  if not fits(value) and (needed or value is not None):
    text = json.dumps(value, ensure_ascii=False)
    shown = text if len(text) <= 60 else f'{text[:57]}...'
    raise ValueError(f'{key} is {shown}; {must}.')
  return value


def _line(number: int, record: dict[str, Any], known: dict) -> _Line:
  answer = _field(record, 'answer', _is_text, 'it must be a string', True)
  correct = read_verdict(record)
  solution = _name(record, 'solution')
  used = _names(record, 'strategy') or _names(record, 'concepts')
  must = 'it must be a string or null'
  one = _field(record, 'demonstration', _is_text, must)
  must = 'it must be a list of strings'
  several = _field(record, 'demonstrations', _list_of(_is_text), must)
  shown = tuple(text for text in (one, *(several or ())) if text)
  must = 'it must be a finite number or null'
  scores = [
    _field(record, key, _is_number, must) for key in ('score', 'reward')
  ]
  return _Line(
    number,
    answer,
    correct,
    solution,
    known.setdefault(used, used),
    known.setdefault(shown, shown),
    *(None if value is None else float(value) for value in scores),
  )


def _name(record: dict[str, Any], key: str) -> Name | None:
  return _field(
    record, key, _is_name, 'it must be a string, an integer or null'
  )


def _names(record: dict[str, Any], key: str) -> tuple[Name, ...]:
  if isinstance(record.get(key), list):
    must = 'a list of it must hold strings or integers'
    return tuple(_field(record, key, _list_of(_is_name), must))
  name = _name(record, key)
  return () if name in (None, '') else (name,)
