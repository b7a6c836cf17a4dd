"""Reads judged answers of any system: JSON lines, one answer a line."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

Name = str | int
"""What tells questions, solutions or strategies apart."""


class RolloutError(ValueError):
  """A line that cannot be read: says file, line and what is wrong."""


@dataclasses.dataclass
class Answers:
  """The answers of some questions, Q rows, in the order they were met.

  Attributes:
    question_ids: Q ids.
    answer: rows of texts.
    correct: rows of bool.
    solution: rows of identities, None where a line has none; None when no
      line has one. Every correct answer has one, or none has.
    strategies: rows of tuples of names; None when no line names any.
    demonstrations: rows of tuples of texts; None when no line shows any.
    score: rows of numbers, what a judge gave each answer; None when no line
      has one.
    steps: the different steps of training of the lines that were read and
      have one, rising.
  """

  question_ids: list[Name]
  answer: list[list[str]]
  correct: list[list[bool]]
  solution: list[list[Name | None]] | None
  strategies: list[list[tuple[Name, ...]]] | None
  demonstrations: list[list[tuple[str, ...]]] | None
  score: list[list[float]] | None
  steps: list[int]


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
  `rollouts.jsonl`. Empty lines are skipped.

  Args:
    path: the file.
    step: only lines whose `step` is this; None: all lines.

  Returns:
    The answers by question.

  Raises:
    RolloutError: for a line that is not as above, or when some correct
      answers have a solution and others have not, or some answers a score.
    OSError: when the file cannot be read.
  """
  place: dict[Name, int] = {}
  answer: list[list[str]] = []
  correct: list[list[bool]] = []
  solution: list[list[Name | None]] = []
  strategies: list[list[tuple[Name, ...]]] = []
  demonstrations: list[list[tuple[str, ...]]] = []
  scores: dict[str, list[list[float | None]]] = {'score': [], 'reward': []}
  unscored: dict[str, int] = {}  # The first line without that field.
  known: dict[tuple, tuple] = {}  # Equal tuples are kept once.
  steps: set[int] = set()
  unnamed = 0  # The first line with a correct answer without a solution.
  has_strategy = has_solution = False
  for number, record in read_records(path):
    at = record.get('step')
    if isinstance(at, int):
      steps.add(at)
    if step is not None and at != step:
      continue
    try:
      name = _question_id(record)
      text = _of_type(record, 'answer', str, 'a string')
      right = read_verdict(record)
      identity = _name(record, 'solution')
      used = _names(record, 'strategy')
      if not used:
        used = _names(record, 'concepts')
      has_strategy |= bool(used)
      has_solution |= record.get('solution') is not None
      shown = _texts(record)
      given = {field: _number(record, field) for field in scores}
    except ValueError as error:
      raise RolloutError(f'{path}, line {number}: {error}') from None
    q = place.setdefault(name, len(place))
    if q == len(answer):
      for rows in (answer, correct, solution, strategies, demonstrations):
        rows.append([])
      for rows in scores.values():
        rows.append([])
    if right and identity is None:
      unnamed = unnamed or number
    answer[q].append(text)
    correct[q].append(right)
    solution[q].append(identity)
    used = used or ()
    strategies[q].append(known.setdefault(used, used))
    demonstrations[q].append(known.setdefault(shown, shown))
    for field, value in given.items():
      scores[field][q].append(value)
      if value is None:
        unscored.setdefault(field, number)
  if not answer:
    raise RolloutError(
      f'{path} holds no answer; give at least one line.'
      if step is None
      else f'{path} holds no answer of step {step}, {_range(steps)}.'
    )
  rights = _flat(correct)
  identities = _flat(solution)
  named = sum(
    right and identity is not None
    for right, identity in zip(rights, identities, strict=True)
  )
  if unnamed and named:
    raise RolloutError(
      f'{path}, line {unnamed}: the answer is correct but has no solution, '
      f'though {named} correct answers have one; give one to every correct '
      'answer, or to none.'
    )
  if _flat(scores['reward']) == rights:
    del scores['reward']
  scored = _of_every_line(path, scores, unscored)
  return Answers(
    question_ids=list(place),
    answer=answer,
    correct=correct,
    # Without a correct answer nothing is missing: there are zero solutions.
    solution=solution if has_solution and not unnamed else None,
    strategies=strategies if has_strategy else None,
    demonstrations=demonstrations if any(_flat(demonstrations)) else None,
    score=scored,
    steps=sorted(steps) if step is None else [step],
  )


