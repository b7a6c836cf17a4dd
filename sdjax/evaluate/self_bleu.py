"""self-BLEU: how well a question's answers can be told from each other."""

import re

import numpy as np

from sdjax.evaluate.ngrams import Rows, Tokens, chunks, count_ngrams

ORDER = 4

_ENTITIES = {'&quot;': '"', '&amp;': '&', '&lt;': '<', '&gt;': '>'}
_SPLITS = (
  # All ASCII punctuation but the apostrophe, the comma, the dash and the stop.
  (re.compile(r'([!-&(-+/:-@\[-`{-~])'), r' \1 '),
  (re.compile(r'([^0-9])([.,])'), r'\1 \2 '),  # a stop after something else
  (re.compile(r'([.,])([^0-9])'), r' \1 \2'),  # one before something else
  (re.compile(r'([0-9])(-)'), r'\1 \2 '),  # a dash after a digit
)
_PLAIN = re.compile(r'[^!-&(-/:-@\[-`{-~]*')


def mteval_words(text: str) -> list[str]:
  """Splits a text into words as the mteval-v13a script of WMT does.

  Symbols are words of their own; stops and commas are unless digits stand on
  both sides; a dash is after a digit. Case is kept.

  Source: NIST mteval-v13a, which sacrebleu calls `13a`.
  """
  if _PLAIN.fullmatch(text):
    return text.split()
  text = text.rstrip().replace('<skipped>', '')
  text = text.replace('-\n', '').replace('\n', ' ')
  for entity, symbol in _ENTITIES.items():
    text = text.replace(entity, symbol)
  text = f' {text} '
  for pattern, parts in _SPLITS:
    text = pattern.sub(parts, text)
  return text.split()


def self_bleu(rows: Rows) -> np.ndarray:
  """Returns the mean BLEU-4 of each answer against the question's others.

  Lower is more diverse. The BLEU of an answer is that of

    sacrebleu.sentence_bleu(answer, others).score

  with its defaults: mteval-v13a words, case kept, `exp` smoothing (the m-th
  precision without a match counts as 1 / (2^m total)), effective order (only
  n up to the answer's length), the reference length closest to the answer's
  and the shorter of two equally close. An empty answer has BLEU 0.

  Returns float64 [Q], in 0..100; NaN where fewer than two answers leave
  nothing to compare. More answers match more: compare only equally many.
  Raises ValueError when a row is a str.

  Source: Zhu et al. 2018 (arXiv 1802.01886); BLEU: Papineni et al. 2002;
  smoothing: Chen and Cherry 2014, method 3.
  """
  parts = [np.zeros(0)]
  for tokens in chunks(rows, mteval_words):
    size_Q = tokens.answers_of
    sums_Q = np.bincount(
      tokens.question, _bleu_of_each(tokens), tokens.num_questions
    )
    parts.append(np.where(size_Q > 1, sums_Q / np.maximum(size_Q, 1), np.nan))
  return np.concatenate(parts)


def _bleu_of_each(tokens: Tokens) -> np.ndarray:
  """BLEU of each answer, float64 [A]; meaningless without another answer."""
  length_A = tokens.length
  log_sum_A = np.zeros(len(length_A))
  matched_A = np.zeros(len(length_A))
  halved_A = np.zeros(len(length_A))  # How many precisions had no match.
  for n, grams in enumerate(count_ngrams(tokens, ORDER), 1):
    match_P = np.minimum(grams.count, _most_in_another(grams.gram, grams.count))
    match_A = np.bincount(grams.answer, match_P, len(length_A))
    total_A = length_A - n + 1
    unmatched_A = (match_A == 0) & (total_A > 0)
    halved_A += unmatched_A
    numerator_A = np.where(unmatched_A, 0.5**halved_A, match_A)
    log_sum_A += np.where(
      total_A > 0,
      np.log(np.maximum(numerator_A, 1e-300) / np.maximum(total_A, 1)),
      0.0,
    )
    matched_A += match_A
  order_A = np.clip(length_A, 1, ORDER)
  ratio_A = _closest_other(tokens) / np.maximum(length_A, 1)
  log_penalty_A = np.minimum(0.0, 1.0 - ratio_A)
  bleu_A = 100.0 * np.exp(log_penalty_A + log_sum_A / order_A)
  return np.where(matched_A > 0, bleu_A, 0.0)


def _most_in_another(gram_P: np.ndarray, count_P: np.ndarray) -> np.ndarray:
  """Largest count of the same n-gram in any other answer, [P]; 0 if none."""
  if not len(gram_P):
    return count_P
  first_U = np.flatnonzero(np.diff(gram_P, prepend=-1))
  top_P = np.maximum.reduceat(count_P, first_U)[gram_P]
  at_top_P = count_P == top_P
  ties_P = np.add.reduceat(at_top_P.astype(np.int64), first_U)[gram_P]
  below = np.maximum.reduceat(np.where(at_top_P, 0, count_P), first_U)[gram_P]
  return np.where(at_top_P & (ties_P == 1), below, top_P)


def _closest_other(tokens: Tokens) -> np.ndarray:
  """Length of the other answer that is closest in length, float64 [A]."""
  order = np.lexsort((tokens.length, tokens.question))
  length_A = tokens.length[order].astype(np.float64)
  same = np.diff(tokens.question[order]) == 0
  # In order of length the closest is a neighbour of the same question.
  shorter_A = np.full(len(order), -np.inf)
  longer_A = np.full(len(order), np.inf)
  shorter_A[1:][same] = length_A[:-1][same]
  longer_A[:-1][same] = length_A[1:][same]
  closest_A = np.where(
    length_A - shorter_A <= longer_A - length_A, shorter_A, longer_A
  )
  result = np.zeros(len(order))
  result[order] = np.where(np.isfinite(closest_A), closest_A, length_A)
  return result
