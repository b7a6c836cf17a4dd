"""Demonstrations from a file, held against the questions they are for."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sdjax.evaluate.rollout_file import read_records, read_verdict
from sdjax.models.tokenizer import strip_thinking
from sdjax.options import ConfigError
from sdjax.tasks.base import Question, Task, as_verdict

NUM_VERIFIED = 64
"""Answers that are judged anew where a file does not say its questions."""


class Line(NamedTuple):
  """An answer that may be shown, without its thinking."""

  number: int  # from 1
  question_id: int
  question: str | None  # the text that was answered, where the line says it
  answer: str


@dataclasses.dataclass(frozen=True)
class External:
  """What a file has for the training questions that it has answers to."""

  path: str
  answers: dict[int, list[str]]
  num_questions: int

  def of(self, question: Question) -> Sequence[str]:
    """Returns the answers to a question."""
    return self.answers.get(question.question_id, ())

  def notes(self) -> tuple[str, ...]:
    """Says how many questions have an answer, where some have none."""
    covered = len(self.answers)
    if covered == self.num_questions:
      return ()
    return (
      f'{self.path} covers {covered} of {self.num_questions} training '
      'questions; to the others no demonstration is shown',
    )


def read_lines(path: str) -> list[Line]:
  """Reads the right answers of a JSONL file.

  A line is `{"question_id": int, "answer": str}`, optionally with `question`,
  its text; several may share a question, and those with a `correct` of false
  or 0 are left out.

  Raises:
    ConfigError: naming the line that is not such a record, or the file if it
      cannot be read.
  """
  try:
    records = list(read_records(path))
  except OSError as error:
    raise ConfigError(
      f'method.demonstrations.file={path!r} cannot be read: {error}'
    ) from error
  lines = []
  for number, record in records:
    try:
      if line := _line(number, record):
        lines.append(line)
    except (ValueError, KeyError, TypeError) as error:
      raise ConfigError(
        f'{path}, line {number}: expected {{"question_id": int, "answer": '
        f'str}}, got {str(record)[:80]} ({error!r})'
      ) from error
  return lines


def _line(number: int, record: dict[str, Any]) -> Line | None:
  """What a record says; None for a wrong answer."""
  question_id, answer = int(record['question_id']), record['answer']
  question = record.get('question')
  for name, text in (('answer', answer), ('question', question or '')):
    if not isinstance(text, str):
      raise TypeError(f'{name} is not a string')
  if 'correct' in record and not read_verdict(record):
    return None
  answer = strip_thinking(answer)
  if not answer:
    raise ValueError('answer is empty, or nothing but thinking')
  return Line(number, question_id, question, answer)


def read_external(path: str, task: Task, draw: str) -> External:
  """Reads the answers to a task's training questions.

  That a line belongs to the question of its id, and not to one of another
  seed or task, is known by the question's text where the line holds it. Of
  the lines that do not, some are judged by the task's verifier. Lines of other
  questions are left out. By `frequency` an answer is there as often as the
  file has it, if `distinct` once.

  Raises:
    ConfigError: as `read_lines` does; or naming the line whose question is
      another, or whose answer is wrong; or when no line is of a training
      question.
  """
  lines: dict[int, list[Line]] = {}
  for line in read_lines(path):
    lines.setdefault(line.question_id, []).append(line)
  questions = task.questions('train')
  answers: dict[int, list[str]] = {}
  unsure: list[tuple[Line, Question]] = []
  for question in questions:
    for line in lines.get(question.question_id, ()):
      if line.question is None:
        unsure.append((line, question))
      elif line.question != question.text:
        raise ConfigError(
          f'{path}, line {line.number}: answers {_short(line.question)}, but '
          f'training question {question.question_id} is '
          f'{_short(question.text)}. The file is of another seed, task or '
          'rendering; make it anew, or change the section task.'
        )
      answers.setdefault(question.question_id, []).append(line.answer)
  _verify(path, task, sorted(unsure, key=lambda pair: pair[0].number))
  # A weak author has no right answer to some questions: they teach nothing.
  if not answers:
    raise ConfigError(
      f'method.demonstrations.file={path!r} has an answer to none of the '
      f'{len(questions)} training questions: it is for another task or seed.'
    )
  if draw == 'distinct':
    answers = {q: list(dict.fromkeys(texts)) for q, texts in answers.items()}
  return External(path, answers, len(questions))


def _verify(
  path: str, task: Task, pairs: Sequence[tuple[Line, Question]]
) -> None:
  """Judges answers from all over the file."""
  count = min(len(pairs), NUM_VERIFIED)
  for i in np.linspace(0, len(pairs) - 1, count).round().astype(int):
    line, question = pairs[i]
    verdict = as_verdict(task.verify(question, line.answer))
    if not verdict.correct:
      why = f' ({verdict.reason})' if verdict.reason else ''
      raise ConfigError(
        f'{path}, line {line.number}: {_short(line.answer)} is no right answer '
        f'to training question {question.question_id}, '
        f'{_short(question.text)}{why}. If the file is of another seed or '
        'task, make it anew; if only the answer is wrong, mark it with '
        '"correct": false. Lines that hold their question\'s text as '
        '"question" are not judged again.'
      )


def _short(text: str) -> str:
  return repr(text if len(text) <= 100 else f'{text[:97]}...')
