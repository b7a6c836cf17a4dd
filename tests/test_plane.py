"""The plane of accuracy against variety, and the charts it is drawn with."""

import colorsys
import dataclasses
import re

import numpy as np
import pytest
from test_report import EVIL, estimate, group, load, make_run

from sdjax.report import chart, looks, page, plane, runs, tables

RIGHT = np.ones((3, 4), bool)

# Accuracy against variety.


def test_the_front_is_what_none_beats():
  points = {
    'a': (0.5, 2.0),
    'b': (0.9, 1.0),
    'beaten': (0.5, 1.0),
    'twin': (0.9, 1.0),
    'middle': (0.7, 1.5),
    'low': (0.1, 0.1),
  }
  assert plane.pareto_front(points) == ['a', 'middle', 'b', 'twin']
  assert plane.pareto_front({'alone': (0.0, 0.0)}) == ['alone']
  assert plane.pareto_front({}) == []


def planes(**points):
  """One plane with A's points, one with B's: label=(x, a, b)."""
  x = {label: estimate(p[0]) for label, p in points.items()}
  return [
    plane.Plane('x', name, x, {k: estimate(p[i]) for k, p in points.items()})
    for i, name in ((1, 'a'), (2, 'b'))
  ]


def test_methods_on_most_fronts_come_first():
  found = planes(
    base=(0.99, 9, 9), both=(0.9, 2, 1), one=(0.8, 1, 2), none=(0.7, 1.9, 0)
  )
  # `one` is on the front of b alone; the base model is not ranked.
  assert plane.ranked(found) == ['both', 'one', 'none']
  tied = planes(p=(0.9, 1, 1), q=(0.5, 2, 0.5), r=(0.4, 0.5, 0.4))
  assert plane.ranked(tied) == ['p', 'q', 'r']


def test_the_ranking_in_words():
  found = planes(both=(0.9, 2, 1), none=(0.5, 1, 0.5), base=(0.1, 3, 1))
  lines = plane.markdown(found).splitlines()
  assert lines[2:4] == [
    '| method | front | x | A. a | B. b |',
    '|---|---|--:|--:|--:|',
  ]
  assert lines[4].startswith('| `both` | A B | 0.900')
  assert lines[5].startswith('| `none` |  | 0.500')
  assert lines[6].startswith('| `base` |  | 0.100')
  assert plane.markdown(planes(alone=(0.5, 1, 1))) == ''
  one = tables.Estimate(0.5, (0.4, 0.55), (0.45, 0.61))
  wide = plane.Plane('x', 'a', {'p': one, 'q': one}, {'p': one, 'q': one})
  assert '| 0.500 [0.40, 0.61] |' in plane.markdown([wide])


def test_planes_take_the_first_and_the_last_set(tmp_path):
  one = group('sd', load(make_run(tmp_path / 'sd')))
  first, second = plane.planes_of(tables.tables_of([one], 0))
  assert first.x_name == 'in distribution, pass@1'
  assert first.y_name.startswith('in distribution, concepts')
  assert second.y_name == 'harder, pass@4'
  # By hand: 4 of 12 are right; 1, 0, 1 concepts; 2 of 3 questions solved.
  assert first.points == {'sd': pytest.approx((1 / 3, 2 / 3))}
  assert second.points == {'sd': pytest.approx((1 / 3, 2 / 3))}
  assert set(first.x) == {'base', 'sd'}
  assert plane.planes_of([]) == []


def test_a_set_that_few_were_measured_on_makes_no_plane(tmp_path):
  run = load(make_run(tmp_path / 'sd'))
  few = {k.replace('harder', 'later'): v for k, v in run.evals.items()}
  groups = [
    group('a', run),
    group('b', run),
    group('c', dataclasses.replace(run, evals=few)),
  ]
  found = tables.tables_of(groups, 0)
  assert [t.name for t in found] == ['in_distribution', 'harder', 'later']
  assert plane.planes_of(found)[1].y_name == 'harder, pass@4'
  found = tables.tables_of(groups[1:], 0)
  assert plane.planes_of(found)[1].y_name == 'later, pass@4'


def test_the_wider_of_two_intervals_is_drawn():
  ends = plane.ends
  assert ends(estimate(1, (0.5, 1.5), (0.8, 2.0))) == (0.5, 2.0)
  assert ends(estimate(1, None, (0.8, 2.0))) == (0.8, 2.0)
  assert ends(estimate(1)) is None


