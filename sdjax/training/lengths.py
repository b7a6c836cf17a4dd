"""Questions that are too long for their contexts, found before a run starts.

See `sdjax.config.Data` for what becomes of them.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, overload

import numpy as np

from sdjax.config import schema as config_lib
from sdjax.data.context import QUESTION, encode_texts
from sdjax.feedback.demonstrations import Shown
from sdjax.methods import shown_of, teacher_templates
from sdjax.tasks.base import Question, Task

CHECKED = 20_000
"""Training questions whose lengths are checked before a run starts."""

_AT_ONCE = 1000  # texts that a tokenizer is given together


@dataclasses.dataclass(frozen=True)
class Room:
  """A kind of context, and how long it may be.

  Attributes:
    option: what sets its width.
    tokens: the most it may have.
    template: holds `{question}` once, and no other field.
  """

  option: str
  tokens: int
  template: str


def student_room(option: str, tokens: int, task: Task) -> Room:
  """Returns the context in which the student is asked."""
  return Room(option, tokens, task.student_template)


def training_rooms(config: config_lib.Config, task: Task) -> list[Room]:
  """Lists the contexts a training question must fit into.

  Args:
    config: a checked config of mode `train`.
    task: has templates.

  Returns:
    The student's, and the teacher's when what it is shown is cut to nothing.
  """
  assert config.rollout
  widest = config.rollout.max_context
  found = [student_room('rollout.max_context', widest, task)]
  shown = shown_of(config)
  if shown is None:
    return found
  path = 'method.sd' if isinstance(config.method, config_lib.Mix) else 'method'
  templates = teacher_templates(shown, task)
  kinds = []
  if shown.strategy.shows:
    kinds.append(Shown(''))
  if shown.feedback != 'never':
    kinds.append(Shown(feedback=''))
  if shown.feedback == 'always' and shown.strategy.shows:
    kinds.append(Shown('', ''))
  for kind in kinds:
    template = templates.of(kind)
    for field in ('{demonstration}', '{feedback}'):
      template = template.replace(field, '')
    option = f'{path}.demonstrations.max_context'
    found.append(Room(option, shown.max_context, template))
  return found


class Fit:
  """Tells which questions fit into all their contexts, and makes them fit."""

  def __init__(self, rooms: Sequence[Room], tokenizer: Any, thinking: bool):
    """Takes what a context is made with.

    Args:
      rooms: the contexts.
      tokenizer: of the model.
      thinking: what a chat template is told as `enable_thinking`.
    """
    self._rooms, self._tokenizer, self._thinking = rooms, tokenizer, thinking

  def excess(self, texts: Sequence[str]) -> list[tuple[int, Room] | None]:
    """Measures questions.

    Args:
      texts: rendered questions.

    Returns:
      For each the context it exceeds most, with the tokens it has there; None
      where it fits into all.
    """
    worst: list[tuple[int, Room] | None] = [None] * len(texts)
    for room in self._rooms:
      filled = [room.template.replace(QUESTION, text) for text in texts]
      encoded = encode_texts(self._tokenizer, filled, self._thinking)
      for i, ids in enumerate(encoded):
        size, known = len(ids), worst[i]
        if size > room.tokens and (
          known is None or size - room.tokens > known[0] - known[1].tokens
        ):
          worst[i] = size, room
    return worst

  def __call__(self, question: Question) -> bool:
    """Returns whether a question fits."""
    return self.excess([question.text]) == [None]

  def cut(self, question: Question) -> Question:
    """Drops as few tokens from a question's beginning as make it fit.

    Args:
      question: any.

    Returns:
      The question, itself where it fits.

    Raises:
      ConfigError: an empty question does not fit either.
    """
    if self(question):
      return question
    if found := self.excess([''])[0]:
      size, room = found
      raise config_lib.ConfigError(
        f'{room.option}={room.tokens} leaves no room for any question: the '
        f'template alone has {size} tokens. Raise it.'
      )
    starts = [
      start
      for start, _ in self._tokenizer(
        question.text, add_special_tokens=False, return_offsets_mapping=True
      )['offset_mapping']
    ]
    # Tokens may merge differently at the new beginning, so the length is
    # measured, not computed. From `fits` on it fits, from `fails` on not.
    fails, fits = 0, len(starts)
    texts = [question.text[start:] for start in starts] + ['']
    while fits - fails > 1:
      middle = (fails + fits) // 2
      if self.excess([texts[middle]]) == [None]:
        fits = middle
      else:
        fails = middle
    return dataclasses.replace(question, text=texts[fits])


class View(Sequence[Question]):
  """Some of a split's questions, changed when they are read."""

  def __init__(
    self,
    questions: Sequence[Question],
    places: Sequence[int],
    change: Callable[[Question], Question] = lambda question: question,
  ):
    """Reads nothing yet.

    Args:
      questions: of a split.
      places: which of them.
      change: what is done to each.
    """
    self._questions, self._places = questions, places
    self._change = change

  def __len__(self) -> int:
    """Returns how many there are."""
    return len(self._places)

  @overload
  def __getitem__(self, index: int) -> Question: ...

  @overload
  def __getitem__(self, index: slice) -> Sequence[Question]: ...

  def __getitem__(self, index: int | slice) -> Question | Sequence[Question]:
    """Reads one, or some."""
    if isinstance(index, slice):
      return View(self._questions, self._places[index], self._change)
    return self._change(self._questions[self._places[index]])