def _range(steps: set[int]) -> str:
  if not steps:
    return 'and no line has a step'
  return f'but of {len(steps)} steps in {min(steps)}..{max(steps)}'


def _of_every_line(
  path: str | os.PathLike[str],
  fields: dict[str, list[list[Any]]],
  lacking: dict[str, int],
) -> list[list[Any]] | None:
  """The rows of the first field that is there: two are never mixed."""
  for field, rows in fields.items():
    count = sum(value is not None for value in _flat(rows))
    if count and field in lacking:
      raise RolloutError(
        f'{path}, line {lacking[field]}: the answer has no {field}, though '
        f'{count} answers have one; give one to every answer, or to none.'
      )
    if count:
      return rows
  return None


def _flat(rows: list[list[Any]]) -> list[Any]:
  return [value for row in rows for value in row]


def read_records(
  path: str | os.PathLike[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields the objects of a file of JSON lines, with their line numbers.

  Args:
    path: the file; its empty lines are skipped.

  Yields:
    The number of a line, from 1, and its object.

  Raises:
    RolloutError: for a line that is not a JSON object.
    OSError: when the file cannot be read.
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


def _shown(value: Any) -> str:
  text = json.dumps(value, ensure_ascii=False)
  return text if len(text) <= 60 else f'{text[:57]}...'


def _of_type(
  record: dict[str, Any], key: str, kind: type | tuple[type, ...], words: str
) -> Any:
  if key not in record:
    raise ValueError(f'{key} is missing; it must be {words}.')
  if not isinstance(record[key], kind):
    raise ValueError(f'{key} is {_shown(record[key])}; it must be {words}.')
  return record[key]


def read_verdict(record: dict[str, Any]) -> bool:
  """Reads whether an answer is correct.

  Args:
    record: of the answer.

  Returns:
    Its verdict.

  Raises:
    ValueError: when it is missing, or not true, false, 1 or 0.
  """
  words = 'true or false (1 and 0 will do)'
  value = _of_type(record, 'correct', (bool, int, float), words)
  # In Python 1 and 1.0 are both equal to true.
  if value not in (False, True):
    raise ValueError(f'correct is {_shown(value)}; it must be {words}.')
  return bool(value)


def _is_name(value: Any) -> bool:
  # In Python true is an int.
  return isinstance(value, (str, int)) and not isinstance(value, bool)


def _question_id(record: dict[str, Any]) -> Name:
  if 'question_id' not in record:
    raise ValueError('question_id is missing; it must be a string or integer.')
  value = record['question_id']
  if not _is_name(value):
    raise ValueError(
      f'question_id is {_shown(value)}; it must be a string or integer.'
    )
  return value


def _name(record: dict[str, Any], key: str) -> Name | None:
  value = record.get(key)
  if value is None or value == '':
    return None
  if not _is_name(value):
    raise ValueError(
      f'{key} is {_shown(value)}; it must be a string, an integer or null.'
    )
  return value


def _names(record: dict[str, Any], key: str) -> tuple[Name, ...] | None:
  value = record.get(key)
  if not isinstance(value, list):
    name = _name(record, key)
    return None if name is None else (name,)
  if not all(map(_is_name, value)):
    raise ValueError(
      f'{key} is {_shown(value)}; a list of it must hold strings or integers.'
    )
  return tuple(value)


def _number(record: dict[str, Any], key: str) -> float | None:
  value = record.get(key)
  if value is None:
    return None
  # The bound leaves out NaN, infinities and integers no float can hold.
  largest = sys.float_info.max
  if not isinstance(value, (int, float)) or not -largest <= value <= largest:
    raise ValueError(
      f'{key} is {_shown(value)}; it must be a finite number or null.'
    )
  return float(value)


def _texts(record: dict[str, Any]) -> tuple[str, ...]:
  one, several = record.get('demonstration'), record.get('demonstrations')
  if one is not None and not isinstance(one, str):
    raise ValueError(
      f'demonstration is {_shown(one)}; it must be a string or null.'
    )
  if several is None:
    several = []
  if not isinstance(several, list) or not all(
    isinstance(text, str) for text in several
  ):
    raise ValueError(
      f'demonstrations is {_shown(several)}; it must be a list of strings.'
    )
  return tuple(text for text in (one, *several) if text)
