"""Accuracy against variety: who is beaten in both, and what each costs."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.report import plots
from sdjax.report import runs as runs_lib
from sdjax.report import tables as tables_lib
from sdjax.report.tables import BASE, Estimate, Table
from sdjax.report import chart
from sdjax.report import marks
from sdjax.report import page

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Plane:
  """Two numbers of each method, more of either being better.

  Attributes:
    x_name: e.g. `in distribution, pass@1`.
    y_name: likewise.
    x: by label; a share.
    y: by label; of the same labels.
    y_top: the most that y can be; None: no limit is known.
  """

  x_name: str
  y_name: str
  x: dict[str, Estimate]
  y: dict[str, Estimate]
  y_top: float | None = None

  @property
  def points(self) -> dict[str, Point]:
    """The methods' values, without the base model's."""
    return {
      label: (self.x[label].value, self.y[label].value)
      for label in self.x
      if label != BASE
    }


def pareto_front(points: Mapping[str, Point]) -> list[str]:
  """Returns the labels that no other beats.

  Args:
    points: by label; another point beats one when it is at least as far in
      both and further in one.

  Returns:
    Labels by rising x; of equal points all.
  """

  def beaten(a: Point) -> bool:
    return any(
      b[0] >= a[0] and b[1] >= a[1] and b != a for b in points.values()
    )

  kept = [label for label, point in points.items() if not beaten(point)]
  return sorted(kept, key=lambda label: points[label])


def planes_of(tables: Sequence[Table]) -> list[Plane]:
  """Chooses what is worth a plane.

  Accuracy is pass@1 on the first set; variety the concepts in its correct
  answers, and pass@k at the largest k on the last set, of those that most
  methods were measured on.

  Args:
    tables: of `sdjax.report.tables.tables_of`.

  Returns:
    Planes with at least one method in them.
  """
  if not tables or not tables[0].points:
    return []
  first, last = tables[0], last_of(tables)
  wanted: list[tuple[Table, str, str, float | None]] = [
    (first, 'concepts_correct', 'concepts in correct answers', None)
  ]
  if last.points:
    reach = f'pass@{last.points[-1]}'
    wanted.append((last, reach, reach, 1.0))
  accuracy = f'pass@{first.points[0]}'
  planes = []
  for table, metric, name, top in wanted:
    x: dict[str, Estimate] = {}
    y: dict[str, Estimate] = {}
    for label, row in first.rows.items():
      right, wide = row[accuracy], table.rows.get(label, {}).get(metric)
      if right and wide:
        x[label], y[label] = right, wide
    plane = Plane(
      f'{_words(first.name)}, {accuracy}',
      f'{_words(table.name)}, {name}',
      x,
      y,
      top,
    )
    if plane.points:
      planes.append(plane)
  return planes


def last_of(tables: Sequence[Table]) -> Table:
  """Returns the last set, of those that most methods were measured on.

  Args:
    tables: at least one; the first is taken only where it is alone.
  """
  others = tables[1:] or tables
  most = max(len(table.rows) for table in others)
  return [table for table in others if len(table.rows) == most][-1]


def ends(one: Estimate) -> Point | None:
  """Returns the interval that holds both an estimate's intervals."""
  known = [pair for pair in (one.interval, one.seeds) if pair]
  if not known:
    return None
  return min(low for low, _ in known), max(high for _, high in known)


def cost(one: runs_lib.Group) -> tuple[float | None, float | None]:
  """What a step of training takes.

  Args:
    one: the runs of a method.

  Returns:
    The median of its seconds, compilation and evaluation thus left out, and
    its sampled tokens; None where it was not logged.
  """
  seconds, tokens = [], []
  for run in one.runs:
    seconds += run.series('time/step').values()
    options = runs_lib.flat_options(run.config)
    asked = run.series('train/drawn_questions')
    for step, length in run.series('train/length').items():
      questions = asked.get(step, options.get('rollout.num_questions'))
      samples = options.get('rollout.num_samples')
      if questions and samples:
        tokens.append(length * questions * samples)
  return (
    statistics.median(seconds) if seconds else None,
    statistics.fmean(tokens) if tokens else None,
  )


def ranked(planes: Sequence[Plane]) -> list[str]:
  """Orders methods: on most fronts first, then by y of the first plane."""
  fronts = [pareto_front(plane.points) for plane in planes]
  order = dict.fromkeys(label for plane in planes for label in plane.points)

  def rank(label: str) -> tuple[float, ...]:
    number = sum(label in front for front in fronts)
    height = [p.y[label].value if label in p.y else -1.0 for p in planes]
    return -number, *(-value for value in height)

  return sorted(order, key=rank)