@dataclasses.dataclass(frozen=True)
class Found:
  """What a check of lengths found.

  Attributes:
    fitting: places of the questions that fit.
    total: how many were checked.
    longest: the one that exceeds its room most, its tokens, and the room;
      None where all fit.
  """

  fitting: list[int]
  total: int
  longest: tuple[Question, int, Room] | None

  def text(self, split: str, size: int) -> str:
    """Says what was found, or nothing where all is well.

    Args:
      split: name of the questions.
      size: how many the split has.
    """
    of = f'{self.total} questions of {split}'
    if self.total < size:
      of = f'{of} (of {size}) whose lengths were checked'
    if self.longest is None:
      return f'none of {of} is too long' if self.total < size else ''
    question, tokens, room = self.longest
    return (
      f'{self.total - len(self.fitting)} of {of} are too long: the longest, '
      f'question {question.question_id}, has {tokens} tokens where '
      f'{room.option}={room.tokens}'
    )


def measure(
  questions: Sequence[Question],
  places: Iterable[int],
  fit: Fit,
  enough: int | None = None,
) -> Found:
  """Checks lengths.

  Args:
    questions: of a split.
    places: which of them to check.
    fit: how.
    enough: after so many that fit no more are checked; None: all are.

  Returns:
    What was found.
  """
  fitting: list[int] = []
  total, longest, over = 0, None, 0
  places = list(places)
  for start in range(0, len(places), _AT_ONCE):
    if enough is not None and len(fitting) >= enough:
      break
    some = places[start : start + _AT_ONCE]
    read = [questions[i] for i in some]
    for place, question, found in zip(
      some, read, fit.excess([q.text for q in read]), strict=True
    ):
      total += 1
      if found is None:
        fitting.append(place)
        if len(fitting) == enough:
          break
      elif found[0] - found[1].tokens > over:
        over = found[0] - found[1].tokens
        longest = question, *found
  return Found(fitting, total, longest)


def training_questions(
  config: config_lib.Config, task: Task, tokenizer: Any
) -> tuple[Sequence[Question], Fit | None, tuple[str, ...]]:
  """Checks the lengths of the training questions.

  Args:
    config: a checked config of mode `train`.
    task: where they come from.
    tokenizer: of the model.

  Returns:
    The questions, cut where that is asked for; what says which of them are
    to be passed over, or None; notes for a person.

  Raises:
    ConfigError: a question is too long, or too few are left.
  """
  assert config.rollout and config.model
  questions = task.questions('train')
  size, how = len(questions), config.data.over_length
  fit = Fit(training_rooms(config, task), tokenizer, config.model.thinking)
  places = np.unique(np.linspace(0, size - 1, min(size, CHECKED)).astype(int))
  found = measure(questions, places.tolist(), fit)
  text = found.text('train', size)
  if found.longest is None:
    notes = (f'{text}.',) if text else ()
  else:
    _refuse(how, text, found.longest[2])
    notes = (f'{text}; data.over_length={how!r}.',)
  if how == 'truncate_question':
    return View(questions, range(size), fit.cut), None, notes
  if how == 'skip':
    needed = config.rollout.num_questions if found.total == size else 1
    _check_left(found, 'train', needed)
    return questions, fit, notes
  return questions, None, notes


def evaluation_questions(
  config: config_lib.Config, task: Task, name: str, tokenizer: Any
) -> tuple[Sequence[Question], tuple[str, ...]]:
  """Checks the lengths of a set's first `eval.num_questions` questions.

  Args:
    config: a checked config.
    task: where they come from.
    name: of the set.
    tokenizer: of the model.

  Returns:
    So many questions, and notes for a person.

  Raises:
    ConfigError: a question is too long, or too few are left.
  """
  options, how = config.eval, config.data.over_length
  questions = task.questions(name)
  fit = Fit(
    [student_room('eval.max_context', options.max_context, task)],
    tokenizer,
    bool(config.model and config.model.thinking),
  )
  number = options.num_questions
  skips = how == 'skip'
  places = range(len(questions) if skips else number)
  found = measure(questions, places, fit, number if skips else None)
  if found.longest is None:
    return View(questions, range(number)), ()
  text = found.text(name, found.total)
  _refuse(how, text, found.longest[2])
  notes = (f'{text}; data.over_length={how!r}.',)
  if skips:
    _check_left(found, name, number)
    return View(questions, found.fitting), notes
  return View(questions, range(number), fit.cut), notes


def _refuse(how: str, text: str, room: Room) -> None:
  if how == 'error':
    raise config_lib.ConfigError(
      f'{text}. Raise {room.option}'
      f'{" (and context_buckets)" if room.option.startswith("roll") else ""}, '
      "or set data.over_length to 'skip' or 'truncate_question'."
    )


def _check_left(found: Found, split: str, needed: int) -> None:
  if len(found.fitting) < needed:
    assert found.longest
    _, _, room = found.longest
    raise config_lib.ConfigError(
      f'{len(found.fitting)} of {found.total} questions of {split} fit into '
      f'{room.option}={room.tokens}; at least {needed} are needed. Raise it.'
    )
