"""Variety of the answers' wording: distinct-n, and copying.

Words are what stands between white space, case and punctuation kept. These
measures see strings, not solutions: one solution in other words raises them.
"""

from collections.abc import Sequence

import numpy as np

from sdjax.evaluate.ngrams import Rows, chunks, count_ngrams


def distinct_n(rows: Rows, order: int = 3) -> np.ndarray:
  """Returns distinct-1, ..., distinct-`order` of each question, [Q, order].

  Unique n-grams over all n-grams of the question's answers taken together;
  n-grams do not reach from one answer into the next. More answers repeat
  more, so compare only questions with equally many. 0 where no answer has n
  words: a model that says nothing is not diverse. Raises ValueError for an
  order below 1, or a row that is a str.

  Source: Li et al. 2016 (arXiv 1510.03055), there over a whole test set.
  """
  if order < 1:
    raise ValueError(f'order is {order}; distinct-n needs n >= 1.')
  parts = [np.zeros((0, order))]
  for tokens in chunks(rows):
    ratios = []
    for n, grams in enumerate(count_ngrams(tokens, order), 1):
      unique_Q = np.bincount(grams.question, minlength=tokens.num_questions)
      total_Q = np.bincount(
        tokens.question,
        np.maximum(tokens.length - n + 1, 0),
        tokens.num_questions,
      )
      ratios.append(unique_Q / np.maximum(total_Q, 1))
    parts.append(np.stack(ratios, axis=1))
  return np.concatenate(parts)


def copy_share(answer: str, demonstrations: Sequence[str]) -> float:
  """Returns how much of an answer is one verbatim piece of a demonstration.

  The length of the longest run of words that the answer and a demonstration
  have in common, divided by the answer's length; the largest over the
  demonstrations; 0 for an empty answer. ValueError without a demonstration.
  """
  if not demonstrations:
    raise ValueError('demonstrations is empty; give the answer at least one.')
  # A word becomes a character, so that finding a run of words is finding a
  # piece of a string. It takes a million different words to run out of them.
  letters: dict[str, str] = {}

  def spell(text: str) -> str:
    return ''.join(
      [letters.setdefault(word, chr(len(letters))) for word in text.split()]
    )

  words = spell(answer)
  longest = 0
  for demonstration in set(demonstrations):
    shown = spell(demonstration)
    for start in range(len(words)):
      # Only a run longer than the longest so far is of interest.
      while (
        start + longest < len(words)
        and words[start : start + longest + 1] in shown
      ):
        longest += 1
  return longest / len(words) if words else 0.0
