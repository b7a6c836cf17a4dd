"""The numbers of one evaluation of a run.

pass@1 says how often a model is right, not whether it is right in more than
one way. `summarize` makes of an evaluation set's graded answers the flat
numbers of `eval.json` and the per-question numbers of `eval_questions.json`,
by the table in `measures`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from sdjax.evaluate.measures import measure_all
from sdjax.evaluate.pass_at_k import powers_of_two
from sdjax.evaluate.samples import Samples
from sdjax.evaluate.table import Column, Setting


def token_entropy(entropy_sum: ArrayLike, length: ArrayLike) -> float:
  """Mean entropy of the next-token distribution over all counted tokens.

  Of the nats summed over each sample's tokens, and how many these are, so
  that long samples weigh more. Nats per token; 0 when no token counts.
  """
  total, tokens = np.sum(entropy_sum, dtype=np.float64), np.sum(length)
  return float(total / tokens) if tokens else 0.0


def summarize(
  questions: Sequence[Samples],
) -> tuple[dict[str, float], dict[str, Any]]:
  """Reduces the graded answers of one evaluation set to its numbers.

  A question without any sample is left out of everything. Where numbers of
  samples differ, k ends at the smallest, so that every pass@k is a mean over
  the same questions.

  Returns the flat numbers, for `eval.json`: of the measures that are not slow
  those that apply, each its mean over questions or over what it is per; and
  the per-question values, for `eval_questions.json`, lists over the questions
  that have samples: num_samples (one int when all are equal, else a list),
  num_correct, the measures that the report has a column for and that do not
  follow from these counts, and num_tokens, the weight of token_entropy. Raises
  ValueError when no question has a sample, or when a correct sample has an
  empty identity.
  """
  kept = [samples for samples in questions if samples.num_samples]
  if not kept:
    raise ValueError(
      f'no question of the set has a sample (of {len(questions)} questions); '
      'evaluate at least one sample of one question.'
    )
  num_Q = [samples.num_samples for samples in kept]
  columns = measure_all(kept, Setting(powers_of_two(min(num_Q))), slow=False)
  flat = {
    name: column.mean
    for name, column in columns.items()
    if column.mean is not None
  }
  # A run's file always has it: with one sample there is nothing to gain.
  flat.setdefault('pass_gain', 0.0)
  per_question = {
    'num_samples': num_Q[0] if len(set(num_Q)) == 1 else num_Q,
    'num_correct': [samples.num_correct for samples in kept],
  }
  for name, column in columns.items():
    one = column.measure
    if one.heading and one.needs and name == one.name:
      per_question[name] = _plain(column)
  if all(len(samples.lengths) for samples in kept):
    per_question['num_tokens'] = [samples.num_tokens for samples in kept]
  return flat, per_question


def _plain(column: Column) -> list[float | None]:
  """The values for a file; counts are whole numbers."""
  values = column.values.tolist()
  if not column.measure.per and all(value.is_integer() for value in values):
    return [int(value) for value in values]
  # Six digits are far below any sampling error and keep the file small.
  return [round(v, 6) if np.isfinite(v) else None for v in values]
