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
  """Turns a batch of rollouts into texts.

  Args:
    tokenizer: of the model that wrote them.
    rollout: of Q questions, G samples each.

  Returns:
    Q lists of G texts, without special tokens.
  """
  return [
    [
      decode_completion(tokenizer, ids_T[:length].tolist())
      for ids_T, length in zip(ids_GT, length_G, strict=True)
    ]
    for ids_GT, length_G in zip(
      np.asarray(rollout.ids), np.asarray(rollout.length), strict=True
    )
  ]


def grade(
  task: Task, tokenizer: Any, questions: Sequence[Question], rollout: Rollout
) -> Graded:
  """Decodes and verifies a batch of rollouts.

  Args:
    task: the verifier.
    tokenizer: of the model that wrote the rollouts.
    questions: Q questions.
    rollout: host arrays.

  Returns:
    The graded answers.
  """
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

  Where the verifier names no strategy, the solution is the strategy.

  Args:
    graded: a batch of graded rollouts.

  Returns:
    int32 [Q, G], counted from 0 within a question; -1 for wrong answers.
  """
  rows = []
  for row in graded.verdicts:
    numbers: dict[Any, int] = {}
    rows.append(
      [
        numbers.setdefault(v.strategies or v.solution, len(numbers))
        if v.correct
        else -1
        for v in row
      ]
    )
  return np.asarray(rows, np.int32)


def records(graded: Graded) -> Iterator[dict[str, Any]]:
  """Yields each answer as a line of JSON that `sdjax.evaluate` can read.

  Args:
    graded: a batch of graded rollouts.

  Yields:
    One record an answer, questions in order, then samples.
  """
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
  """Returns G, once it is sure that answers and questions fit.

  Args:
    questions: Q questions.
    answers: Q lists of G texts.

  Returns:
    Answers a question; 0 without a question.

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
  """Puts together a batch from two.

  Args:
    first: Q questions.
    second: further questions.
    take: int [Q'], positions in `first` followed by `second`.

  Returns:
    The batch of those Q' questions.
  """

  def rows(name: str) -> list:
    both = [*getattr(first, name), *getattr(second, name)]
    return [both[i] for i in take]

  return Graded(
    questions=rows('questions'),
    answers=rows('answers'),
    verdicts=rows('verdicts'),
    length=np.asarray(rows('length')),
    finished=np.asarray(rows('finished')),
  )
