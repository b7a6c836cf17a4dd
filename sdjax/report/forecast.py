"""What was forecast of a run against what it reached."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdjax.report import chart, page
from sdjax.report import runs as runs_lib
from sdjax.report.looks import Look
from sdjax.report.looks import looks as looks_of
from sdjax.report.runs import BASE

FILE = 'forecast.json'

METRICS = {
  'pass@1': 'pass@1',
  'reach': 'pass@k, largest k',
  'concepts_correct': 'concepts in correct answers',
  'effective_solutions': 'effective correct solutions',
}
"""What is compared; `reach` is pass@k at the largest k that both have."""

DISTRIBUTIONS = {'rl': ('rl',), 'sd': ('sd',), 'mix': ('rl', 'sd')}
"""By method, the forecast distributions that its outcome is compared with."""

SAMPLED = ('model.', 'task.', 'eval.num_samples', 'eval.temperature')
MATTERS = {
  BASE: SAMPLED,
  'rl': (*SAMPLED, 'loss.kl'),
  'sd': (*SAMPLED, 'loss.kl', 'method.', 'rollout.', 'train.num_steps'),
}
"""Options that a forecast of each distribution depends on."""

PLAIN_RL = {
  'method.name': ('rl',),
  'method.diversity': ('none',),
  'method.diversity_weight': (0.0,),
  'method.advantage': ('grpo', 'dr_grpo', 'rloo', 'reinforce'),
}
"""Options of the RL that is forecast: each answer has its own reward."""

UNKNOWN = 'its options are not known'


@dataclasses.dataclass(frozen=True)
class Source:
  """A forecast, in a folder.

  Of a run with these options by dotted name, {} when not known; its numbers
  are by `SET/DISTRIBUTION/METRIC`, each with `/low` and `/high`.
  """

  folder: Path
  options: dict[str, Any]
  numbers: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Pair:
  """One number, forecast of a distribution and measured as the mean over seeds.

  The label is the method's, or `base`; the distribution is `base`, or what
  `rl` or `sd` leads to; the metric is a key of `METRICS`. `differs` are options
  in which the forecast was made for something else.
  """

  label: str
  distribution: str
  set_name: str
  metric: str
  forecast: float
  ends: tuple[float, float] | None
  measured: float
  differs: tuple[str, ...] = ()


def read(path: Path) -> tuple[Source | None, runs_lib.Notes]:
  """Reads a forecast from `forecast.json`, or from the folder that holds it.

  Returns None if there is none, and a note on one that is broken.
  """
  file = path / FILE if path.is_dir() else path
  try:
    numbers = runs_lib.read_object(file)
  except FileNotFoundError:
    return None, []
  except (OSError, ValueError) as error:
    return None, [f'{file} cannot be read ({error}); it is not compared.']
  # A forecast of a release that did not write it was of the config beside it.
  its_own = file.with_name('forecast_config.json')
  beside = its_own if its_own.exists() else file.with_name('config.json')
  try:
    options = runs_lib.flat_options(runs_lib.read_object(beside))
  except (OSError, ValueError):
    options = {}
  values = {
    k: float(v) for k, v in numbers.items() if isinstance(v, (int, float))
  }
  return Source(file.parent, options, values), []


def differing(
  source: Source, run: runs_lib.Run, distribution: str
) -> list[str] | None:
  """Says in what a forecast is not one of a run.

  Returns names of the options that differ and matter for the distribution, a
  key of `MATTERS`; `UNKNOWN` where one of the two has no config; None if the
  two began with different models, so that there is nothing to compare.
  """
  mine, its = run.options, source.options
  if not its or not mine:
    return [UNKNOWN]
  if mine.get('model.path') != its.get('model.path'):
    return None
  differs = [
    key
    # What only one of them has is of another release, or of another method.
    for key in sorted(mine.keys() & its.keys())
    if key.startswith(MATTERS[distribution]) and mine[key] != its[key]
  ]
  if distribution == 'rl':
    differs += [
      key
      for key, plain in PLAIN_RL.items()
      if key in mine and _name(mine[key]) not in plain
    ]
  return differs


def _name(value: Any) -> Any:
  """Returns `rloo` for `rloo(...)`, whatever its options."""
  return value.partition('(')[0] if isinstance(value, str) else value


def choose(
  sources: Sequence[Source], run: runs_lib.Run, distribution: str
) -> tuple[Source, list[str]] | None:
  """Finds the forecast that is most of a run.

  Returns the one that differs in the fewest options, and those; the run's own
  of equals. None: no forecast is of the same model.
  """
  found = []
  for place, source in enumerate(sources):
    differs = differing(source, run, distribution)
    if differs is not None:
      own = source.folder.resolve() == run.workdir.resolve()
      known = UNKNOWN not in differs
      found.append((not known, len(differs), not own, place, differs))
  if not found:
    return None
  *_, place, differs = min(found)
  return sources[place], differs


def compare(groups: runs_lib.Groups, sources: Sequence[Source]) -> list[Pair]:
  """Puts every number that was forecast beside the measured one."""
  pairs = []
  rows = [(runs_lib.everyone(groups), BASE, 'base')]
  for one in groups:
    name = str(one.runs[0].options.get('method.name'))
    mine = DISTRIBUTIONS.get(name, ())
    rows += [(one, distribution, 'final') for distribution in mine]
  for one, distribution, stage in rows:
    chosen = choose(sources, one.runs[0], distribution)
    if chosen is None:
      continue
    for name in runs_lib.sets_of(groups):
      pairs += _pairs(one, distribution, stage, name, *chosen)
  return pairs


def _pairs(
  one: runs_lib.Group,
  distribution: str,
  stage: str,
  name: str,
  source: Source,
  differs: Sequence[str],
) -> list[Pair]:
  pairs, known = [], source.numbers
  start = f'{name}/{distribution}/'
  points = runs_lib.curve_points([one], name)
  shared = [f'pass@{k}' for k in points if f'{start}pass@{k}' in known]
  for metric in METRICS:
    real = ''.join(shared[-1:]) if metric == 'reach' else metric
    at = start + real
    values = one.values(f'{stage}/{name}/{real}')
    if at in known and values.size:
      low, high = known.get(f'{at}/low'), known.get(f'{at}/high')
      pairs.append(
        Pair(
          one.label,
          distribution,
          name,
          metric,
          known[at],
          None if low is None or high is None else (low, high),
          float(values.mean()),
          tuple(differs),
        )
      )
  return pairs


def section(groups: runs_lib.Groups, pairs: Sequence[Pair]) -> str:
  """Returns scatter and tables as a part of the page; '' without any."""
  if not pairs:
    return ''
  looks = looks_of(groups)
  sets = list(dict.fromkeys(pair.set_name for pair in pairs))
  shapes = dict(zip(sets, 'os^DvPX*' * len(sets), strict=False))
  charts, axes = [], ('forecast', 'measured')
  for metric, heading in METRICS.items():
    marks = [
      _mark(pair, looks[pair.label].colour, shapes[pair.set_name])
      for pair in pairs
      if pair.metric == metric != 'pass@1'
    ]
    if marks:
      charts.append(
        chart.scatter(marks, heading, *axes, size=(380, 340), diagonal=True)
      )
  shown = {pair.label for pair in pairs}
  return page.render(
    'forecast.html',
    methods=[
      dataclasses.replace(look, shape='o')
      for label, look in looks.items()
      if label in shown
    ],
    set_looks=[
      Look(page.words(name), 'var(--soft)', shapes[name]) for name in sets
    ],
    charts=charts,
    sets=[_table(pairs, name, looks) for name in sets],
    differs={(p.label, p.distribution): p.differs for p in pairs if p.differs},
  )


def _mark(pair: Pair, colour: str, shape: str) -> chart.Mark:
  return chart.Mark(
    '',
    pair.forecast,
    pair.measured,
    pair.ends,
    None,
    colour,
    shape,
    f'{pair.label} ({pair.distribution}), {pair.set_name}: forecast '
    f'{pair.forecast:.3f}, measured {pair.measured:.3f}',
  )


def _table(
  pairs: Sequence[Pair], name: str, looks: Mapping[str, Look]
) -> dict[str, Any]:
  cells = {
    (pair.label, pair.distribution, pair.metric): pair
    for pair in pairs
    if pair.set_name == name
  }
  metrics = [m for m in METRICS if any(key[2] == m for key in cells)]
  rows = []
  for label, distribution in dict.fromkeys(key[:2] for key in cells):
    found = [cells.get((label, distribution, metric)) for metric in metrics]
    other = any(pair and pair.differs for pair in found)
    row: list[Any] = [looks[label], distribution + '*' * other]
    for pair in found:
      if pair is None:
        row += [None, None]
        continue
      small = ('{:.2f}–{:.2f}'.format(*pair.ends),) if pair.ends else ()
      row += [
        page.Cell(f'{pair.forecast:.2f}', small),
        page.Cell(f'{pair.measured:.2f}'),
      ]
    rows.append(row)
  above = [('', 1), ('', 1), *((METRICS[m], 2) for m in metrics)]
  return {'name': name, 'metrics': metrics, 'above': above, 'rows': rows}