def test_what_a_step_costs_by_hand(tmp_path):
  config = {'rollout': {'num_questions': 4, 'num_samples': 8}}
  records = [
    {'step': 1, 'time/step': 60.0, 'train/length': 3.0},
    {'step': 2, 'time/step': 1.0, 'train/length': 5.0},
    {'step': 3, 'time/step': 2.0, 'eval/x/pass@1': 0.5},
  ]
  run = runs.Run(tmp_path, 'sd', config=config, metrics=records)
  assert plane.cost(group('sd', run)) == (2.0, 4 * 8 * 4)
  drawn = {'train/drawn_questions': 12}
  resampling = [{**record, **drawn} for record in records]
  run = runs.Run(tmp_path, 'sd', config=config, metrics=resampling)
  assert plane.cost(group('sd', run))[1] == 4 * 8 * 12
  assert plane.cost(group('sd', runs.Run(tmp_path, 'sd'))) == (None, None)


def test_the_ranking_is_in_the_page(tmp_path):
  members = [
    group('bad', load(make_run(tmp_path / 'bad', correct=~RIGHT))),
    group('good', load(make_run(tmp_path / 'good', correct=RIGHT))),
  ]
  text = plane.section(members, tables.tables_of(members, 0))
  ranking = text[text.index('ranking') :]
  labels = re.findall(r'</svg>(\w+)</th>', ranking)
  assert labels == ['good', 'bad'] and ranking.count('<td>A B</td>') == 1
  assert plane.section(members, []) == ''


# Charts.


@pytest.mark.parametrize('spread', [400, 40, 10])
def test_labels_of_25_points_cover_nothing(spread):
  rng = np.random.default_rng(spread)
  middle = np.array([560, 260])
  points = [tuple(p) for p in middle + spread * (rng.random((25, 2)) - 0.5)]
  texts = [f'method_name_{i}'[: 6 + i % 10] for i in range(25)]
  room = chart.Box(50, 20, 1130, 500)
  boxes = chart.place_labels(points, texts, room)
  for i, box in enumerate(boxes):
    assert box.within(room)
    assert box.right - box.left >= 6 * len(texts[i])
    assert not any(box.overlap(other) for other in boxes[:i])
    for x, y in points:
      assert not box.overlap(chart.Box(x - 5, y - 5, x + 5, y + 5))


def test_a_lonely_label_stands_right_of_its_point():
  (box,) = chart.place_labels([(100, 100)], ['me'], chart.Box(0, 0, 300, 300))
  assert 100 < box.left < 115 and box.top < 100 < box.bottom


def test_overlap_by_hand():
  box = chart.Box(0, 0, 10, 10)
  assert box.overlap(chart.Box(8, 7, 20, 20)) == 6
  assert box.overlap(chart.Box(10, 0, 20, 10)) == 0


