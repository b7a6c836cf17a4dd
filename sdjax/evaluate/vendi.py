"""Vendi score, and the mean distance of embeddings.

Both compare answers in pairs, right or wrong. The score reads as a number of
answers: that many entirely different ones would be as diverse.
"""

import collections
import itertools
from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike

from sdjax.evaluate.ngrams import NgramCounts, Rows, chunks, count_ngrams


def vendi_score(kernel: ArrayLike, weights: ArrayLike | None = None) -> float:
  """Returns the Vendi score of a similarity matrix, in 1..n.

    exp(-sum_i l_i log l_i), l the eigenvalues of W^1/2 K W^1/2

  with K [n, n] the kernel, symmetric, positive semi-definite, K_ii = 1, and W
  the weights [n], shares that sum to 1, on a diagonal; None: 1 / n each.
  Answers that are identical may be given once, with their share as weight: the
  score is the same. Raises ValueError for what is no kernel, or no shares.

  Source: Friedman and Dieng 2022 (arXiv 2210.02410), definition 3.1.
  """
  kernel = np.asarray(kernel, np.float64)
  n = len(kernel) if kernel.ndim else 0
  if kernel.shape != (n, n) or not n:
    raise ValueError(
      f'kernel has shape {kernel.shape}; it must be [n, n] with n >= 1.'
    )
  if not np.allclose(np.diagonal(kernel), 1.0, atol=1e-6):
    raise ValueError(
      f'the diagonal of kernel lies in {np.diagonal(kernel).min()}..'
      f'{np.diagonal(kernel).max()}; it must be 1: divide K_ij by '
      'sqrt(K_ii K_jj).'
    )
  if not np.allclose(kernel, kernel.T, atol=1e-6):
    raise ValueError('kernel is not symmetric; K_ij must equal K_ji.')
  share = np.full(n, 1.0 / n) if weights is None else np.asarray(weights)
  if share.shape != (n,) or abs(share.sum() - 1.0) > 1e-6:
    raise ValueError(
      f'weights have shape {share.shape} and sum {share.sum()}; {n} shares '
      'that sum to 1 are needed.'
    )
  root = np.sqrt(share)
  values = np.linalg.eigvalsh(kernel * np.outer(root, root))
  positive = values[values > 0]  # Rounding makes zeros slightly negative.
  return float(np.exp(-np.sum(positive * np.log(positive))))


def ngram_kernel(answers: Sequence[str], order: int = 2) -> np.ndarray:
  """Returns how alike n answers of one question are by their words, [n, n].

  The cosine of their n-gram counts, averaged over n = 1..order, words being
  what stands between white space. An answer too short for an n-gram is unlike
  any other at that n; identical answers are wholly alike.

  Source: Friedman and Dieng 2022, sec. 6, with the n named here.
  """
  unique = list(dict.fromkeys(' '.join(a.split()) for a in answers))
  place = {answer: i for i, answer in enumerate(unique)}
  where = [place[' '.join(a.split())] for a in answers]
  kernels = list(_kernels([unique], order))
  return kernels[0][np.ix_(where, where)] if kernels else np.ones((0, 0))


def vendi_scores(rows: Rows, order: int = 2) -> np.ndarray:
  """Returns the Vendi score of each question's answers under `ngram_kernel`.

  float64 [Q], in 1..answers of the question: 1 where all are the same or
  there is one; NaN where there is none. ValueError when a row is a str.
  """
  uniques, shares = [], []
  for row in rows:
    if isinstance(row, str):
      raise ValueError(f'a row of answers is the str {row[:40]!r}.')
    counts = collections.Counter(' '.join(answer.split()) for answer in row)
    uniques.append(list(counts))
    shares.append(np.fromiter(counts.values(), np.float64, len(counts)))
  scores = np.asarray([1.0 if unique else np.nan for unique in uniques])
  several = [q for q, unique in enumerate(uniques) if len(unique) > 1]
  kernels = _kernels([uniques[q] for q in several], order)
  for q, kernel in zip(several, kernels, strict=True):
    scores[q] = vendi_score(kernel, shares[q] / shares[q].sum())
  return scores


def embedding_diversity(embeddings: ArrayLike) -> float:
  """Returns the mean of 1 - cos over the pairs of one question's answers.

  Of float [n, D], one row an answer. A distance in [0, 2]; 0 when all point
  the same way, NaN for n < 2: there is no pair. Raises ValueError when the
  shape is wrong, or for a zero or infinite row.

  Source: ours; what it means depends on the encoder, so name it.
  """
  embeddings = np.asarray(embeddings, np.float64)
  if embeddings.ndim != 2:
    raise ValueError(f'embeddings has shape {embeddings.shape}; not [n, D].')
  norm = np.linalg.norm(embeddings, axis=1, keepdims=True)
  if not np.all(np.isfinite(norm) & (norm > 0)):
    raise ValueError(
      'a row of embeddings is zero or not finite and has no direction; leave '
      'that answer out.'
    )
  n = len(embeddings)
  if n < 2:
    return np.nan
  # The sum over all pairs, without forming them: |sum u|^2 = n + 2 sum cos.
  total = np.sum(np.sum(embeddings / norm, axis=0) ** 2)
  return float(1.0 - (total - n) / (n * (n - 1)))


def embedding_diversities(
  rows: Rows, embed: Callable[[list[str]], ArrayLike]
) -> np.ndarray:
  """Returns the `embedding_diversity` of each question's answers, [Q].

  `embed` maps n texts to float [n, D], e.g. a `SentenceEncoder`; it is called
  once, with each different text once. Raises ValueError when the vectors are
  not one a text, or as `embedding_diversity`.
  """
  several = [row for row in rows if len(row) > 1]
  texts = list(dict.fromkeys(itertools.chain.from_iterable(several)))
  place = {text: i for i, text in enumerate(texts)}
  vectors = np.asarray(embed(texts)) if texts else np.zeros((0, 1))
  if len(vectors) != len(texts):
    raise ValueError(
      f'embed gave vectors of shape {vectors.shape} for {len(texts)} texts; '
      'it must give [n, D], a row for each.'
    )
  values = [
    embedding_diversity(vectors[[place[text] for text in row]])
    if len(row) > 1
    else np.nan
    for row in rows
  ]
  return np.asarray(values, np.float64)


def _kernels(rows: Rows, order: int):
  """Yields the kernel of each question, whose answers are all different."""
  for tokens in chunks(rows):
    size_Q = tokens.answers_of
    first_Q = np.cumsum(size_Q) - size_Q
    counts = list(count_ngrams(tokens, order))
    for q in range(tokens.num_questions):
      parts = [_cosines(grams, q, first_Q[q], size_Q[q]) for grams in counts]
      kernel = sum(parts, np.zeros((size_Q[q], size_Q[q]))) / order
      # An answer without n-grams is still like itself.
      np.fill_diagonal(kernel, 1.0)
      yield kernel


def _cosines(grams: NgramCounts, q: int, first: int, size: int) -> np.ndarray:
  start, stop = np.searchsorted(grams.question, [q, q + 1])
  held = slice(*np.searchsorted(grams.gram, [start, stop]))
  # Sparse: each of long answers has thousands of n-grams that few others have.
  shape = int(size), int(stop - start)
  place = grams.answer[held] - first, grams.gram[held] - start
  count = grams.count[held].astype(np.float64)
  norm = np.sqrt(np.bincount(place[0], count**2, minlength=size))
  matrix = scipy.sparse.csr_array((count / norm[place[0]], place), shape)
  return (matrix @ matrix.T).toarray()
