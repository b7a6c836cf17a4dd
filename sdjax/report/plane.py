"""Accuracy against variety: who is beaten in both, and what each costs."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence

from sdjax.report import chart, page
from sdjax.report import runs as runs_lib
from sdjax.report import tables as tables_lib
from sdjax.report.looks import Look
from sdjax.report.looks import looks as looks_of
from sdjax.report.runs import BASE
from sdjax.report.tables import Estimate, Table

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Plane:
  """Two numbers of each method by label, more of either being better.

  Their names are e.g. `in distribution, pass@1` and `harder, pass@64`; x is a
  share, and `y_top` the most that y can be; None: no limit is known.
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
  """Returns the labels that no other beats, by rising x; of equal points all.

  Another point beats one when it is at least as far in both and further in
  one.
  """

  def beaten(a: Point) -> bool:
    return any(
      b[0] >= a[0] and b[1] >= a[1] and b != a for b in points.values()
    )

  kept = [label for label, point in points.items() if not beaten(point)]
  return sorted(kept, key=lambda label: points[label])


def planes_of(tables: Sequence[Table]) -> list[Plane]:
  """Chooses what is worth a plane, with at least one method in it.

  Accuracy is pass@1 on the first set; variety the concepts in its correct
  answers, and pass@k at the largest k on the last set, of those that most
  methods were measured on.
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
    pairs = {
      label: (right, wide)
      for label, row in first.rows.items()
      if (right := row[accuracy])
      and (wide := table.rows.get(label, {}).get(metric))
    }
    plane = Plane(
      f'{page.words(first.name)}, {accuracy}',
      f'{page.words(table.name)}, {name}',
      {label: right for label, (right, _) in pairs.items()},
      {label: wide for label, (_, wide) in pairs.items()},
      top,
    )
    if plane.points:
      planes.append(plane)
  return planes


def last_of(tables: Sequence[Table]) -> Table:
  """Returns the last set, of those that most methods were measured on.

  The first of the tables is taken only where it is alone.
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

  Returns the median of its seconds, compilation and evaluation thus left out,
  and its sampled tokens; None where it was not logged.
  """
  seconds, tokens = [], []
  for run in one.runs:
    seconds += run.series('time/step').values()
    asked, options = run.series('train/drawn_questions'), run.options
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
    low = (-p.y[label].value if label in p.y else 1.0 for p in planes)
    return -number, *low

  return sorted(order, key=rank)


def markdown(planes: Sequence[Plane]) -> str:
  """Renders the ranking for a README; '' if there is nobody to compare.

  A table, in brackets the wider of the interval over questions and the range
  of the seeds, and what they are.
  """
  if len(ranked(planes)) < 2:
    return ''
  rows = {}
  for label, fronts, own in _standings(planes):
    estimates = own, *(plane.y.get(label) for plane in planes)
    wide = (e and dataclasses.replace(e, interval=ends(e)) for e in estimates)
    rows[label] = fronts, *(tables_lib.in_brackets(e, 3, 2) for e in wide)
  return '\n'.join(
    [
      '**accuracy against variety**',
      '',
      *tables_lib.markdown_table(_heads(planes, 'method'), rows, names=2),
      '',
      'Methods on most fronts first. In brackets: 95% bootstrap intervals over '
      'questions, or the range of the seeds where that is wider.',
      '',
      '',
    ]
  )


def section(groups: runs_lib.Groups, tables: Sequence[Table]) -> str:
  """Returns the planes and the ranking as a part of the page; '' without."""
  planes = planes_of(tables)
  if not planes:
    return ''
  wide = len(groups) > 9
  size = (1140, 520) if wide else (560, 420)
  looks = looks_of(groups)
  costs = {one.label: cost(one) for one in groups}
  # Not every run has an evaluation yet.
  first = next(label for label in costs if any(label in p.x for p in planes))
  rows = []
  for place, (label, fronts, own) in enumerate(_standings(planes), 1):
    look = looks[label]
    if label != BASE:
      look = dataclasses.replace(look, place=f'{place}.')
    estimates = own, *(plane.y.get(label) for plane in planes)
    its = costs.get(label, (None, None))
    relative = map(_relative, its, costs[first])
    rows.append([look, fronts, *map(page.estimate, estimates), *relative])
  return page.render(
    'plane.html',
    wide=wide,
    charts=[_draw(p, x, looks, size) for x, p in _lettered(planes)],
    heads=[*_heads(planes, ''), 's a step', 'tokens a step'],
    rows=rows,
    first=first,
  )


def _draw(
  plane: Plane,
  letter: str,
  looks: Mapping[str, Look],
  size: tuple[int, int],
) -> str:
  pairs = {label: (x, plane.y[label]) for label, x in plane.x.items()}
  base = tuple(one.value for one in pairs[BASE]) if BASE in pairs else None
  points = [
    chart.Mark(
      label,
      x.value,
      y.value,
      ends(x),
      ends(y),
      looks[label].colour,
      looks[label].shape,
      f'{label}: {plane.x_name} {x.value:.3f}, {plane.y_name} {y.value:.3f}',
      base,
    )
    for label, (x, y) in pairs.items()
  ]
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


def _standings(planes: Sequence[Plane]) -> Iterator[tuple[str, str, Estimate]]:
  """Yields the methods as ranked, the base model last.

  Each with letters of the planes on whose front it is, and its accuracy.
  """
  fronts = [(x, pareto_front(plane.points)) for x, plane in _lettered(planes)]
  labels = ranked(planes)
  if any(BASE in plane.x for plane in planes):
    labels.append(BASE)
  for label in labels:
    own = next(plane.x[label] for plane in planes if label in plane.x)
    on = ' '.join(letter for letter, front in fronts if label in front)
    yield label, on, own


def _heads(planes: Sequence[Plane], corner: str) -> list[str]:
  names = [f'{letter}. {plane.y_name}' for letter, plane in _lettered(planes)]
  return [corner, 'front', planes[0].x_name, *names]


def _lettered(planes: Sequence[Plane]) -> list[tuple[str, Plane]]:
  """Names the planes A, B and so on."""
  return [(chr(ord('A') + i), plane) for i, plane in enumerate(planes)]


def _relative(mine: float | None, first: float | None) -> page.Cell | None:
  if mine is None:
    return None
  text = f'{mine:.3g}' if mine < 100 else f'{mine:.0f}'
  return page.Cell(text, (f'{mine / first:.2f}x',) if first else ())
