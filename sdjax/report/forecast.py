"""What was forecast of a run against what it reached."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjax.data import json_files
from sdjax.report import plots
from sdjax.report import runs as runs_lib
from sdjax.report.tables import BASE
from sdjax.report import chart
from sdjax.report import marks
from sdjax.report import page

FILE = 'forecast.json'

METRICS = {
  'pass@1': 'pass@1',
  'reach': 'pass@k, largest k',
  'concepts_correct': 'concepts in correct answers',
  'effective_solutions': 'effective correct solutions',
}
"""What is compared; `reach` is pass@k at the largest k that both have."""

LAWS = {'rl': ('rl',), 'sd': ('sd',), 'mix': ('rl', 'sd')}
"""Whose forecast is one of a method's."""

SAMPLED = ('model.', 'task.', 'eval.num_samples', 'eval.temperature')
MATTERS = {
  BASE: SAMPLED,
  'rl': (*SAMPLED, 'loss.kl_'),
  'sd': (*SAMPLED, 'loss.kl_', 'method.', 'rollout.', 'train.num_steps'),
}
"""Options that a forecast of each law depends on."""

PLAIN_RL = {
  'method.name': ('rl',),
  'method.diversity_weight': (0.0,),
  'method.advantage': ('grpo', 'dr_grpo', 'rloo', 'reinforce'),
}
"""Options of the RL whose law is forecast: each answer has its own reward."""

UNKNOWN = 'its options are not known'


@dataclasses.dataclass(frozen=True)
class Source:
  """A forecast.

  Attributes:
    folder: where it lies.
    options: of the run it was made for, by dotted name; {} when not known.
    numbers: by `SET/LAW/METRIC`, each with `/low` and `/high`.
  """

  folder: Path
  options: dict[str, Any]
  numbers: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Pair:
  """One number, forecast and measured.

  Attributes:
    label: of the method, or `base`.
    law: that was forecast.
    set_name: the evaluation set.
    metric: key of `METRICS`.
    forecast: value.
    ends: its interval, or None.
    measured: mean over the seeds.
    differs: options in which the forecast was made for something else.
  """

  label: str
  law: str
  set_name: str
  metric: str
  forecast: float
  ends: tuple[float, float] | None
  measured: float
  differs: tuple[str, ...] = ()


def read(path: Path) -> tuple[Source | None, runs_lib.Notes]:
  """Reads a forecast.

  Args:
    path: `forecast.json`, or the folder that holds it.

  Returns:
    The forecast, None if there is none, and a note on one that is broken.
  """
  file = path / FILE if path.is_dir() else path
  try:
    numbers = json_files.parse(file.read_text(encoding='utf-8'))
    if not isinstance(numbers, dict):
      raise ValueError(f'it holds a {type(numbers).__name__}, not an object')
  except FileNotFoundError:
    return None, []
  except (OSError, ValueError) as error:
    return None, [f'{file} cannot be read ({error}); it is not compared.']
  # A forecast of a release that did not write it was of the config beside it.
  its_own = file.with_name('forecast_config.json')
  beside = its_own if its_own.exists() else file.with_name('config.json')
  try:
    config = json.loads(beside.read_text(encoding='utf-8'))
    options = runs_lib.flat_options(config) if isinstance(config, dict) else {}
  except (OSError, ValueError):
    options = {}
  values = {
    k: float(v) for k, v in numbers.items() if isinstance(v, (int, float))
  }
  return Source(file.parent, options, values), []


def differing(source: Source, run: runs_lib.Run, law: str) -> list[str] | None:
  """Says in what a forecast is not one of a run.

  Args:
    source: the forecast.
    run: the run.
    law: key of `MATTERS`.

  Returns:
    Names of the options that differ and matter, `UNKNOWN` where one of the
    two has no config; None if the two began with different models, so that
    there is nothing to compare.
  """
  mine, its = runs_lib.flat_options(run.config), source.options
  if not its or not mine:
    return [UNKNOWN]
  if mine.get('model.path') != its.get('model.path'):
    return None
  differs = [
    key
    # What only one of them has is of another release, or of another method.
    for key in sorted(mine.keys() & its.keys())
    if key.startswith(MATTERS[law]) and mine[key] != its[key]
  ]
  if law == 'rl':
    differs += [
      key
      for key, plain in PLAIN_RL.items()
      if key in mine and mine[key] not in plain
    ]
  return differs


def choose(
  sources: Sequence[Source], run: runs_lib.Run, law: str
) -> tuple[Source, list[str]] | None:
  """Finds the forecast that is most of a run.

  Args:
    sources: forecasts there are.
    run: the run.
    law: key of `MATTERS`.

  Returns:
    The one that differs in the fewest options, and those; the run's own of
    equals. None: no forecast is of the same model.
  """
  found = []
  for place, source in enumerate(sources):
    differs = differing(source, run, law)
    if differs is not None:
      own = source.folder.resolve() == run.workdir.resolve()
      known = UNKNOWN not in differs
      found.append((not known, len(differs), not own, place, differs))
  if not found:
    return None
  *_, place, differs = min(found)
  return sources[place], differs


