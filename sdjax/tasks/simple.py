"""A task from a function and a list, without a class.

SimpleTask(
  {'train': [('2 + 3 =', 5), ('4 + 4 =', 8)], 'test': [('1 + 6 =', 7)]},
  lambda question, answer: answer.strip() == str(question.payload),
)
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sdjax.tasks.base import Question, Task


class SimpleTask(Task):
  """A task from a function and questions.

  Questions are of each split, or of `train` alone, as `Task.questions` gives
  them; the function is as `Task.verify`. What else is given, the name and
  templates, replaces the defaults; raises TypeError if there is nothing of such
  a name to change.
  """

  def __init__(
    self,
    questions: Mapping[str, Iterable[Any]] | Iterable[Any],
    verify: Callable[[Question, str], Any],
    **changes: str,
  ):
    if not isinstance(questions, Mapping):
      questions = {'train': questions}
    self._questions, self._verify = questions, verify
    self.splits = tuple(questions)
    for name, value in changes.items():
      if name != 'name' and not name.endswith('_template'):
        raise TypeError(
          f'a SimpleTask has no {name!r}; it has a name and templates.'
        )
      setattr(self, name, value)

  def questions(self, split: str) -> Any:
    """Returns the questions of a split."""
    return self._questions[split]

  def verify(self, question: Question, answer: str) -> Any:
    """Judges an answer by the function."""
    return self._verify(question, answer)
