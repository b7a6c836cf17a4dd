"""How many different correct answers a model still gives.

pass@1 says how often a model is right, not whether it is right in more than
one way. Here are the counts of distinct concepts and distinct solutions among
a question's samples, the token entropy beside which they are usually read,
and `summarize`, which makes of one evaluation set's samples the flat numbers
of `eval.json` and the per-question numbers of `eval_questions.json`.
"""

import collections
import dataclasses
import itertools
from collections.abc import Collection, Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sdjax.evaluate import pass_at_k
from sdjax.evaluate.solutions import variety

PerQuestion = dict[str, Any]
"""One set's entry of `eval_questions.json`, see `summarize`."""


@dataclasses.dataclass(frozen=True)
class SampleSet:
  """The judged samples of one evaluation set.

  Questions may have different numbers of samples: give every row the same
  width G and mark the samples that exist in `mask`; whatever stands in the
  others is ignored.

  Attributes:
    correct: bool [Q, G], the verifier's word.
    concepts: Q rows of G collections of str, the concepts each answer names,
      wrong answers included.
    solutions: Q rows of G str, the canonical identity of a correct answer
      (two answers with the same one are the same solution); not read where
      the answer is wrong.
    entropy_sum: float [Q, G], nats, sum over the sample's counted tokens of
      the entropy of the next-token distribution.
    length: int [Q, G], counted tokens of the sample.
    reason: Q rows of G str, why an answer was rejected, '' when correct; or
      None.
    flags: named bool [Q, G] arrays whose shares are reported under their
      name, e.g. `{'valid': ..., 'finished': ...}`.
    mask: bool [Q, G], the samples that exist; None: all of them.

  Raises:
    ValueError: when shapes differ from that of `correct`.
  """

  correct: np.ndarray
  concepts: Sequence[Sequence[Collection[str]]]
  solutions: Sequence[Sequence[str]]
  entropy_sum: np.ndarray
  length: np.ndarray
  reason: Sequence[Sequence[str]] | None = None
  flags: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
  mask: np.ndarray | None = None

  def __post_init__(self):
    """Checks that all fields speak of the same samples."""
    shape = np.shape(self.correct)
    if len(shape) != 2:
      raise ValueError(f'correct has shape {shape}; it must be [Q, G].')
    arrays = {
      'entropy_sum': self.entropy_sum,
      'length': self.length,
      **self.flags,
    }
    if self.mask is not None:
      arrays['mask'] = self.mask
    for name, array in arrays.items():
      if np.shape(array) != shape:
        raise ValueError(
          f'{name} has shape {np.shape(array)}, correct has {shape}; they '
          'must be the same.'
        )
    rows = {'concepts': self.concepts, 'solutions': self.solutions}
    if self.reason is not None:
      rows['reason'] = self.reason
    for name, value in rows.items():
      _check_rows(name, value, shape)


def distinct_counts(
  items: Sequence[Sequence[Collection[Hashable]]],
  mask: ArrayLike | None = None,
) -> np.ndarray:
  """Counts the distinct items of each question over its samples.

  Args:
    items: Q rows of per-sample collections of names.
    mask: bool [Q, G], the samples that count; None: all, and then rows may
      differ in length.

  Returns:
    int64 [Q]; 0 for a question of which no sample counts.

  Raises:
    ValueError: when mask and items do not describe the same samples, or an
      entry is a str (its letters would be counted).
  """
  for entry in itertools.chain.from_iterable(items):
    if isinstance(entry, str):
      raise ValueError(
        f'the entry of a sample is the str {entry!r}; give a collection of '
        f'names, e.g. ({entry!r},).'
      )
  if mask is None:
    kept = [[True] * len(row) for row in items]
  else:
    kept = np.asarray(mask, bool)
    if kept.ndim != 2:
      raise ValueError(f'mask has shape {kept.shape}; it must be [Q, G].')
    _check_rows('items', items, kept.shape)
  counts = [
    len(set().union(*itertools.compress(row, keeps)))
    for row, keeps in zip(items, kept, strict=True)
  ]
  return np.asarray(counts, np.int64)


