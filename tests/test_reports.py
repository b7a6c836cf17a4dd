"""The parts of the report's page."""

import dataclasses
import html
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest
from test_report import EVIL, make_run

from sdjax import metrics, plots, report
from sdjax.eval import runs, tables
from sdjax.reports import (
  alarms,
  browser,
  chart,
  credit,
  forecast,
  marks,
  page,
  plane,
)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
  """They are tested elsewhere."""
  monkeypatch.setattr(
    plots, 'FIGURES', dict.fromkeys(plots.FIGURES, lambda *_: None)
  )


def group(label, *members, variant='sd'):
  return runs.Group(label, variant, members)


def load(workdir):
  run, _ = runs.load(workdir)
  assert run is not None
  return run


def write_lines(path, records):
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


def estimate(value, interval=None, seeds=None):
  return tables.Estimate(value, interval, seeds)


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
  right = np.ones((3, 4), bool)
  members = [
    group('bad', load(make_run(tmp_path / 'bad', correct=~right))),
    group('good', load(make_run(tmp_path / 'good', correct=right))),
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


def test_what_stands_aside_does_not_squeeze_the_others():
  points = [chart.Mark('a', 0.9, 1), chart.Mark('b', 1.0, 2)]
  far = chart.Mark('base', 0.1, 1.5, aside=True)
  near = chart.Mark('base', 0.85, 1.5, aside=True)
  alone = positions(chart.scatter(points, 't', 'x', 'y'))
  svg = chart.scatter([*points, far], 't', 'x', 'y')
  assert positions(svg)[:2] == alone
  assert positions(svg)[2][0] < alone[0][0] and 'base, at 0.10' in svg
  svg = chart.scatter([*points, near], 't', 'x', 'y')
  assert positions(svg)[:2] != alone and 'base, at' not in svg


def test_a_single_point_and_equal_values_are_drawn():
  for points in ([chart.Mark('a', 0, 0)], [chart.Mark('a', 2, 2)] * 3):
    svg = chart.scatter(points, 't', 'x', 'y', diagonal=True)
    assert len(positions(svg)) == len(points)
    assert 'nan' not in svg.lower()


def test_labels_in_a_chart_are_escaped():
  svg = chart.scatter([chart.Mark(EVIL, 0, 0)], EVIL, EVIL, EVIL)
  assert '<script' not in svg and '&lt;script' in svg


def test_every_style_has_a_shape_and_a_colour(tmp_path):
  groups = [group(f'm{i}', runs.Run(tmp_path, '')) for i in range(30)]
  assert len(marks.labels(groups)) == 31
  assert len(set(marks.labels(groups).values())) == 31
  used = set(marks.colours(groups).values())
  text = page.frame('t', '', {})
  for colour in used:
    assert text.count(f'{colour[4:-1]}:#') == 2  # light and dark


# Forecasts.


def numbers(law, **values):
  flat = {}
  for name, value in values.items():
    at = f'harder/{law}/{name.replace("_at_", "@")}'
    flat |= {at: value, f'{at}/low': value - 0.1, f'{at}/high': value + 0.1}
  return flat


FORECAST = (
  numbers('base', pass_at_1=0.4, pass_at_4=0.7, concepts_correct=0.6)
  | numbers('rl', pass_at_1=1.0, pass_at_4=1.0, concepts_correct=1.7)
  | numbers('sd', pass_at_1=0.9, pass_at_8=0.95, concepts_correct=1.1)
)


def forecast_folder(path, **config):
  base = {'model': {'path': 'builtin:x'}, 'method': {'name': 'sd'}}
  metrics.write_json_atomic(path / 'forecast.json', FORECAST)
  metrics.write_json_atomic(path / 'config.json', base | config)
  return path


def test_forecasts_are_put_beside_what_was_measured(tmp_path):
  source, notes = forecast.read(forecast_folder(tmp_path / 'forecast'))
  assert source and not notes
  sd = group('mine', load(make_run(tmp_path / 'sd')))
  rl = group('rl', load(make_run(tmp_path / 'rl', method={'name': 'rl'})))
  pairs = {
    (p.label, p.law, p.metric): (p.forecast, p.measured)
    for p in forecast.compare([sd, rl], [source])
  }
  third = pytest.approx(1 / 3)
  assert pairs == {
    ('base', 'base', 'pass@1'): (0.4, third),
    ('base', 'base', 'reach'): (0.7, pytest.approx(2 / 3)),
    ('base', 'base', 'concepts_correct'): (0.6, pytest.approx(2 / 3)),
    # Of pass@k both have k = 1 only: the forecast's 8 was not measured.
    ('mine', 'sd', 'pass@1'): (0.9, third),
    ('mine', 'sd', 'reach'): (0.9, third),
    ('mine', 'sd', 'concepts_correct'): (1.1, pytest.approx(2 / 3)),
    ('rl', 'rl', 'pass@1'): (1.0, third),
    ('rl', 'rl', 'reach'): (1.0, pytest.approx(2 / 3)),
    ('rl', 'rl', 'concepts_correct'): (1.7, pytest.approx(2 / 3)),
  }


def test_a_mix_is_compared_with_both_forecasts(tmp_path):
  source, _ = forecast.read(forecast_folder(tmp_path / 'forecast'))
  assert source
  one = group('m', load(make_run(tmp_path / 'm', method={'name': 'mix'})))
  laws = [p.law for p in forecast.compare([one], [source]) if p.label == 'm']
  assert set(laws) == {'rl', 'sd'}


def test_the_most_fitting_forecast_is_taken(tmp_path):
  def of(name, path='builtin:x', kl=0.0, count=1):
    source, _ = forecast.read(
      forecast_folder(
        tmp_path / name,
        model={'path': path},
        loss={'kl_coef': kl},
        method={'name': 'sd', 'demonstrations': {'count': count}},
      )
    )
    assert source
    return source

  other, three, fits = of('other', 'y'), of('three', count=3), of('fits')
  run = load(make_run(tmp_path / 'sd'))
  assert forecast.choose([other], run, 'sd') is None
  assert forecast.choose([three, other, fits], run, 'sd') == (fits, [])
  differs = ['method.demonstrations.count']
  assert forecast.choose([other, three], run, 'sd') == (three, differs)
  # RL does not depend on what a teacher is shown.
  rl = load(make_run(tmp_path / 'rl', method={'name': 'rl'}))
  assert forecast.choose([three], rl, 'rl') == (three, [])
  metrics.write_json_atomic(run.workdir / 'forecast.json', FORECAST)
  own, _ = forecast.read(run.workdir)
  assert own and forecast.choose([fits, own], run, 'sd') == (own, [])
  # Less is known of one without a config than of one that differs.
  (tmp_path / 'fits' / 'config.json').unlink()
  nameless, _ = forecast.read(tmp_path / 'fits')
  assert nameless
  assert forecast.choose([nameless, three], run, 'sd') == (three, differs)
  unknown = forecast.choose([nameless], run, 'sd')
  assert unknown == (nameless, [forecast.UNKNOWN])


def test_a_forecast_for_other_options_is_marked(tmp_path):
  folder = forecast_folder(
    tmp_path / 'f', method={'name': 'sd', 'demonstrations': {'count': 3}}
  )
  source, _ = forecast.read(folder)
  assert source
  one = group('sd', load(make_run(tmp_path / 'sd')))
  text = forecast.section([one], forecast.compare([one], [source]))
  assert '<td>sd*</td>' in text and 'demonstrations.count' in text
  assert forecast.section([one], []) == ''


def test_a_forecast_knows_its_own_options_in_the_folder_of_a_run(tmp_path):
  folder = forecast_folder(tmp_path, train={'num_steps': 150})
  longer = {'model': {'path': 'builtin:x'}, 'train': {'num_steps': 600}}
  metrics.write_json_atomic(folder / 'forecast_config.json', longer)
  source, _ = forecast.read(folder)
  assert source and source.options['train.num_steps'] == 600


@pytest.mark.parametrize(
  'law, method, change, differs',
  [
    ('sd', {'name': 'sd'}, {}, []),
    ('sd', {'name': 'sd'}, {'train': {'num_steps': 9}}, ['train.num_steps']),
    ('rl', {'name': 'rl'}, {'train': {'num_steps': 9}}, []),
    ('rl', {'name': 'rl', 'advantage': 'rloo'}, {}, []),
    ('rl', {'name': 'rl', 'advantage': 'rosa'}, {}, ['method.advantage']),
    (
      'rl',
      {'name': 'rl', 'diversity_weight': 0.5},
      {},
      ['method.diversity_weight'],
    ),
    ('rl', {'name': 'mix'}, {}, ['method.name']),
    ('base', {'name': 'rl'}, {'eval': {'temperature': 1.0}}, []),
    (
      'base',
      {'name': 'rl'},
      {'eval': {'temperature': 0.3, 'num_samples': 4}},
      ['eval.num_samples', 'eval.temperature'],
    ),
  ],
)
def test_in_what_a_forecast_is_of_another_run(
  tmp_path, law, method, change, differs
):
  known = {
    'model': {'path': 'builtin:x'},
    'train': {'num_steps': 150},
    'eval': {'temperature': 1.0, 'num_samples': 64},
  }
  source = forecast.Source(
    tmp_path,
    runs.flat_options(known | {'method': {'name': 'sd'}} | change),
    {},
  )
  run = runs.Run(tmp_path, 'run', config=known | {'method': method})
  assert forecast.differing(source, run, law) == differs


@pytest.mark.parametrize('content', ['', '[1]', '{"a": '])
def test_a_broken_forecast_is_noted(tmp_path, content):
  (tmp_path / 'forecast.json').write_text(content)
  source, notes = forecast.read(tmp_path)
  assert source is None and len(notes) == 1 and 'cannot be read' in notes[0]


def test_the_command_finds_forecasts(tmp_path, capsys):
  run = make_run(tmp_path / 'sd')
  folder, out = forecast_folder(tmp_path / 'forecast'), tmp_path / 'out'
  options = [f'--out={out}', '--resamples=0']
  for argv in ([str(folder)], [f'--forecast={folder}']):
    assert report.main([str(run), *argv, *options]) == 0
    assert 'id="forecast"' in (out / 'index.html').read_text()
    errors = capsys.readouterr().err
    # It is no run, and is not said to be a broken one.
    assert 'left out' not in errors and str(folder) not in errors
  report.main([str(run), f'--forecast={tmp_path / "no"}', *options])
  assert 'no forecast.json there' in capsys.readouterr().err
  assert 'id="forecast"' not in (out / 'index.html').read_text()


# Credit.


def told(**changes):
  return {
    'step': 0,
    'question_id': 1,
    'sample': 0,
    'question': 'why',
    'tokens': ['so', ' it', ' <eos>'],
    'log_ratio': [-2.0, 0.5, 0.0],
    'advantage': 1.25,
    'correct': True,
    'demonstration': 'because',
    **changes,
  }


def credit_section(tmp_path, *records):
  run = runs.Run(tmp_path, 'sd', credit=list(records))
  return credit.section([group('sd', run)])


def test_tokens_are_coloured_by_sign_and_size(tmp_path):
  text = credit_section(tmp_path, told())
  # Of 2 and 0.5 nats, nine tenths are below 1.85: that is full colour.
  assert '<u class=n style="--v:1" title="-2.000">so</u>' in text
  assert ' <u style="--v:0.27" title="+0.500">it</u>' in text
  assert '<u style="--v:1" title="+1.250">so it &lt;eos&gt;</u>' in text
  assert 'because' in text and '1 of 1 correct' in text


def test_a_rollout_without_demonstration_has_rls_side_only(tmp_path):
  record = told(log_ratio=None, demonstration='', correct=False, advantage=-1)
  text = credit_section(tmp_path, record)
  rows = text[text.index('class="credit"') :]
  assert rows.count('<u') == 1 and 'class=n' in rows
  assert 'no correct answer' in rows and '>wrong<' in rows


def test_credit_that_makes_no_sense_is_harmless(tmp_path):
  text = credit_section(
    tmp_path,
    told(tokens=[EVIL], log_ratio=[1.0], demonstration=EVIL, question=EVIL),
    told(tokens=None, log_ratio='x', advantage=None),
    {'step': EVIL},
  )
  assert '<script' not in text and html.escape(EVIL) in text
  assert credit.section([group('sd', runs.Run(tmp_path, 'sd'))]) == ''


def test_long_credit_is_left_out_and_said_to_be(tmp_path, monkeypatch):
  monkeypatch.setattr(credit, 'BUDGET', 2000)
  text = credit_section(tmp_path, *[told(sample=i) for i in range(20)])
  (number,) = re.findall(r'(\d+) rollouts left out', text)
  assert int(number) + text.count('class="d"') == 20
  assert 2000 > text.count('class="d"') * 300 > 1000


def test_no_question_takes_the_room_of_the_others(tmp_path, monkeypatch):
  monkeypatch.setattr(credit, 'BUDGET', 4000)
  records = [
    told(question_id=q, sample=i, question='<' * 300 if q == 1 else 'why')
    for q in (0, 1, 2)
    for i in range(20)
  ]
  text = credit_section(tmp_path, *records)
  assert len(text) < 6000  # with heading and scale
  # The long question does not fit, and is not shown without its rollouts.
  assert [q for q in range(3) if f'question {q}:' in text] == [0, 2]
  assert text.count('<details') == text.count('</details>') == 2
  (number,) = re.findall(r'(\d+) rollouts left out', text)
  assert int(number) + text.count('class="d"') == 60


# Rollouts.


def rollout(**changes):
  return {
    'step': 1,
    'question_id': 5,
    'sample': 0,
    'question': 'asked',
    'answer': 'said',
    'correct': True,
    'reason': '',
    'reward': 1.0,
    'concepts': ['fruit'],
    'solution': '',
    'demonstrations': ['asked', 'shown'],
    **changes,
  }


def with_rollouts(tmp_path, *records):
  run = runs.Run(tmp_path, 'sd', seed=3, rollouts=list(records))
  return [group('sd', run)]


def test_rollouts_are_packed(tmp_path):
  wrong = rollout(
    sample=1, correct=False, reason='wrong_end', reward=None, concepts=None,
    demonstrations=None,
  )  # fmt: skip
  packed, left_out = browser.collect(with_rollouts(tmp_path, rollout(), wrong))
  assert left_out == 0
  assert packed == {
    'methods': ['sd'],
    'texts': ['asked', 'shown'],
    'rows': [
      [0, 3, 1, 5, 0, 0, 'said', 1, '', 1.0, ['fruit'], [0, 1]],
      [0, 3, 1, 5, 1, 0, 'said', 0, 'wrong_end', None, [], []],
    ],
  }


def test_rollouts_are_limited_by_questions_and_by_size(tmp_path):
  records = [
    rollout(step=step, question_id=q, question='x' * 500 + str(q))
    for step in (0, 9)
    for q in range(4)
    for _ in range(2)
  ]
  groups = with_rollouts(tmp_path, *records)
  packed, left_out = browser.collect(groups, questions=1)
  assert left_out == 12 and [row[3] for row in packed['rows']] == [0] * 4
  packed, left_out = browser.collect(groups, budget=1500)
  assert 0 < left_out < 16 and left_out + len(packed['rows']) == 16
  assert len(browser.to_json(packed)) < 1700
  places = {row[5] for row in packed['rows']}
  assert places <= set(range(len(packed['texts'])))
  assert browser.section(with_rollouts(tmp_path)) == ''


@pytest.mark.parametrize('text', ['</script>', '<!--', EVIL, '\u2028', 'é🙂'])
def test_what_stands_in_a_script_cannot_end_it(text):
  packed = browser.to_json({'a': [text]})
  assert not set('<>&\u2028') & set(packed)
  assert json.loads(packed) == {'a': [text]}


BROWSER = shutil.which('chromium') or shutil.which('google-chrome')


def in_a_browser(file, hash_, tmp_path):
  """The text of the page's list after its scripts ran, and what they said."""
  done = subprocess.run(
    [
      str(BROWSER), '--headless', '--no-sandbox', '--disable-gpu',
      f'--user-data-dir={tmp_path / "profile"}', '--enable-logging=stderr',
      '--virtual-time-budget=3000', '--dump-dom', f'file://{file}#{hash_}',
    ],
    capture_output=True, text=True, check=True, timeout=120,
  )  # fmt: skip
  (found,) = re.findall(r'id="found">([^<]*)<', done.stdout)
  shown = done.stdout[done.stdout.index('id="list"') :]
  shown = shown[: shown.index('<script')]
  return found, shown, 'CONSOLE' in done.stderr


@pytest.mark.skipif(not BROWSER, reason='needs a browser')
@pytest.mark.parametrize(
  ('hash_', 'found'),
  [
    ('', '6 of 6 rollouts, 3 correct'),
    ('verdict=wrong', '3 of 6 rollouts, 0 correct'),
    ('verdict=not_an_edge', '1 of 6 rollouts, 0 correct'),
    ('concept=fish&verdict=correct', '2 of 6 rollouts, 2 correct'),
    ('method=other', '1 of 6 rollouts, 0 correct'),
    ('step=9&text=said+LOUD', '1 of 6 rollouts, 1 correct'),
    ('text=nowhere', '0 of 6 rollouts, 0 correct'),
    ('method=unknown', '6 of 6 rollouts, 3 correct'),
  ],
)
def test_the_filters_follow_the_address(tmp_path, hash_, found):
  records = [
    rollout(concepts=['fish'], demonstrations=['x']),
    rollout(concepts=['fish'], answer=EVIL, demonstrations=[EVIL]),
    rollout(step=9, answer='Said loud'),
    rollout(correct=False, reason='not_an_edge'),
    rollout(correct=False, reason='wrong_end', concepts=['fish']),
  ]
  one = with_rollouts(tmp_path, *records)
  two = runs.Run(tmp_path, 'x', rollouts=[rollout(correct=False)])
  file = tmp_path / 'page.html'
  text = browser.section([*one, group('other', two)])
  file.write_text(page.frame('t', '', {'rollouts': text}))
  told_so, shown, complained = in_a_browser(file, hash_, tmp_path)
  assert told_so == found and not complained
  assert shown.count('class="roll"') == int(found[0])
  assert '<script>' not in shown


# Alarms, best checkpoints, and the whole.


def test_alarms_and_the_best_step_are_shown(tmp_path):
  workdir = make_run(tmp_path / 'sd', seed=7)
  write_lines(
    workdir / 'alarms.jsonl',
    [{'step': 31, 'kind': 'variety', 'where': 'larger', 'text': EVIL}],
  )
  flat = json.loads((workdir / 'eval.json').read_text())
  flat |= {'best_step': 25, 'best/harder/pass@1': 0.75}
  metrics.write_json_atomic(workdir / 'eval.json', flat)
  text = alarms.section([group('sd', load(workdir))])
  assert html.escape(EVIL) in text and '<script' not in text
  cells = re.findall(r'<td>(.*?)</td>', text)
  assert cells[:4] == ['7', '31', 'variety', 'larger']
  assert cells[5:10] == [
    '7', '25', 'harder', '4', '<b>0.750</b><small>last 0.333</small>',
  ]  # fmt: skip
  assert alarms.section([group('sd', runs.Run(tmp_path, 'sd'))]) == ''


@pytest.mark.parametrize('name', ['alarms', 'credit'])
def test_logs_that_a_run_need_not_have(tmp_path, name):
  workdir = make_run(tmp_path / 'sd')
  for content, problems in (('', 0), ('{"step": 1}\n{"ste', 0), ('{\n\n', 1)):
    (workdir / f'{name}.jsonl').write_text(content)
    run, notes = runs.load(workdir)
    assert run and len(notes) == problems


def test_what_is_left_out_is_of_both_steps_alike(tmp_path):
  records = [
    rollout(step=step, sample=g, answer=f'{step} {g}' * 20)
    for step in (1, 150)
    for g in range(50)
  ]
  packed, left_out = browser.collect(
    with_rollouts(tmp_path, *records), budget=8000
  )
  steps = [row[2] for row in packed['rows']]
  assert 20 < len(steps) == 100 - left_out < 80
  assert steps == sorted(steps)
  assert abs(steps.count(1) - steps.count(150)) <= 1


def test_odd_lines_cost_themselves_alone(tmp_path):
  workdir = make_run(tmp_path / 'sd')
  odd = [
    rollout(question_id=[5]),
    rollout(concepts=3),
    rollout(demonstrations=3),
    rollout(step=[1]),
  ]
  good = [rollout(answer='half \ud83d of a pair', reward=math.nan)]
  write_lines(workdir / 'rollouts.jsonl', [*good, rollout(step=9), *odd])
  evals = json.loads((workdir / 'eval.json').read_text())
  name = next(name for name in evals if name.startswith('final/'))
  (workdir / 'eval.json').write_text(json.dumps(evals | {name: math.nan}))
  notes = report.write_report([workdir], tmp_path / 'out', resamples=0)
  assert any('4 lines of rollouts.jsonl have fields' in n for n in notes)
  assert any(f'no number for {name}' in note for note in notes)
  page = (tmp_path / 'out' / 'index.html').read_text(encoding='utf-8')
  assert 'half ? of a pair' in page
  data = re.search(r'id="data">(.*?)</script>', page)
  assert data
  rows = json.loads(data[1], parse_constant=pytest.fail)['rows']
  assert [row[2] for row in rows] == [1, 9]


def test_ten_long_runs_stay_under_five_megabytes(tmp_path):
  rng = np.random.default_rng(0)

  def text(words):
    return ' '.join(f'{x:05d}' for x in rng.integers(0, 99999, words))

  workdirs = []
  for i in range(10):
    workdir = make_run(tmp_path / f'method{i}')
    write_lines(
      workdir / 'rollouts.jsonl',
      [
        rollout(step=step, sample=g, question=text(500), answer=text(900))
        for step in (0, 150)
        for g in range(64)
      ],
    )
    tokens = text(700).split()
    values = rng.standard_normal(700).tolist()
    write_lines(
      workdir / 'credit.jsonl',
      [told(tokens=tokens, log_ratio=values, sample=g) for g in range(32)],
    )
    workdirs.append(workdir)
  report.write_report(workdirs, tmp_path / 'out', resamples=0)
  written = (tmp_path / 'out' / 'index.html').read_text()
  size = len(written.encode())
  # The pictures of ten runs, which are not drawn here, take 1 MB.
  assert 1_000_000 < size < 4_000_000
  assert 'are left out to keep the page small' in written
  assert 'rollouts left out' in written