@pytest.mark.parametrize(
  ('low', 'high', 'want'),
  [
    (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    (0.93, 1.01, [0.94, 0.96, 0.98, 1]),
    (-3, 40, [0, 10, 20, 30, 40]),
  ],
)
def test_ticks_are_round(low, high, want):
  assert chart.ticks(low, high) == want


def positions(svg):
  found = re.findall(r'<g transform="translate\(([-\d.]+) ([-\d.]+)\)">', svg)
  return [(float(x), float(y)) for x, y in found]


def test_marks_stand_where_their_values_say():
  points = [
    chart.Mark('a', 0, 0),
    chart.Mark('b', 1, 2, y_ends=(1.5, 2.0)),
    chart.Mark('c', 0.5, 1),
  ]
  svg = chart.scatter(points, 't', 'x', 'y')
  (ax, ay), (bx, by), (cx, cy) = positions(svg)
  assert ax < bx and ay > by  # up is more
  assert cx == pytest.approx((ax + bx) / 2, abs=0.2)
  assert cy == pytest.approx((ay + by) / 2, abs=0.2)
  (bar,) = re.findall(r'class="e" d="M([\d.]+) ([\d.]+)V([\d.]+)"', svg)
  assert float(bar[0]) == bx and float(bar[2]) == by
  assert float(bar[1]) == pytest.approx(by + (ay - by) / 4, abs=0.2)


def test_an_axis_reaches_over_its_span_whatever_the_points():
  points = [chart.Mark('a', 0.9, 1), chart.Mark('b', 1.0, 2)]
  svg = chart.scatter(
    points, 't', 'x', 'y', x_span=(0.0, 1.0), y_span=(0.0, 0.0)
  )
  (ax, ay), (bx, by) = positions(svg)
  left, right = 52, 552  # the room of the points: 4% beyond the span
  assert ax == pytest.approx(left + 0.94 / 1.08 * (right - left), abs=0.1)
  assert bx == pytest.approx(left + 1.04 / 1.08 * (right - left), abs=0.1)
  # From 0 to the highest point.
  bottom, top = 380, 26
  assert by == pytest.approx(bottom - 2.08 / 2.16 * (bottom - top), abs=0.1)
  assert ay == pytest.approx(bottom - 1.08 / 2.16 * (bottom - top), abs=0.1)
  assert '>0</text>' in svg and '>0.2</text>' in svg
  # A point beyond it is not lost.
  far = chart.scatter([*points, chart.Mark('c', -3, 1)], 't', 'x', 'y',
                      x_span=(0.0, 1.0))  # fmt: skip
  assert min(x for x, _ in positions(far)) > left


def arrows(svg):
  found = re.findall(
    r'class="w" style="stroke:(\w+)" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)M',
    svg,
  )
  return {name: tuple(map(float, ends)) for name, *ends in found}


def test_an_arrow_leads_from_where_a_mark_began():
  base = chart.Mark('base', 0.2, 1.0, colour='grey')
  moved = chart.Mark('b', 0.8, 1.0, colour='red', since=(0.2, 1.0))
  near = chart.Mark('c', 0.2, 1.01, colour='blue', since=(0.2, 1.0))
  svg = chart.scatter([base, moved, near], 't', 'x', 'y', y_span=(0.0, 2.0))
  (ax, ay), (bx, by), _ = positions(svg)
  # 8 pixels short of either mark; none between marks that touch.
  assert arrows(svg) == {'red': (ax + 8, ay, pytest.approx(bx - 8), by)}


def test_the_plane_is_whole_and_has_an_arrow_for_each_method(tmp_path):
  groups = [
    group(name, load(make_run(tmp_path / name, correct=correct)))
    for name, correct in (('none', ~RIGHT), ('all', RIGHT))
  ]
  found = tables.tables_of(groups, 0)
  for table in found:
    for label, value in (('base', 0.6), ('none', 0.7), ('all', 0.8)):
      for metric in ('pass@1', 'pass@4', 'concepts_correct'):
        table.rows[label][metric] = estimate(value)
  first, second = plane.planes_of(found)
  assert (first.y_top, second.y_top) == (None, 1.0)
  text = plane.section(groups, found)
  assert text.count('class="w"') == 4
  for svg in text.split('</svg>')[:2]:
    assert svg.count('>0</text>') == 2  # of both axes
  # What can be 1 at most has room for it.
  a, b = (svg.count('>1</text>') for svg in text.split('</svg>')[:2])
  assert (a, b) == (1, 2)


def test_a_single_point_and_equal_values_are_drawn():
  for points in ([chart.Mark('a', 0, 0)], [chart.Mark('a', 2, 2)] * 3):
    svg = chart.scatter(points, 't', 'x', 'y', diagonal=True)
    assert len(positions(svg)) == len(points)
    assert 'nan' not in svg.lower()


def test_labels_in_a_chart_are_escaped():
  svg = chart.scatter([chart.Mark(EVIL, 0, 0)], EVIL, EVIL, EVIL)
  assert '<script' not in svg and '&lt;script' in svg


def colours_of(style, name):
  return re.findall(rf'--{name}:(#\w+)', style)


def hue(colour):
  parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
  return 360 * colorsys.rgb_to_hsv(*parts)[0]


def test_no_method_has_the_colour_of_a_verdict():
  style = page.frame('t', '', {})
  for name in ('right', 'wrong'):
    for theme, verdict in enumerate(colours_of(style, name)):
      for place in range(8):
        method = colours_of(style, f'm{place}')[theme]
        apart = abs(hue(method) - hue(verdict)) % 360
        assert min(apart, 360 - apart) > 20, (name, place, theme)


def test_every_style_has_a_shape_and_a_colour(tmp_path):
  groups = [group(f'm{i}', runs.Run(tmp_path, '')) for i in range(30)]
  assert len(looks.looks(groups)) == 31
  assert len(set(looks.looks(groups).values())) == 31
  used = {look.colour for look in looks.looks(groups).values()}
  text = page.frame('t', '', {})
  for colour in used:
    assert text.count(f'{colour[4:-1]}:#') == 2  # light and dark