def concept_diversity(
  concepts: Sequence[Sequence[Collection[str]]],
  mask: ArrayLike | None = None,
) -> float:
  """Mean over questions of the number of distinct concepts in its samples.

  With no mask this is the paper's measure, over all samples, right or wrong.
  With the mask of the correct samples it counts only concepts that lead to
  the goal, and a question without a correct sample counts 0: a model that
  answers nothing is not diverse.

  Args:
    concepts: Q rows of per-sample collections of concept names.
    mask: bool [Q, G], the samples that count; None: all.

  Returns:
    Concepts a question, at least 0.

  Raises:
    ValueError: without a question, or when mask and concepts disagree.

  Source: arXiv 2606.26091 sec. 4.1 for all samples; over correct ones: ours.
  """
  return _mean(distinct_counts(concepts, mask))


def distinct_solutions(
  solutions: Sequence[Sequence[str]], correct: ArrayLike
) -> float:
  """Mean over questions of the number of distinct correct solutions.

  Args:
    solutions: Q rows of G str, canonical identities.
    correct: bool [Q, G], the correct samples; a question without one counts
      0.

  Returns:
    Solutions a question, at least 0.

  Raises:
    ValueError: without a question, when shapes disagree, or when a correct
      sample has an empty identity.

  Source: ours; solutions are compared by identity, not by their text.
  """
  correct_QG = np.asarray(correct, bool)
  _check_rows('solutions', solutions, correct_QG.shape)
  return _mean(variety(solutions, correct_QG).distinct)


def token_entropy(
  entropy_sum: ArrayLike, length: ArrayLike, mask: ArrayLike | None = None
) -> float:
  """Mean entropy of the next-token distribution over all counted tokens.

  Do not read it as diversity. In the paper it misleads in both directions:
  self-distillation has the LOWER entropy on concept graphs, but does not
  there tell RL with a diversity reward from plain RL, and on science
  questions it has the HIGHER entropy while fewer different answers are found
  (lower pass@16).

  Args:
    entropy_sum: float [Q, G], nats, summed over each sample's tokens.
    length: int [Q, G], tokens of each sample; long samples weigh more.
    mask: bool [Q, G], the samples that count; None: all.

  Returns:
    Nats per token; 0 when no token counts.

  Source: arXiv 2606.26091 sec. 4.4.
  """
  length_QG = np.asarray(length)
  mask_QG = np.ones(length_QG.shape, bool) if mask is None else np.asarray(mask)
  total = np.where(mask_QG, np.asarray(entropy_sum, np.float64), 0.0).sum()
  tokens = np.where(mask_QG, length_QG, 0).sum()
  return float(total / tokens) if tokens else 0.0


