"""Accuracy against variety: who is beaten in both, and what each costs."""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence

from sdjax.report import chart, page
from sdjax.report import runs as runs_lib
from sdjax.report import tables as tables_lib
from sdjax.report.looks import Look
from sdjax.report.looks import looks as looks_of
from sdjax.report.tables import BASE, Estimate, Table

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Plane:
  """Two numbers of each method, more of either being better.

  Attributes:
    x_name: e.g. `in distribution, pass@1`.
    y_name: e.g. `harder, pass@64`.
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
      f'{page.words(first.name)}, {accuracy}',
      f'{page.words(table.name)}, {name}',
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
  if len(ranked(planes)) < 2:
    return ''
  heads = _heads(planes, 'method')
  lines = [f'| {" | ".join(heads)} |', f'|---|---|{"--:|" * (len(heads) - 2)}']
  for label, fronts, own in _standings(planes):
    estimates = own, *(plane.y.get(label) for plane in planes)
    name = f'`{tables_lib.inline(label)}`'
    cells = name, fronts, *map(_in_brackets, estimates)
    lines.append(f'| {" | ".join(cells)} |')
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
  base = None
  if BASE in plane.x:
    base = plane.x[BASE].value, plane.y[BASE].value
  points = []
  for label, x in plane.x.items():
    y = plane.y[label]
    points.append(
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


def _standings(planes: Sequence[Plane]) -> Iterator[tuple[str, str, Estimate]]:
  """Yields the methods as ranked, the base model last.

  Yields:
    Label, letters of the planes on whose front it is, and its accuracy.
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
