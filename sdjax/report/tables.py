"""Tables of what runs reached, each number with how far to trust it."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sdjax.evaluate import measures, pass_at_k
from sdjax.evaluate.bootstrap import bootstrap_interval
from sdjax.report import runs

MEASURES = {
  name: one.heading for name, one in measures.MEASURES.items() if one.heading
}
"""The measures that have a column besides pass@k, and its heading."""

DEFINITIONS = (
  *(
    (one.heading or name, one.description)
    for name, one in measures.MEASURES.items()
    if one.heading or name == 'pass@k'
  ),
  (
    'intervals',
    '95%, bootstrap over questions; they say nothing of the training seed. '
    'With several seeds the range of their values stands below.',
  ),
)


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A number of `eval.json`, the mean over the seeds, and how far to trust it.

  `interval` is the 95% bootstrap interval over questions, each question's
  value being its mean over the seeds; None without per-question values.
  `seeds` are the smallest and the largest value of a seed; None for one run.
  """

  value: float
  interval: tuple[float, float] | None
  seeds: tuple[float, float] | None


def estimate(
  one: runs.Group, stage: str, name: str, metric: str, num: int = 1000
) -> Estimate | None:
  """Returns a number of a group's evaluations with its uncertainty.

  The stage is `base` or `final`; the metric one of `sdjax.evaluate.measures`,
  or `pass@1` and the like. Without bootstrap resamples there is no interval.
  None when no run has that number.
  """
  values = one.values(f'{stage}/{name}/{metric}')
  if not values.size:
    return None
  entries = (run.questions.get(f'{stage}/{name}') for run in one.runs)
  found = (_question_values(entry, metric) for entry in entries)
  rows = [row for row in found if row is not None]
  interval = None
  if rows and num:
    # The seeds of a method are asked the same questions: a question's mean
    # over seeds is what is resampled. Otherwise every run's questions count.
    same = len({row.shape for row in rows}) == 1
    pooled = np.mean(rows, axis=0) if same else np.concatenate(rows)
    interval = bootstrap_interval(pooled, _ratio, num=num)
  seeds = None
  if values.size > 1:
    seeds = (float(values.min()), float(values.max()))
  return Estimate(float(values.mean()), interval, seeds)


def inconsistencies(run: runs.Run) -> runs.Notes:
  """Returns notes on sets of whose samples a run's two files do not agree."""
  notes = []
  for key, entry in run.questions.items():
    rows = _question_values(entry, 'pass@1')
    flat = run.evals.get(f'{key}/pass@1')
    if rows is None:
      notes.append(
        f'{run.workdir}: eval_questions.json has no readable counts for {key}; '
        'its numbers have no intervals.'
      )
    elif flat is not None and abs((own := _ratio(rows)) - flat) > 1e-6:
      notes.append(
        f'{run.workdir}: {key}/pass@1 is {flat:.4f} in eval.json but {own:.4f} '
        'by eval_questions.json; the two files are not of the same evaluation.'
      )
  return notes


@dataclasses.dataclass(frozen=True)
class Table:
  """Results on one evaluation set.

  The k of its pass@k, rising; by label the estimates by metric, the base
  model's first; headings of the measures that are shown, see `headings_of`.
  """

  name: str
  points: list[int]
  rows: dict[str, dict[str, Estimate | None]]
  headings: dict[str, str]

  @property
  def columns(self) -> dict[str, str]:
    """Metrics of the main table and their headings."""
    ends = dict.fromkeys([*self.points[:1], *self.points[-1:]])
    columns = {f'pass@{k}': f'pass@{k}' for k in ends} | self.headings
    return {
      metric: heading
      for metric, heading in columns.items()
      if any(row[metric] for row in self.rows.values())
    }


def twins(groups: runs.Groups) -> dict[str, str]:
  """Finds measures that say the same of these runs, whatever is looked at.

  Returns a measure to the earlier one of `MEASURES` that it equals in every
  number and every question of every run. Both would be read as two findings.
  """
  found: dict[str, str] = {}
  for earlier, measure in itertools.combinations(MEASURES, 2):
    if not {earlier, measure} & found.keys() and _same(
      groups, earlier, measure
    ):
      found[measure] = earlier
  return found


def _same(groups: runs.Groups, one: str, other: str) -> bool:
  pairs = []
  for run in runs.everyone(groups).runs:
    for record in (run.evals, *run.metrics):
      for name in record:
        set_name, _, metric = name.rpartition('/')
        if metric in (one, other):
          pairs.append([record.get(f'{set_name}/{m}') for m in (one, other)])
    pairs += [
      [entry.get(one), entry.get(other)] for entry in run.questions.values()
    ]
  return bool(pairs) and all(a is not None and a == b for a, b in pairs)


