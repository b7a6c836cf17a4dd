"""What a task is: questions in named splits, and a verifier of answers."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol


@dataclasses.dataclass(frozen=True)
class Question:
  """One question, rendered but not yet put into a template.

  Attributes:
    question_id: in 0..2^31-1, unique over all splits of the task; names the
      question's random stream.
    split: where it comes from.
    text: the rendered question, without any template.
    payload: what the verifier needs to judge an answer.
  """

  question_id: int
  split: str
  text: str
  payload: Any


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a verifier says of one answer.

  Attributes:
    correct: whether the answer is right.
    reward: the task's reward, before any shaping.
    reason: why the answer was rejected, one word; empty when correct.
    solution: identity of the solution behind a correct answer: two answers
      with the same text or meaning share it; empty when wrong.
    concepts: the concepts the answer names, sorted, also when wrong.
    feedback: what the environment says of a wrong answer, as a teacher may be
      shown it; empty when correct.
  """

  correct: bool
  reward: float
  reason: str = ''
  solution: str = ''
  concepts: tuple[str, ...] = ()
  feedback: str = ''


class Task(Protocol):
  """A source of questions that can tell right answers from wrong ones.

  Attributes:
    name: key in `sdjax.tasks.TASKS`.
    splits: names of the splits, `train` first.
    student_template: what the student is asked; holds `{question}` once.
    teacher_template: what the teacher is asked; holds `{question}` and
      `{demonstration}` once each.
    feedback_template: likewise, with `{feedback}` for the demonstration.
    both_template: likewise, with both.
  """

  name: str
  splits: tuple[str, ...]
  student_template: str
  teacher_template: str
  feedback_template: str
  both_template: str

  def questions(self, split: str) -> Sequence[Question]:
    """Returns the questions of a split, read one by one when indexed."""
    ...

  def example(self, question: Question) -> str:
    """Returns a correct answer to a question; empty where none is known."""
    ...

  def verify(self, question: Question, answer: str) -> Verdict:
    """Judges an answer; total: no string makes it raise."""
    ...