def summarize(samples: SampleSet) -> tuple[dict[str, float], PerQuestion]:
  """Reduces the samples of one evaluation set to its numbers.

  A question without any sample is left out of everything. Where numbers of
  samples differ, k ends at the smallest, so that every pass@k is a mean over
  the same questions.

  Args:
    samples: the judged samples.

  Returns:
    The flat numbers, for `eval.json`, each a mean over questions unless said
    otherwise:

      pass@1, pass@2, pass@4, ...  unbiased pass@k
      pass_gain        pass@k at the largest k minus pass@1
      pass_slope       rise of pass@k each time k doubles, by least squares;
                       left out where one k is all there is
      concepts         distinct concepts over all samples
      concepts_correct distinct concepts over correct samples, 0 if none
      distinct_paths   distinct correct solutions, 0 if none
      effective_solutions  exp of the entropy over a question's correct
                       samples of the solutions they are, 0 if none
      solution_entropy that entropy, nats, 0 if at most one solution
      token_entropy    nats, mean over all counted tokens of the set
      length           tokens a sample, mean over samples
      reason/NAME      share of samples rejected for that reason
      and the share of samples of each of `samples.flags`

    and the per-question values, for `eval_questions.json`, lists over the
    questions that have samples: num_samples (one int when all are equal,
    else a list), num_correct, concepts, concepts_correct, distinct_paths,
    token_entropy (nats) and num_tokens, the weight of the latter.

  Raises:
    ValueError: when no question has a sample, or when a correct sample has
      an empty identity.
  """
  correct_QG = np.asarray(samples.correct, bool)
  if samples.mask is None:
    mask_QG = np.ones(correct_QG.shape, bool)
  else:
    mask_QG = np.asarray(samples.mask, bool)
  kept_Q = mask_QG.any(axis=1)
  if not kept_Q.any():
    raise ValueError(
      f'no question of the set has a sample (correct has shape '
      f'{correct_QG.shape}); evaluate at least one sample of one question.'
    )
  correct_QG = correct_QG & mask_QG
  num_Q = mask_QG.sum(axis=1)[kept_Q]
  right_Q = correct_QG.sum(axis=1)[kept_Q]
  entropy_Q = np.where(mask_QG, samples.entropy_sum, 0.0).sum(
    axis=1, dtype=np.float64
  )[kept_Q]
  tokens_Q = np.where(mask_QG, samples.length, 0).sum(axis=1)[kept_Q]
  concepts_Q = distinct_counts(samples.concepts, mask_QG)[kept_Q]
  found_Q = distinct_counts(samples.concepts, correct_QG)[kept_Q]
  spread = variety(samples.solutions, correct_QG)
  paths_Q = spread.distinct[kept_Q]

  ks = pass_at_k.powers_of_two(int(num_Q.min()))
  flat = {
    f'pass@{k}': _mean(pass_at_k.pass_at_k(num_Q, right_Q, k)) for k in ks
  }
  curve = list(flat.values())
  flat['pass_gain'] = curve[-1] - curve[0]
  if len(ks) > 1:
    flat['pass_slope'] = float(pass_at_k.pass_slope(curve, ks))
  flat |= {
    'concepts': _mean(concepts_Q),
    'concepts_correct': _mean(found_Q),
    'distinct_paths': _mean(paths_Q),
    'effective_solutions': _mean(spread.effective[kept_Q]),
    'solution_entropy': _mean(spread.entropy[kept_Q]),
    'token_entropy': token_entropy(
      samples.entropy_sum, samples.length, mask_QG
    ),
    'length': float(tokens_Q.sum() / num_Q.sum()),
  }
  for name, flag in samples.flags.items():
    flat[name] = float(np.asarray(flag, bool)[mask_QG].mean())
  if samples.reason is not None:
    reasons = collections.Counter(
      samples.reason[q][g]
      for q, g in np.argwhere(mask_QG & ~correct_QG).tolist()
    )
    for name in sorted(reasons):
      share = reasons[name] / int(num_Q.sum())
      flat[f'reason/{name or "unnamed"}'] = share

  per_question = {
    'num_samples': int(num_Q[0])
    if (num_Q == num_Q[0]).all()
    else num_Q.tolist(),
    'num_correct': right_Q.tolist(),
    'concepts': concepts_Q.tolist(),
    'concepts_correct': found_Q.tolist(),
    'distinct_paths': paths_Q.tolist(),
    # Six digits are far below any sampling error and keep the file small.
    'token_entropy': [
      round(float(total / tokens), 6) if tokens else 0.0
      for total, tokens in zip(entropy_Q, tokens_Q, strict=True)
    ],
    'num_tokens': tokens_Q.tolist(),
  }
  return flat, per_question


def _check_rows(
  name: str, rows: Sequence[Sequence[Any]], shape: tuple[int, ...]
) -> None:
  if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
    widths = sorted({len(row) for row in rows})
    raise ValueError(
      f'{name} has {len(rows)} rows of {widths} entries; {shape[0]} rows of '
      f'{shape[1]} are needed, one entry a sample.'
    )


def _mean(values_Q: np.ndarray) -> float:
  if not len(values_Q):
    raise ValueError('there is no question to average over.')
  return float(np.mean(values_Q))
