"""Success and variety of the judged answers of any system.

`python -m sdjax.evaluate --rollouts=FILE --out=OUT.json` writes what
`score_file` returns.
"""

import itertools
import os
from collections.abc import Sequence

import numpy as np

from sdjax.evaluate.bootstrap import mean_intervals
from sdjax.evaluate.measures import measure_all
from sdjax.evaluate.pass_at_k import powers_of_two
from sdjax.evaluate.rollout_file import Answers, read_answers
from sdjax.evaluate.samples import Samples
from sdjax.evaluate.table import Embed, Setting


def score_file(
  path: str | os.PathLike[str],
  ks: Sequence[int] | None = None,
  step: int | None = None,
  embed: Embed | None = None,
) -> dict[str, float]:
  """Scores a file of answers, see `rollout_file.read_answers` and `score`.

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
  """Reduces judged answers, of at least one question, to their numbers.

  Each number is one of `measures.MEASURES`, its mean over the questions that
  have a value; for pass@k and the like a question needs k answers. Beside
  NAME stand NAME/low and NAME/high, its 95% bootstrap interval over
  questions, and, where some questions have no value, NAME/num_questions, how
  many have one; and there are `num_questions` and `num_answers`. What no line
  has the fields for is left out, maj@k also where only correct answers have a
  solution: then the wrong ones cannot vote.

  Without `ks` k are the powers of two for which more than half of the
  questions have as many answers. `embed` is a sentence encoder, called once
  with each different text once; its name belongs beside the number. Raises
  ValueError for a k below 1 or above the answers of every question.
  """
  setting = Setting(_checked(ks, answers), embed)
  columns = measure_all(_questions(answers), setting)
  values_QM = np.stack([c.values for c in columns.values()], axis=1)
  weights_QM = np.stack([c.weights for c in columns.values()], axis=1)
  intervals = mean_intervals(values_QM, weights=weights_QM)
  flat: dict[str, float] = {}
  for (name, column), (low, high) in zip(
    columns.items(), intervals.tolist(), strict=True
  ):
    if column.mean is not None:
      flat |= {name: column.mean, f'{name}/low': low, f'{name}/high': high}
      known = int(np.isfinite(column.values).sum())
      if known < len(column.values):
        flat[f'{name}/num_questions'] = known
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


def _questions(answers: Answers) -> list[Samples]:
  """The answers to each question, with the fields that the file has."""
  rows = {
    'solutions': answers.solution,
    'votes': answers.solution if _wrong_ones_vote(answers) else None,
    'strategies': answers.strategies,
    'demonstrations': answers.demonstrations,
    'scores': answers.score,
  }
  known = {name: row for name, row in rows.items() if row is not None}
  columns = (answers.correct, answers.answer, *known.values())
  return [
    Samples(right, texts, **dict(zip(known, fields, strict=True)))
    for right, texts, *fields in zip(*columns, strict=True)
  ]


def _wrong_ones_vote(answers: Answers) -> bool:
  """Whether a wrong answer has a key, or none is wrong."""
  chain = itertools.chain.from_iterable
  keys, rights = chain(answers.solution or []), chain(answers.correct)
  wrong = [key for key, right in zip(keys, rights, strict=False) if not right]
  return not wrong or any(key is not None for key in wrong)
