"""From sampled tokens to graded answers, on the host."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from sdjax.models.tokenizer import decode_completion
from sdjax.tasks.base import Question, Task, Verdict, as_verdict
from sdjax.types import Rollout


@dataclasses.dataclass(frozen=True)
class Graded:
  """The answers to a batch of questions, and what the verifier said.

  Attributes:
    questions: Q questions.
    answers: Q lists of G texts, without special tokens.
    verdicts: Q lists of G verdicts.
    length: int [Q, G], tokens of each answer.
    finished: bool [Q, G], whether it ended by itself.
  """

  questions: Sequence[Question]
  answers: Sequence[Sequence[str]]
  verdicts: Sequence[Sequence[Verdict]]
  length: np.ndarray
  finished: np.ndarray

  @property
  def correct(self) -> np.ndarray:
    """Bool [Q, G]."""
    return np.array([[v.correct for v in row] for row in self.verdicts])

  @property
  def reward(self) -> np.ndarray:
    """Float32 [Q, G], the task's reward before any shaping."""
    return np.array([[v.reward for v in row] for row in self.verdicts], 'f4')


def decode_answers(tokenizer: Any, rollout: Rollout) -> list[list[str]]:
  """Turns rollouts into Q lists of G texts, without special tokens."""
  ids_QGT, length_QG = np.asarray(rollout.ids), np.asarray(rollout.length)
  return [
    [
      decode_completion(tokenizer, ids_T[:length].tolist())
      for ids_T, length in zip(ids_GT, length_G, strict=True)
    ]
    for ids_GT, length_G in zip(ids_QGT, length_QG, strict=True)
  ]


def grade(
  task: Task, tokenizer: Any, questions: Sequence[Question], rollout: Rollout
) -> Graded:
  """Decodes and verifies a batch of rollouts."""
  answers, verdicts = decode_answers(tokenizer, rollout), []
  for question, texts in zip(questions, answers, strict=True):
    judged = {
      text: as_verdict(task.verify(question, text)) for text in set(texts)
    }
    verdicts.append([judged[text] for text in texts])
  return Graded(
    questions=questions,
    answers=answers,
    verdicts=verdicts,
    length=np.asarray(rollout.length),
    finished=np.asarray(rollout.finished),
  )


def strategies(graded: Graded) -> np.ndarray:
  """Numbers the strategies behind each question's correct answers.

  Where the verifier names no strategy, the solution is the strategy. Returns
  int32 [Q, G], counted from 0 within a question; -1 for wrong answers.
  """
  number_QG = np.full(graded.correct.shape, -1, np.int32)
  for number_G, row in zip(number_QG, graded.verdicts, strict=True):
    numbers: dict[Any, int] = {}
    for g, v in enumerate(row):
      if v.correct:
        key = v.strategies or v.solution
        number_G[g] = numbers.setdefault(key, len(numbers))
  return number_QG


def records(graded: Graded) -> Iterator[dict[str, Any]]:
  """Yields each answer as a line of JSON that `sdjax.evaluate` can read."""
  for question, answers, verdicts in zip(
    graded.questions, graded.answers, graded.verdicts, strict=True
  ):
    for g, (answer, verdict) in enumerate(zip(answers, verdicts, strict=True)):
      yield {
        'question_id': question.question_id,
        'sample': g,
        'question': question.text,
        'answer': answer,
        'correct': verdict.correct,
        'reason': verdict.reason,
        'reward': verdict.reward,
        'concepts': list(verdict.strategies),
        'solution': verdict.solution,
      }


def group_size(
  questions: Sequence[Question], answers: Sequence[Sequence[str]]
) -> int:
  """Returns G, 0 without a question, if answers and questions fit.

  Raises:
    ValueError: when there are not as many lists as questions, or lists
      differ in length.
  """
  widths = {len(row) for row in answers}
  if len(questions) != len(answers) or len(widths) > 1:
    raise ValueError(
      f'{len(questions)} questions came with {len(answers)} lists of '
      f'{sorted(widths)} answers; give each question one list, all of the '
      'same length.'
    )
  return max(widths, default=0)


def join(first: Graded, second: Graded, take: np.ndarray) -> Graded:
  """The batch of the questions at some positions in one followed by another."""

  def rows(field: dataclasses.Field[Any]) -> Any:
    both = [*getattr(first, field.name), *getattr(second, field.name)]
    some = [both[i] for i in take]
    return np.asarray(some) if field.type is np.ndarray else some

  return Graded(*map(rows, dataclasses.fields(Graded)))
