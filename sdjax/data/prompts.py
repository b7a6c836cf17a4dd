"""Batches of training questions, in an order that can be picked up again."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sdjax.data.context import NO_LIMIT, encode_context
from sdjax.tasks.base import Question
from sdjax.types import Prompts


class PromptIterator(Iterator[list[Question]]):
  """Endless batches of questions, shuffled anew each epoch.

  Epochs follow each other without a gap: a batch may end one epoch and begin
  the next, so that every question comes up once in each epoch and every
  batch is full. Such a batch may hold a question twice.

  The order depends on the arguments only, and the whole state is a position,
  so a restored iterator goes on exactly where the saved one stood.
  """

  def __init__(
    self,
    questions: Sequence[Question],
    num_questions: int,
    seed: int,
    fits: Callable[[Question], bool] | None = None,
  ):
    """Starts before the first batch of `num_questions`, Q.

    The seed of the order is in 0..2^32-1. `fits` says which questions may be in
    a batch, at least one of them; the others are passed over when their turn
    comes. Raises ValueError if there are fewer questions than a batch needs, or
    a number is out of range.
    """
    if not 1 <= num_questions <= len(questions):
      raise ValueError(
        f'num_questions is {num_questions}; allowed: 1..{len(questions)}, the '
        'number of questions in the split. Lower rollout.num_questions or '
        'raise task.train_size'
      )
    if not 0 <= seed < 2**32:
      raise ValueError(f'seed is {seed}; allowed: 0..{2**32 - 1}')
    # Importing grain takes seconds.
    import grain

    self._questions, self._fits = questions, fits
    self._waiting: list[int] = []
    self._identity = {
      'size': len(questions),
      'num_questions': num_questions,
      'seed': seed,
    }
    order = (
      grain.MapDataset.source(range(len(questions)))
      .seed(seed)
      .shuffle()
      .repeat()
      .batch(num_questions)
    )
    # Only positions pass through: nothing is worth reading ahead.
    options = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
    self._order = iter(order.to_iter_dataset(options))

  def __next__(self) -> list[Question]:
    """Returns the next Q questions."""
    batch: list[Question] = []
    while len(batch) < self._identity['num_questions']:
      if not self._waiting:
        self._waiting = [int(i) for i in next(self._order)]
      question = self._questions[self._waiting.pop(0)]
      if self._fits is None or self._fits(question):
        batch.append(question)
    return batch

  def get_state(self) -> dict[str, Any]:
    """Returns the position, as a dict that JSON can hold."""
    return {
      **self._identity,
      'order': self._order.get_state(),
      'waiting': list(self._waiting),
    }

  def set_state(self, state: dict[str, Any]) -> None:
    """Goes to a position from `get_state`.

    Raises ValueError if it was saved with other arguments.
    """
    for field, value in self._identity.items():
      if state.get(field) != value:
        raise ValueError(
          f'the saved data position has {field} = {state.get(field)}, this '
          f'run has {value}; go on with the settings the run was started with'
        )
    self._order.set_state(dict(state['order']))
    # Checkpoints from before questions could be passed over have none.
    self._waiting = list(state.get('waiting', ()))


def choose_bucket(length: int, buckets: int | Sequence[int]) -> int | None:
  """Returns the smallest width that holds a length, or None."""
  widths = [buckets] if isinstance(buckets, int) else sorted(buckets)
  return next((width for width in widths if width >= length), None)


def pad_contexts(
  rows: Sequence[Sequence[int]],
  question_ids: Sequence[int],
  buckets: int | Sequence[int],
  pad_id: int = 0,
) -> Prompts:
  """Left-pads encoded contexts to a common width.

  That is the smallest of the widths in `buckets` that fits all rows; no mask is
  ever made from `pad_id`. Returns NumPy arrays, ids [Q, C]. Raises ValueError,
  naming the question, if a row is empty or fits no width.
  """
  if not rows or len(rows) != len(question_ids):
    raise ValueError(
      f'{len(rows)} contexts and {len(question_ids)} question ids; there must '
      'be as many of each, and at least one'
    )
  for row, question_id in zip(rows, question_ids, strict=True):
    if not row:
      raise ValueError(f'the context of question {question_id} has no tokens')
    if choose_bucket(len(row), buckets) is None:
      raise ValueError(
        f'the context of question {question_id} has {len(row)} tokens; '
        f'allowed: at most {buckets}. Raise max_context (and context_buckets), '
        "or set data.over_length to 'skip' or 'truncate_question'"
      )
  width = choose_bucket(max(map(len, rows)), buckets)
  assert width is not None
  ids_QC = np.full((len(rows), width), pad_id, np.int32)
  for row_C, row in zip(ids_QC, rows, strict=True):
    row_C[width - len(row) :] = row
  return Prompts(
    ids=ids_QC,
    length=np.array([len(row) for row in rows], np.int32),
    question_id=np.array(question_ids, np.int32),
  )


def encode_prompts(
  tokenizer: Any,
  texts: Sequence[str],
  question_ids: Sequence[int],
  buckets: int | Sequence[int],
  template: str = '{question}',
  *,
  thinking: bool = False,
) -> Prompts:
  """Encodes the questions of a batch for the student's template.

  Returns prompts as `pad_contexts` makes them. Raises ValueError, with the
  question and its length, if one is longer than the widest bucket: nothing is
  ever cut.
  """
  rows = [
    encode_context(
      tokenizer, template, text, None, NO_LIMIT, thinking=thinking
    )[0]
    for text in texts
  ]
  pad_id = tokenizer.pad_token_id
  return pad_contexts(rows, question_ids, buckets, pad_id or 0)
