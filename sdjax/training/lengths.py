"""Questions that are too long for their contexts, found before a run starts.

See `sdjax.config.Data` for what becomes of them.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sdjax.config import schema as config_lib
from sdjax.config.check import path_of
from sdjax.data.context import encode_texts
from sdjax.methods import kinds_shown, shown_of, teacher_templates
from sdjax.tasks.base import FIELDS, QUESTION, Question, Task

CHECKED = 20_000
"""Training questions whose lengths are checked before a run starts."""

_AT_ONCE = 1000  # texts that a tokenizer is given together


@dataclasses.dataclass(frozen=True)
class Room:
  """A kind of context, how long it may be, and the option that says so.

  The template holds `{question}` once, and no other field.
  """

  option: str
  tokens: int
  template: str


def training_rooms(config: config_lib.Config, task: Task) -> list[Room]:
  """Lists the contexts a training question must fit into.

  The student's, and the teacher's when what it is shown is cut to nothing.
  """
  assert config.rollout
  widest = config.rollout.max_context
  found = [Room('rollout.max_context', widest, task.student_template)]
  shown = shown_of(config)
  if shown is None:
    return found
  templates = teacher_templates(shown, task)
  _, *shown_fields = FIELDS
  for kind in kinds_shown(shown, '', ''):
    template = templates.of(kind)
    for field in shown_fields:
      template = template.replace(field, '')
    option = f'{path_of(config, "sd")}.demonstrations.max_context'
    found.append(Room(option, shown.max_context, template))
  return found


class Fit:
  """Tells which questions fit into all their contexts, and makes them fit."""

  def __init__(self, rooms: Sequence[Room], tokenizer: Any, thinking: bool):
    self._rooms, self._tokenizer, self._thinking = rooms, tokenizer, thinking

  def excess(self, texts: Sequence[str]) -> list[tuple[int, Room] | None]:
    """Measures rendered questions.

    Returns for each the context it exceeds most, with the tokens it has there;
    None where it fits into all.
    """
    found = []
    for room in self._rooms:
      filled = [room.template.replace(QUESTION, text) for text in texts]
      encoded = encode_texts(self._tokenizer, filled, self._thinking)
      found.append([(len(ids), room) for ids in encoded])
    worst = [
      max(each, key=lambda x: x[0] - x[1].tokens)
      for each in zip(*found, strict=True)
    ]
    return [(n, room) if n > room.tokens else None for n, room in worst]

  def __call__(self, question: Question) -> bool:
    """Returns whether a question fits."""
    return self.excess([question.text]) == [None]

  def cut(self, question: Question) -> Question:
    """Drops as few tokens from a question's beginning as make it fit.

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
    # measured, not computed. The whole text does not fit, the empty one does.
    texts = [question.text[start:] for start in starts] + ['']
    place = bisect.bisect_left(
      texts, True, hi=len(starts), key=lambda x: self.excess([x]) == [None]
    )
    return dataclasses.replace(question, text=texts[place])


class Cut(Sequence[Question]):
  """A split's questions, made to fit when they are read."""

  def __init__(self, questions: Sequence[Question], fit: Fit):
    self._questions, self._fit = questions, fit

  def __len__(self) -> int:
    """Returns how many there are."""
    return len(self._questions)

  def __getitem__(self, index: Any) -> Any:
    """Reads one, or some."""
    places = range(len(self))[index]
    if isinstance(places, range):
      return [self[place] for place in places]
    return self._fit.cut(self._questions[places])


@dataclasses.dataclass(frozen=True)
class Found:
  """Places of the questions that fit, of how many that were checked.

  The longest is the one that exceeds its room most, its tokens, and the room;
  None where all fit.
  """

  fitting: list[int]
  total: int
  longest: tuple[Question, int, Room] | None


def measure(
  questions: Sequence[Question],
  places: Iterable[int],
  fit: Fit,
  enough: int | None = None,
) -> Found:
  """Checks the lengths of the questions at some places.

  After `enough` that fit no more are checked; None: all are.
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
  """Returns the training questions, cut where that is asked for.

  With them what says which are to be passed over, or None, and notes for a
  person.

  Raises:
    ConfigError: a question is too long, or too few are left.
  """
  assert config.rollout and config.model
  questions = task.questions('train')
  size, how = len(questions), config.data.over_length
  fit = Fit(training_rooms(config, task), tokenizer, config.model.thinking)
  places = np.unique(np.linspace(0, size - 1, min(size, CHECKED)).astype(int))
  found = measure(questions, places.tolist(), fit)
  notes = _notes(found, 'train', size, how)
  if how == 'truncate_question':
    return Cut(questions, fit), None, notes
  if how == 'skip':
    needed = config.rollout.num_questions if found.total == size else 1
    _check_left(found, 'train', needed)
    return questions, fit, notes
  return questions, None, notes


def evaluation_questions(
  config: config_lib.Config, task: Task, name: str, tokenizer: Any
) -> tuple[Sequence[Question], tuple[str, ...]]:
  """Returns a set's `eval.num_questions` questions, and notes for a person.

  Raises:
    ConfigError: a question is too long, or too few are left.
  """
  options, how = config.eval, config.data.over_length
  questions = task.questions(name)
  fit = Fit(
    [Room('eval.max_context', options.max_context, task.student_template)],
    tokenizer,
    bool(config.model and config.model.thinking),
  )
  number = options.num_questions
  skips = how == 'skip'
  places = range(len(questions) if skips else number)
  found = measure(questions, places, fit, number if skips else None)
  notes = _notes(found, name, found.total, how)
  if how == 'truncate_question':
    return [fit.cut(questions[i]) for i in range(number)], notes
  _check_left(found, name, number)
  return [questions[i] for i in found.fitting], notes


def _notes(found: Found, split: str, size: int, how: str) -> tuple[str, ...]:
  """Says what was found in a split of a size, or refuses it."""
  of = f'{found.total} questions of {split}'
  if found.total < size:
    of = f'{of} (of {size}) whose lengths were checked'
  if found.longest is None:
    return (f'none of {of} is too long.',) if found.total < size else ()
  question, tokens, room = found.longest
  text = (
    f'{found.total - len(found.fitting)} of {of} are too long: the longest, '
    f'question {question.question_id}, has {tokens} tokens where '
    f'{room.option}={room.tokens}'
  )
  if how == 'error':
    raise config_lib.ConfigError(
      f'{text}. Raise {room.option}'
      f'{" (and context_buckets)" if room.option.startswith("roll") else ""}, '
      "or set data.over_length to 'skip' or 'truncate_question'."
    )
  return (f'{text}; data.over_length={how!r}.',)


def _check_left(found: Found, split: str, needed: int) -> None:
  if len(found.fitting) < needed:
    assert found.longest
    _, _, room = found.longest
    raise config_lib.ConfigError(
      f'{len(found.fitting)} of {found.total} questions of {split} fit into '
      f'{room.option}={room.tokens}; at least {needed} are needed. Raise it.'
    )
