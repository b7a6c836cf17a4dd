"""What a task is: questions in named splits, and a verifier of answers.

All that a task of one's own has to say:

  class Doubles(Task):
    splits = ('train', 'test')

    def questions(self, split):
      numbers = range(100) if split == 'train' else range(100, 120)
      return [(f'{n} + {n} =', 2 * n) for n in numbers]

    def verify(self, question, answer):
      return answer.strip() == str(question.payload)

`SimpleTask` makes the same of a function and a list. Needs no JAX: questions
are read in worker processes too.
"""

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sdjax.options import ConfigError
from sdjax.tasks.corpus import Corpus

SPLIT_SIZE = 10_000_000
"""Questions a split can hold; the ids of a split start at a multiple."""

QUESTION = '{question}'
FIELDS = (QUESTION, '{demonstration}', '{feedback}')
"""What a template may hold."""

# The question comes last: then student and teacher, a base model's or a chat
# model's, go on from the same tokens.
_SHOWN = 'Here is a correct answer to the question below:\n\n{demonstration}'
_TOLD = (
  'An earlier answer to the question below was wrong. This is what is wrong '
  'with it:\n\n{feedback}'
)
_NOW = 'Now give a correct answer of your own, written in the same form.'


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
  payload: Any = None


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What a verifier says of one answer.

  Attributes:
    correct: whether the answer is right.
    reward: the task's reward, before any shaping; left out: 1 for a correct
      answer and 0 for a wrong one.
    solution: identity of the solution behind a correct answer: two answers
      with the same text or meaning share it; empty when wrong.
    strategy: by what means the answer goes about it, also when wrong, in
      words that answers of one kind share; several where it mixes them.
    feedback: what the environment says of a wrong answer, as a teacher may be
      shown it; empty when correct.
    reason: why the answer was rejected, one word; empty when correct.
  """

  correct: bool
  reward: float | None = None
  solution: str = ''
  strategy: str | tuple[str, ...] = ()
  feedback: str = ''
  reason: str = ''

  def __post_init__(self):
    """Fills in the reward."""
    if self.reward is None:
      object.__setattr__(self, 'reward', float(self.correct))

  @property
  def strategies(self) -> tuple[str, ...]:
    """The strategies, sorted; none where the verifier tells none."""
    if isinstance(self.strategy, str):
      return (self.strategy,) if self.strategy else ()
    return tuple(sorted(set(self.strategy)))


def as_verdict(judged: Any) -> Verdict:
  """Reads what a verifier returned.

  That may be a verdict; or whether the answer is right; or its reward, which
  from 0.5 on is that of a right one. Raises TypeError if it is something else,
  or not finite.
  """
  if isinstance(judged, Verdict):
    return judged
  if hasattr(judged, 'item') and getattr(judged, 'size', 1) == 1:
    judged = judged.item()
  if isinstance(judged, bool):
    return Verdict(judged)
  if isinstance(judged, int | float) and math.isfinite(judged):
    return Verdict(judged >= 0.5, float(judged))
  raise TypeError(
    f'a verifier returned {judged!r:.200}, a {type(judged).__name__}; return '
    'a Verdict, True or False, or a finite number.'
  )


class Questions(Sequence[Question]):
  """The questions of a split, each read when it is asked for.

  Its items have a length and places: texts, pairs of a text and a payload, or
  questions that are numbered already. The others are numbered from `first_id`.
  """

  def __init__(self, items: Any, split: str, first_id: int):
    self._items, self._split, self._first_id = items, split, first_id

  def __len__(self) -> int:
    """Returns how many questions there are."""
    return len(self._items)

  def __getitem__(self, index: Any) -> Any:
    """Returns the question at a place, or those of a slice."""
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    place = range(len(self))[index]
    item = self._items[place]
    if isinstance(item, Question):
      return item
    text, payload = (item, None) if isinstance(item, str) else item
    return Question(self._first_id + place, self._split, text, payload)


class Task(abc.ABC):
  """A source of questions that can tell right answers from wrong ones.

  A task derives from it and defines `questions` and `verify`; the rest has
  defaults. What the two return is completed: whoever calls them is given
  numbered `Question`s, the same whenever asked, and a `Verdict`.

  Attributes:
    name: of the task, for people; by default the class's.
    splits: names of the splits, `train` first.
    student_template: what the student is asked; holds `{question}` once.
    teacher_template: what the teacher is asked; holds `{question}` and
      `{demonstration}` once each.
    feedback_template: what a teacher is asked that is shown feedback; holds
      `{question}` and `{feedback}` once each.
    both_template: what a teacher is asked that is shown both; holds all three.
  """

  name: str = ''
  splits: tuple[str, ...] = ('train',)
  student_template: str = '{question}'
  teacher_template: str = f'{_SHOWN}\n\n{_NOW}\n\n{{question}}'
  feedback_template: str = f'{_TOLD}\n\n{_NOW}\n\n{{question}}'
  both_template: str = f'{_SHOWN}\n\n{_TOLD}\n\n{_NOW}\n\n{{question}}'

  def __init_subclass__(cls, **rest: Any):
    """Completes what a task's own methods return."""
    super().__init_subclass__(**rest)
    cls.name = vars(cls).get('name', cls.__name__)
    for method, complete in (('questions', _numbered), ('verify', _judged)):
      if method in vars(cls):
        setattr(cls, method, complete(vars(cls)[method]))

  @abc.abstractmethod
  def questions(self, split: str) -> Any:
    """Gives the questions of one of `splits`.

    Texts, or pairs of a text and the payload that `verify` needs, always in the
    same order; or `Question`s, with ids of their own. Anything that can be gone
    through will do; what has places is read one by one.
    """

  @abc.abstractmethod
  def verify(self, question: Question, answer: str) -> Any:
    """Judges an answer: decoded, without special tokens.

    Total: no string makes it raise. Returns a `Verdict`, or what `as_verdict`
    reads as one.
    """

  def example(self, question: Question) -> str:
    """Returns a correct answer to a question; empty where none is known."""
    del question
    return ''

  def corpus(self, method: Any) -> Corpus:
    """Returns what a small model of this task is pretrained on.

    `method` is the section `method` of a run of mode `pretrain`. Raises
    ConfigError if the task, or its settings, have no documents.
    """
    del method
    raise ConfigError(
      f'task {self.name} has no documents to pretrain on: it defines no '
      '`corpus`. Start from a model that there is.'
    )


def _judged(verify: Callable[..., Any]) -> Callable[..., Verdict]:
  @functools.wraps(verify)
  def judged(self: Task, question: Question, answer: str) -> Verdict:
    return as_verdict(verify(self, question, answer))

  return judged


def _numbered(questions: Callable[..., Any]) -> Callable[..., Any]:
  @functools.wraps(questions)
  def numbered(self: Task, split: str) -> Sequence[Question]:
    if split not in self.splits:
      raise ValueError(
        f'no split {split!r} in task {self.name}; allowed: '
        f'{", ".join(self.splits)}'
      )
    kept = vars(self).setdefault('_numbered', {})
    key = questions, split  # a class and the one it derives from differ
    if key not in kept:
      found = questions(self, split)
      if isinstance(found, str | Mapping) or not hasattr(found, '__getitem__'):
        found = list(found)
      if not isinstance(found, Questions):
        first_id = self.splits.index(split) * SPLIT_SIZE
        found = Questions(found, split, first_id)
      if len(found) > SPLIT_SIZE:
        raise ValueError(
          f'split {split} of task {self.name} has {len(found)} questions; '
          f'allowed: {SPLIT_SIZE}'
        )
      kept[key] = found
    return kept[key]

  return numbered