def compare(
  groups: Sequence[runs_lib.Group], sources: Sequence[Source]
) -> list[Pair]:
  """Puts every number that was forecast beside the measured one.

  Args:
    groups: the methods.
    sources: forecasts.

  Returns:
    The pairs, the base model's first.
  """
  pairs = []
  everyone = runs_lib.Group(
    BASE, BASE, tuple(run for one in groups for run in one.runs)
  )
  rows = [(everyone, BASE, 'base')]
  for one in groups:
    name = runs_lib.flat_options(one.runs[0].config).get('method.name')
    rows += [(one, law, 'final') for law in LAWS.get(str(name), ())]
  for one, law, stage in rows:
    chosen = choose(sources, one.runs[0], law)
    if chosen is None:
      continue
    for name in runs_lib.sets_of(groups):
      pairs += _pairs(one, law, stage, name, *chosen)
  return pairs


def _pairs(
  one: runs_lib.Group,
  law: str,
  stage: str,
  name: str,
  source: Source,
  differs: Sequence[str],
) -> list[Pair]:
  pairs = []
  shared = [
    k
    for k in runs_lib.curve_points([one], name)
    if f'{name}/{law}/pass@{k}' in source.numbers
  ]
  for metric in METRICS:
    if metric == 'reach' and not shared:
      continue
    real = f'pass@{shared[-1]}' if metric == 'reach' else metric
    at = f'{name}/{law}/{real}'
    values = one.values(f'{stage}/{name}/{real}')
    if at in source.numbers and values.size:
      interval = [source.numbers.get(f'{at}/{end}') for end in ('low', 'high')]
      low, high = interval
      pairs.append(
        Pair(
          one.label,
          law,
          name,
          metric,
          source.numbers[at],
          None if low is None or high is None else (low, high),
          float(values.mean()),
          tuple(differs),
        )
      )
  return pairs


def section(groups: Sequence[runs_lib.Group], pairs: Sequence[Pair]) -> str:
  """Returns scatter and tables as a part of the page; '' without any."""
  if not pairs:
    return ''
  colours, names = marks.colours(groups), marks.labels(groups)
  looks = plots.styles(groups)
  sets = list(dict.fromkeys(pair.set_name for pair in pairs))
  shapes = dict(zip(sets, 'os^DvPX*' * len(sets), strict=False))
  charts = []
  for metric, heading in METRICS.items():
    points = [
      chart.Mark(
        '',
        pair.forecast,
        pair.measured,
        pair.ends,
        None,
        colours[pair.label],
        shapes[pair.set_name],
        f'{pair.label} ({pair.law}), {pair.set_name}: forecast '
        f'{pair.forecast:.3f}, measured {pair.measured:.3f}',
      )
      for pair in pairs
      if pair.metric == metric
    ]
    if points and metric != 'pass@1':
      charts.append(
        chart.scatter(
          points,
          heading,
          'forecast',
          'measured',
          size=(380, 340),
          diagonal=True,
        )
      )
  shown = dict.fromkeys(pair.label for pair in pairs)
  legend = marks.key(
    [(label, colours[label], 'o') for label in shown if label in looks]
    + [(BASE, colours[BASE], 'o')] * (BASE in shown)
  ) + marks.key(
    [(name.replace('_', ' '), 'var(--soft)', shapes[name]) for name in sets]
  )
  first, *others = (_table(pairs, name, names) for name in sets)
  tables = first
  if others:
    tables += (
      f'<details><summary>{page.count(len(others), "other set")}</summary>'
      f'{"".join(others)}</details>'
    )
  caption = (
    'Forecast from the base model alone, before training, against what '
    'training reached; a point on the dotted line was forecast rightly. Each '
    'set is forecast as if training had been on its own questions. Bars are '
    '95% bootstrap intervals of the forecast.'
  )
  return page.section(
    'forecast',
    'Forecast and outcome',
    caption,
    f'{legend}<div class="charts trio">{"".join(charts)}</div>{tables}'
    f'{_differences(pairs)}',
  )


def _differences(pairs: Sequence[Pair]) -> str:
  """Says which forecasts were made for something else."""
  differs = {(p.label, p.law): p.differs for p in pairs if p.differs}
  if not differs:
    return ''
  items = ''.join(
    f'<li>{page.escape(label)}, as {law}: '
    f'{page.escape(", ".join(names[:6]))}'
    f'{" and more" if len(names) > 6 else ""}</li>'
    for (label, law), names in differs.items()
  )
  return (
    '<details><summary>* forecast for other options than the run&rsquo;s'
    f'</summary><ul>{items}</ul></details>'
  )


def _table(pairs: Sequence[Pair], name: str, names: dict[str, str]) -> str:
  cells = {
    (pair.label, pair.law, pair.metric): pair
    for pair in pairs
    if pair.set_name == name
  }
  metrics = [m for m in METRICS if any(key[2] == m for key in cells)]
  above = '<tr><th></th><th></th>' + ''.join(
    f'<th colspan="2">{page.escape(METRICS[m])}</th>' for m in metrics
  )
  rows = []
  for label, law in dict.fromkeys(key[:2] for key in cells):
    other = any(
      p.differs for key, p in cells.items() if key[:2] == (label, law)
    )
    row = [names[label], law + '*' * other]
    for metric in metrics:
      pair = cells.get((label, law, metric))
      if pair is None:
        row += [page.NONE] * 2
        continue
      text = f'<b>{pair.forecast:.2f}</b>'
      if pair.ends:
        text += f'<small>{pair.ends[0]:.2f}&ndash;{pair.ends[1]:.2f}</small>'
      row += [text, f'<b>{pair.measured:.2f}</b>']
    rows.append(row)
  return page.table(
    'results',
    ['', 'as', *('forecast', 'measured') * len(metrics)],
    rows,
    page.words(name),
    above + '</tr>',
  )
