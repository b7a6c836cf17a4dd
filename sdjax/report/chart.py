"""Scatter charts as SVG: small, sharp, in the colours of the page's theme."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from sdjax.report import page

Ends = tuple[float, float]
_Scale = Callable[[float], float]


@dataclasses.dataclass(frozen=True)
class Mark:
  """One point, with intervals as ends; `told` is shown when it is pointed at.

  The label, '' for none, stands beside it; an arrow to it begins at `since`;
  the colour is CSS, the shape as in `looks.Look`.
  """

  label: str
  x: float
  y: float
  x_ends: Ends | None = None
  y_ends: Ends | None = None
  colour: str = 'var(--ink)'
  shape: str = 'o'
  told: str = ''
  since: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Box:
  """A rectangle in pixels, y downwards."""

  left: float
  top: float
  right: float
  bottom: float

  @classmethod
  def around(cls, x: float, y: float, width: float, height: float) -> 'Box':
    """Returns the box around a middle."""
    half, high = width / 2, height / 2
    return cls(x - half, y - high, x + half, y + high)

  def overlap(self, other: 'Box') -> float:
    """Returns the area that both cover."""
    width = min(self.right, other.right) - max(self.left, other.left)
    height = min(self.bottom, other.bottom) - max(self.top, other.top)
    return max(width, 0.0) * max(height, 0.0)

  def within(self, other: 'Box') -> bool:
    """Tells whether all of it is in the other."""
    return (
      self.left >= other.left
      and self.right <= other.right
      and self.top >= other.top
      and self.bottom <= other.bottom
    )


def ticks(low: float, high: float, most: int = 7) -> list[float]:
  """Returns at most so many round numbers from `low` to a higher `high`."""
  step = 10 ** math.floor(math.log10((high - low) / most))
  while True:
    for factor in (1, 2, 5):
      size = factor * step
      first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
      if last - first + 1 <= most:
        return [round(i * size, 10) for i in range(first, last + 1)]
    step *= 10


_LETTER = 6.4  # pixels a character is wide at most, on average
_HEIGHT = 13.0
_REACHES = (4, 10, 18, 28, 40, 54, 70, 88, 110, 136, 165, 200, 240)
_TURNS = 16


Line = tuple[tuple[float, float], tuple[float, float]]
"""From a point to a point, in pixels."""


def place_labels(
  points: Sequence[tuple[float, float]],
  texts: Sequence[str],
  room: Box,
  avoid: Sequence[Line] = (),
) -> list[Box]:
  """Finds a place near each point where its label covers nothing.

  Those in the thick of others go first; each takes the nearest free place in
  the room, to the right if there is a choice. Labels had better not stand on
  the lines to avoid. All in pixels.

  Returns a box a label; where no place is free, the least covered one.
  """
  taken = [Box.around(x, y, 12, 12) for x, y in points]

  def crowd(i: int) -> float:
    return sum(
      1 / (8 + math.dist(points[i], other))
      for j, other in enumerate(points)
      if j != i
    )

  placed: dict[int, Box] = {}
  lines: list[Line] = list(avoid)
  for i in sorted(range(len(points)), key=lambda i: (-crowd(i), i)):
    x, y = points[i]
    width = _LETTER * len(texts[i]) + 4
    best, least = None, math.inf
    for reach, turn in itertools.product(_REACHES, range(_TURNS)):
      # 0, 1, -1, 2, -2 ...: right first, left last.
      side = (turn + 1) // 2 * (1 if turn % 2 else -1)
      angle = 2 * math.pi * side / _TURNS
      box = Box.around(
        x + math.cos(angle) * (6 + reach + width / 2),
        y + math.sin(angle) * (6 + reach + _HEIGHT / 2),
        width,
        _HEIGHT,
      )
      if not box.within(room):
        continue
      covered = sum(box.overlap(other) for other in taken)
      line = (x, y), _nearest(box, (x, y))
      if reach > _REACHES[1]:
        covered += sum(50 for other in placed.values() if _cuts(line, other))
      covered += sum(50 for other in lines if _cuts(other, box))
      if covered < least:
        best, least = box, covered
      if not covered:
        break
    assert best, 'the room is smaller than a label'
    placed[i] = best
    taken.append(best)
    lines.append(((x, y), _nearest(best, (x, y))))
  return [placed[i] for i in range(len(points))]


def _nearest(box: Box, point: tuple[float, float]) -> tuple[float, float]:
  return (
    min(max(point[0], box.left), box.right),
    min(max(point[1], box.top), box.bottom),
  )


def _cuts(line: Line, box: Box) -> bool:
  """Whether a straight line passes through a box (looked at 12 places)."""
  (x, y), (u, v) = line
  return any(
    box.left < x + (u - x) * t / 12 < box.right
    and box.top < y + (v - y) * t / 12 < box.bottom
    for t in range(13)
  )


def scatter(
  marks: Sequence[Mark],
  title: str,
  x_title: str,
  y_title: str,
  *,
  size: tuple[int, int] = (560, 420),
  front: Sequence[tuple[float, float]] = (),
  diagonal: bool = False,
  x_span: Ends | None = None,
  y_span: Ends | None = None,
) -> Markup:
  """Draws at least one point, with intervals and labels, as an `<svg>` element.

  `front` are the corners of a Pareto front, x rising, to be drawn as stairs;
  `diagonal` says that both axes are the same, and draws the line x = y; an axis
  reaches over its span at least, None: over the points. The size is in pixels.
  """
  x_low, x_high = _range(
    [v for m in marks for v in (m.x, *(m.x_ends or ()))], x_span
  )
  y_low, y_high = _range(
    [v for m in marks for v in (m.y, *(m.y_ends or ()))], y_span
  )
  if diagonal:
    x_low = y_low = min(x_low, y_low)
    x_high = y_high = max(x_high, y_high)
  width, height = size
  room = Box(52, 26, width - 8, height - 40)

  to_x = _scale(x_low, x_high, room.left, room.right)
  to_y = _scale(y_low, y_high, room.bottom, room.top)
  dotted = [f'M{room.left} {room.bottom}L{room.right} {room.top}'] * diagonal
  if front:
    # All that lies below and left of these stairs is beaten by a point.
    path = f'M{room.left} {to_y(front[0][1])}'
    for (x, _), (_, below) in zip(front, front[1:], strict=False):
      path += f'H{to_x(x)}V{to_y(below)}'
    dotted.append(f'{path}H{to_x(front[-1][0])}V{room.bottom}')
  points = [(to_x(m.x), to_y(m.y)) for m in marks]
  arrows = []
  for mark, point in zip(marks, points, strict=True):
    if mark.since:
      begin = to_x(mark.since[0]), to_y(mark.since[1])
      # Shorter than the two marks are wide, it would only smudge them.
      if math.dist(begin, point) > 24:
        arrows.append((begin, point, mark.colour))
  named = [i for i, mark in enumerate(marks) if mark.label]
  full = [marks[i].label for i in named]
  texts = [text if len(text) <= 22 else f'{text[:20]}..' for text in full]
  boxes = place_labels(
    [points[i] for i in named], texts, room, [arrow[:2] for arrow in arrows]
  )
  leaders = []
  for i, box in zip(named, boxes, strict=True):
    (x, y), end = points[i], _nearest(box, points[i])
    if math.dist(end, (x, y)) > 14:
      path = f'M{x} {y}L{end[0]:.1f} {end[1]:.1f}'
      leaders.append((path, marks[i].colour))
  return page.render(
    'chart.html',
    width=width,
    height=height,
    room=room,
    middle=((room.left + room.right) / 2, (room.top + room.bottom) / 2),
    title=title,
    x_title=x_title,
    y_title=y_title,
    x_ticks=[
      (to_x(v), f'{v:g}') for v in ticks(x_low, x_high, 7 if diagonal else 9)
    ],
    y_ticks=[(to_y(v), f'{v:g}') for v in ticks(y_low, y_high)],
    dotted=dotted,
    arrows=[(_arrow(begin, end), colour) for begin, end, colour in arrows],
    marks=[
      (mark, point, _bars(mark, point, to_x, to_y))
      for mark, point in zip(marks, points, strict=True)
    ],
    leaders=leaders,
    labels=[
      (text, f'{box.left + 2:.1f}', f'{box.bottom - 3:.1f}')
      for text, box in zip(texts, boxes, strict=True)
    ],
  )


def _scale(low: float, high: float, first: float, last: float) -> _Scale:
  """Returns where a value stands, in pixels, `low` at the first of them."""

  def to_pixels(value: float) -> float:
    share = (value - low) / (high - low)
    return round(first + share * (last - first), 1)

  return to_pixels


def _bars(
  mark: Mark, point: tuple[float, float], to_x: _Scale, to_y: _Scale
) -> str:
  """Returns the path of a mark's intervals."""
  path = ''
  if mark.x_ends:
    path += f'M{to_x(mark.x_ends[0])} {point[1]}H{to_x(mark.x_ends[1])}'
  if mark.y_ends:
    path += f'M{point[0]} {to_y(mark.y_ends[0])}V{to_y(mark.y_ends[1])}'
  return path


def _arrow(begin: tuple[float, float], end: tuple[float, float]) -> str:
  """Returns the path of an arrow between two marks that touches neither."""
  far = math.dist(begin, end)
  along = (end[0] - begin[0]) / far, (end[1] - begin[1]) / far

  def at(back: float, aside: float = 0.0) -> str:
    x = end[0] - back * along[0] - aside * along[1]
    y = end[1] - back * along[1] + aside * along[0]
    return f'{x:.1f} {y:.1f}'

  return f'M{at(far - 8)}L{at(8)}M{at(15, 4)}L{at(8)}L{at(15, -4)}'


def _range(values: Sequence[float], span: Ends | None) -> Ends:
  """Of an axis: what it shows, and a margin."""
  low, high = min((*values, *(span or ()))), max((*values, *(span or ())))
  margin = (0.04 if span else 0.06) * (high - low) or 0.05 * (abs(high) or 1)
  return low - margin, high + margin
