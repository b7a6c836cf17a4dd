"""Word n-grams of a question's answers, counted in bulk.

Texts become integers once; an n-gram is then the pair of the (n-1)-gram it
begins with and its last word, so that every order is one sort of integers
however many questions there are.
"""

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

Rows = Sequence[Sequence[str]]
"""Q rows of answers; rows may differ in length."""

CHUNK = 4096
"""Answers counted at once: memory does not grow with the file."""


@dataclasses.dataclass(frozen=True)
class NgramCounts:
  """How often each answer has each n-gram, for one n.

  P pairs of an answer and an n-gram it has, sorted by n-gram 0..U-1, and how
  often, at least once; and the question of each n-gram, rising. An n-gram
  belongs to one question: the same words in another one are another n-gram,
  and those of question q are all smaller than those of question q + 1.
  """

  answer: np.ndarray
  gram: np.ndarray
  count: np.ndarray
  question: np.ndarray


@dataclasses.dataclass(frozen=True)
class Tokens:
  """The words of the answers of some questions, as integers.

  `ids` [N] are the words of all answers, one after the other; a word is the
  same number wherever it stands. `length` [A] are the words of each answer,
  `question` [A] its question, rising; Q counts those without an answer, too.
  """

  ids: np.ndarray
  length: np.ndarray
  question: np.ndarray
  num_questions: int

  @property
  def answers_of(self) -> np.ndarray:
    """Answers of each question, int64 [Q]."""
    return np.bincount(self.question, minlength=self.num_questions)


def chunks(
  rows: Rows, tokenize: Callable[[str], list[str]] = str.split
) -> Iterator[Tokens]:
  """Yields the tokens of whole questions, about `CHUNK` answers at a time.

  Words are by default what stands between white space, case and punctuation
  kept. Raises ValueError when a row is a str (its letters would be answers).
  """
  part: list[Sequence[str]] = []
  size = 0
  for row in rows:
    if isinstance(row, str):
      raise ValueError(
        f'a row of answers is the str {row[:40]!r}; give a list of answers '
        'for each question.'
      )
    if part and size + len(row) > CHUNK:
      yield _tokens(part, tokenize)
      part, size = [], 0
    part.append(row)
    size += len(row)
  if part:
    yield _tokens(part, tokenize)


def count_ngrams(tokens: Tokens, order: int) -> Iterator[NgramCounts]:
  """Yields the counts of 1-grams, 2-grams, ... up to an order of at least 1."""
  num_answers = len(tokens.length)
  answer_N = np.repeat(np.arange(num_answers), tokens.length)
  # Words left from here to the end of the answer, this one included.
  left_N = np.repeat(np.cumsum(tokens.length), tokens.length) - np.arange(
    len(tokens.ids)
  )
  vocabulary = int(tokens.ids.max(initial=0)) + 1
  start_N = np.arange(len(tokens.ids))
  prefix_N = tokens.question[answer_N]  # The 0-gram of a question.
  for n in range(1, order + 1):
    fits = left_N[start_N] >= n
    start_N = start_N[fits]
    pair_N = prefix_N[fits] * vocabulary + tokens.ids[start_N + n - 1]
    grams, prefix_N = np.unique(pair_N, return_inverse=True)
    question_U = np.zeros(len(grams), np.int64)
    question_U[prefix_N] = tokens.question[answer_N[start_N]]
    held, count_P = np.unique(
      prefix_N * num_answers + answer_N[start_N], return_counts=True
    )
    yield NgramCounts(
      answer=held % max(num_answers, 1),
      gram=held // max(num_answers, 1),
      count=count_P,
      question=question_U,
    )


def _tokens(
  part: Sequence[Sequence[str]], tokenize: Callable[[str], list[str]]
) -> Tokens:
  words = [tokenize(answer) for row in part for answer in row]
  vocabulary: collections.defaultdict[str, int] = collections.defaultdict()
  # A new word is given the next number the first time it is looked up.
  vocabulary.default_factory = vocabulary.__len__
  length_A = np.fromiter(map(len, words), np.int64, len(words))
  ids_N = np.fromiter(
    map(vocabulary.__getitem__, itertools.chain.from_iterable(words)),
    np.int64,
    int(length_A.sum()),
  )
  sizes = [len(row) for row in part]
  return Tokens(
    ids_N, length_A, np.repeat(np.arange(len(part)), sizes), len(part)
  )