def markdown(planes: Sequence[Plane]) -> str:
  """Renders the ranking for a README; '' if there is nobody to compare.

  Args:
    planes: of `planes_of`.

  Returns:
    A table, in brackets the wider of the interval over questions and the
    range of the seeds, and what they are.
  """
  everyone = ranked(planes)
  if len(everyone) < 2:
    return ''
  fronts = [(x, pareto_front(plane.points)) for x, plane in _lettered(planes)]
  heads = [
    'method',
    'front',
    planes[0].x_name,
    *(f'{x}. {plane.y_name}' for x, plane in _lettered(planes)),
  ]
  lines = [f'| {" | ".join(heads)} |', f'|---|---|{"--:|" * (len(heads) - 2)}']
  if any(BASE in plane.x for plane in planes):
    everyone.append(BASE)
  for label in everyone:
    own = next(plane.x[label] for plane in planes if label in plane.x)
    cells = [
      ' '.join(letter for letter, front in fronts if label in front),
      _in_brackets(own),
      *(_in_brackets(plane.y.get(label)) for plane in planes),
    ]
    lines.append(f'| `{tables_lib.inline(label)}` | {" | ".join(cells)} |')
  return '\n'.join(
    [
      '**accuracy against variety**',
      '',
      *lines,
      '',
      'Methods on most fronts first. In brackets: 95% bootstrap intervals over '
      'questions, or the range of the seeds where that is wider.',
      '',
      '',
    ]
  )


def _in_brackets(one: Estimate | None) -> str:
  if one is None:
    return ''
  interval = ends(one)
  text = f'{one.value:.3f}'
  return (
    text if interval is None else '{} [{:.2f}, {:.2f}]'.format(text, *interval)
  )


def section(groups: Sequence[runs_lib.Group], tables: Sequence[Table]) -> str:
  """Returns the planes and the ranking as a part of the page; '' without."""
  planes = planes_of(tables)
  if not planes:
    return ''
  wide = len(groups) > 9
  size = (1140, 520) if wide else (560, 420)
  charts = ''.join(
    f'<div class="chart">{_draw(plane, letter, groups, size)}</div>'
    for letter, plane in _lettered(planes)
  )
  caption = (
    'Up and to the right is better. What lies below and left of the dotted '
    'stairs is beaten in both by a method on them. Bars are 95% bootstrap '
    'intervals over questions, or the range of the seeds where that is wider. '
    'The ring is the model before training, and an arrow leads from it to '
    'what training made of it.'
  )
  body = charts if wide else f'<div class="charts">{charts}</div>'
  return page.section(
    'plane',
    'Accuracy against variety',
    caption,
    body + _ranking(planes, groups),
  )


def _draw(
  plane: Plane,
  letter: str,
  groups: Sequence[runs_lib.Group],
  size: tuple[int, int],
) -> str:
  colours = marks.colours(groups)
  looks: dict[str, dict[str, Any]] = plots.styles(groups)
  points = []
  base = None
  if BASE in plane.x:
    base = plane.x[BASE].value, plane.y[BASE].value
  for label, x in plane.x.items():
    y = plane.y[label]
    shape = 'base' if label == BASE else looks[label]['marker']
    points.append(
      chart.Mark(
        label,
        x.value,
        y.value,
        ends(x),
        ends(y),
        colours[label],
        shape,
        f'{label}: {plane.x_name} {x.value:.3f}, {plane.y_name} {y.value:.3f}',
        base,
      )
    )
  values = plane.points
  return chart.scatter(
    points,
    f'{letter}. {plane.y_name}',
    plane.x_name,
    plane.y_name.partition(', ')[2],
    size=size,
    # Whole: a cut axis makes little differences look large.
    x_span=(0.0, 1.0),
    y_span=(0.0, plane.y_top or 0.0),
    front=[values[label] for label in pareto_front(values)],
  )


def _ranking(planes: Sequence[Plane], groups: Sequence[runs_lib.Group]) -> str:
  labels = marks.labels(groups)
  fronts = [(x, pareto_front(plane.points)) for x, plane in _lettered(planes)]
  costs = {one.label: cost(one) for one in groups}
  # Not every run has an evaluation yet.
  first = next(label for label in costs if any(label in p.x for p in planes))
  heads = [
    '',
    'front',
    page.escape(planes[0].x_name),
    *(f'{x}. {page.escape(plane.y_name)}' for x, plane in _lettered(planes)),
    's a step',
    'tokens a step',
  ]
  rows = []
  everyone = ranked(planes)
  if any(BASE in plane.x for plane in planes):
    everyone.append(BASE)
  for place, label in enumerate(everyone, 1):
    own = next(plane.x[label] for plane in planes if label in plane.x)
    on = ' '.join(letter for letter, front in fronts if label in front)
    number = '' if label == BASE else f'<span class="none">{place}.</span> '
    rows.append(
      [
        number + labels[label],
        on or page.NONE,
        page.estimate(own),
        *(page.estimate(plane.y.get(label)) for plane in planes),
        *(
          _relative(mine, its)
          for mine, its in zip(
            costs.get(label, (None, None)), costs[first], strict=True
          )
        ),
      ]
    )
  return page.table('results', heads, rows, 'ranking') + (
    '<p class="none">Methods on most fronts come first, then those with more '
    'of A. Seconds are medians as measured, below in relation to '
    f'{page.escape(first)}: runs that shared a machine slowed one another.</p>'
  )


def _lettered(planes: Sequence[Plane]) -> list[tuple[str, Plane]]:
  """Names the planes A, B and so on."""
  return [(chr(ord('A') + i), plane) for i, plane in enumerate(planes)]


def _relative(mine: float | None, first: float | None) -> str:
  if mine is None:
    return page.NONE
  text = f'<b>{mine:.3g}</b>' if mine < 100 else f'<b>{mine:.0f}</b>'
  return text + (f'<small>{mine / first:.2f}x</small>' if first else '')


def _words(name: str) -> str:
  return name.replace('_', ' ')