def headings_of(groups: runs.Groups) -> dict[str, str]:
  """Returns the measures worth a column, and what to call them.

  That is `MEASURES` without those that equal an earlier one, which bears both
  names.
  """
  same = twins(groups)
  return {
    metric: ' = '.join(
      [heading, *(MEASURES[m] for m, first in same.items() if first == metric)]
    )
    for metric, heading in MEASURES.items()
    if metric not in same
  }


def tables_of(groups: runs.Groups, resamples: int) -> list[Table]:
  """Returns the results on each evaluation set that any run was measured on."""
  tables = []
  headings = headings_of(groups)
  rows = [(runs.everyone(groups), 'base'), *((one, 'final') for one in groups)]
  for name in runs.sets_of(groups):
    points = runs.curve_points(groups, name)
    metrics = [*(f'pass@{k}' for k in points), *MEASURES]
    estimates = {
      one.label: {
        metric: estimate(one, stage, name, metric, resamples)
        for metric in metrics
      }
      for one, stage in rows
    }
    kept = {label: row for label, row in estimates.items() if any(row.values())}
    if kept:
      tables.append(Table(name, points, kept, headings))
  return tables


def markdown(tables: Sequence[Table]) -> str:
  """Renders the main tables for a README, intervals in brackets."""
  parts = []
  for table in tables:
    rows = {
      label: [in_brackets(row[m], digits(m), digits(m)) for m in table.columns]
      for label, row in table.rows.items()
    }
    heads = ['method', *table.columns.values()]
    parts += [f'**{inline(table.name)}**', '', *markdown_table(heads, rows), '']
  if not parts:
    return 'No evaluation to show.\n'
  parts.append(
    'In brackets: 95% bootstrap intervals over questions. '
    + ' '.join(f'*{name}*: {text}' for name, text in DEFINITIONS[:-1])
  )
  return '\n'.join(parts) + '\n'


def markdown_table(
  heads: Sequence[str], rows: Mapping[str, Sequence[str]], names: int = 1
) -> list[str]:
  """Returns a table's lines, of cells by a row's label; names stand left."""
  texts = [heads, *([f'`{inline(k)}`', *cells] for k, cells in rows.items())]
  first, *lines = (f'| {" | ".join(cells)} |' for cells in texts)
  sides = '|---' * names + '|--:' * (len(heads) - names)
  return [first, f'{sides}|', *lines]


def in_brackets(one: Estimate | None, digits: int, places: int) -> str:
  """Returns a number and its interval over questions; '' for None."""
  if one is None:
    return ''
  text = f'{one.value:.{digits}f}'
  if one.interval is not None:
    low, high = one.interval
    text += f' [{low:.{places}f}, {high:.{places}f}]'
  return text


def digits(metric: str) -> int:
  """Returns the decimals worth showing of a metric's interval."""
  return measures.MEASURES[metric].digits if metric in MEASURES else 2


def _ratio(values_Q2: np.ndarray) -> float:
  total, weight = values_Q2.sum(axis=0)
  return float(total / weight) if weight else 0.0


def _question_values(
  entry: dict[str, Any] | None, metric: str
) -> np.ndarray | None:
  """Returns each question's (weighted value, weight), float64 [Q, 2]."""
  if entry is None:
    return None
  try:
    if metric.startswith('pass'):
      right_Q = np.asarray(entry['num_correct'])
      num_Q = np.broadcast_to(np.asarray(entry['num_samples']), right_Q.shape)
      curve = functools.partial(pass_at_k.pass_at_k, num_Q, right_Q)
      if metric == 'pass_gain':
        last = pass_at_k.powers_of_two(int(num_Q.min()))[-1]
        values_Q = curve(last) - curve(1)
      else:
        values_Q = curve(int(metric.removeprefix('pass@')))
    else:
      values_Q = np.asarray(entry[metric], np.float64)
    # A question without a value (null) does not count.
    weight_Q = np.isfinite(values_Q).astype(np.float64)
    if metric in MEASURES and (per := measures.MEASURES[metric].per):
      weight_Q *= np.asarray(entry[per], np.float64)
    return np.stack([np.nan_to_num(values_Q) * weight_Q, weight_Q], axis=-1)
  except (KeyError, ValueError, TypeError):
    return None


def inline(text: str) -> str:
  """Returns a name without what would break a Markdown table."""
  return ''.join(' ' if char in '|`\n\r<>' else char for char in text)
