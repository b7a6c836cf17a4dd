"""Success and variety of the judged answers of any system.

`python -m sdjax.evaluate --rollouts=FILE --out=OUT.json` writes what
`score_file` returns.
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sdjax.evaluate.bootstrap import mean_intervals
from sdjax.evaluate.diversity import distinct_counts
from sdjax.evaluate.pass_at_k import pass_at_k, pass_slope, powers_of_two
from sdjax.evaluate.rollout_file import Answers, read_answers
from sdjax.evaluate.selection import best_of_k, maj_at_k
from sdjax.evaluate.self_bleu import self_bleu
from sdjax.evaluate.solutions import variety
from sdjax.evaluate.text import copy_overlap, distinct_n
from sdjax.evaluate.vendi import embedding_diversities, vendi_scores

Embed = Callable[[list[str]], ArrayLike]
"""n texts to float [n, D]; cosines say how much alike they are."""


def score_file(
  path: str | os.PathLike[str],
  ks: Sequence[int] | None = None,
  step: int | None = None,
  embed: Embed | None = None,
) -> dict[str, float]:
  """Scores a file of answers, see `rollout_file.read_answers` and `score`.

  Args:
    path: JSON lines, one answer a line.
    ks: the k of pass@k, maj@k and best_of@k; None: 1, 2, 4, ... as far as
      they go.
    step: only lines whose `step` is this; None: all lines.
    embed: as `score` takes it.

  Returns:
    What `score` returns.

  Raises:
    RolloutError: for a line that cannot be read, or a k that is too large.
    OSError: when the file cannot be read.
  """
  return score(read_answers(path, step), ks, embed)


def score(
  answers: Answers,
  ks: Sequence[int] | None = None,
  embed: Embed | None = None,
) -> dict[str, float]:
  """Reduces judged answers to their numbers.

  Each number is a mean over the questions that have a value; a question
  without one is named below. Beside NAME stand NAME/low and NAME/high, its
  95% bootstrap interval over questions, and, where some questions have no
  value, NAME/num_questions, how many have one.

    pass@k              chance that one of k answers is correct, unbiased; a
                        question with fewer than k answers has none, and
                        likewise below
    maj@k               chance that a vote by `solution` elects a correct one;
                        left out where only correct answers have a solution:
                        then the wrong ones cannot vote
    best_of@k           chance that of k answers the one with the highest
                        `score` is correct, ties shared equally
    pass_gain           pass@k at the largest k minus that at 1; left out where
                        the largest k is 1
    pass_slope          rise of pass@k each time k doubles, by least squares;
                        left out with a single k
    distinct_solutions  different correct solutions, 0 if none
    effective_solutions exp of their entropy, 0 if none
    solution_entropy    nats, 0 if at most one
    strategies_correct  different strategies in correct answers, 0 if none
    distinct_1, _2, _3  unique n-grams over all n-grams of the answers
    self_bleu           0..100, BLEU-4 against the question's other answers;
                        a question with one answer has none
    vendi               Vendi score, in answers, of word 1- and 2-grams
    embedding_diversity mean of 1 - cos over the pairs of a question's answers;
                        a question with one answer has none; left out without
                        `embed`
    copy_overlap        longest run of words shared with the demonstration,
                        over the answer's words; of answers that have one

  and `num_questions` and `num_answers`. The solution, strategy,
  demonstration and score measures are left out where no line has that field.

  Args:
    answers: of at least one question.
    ks: the k of pass@k, maj@k and best_of@k; None: powers of two for which
      more than half of the questions have as many answers.
    embed: a sentence encoder, called once with each different text once; its
      name belongs beside the number. None: none.

  Returns:
    The flat numbers.

  Raises:
    ValueError: for a k below 1 or above the answers of every question.
  """
  columns = _columns(answers, _checked(ks, answers), embed)
  values_QM = np.stack(list(columns.values()), axis=1)
  intervals = mean_intervals(values_QM)
  flat: dict[str, float] = {}
  for name, column, (low, high) in zip(
    columns, values_QM.T, intervals.tolist(), strict=True
  ):
    known = column[np.isfinite(column)]
    if known.size:
      flat |= {
        name: float(known.mean()),
        f'{name}/low': low,
        f'{name}/high': high,
      }
      if known.size < column.size:
        flat[f'{name}/num_questions'] = known.size
  flat['num_questions'] = len(answers.answer)
  flat['num_answers'] = sum(map(len, answers.answer))
  return flat


def describe(flat: dict[str, float]) -> str:
  """Returns the numbers of `score` for a terminal, one a line."""
  lines = []
  for name, value in flat.items():
    if f'{name}/low' in flat:
      low, high = flat[f'{name}/low'], flat[f'{name}/high']
      some = flat.get(f'{name}/num_questions')
      over = '' if some is None else f'  over {some} questions'
      lines.append(f'{name:20} {value:9.4f}  [{low:.4f}, {high:.4f}]{over}')
    elif not name.endswith(('/low', '/high', '/num_questions')):
      lines.append(f'{name:20} {value:9}')
  if flat['num_questions'] == 1:
    lines.append('Of one question no interval over questions can be told.')
  return '\n'.join(lines)


def _checked(ks: Sequence[int] | None, answers: Answers) -> list[int]:
  sizes = sorted((len(row) for row in answers.answer), reverse=True)
  if ks is None:
    return list(powers_of_two(sizes[len(sizes) // 2]))
  for k in ks:
    if not 1 <= k <= sizes[0]:
      raise ValueError(
        f'k is {k}; it must lie in 1..{sizes[0]}, the answers of the question '
        'that has the most.'
      )
  if not ks:
    raise ValueError('no k is given; e.g. 1,8,64.')
  return sorted(set(ks))


def _columns(
  answers: Answers, ks: Sequence[int], embed: Embed | None
) -> dict[str, np.ndarray]:
  """Each measure's value of each question, float64 [Q], NaN where none."""
  num_Q = np.asarray([len(row) for row in answers.answer])
  right_Q = np.asarray([sum(row) for row in answers.correct])

  def of_k(measure: Callable[..., np.ndarray], k: int, *rows: Any):
    """A measure of the questions with at least k answers."""
    value_Q = np.full(len(num_Q), np.nan)
    enough = np.flatnonzero(num_Q >= k)
    value_Q[enough] = measure(*([row[q] for q in enough] for row in rows), k)
    return value_Q

  curve = [of_k(pass_at_k, k, num_Q, right_Q) for k in ks]
  columns = {f'pass@{k}': value for k, value in zip(ks, curve, strict=True)}
  if ks[-1] > 1:
    columns['pass_gain'] = curve[-1] - right_Q / num_Q
  if len(ks) > 1:
    columns['pass_slope'] = pass_slope(np.stack(curve, axis=-1), ks)
  if answers.solution is not None:
    if _wrong_ones_vote(answers):
      columns |= {
        f'maj@{k}': of_k(maj_at_k, k, answers.solution, answers.correct)
        for k in ks
      }
    found = variety(answers.solution, answers.correct)
    columns |= {
      'distinct_solutions': found.distinct.astype(np.float64),
      'effective_solutions': found.effective,
      'solution_entropy': found.entropy,
    }
  if answers.score is not None:
    columns |= {
      f'best_of@{k}': of_k(best_of_k, k, answers.score, answers.correct)
      for k in ks
    }
  if answers.strategies is not None:
    used = [
      [names for names, right in zip(row, rights, strict=True) if right]
      for row, rights in zip(answers.strategies, answers.correct, strict=True)
    ]
    columns['strategies_correct'] = distinct_counts(used).astype(np.float64)
  for n, value in enumerate(distinct_n(answers.answer, 3).T, 1):
    columns[f'distinct_{n}'] = value
  columns['self_bleu'] = self_bleu(answers.answer)
  columns['vendi'] = vendi_scores(answers.answer)
  if embed is not None:
    columns['embedding_diversity'] = embedding_diversities(
      answers.answer, embed
    )
  if answers.demonstrations is not None:
    columns['copy_overlap'] = copy_overlap(
      answers.answer, answers.demonstrations
    )
  return columns


def _wrong_ones_vote(answers: Answers) -> bool:
  """Whether a wrong answer has a key, or none is wrong."""
  wrong = [
    key
    for keys, rights in zip(
      answers.solution or [], answers.correct, strict=True
    )
    for key, right in zip(keys, rights, strict=True)
    if not right
  ]
  return not wrong or any(key is not None for key in wrong)
