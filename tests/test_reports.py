"""The parts of the report's page."""

import json
import math
import re

import numpy as np
import pytest
from markupsafe import escape
from test_browser import rollout
from test_report import EVIL, group, load, make_run, write_lines

from sdjax.data import json_files
from sdjax.report import (
  alarms,
  credit,
  ending,
  plots,
  provenance,
  runs,
  tables,
)
from sdjax.report import build as report


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
  """They are tested elsewhere."""
  monkeypatch.setattr(
    plots, 'FIGURES', dict.fromkeys(plots.FIGURES, lambda *_: None)
  )


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
  assert '<script' not in text and escape(EVIL) in text
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


# Alarms, best checkpoints, and the whole.


def test_alarms_and_the_best_step_are_shown(tmp_path):
  workdir = make_run(tmp_path / 'sd', seed=7)
  write_lines(
    workdir / 'alarms.jsonl',
    [{'step': 31, 'kind': 'variety', 'where': 'larger', 'text': EVIL}],
  )
  flat = json.loads((workdir / 'eval.json').read_text())
  flat |= {'best_step': 25, 'best/harder/pass@1': 0.75}
  json_files.write_json_atomic(workdir / 'eval.json', flat)
  one = group('sd', load(workdir))
  text = alarms.section([one])
  assert escape(EVIL) in text and '<script' not in text
  cells = re.findall(r'<td>(.*?)</td>', text)
  assert cells[:4] == ['7', '31', 'variety', 'larger']
  text = alarms.best([one])
  cells = re.findall(r'<td>(.*?)</td>', text)
  assert cells[:5] == [
    '7', '25', 'harder', '4', '<b>0.750</b><small>last 0.333</small>',
  ]  # fmt: skip
  assert alarms.best([group('sd', runs.Run(tmp_path, 'sd'))]) == ''


def test_many_alarms_are_folded_and_odd_ones_harmless(tmp_path):
  odd = {'step': {'shape': EVIL}, 'kind': [1], 'text': {'small': EVIL}}
  run = runs.Run(tmp_path, 'sd', alarms=[odd] * 9)
  text = alarms.section([group('sd', run), group('rl', runs.Run(tmp_path, ''))])
  assert '9 alarms in\n1 of 2 methods</summary>' in text
  assert text.count('shape') == 9 and '<script' not in text


def test_that_there_are_no_alarms_is_said(tmp_path):
  quiet = runs.Run(tmp_path, 'sd')
  off = runs.Run(tmp_path, 'sd', config={'alarm': {'action': 'off'}})
  text = alarms.section([group('sd', quiet)])
  assert '<p>None.</p>' in text and 'no alarms on' not in text
  text = alarms.section([group('sd', quiet, off)])
  assert '<p>None.</p><p>1 run had no alarms on.</p>' in text


def test_each_method_has_a_line(tmp_path):
  right = np.ones((3, 4), bool)
  first = load(make_run(tmp_path / 'a'))  # 4 of 12 right, of 2 questions
  second = load(make_run(tmp_path / 'b', 1, correct=right))
  unfinished = runs.Run(
    tmp_path,
    'c',
    evals={k: v for k, v in first.evals.items() if k.startswith('base/')},
  )
  groups = [group('a<b>', first, second), group('c', unfinished)]
  text = ending.section(groups, tables.tables_of(groups, 0))
  lines = re.findall(r'</svg>(.*?)</li>', text)
  # Of the seeds' means: (1/3 + 1) / 2; concepts (2/3 + 1) / 2.
  one = '0.67 &rarr; 0.67; concepts 0.83 &rarr; 0.83'
  assert lines == [
    f'a&lt;b&gt;: {one}; harder pass@4 0.83 &rarr; 0.83 (mean of 2 seeds)',
    'c: 0.33 &rarr; ?; concepts 0.67 &rarr; ?; harder pass@4 0.67 &rarr; ?',
  ]
  assert 'pass@1 and concepts in correct answers, in distribution.' in text
  assert ending.section(groups, []) == ''


# Runs.


def test_options_that_runs_do_not_share():
  def config(rate, method, **train):
    return {
      'seed': rate,
      'optimizer': {'learning_rate': rate},
      'train': {'num_steps': 5, **train},
      'method': method,
    }

  defaults = {
    'sd': {'name': 'sd', 'ema_rate': 0.05, 'pooling': 'loss'},
    'rl': {'name': 'rl', 'clip_low': 0.2, 'dual_clip': None},
  }
  sd = {'name': 'sd', 'ema_rate': 0.01, 'pooling': 'loss'}
  own = {'name': 'own', 'power': 2}
  assert provenance.differences(
    [
      config(0.1, sd),
      config(0.2, {**sd, 'ema_rate': 0.05}, keep_best='x'),
      config(0.1, {'name': 'rl', 'clip_low': 0.2, 'dual_clip': 3.0}),
      config(0.1, own),
      {},
    ],
    defaults,
  ) == [
    # The rate of the average is not its default, 0.05; the pooling is.
    {'optimizer.learning_rate': 0.1, 'method.ema_rate': 0.01},
    {'optimizer.learning_rate': 0.2, 'train.keep_best': 'x'},
    {'optimizer.learning_rate': 0.1, 'method.dual_clip': 3.0},
    {'optimizer.learning_rate': 0.1, 'method.power': 2},
    {},
  ]
  assert provenance.differences([config(0.1, sd)], defaults) == [{}]
  assert provenance.differences([], defaults) == []


def test_every_methods_defaults_are_told_as_its_config_tells_them():
  found = report.defaults()
  assert {'sd', 'rl', 'mix'} <= set(found)
  config = {'train': {'num_steps': 1}, 'method': found['rl']}
  other = {'train': {'num_steps': 2}, 'method': found['sd']}
  # Nothing of a method's own options is worth a word while it is the default.
  assert provenance.differences([config, other], found) == [
    {'train.num_steps': 1},
    {'train.num_steps': 2},
  ]


def test_the_table_of_runs(tmp_path):
  starts = [
    {'date': '2031-02-03T04:05:06+01:00', 'commit': 'a' * 40, 'changed': True},
    {'date': '2031-02-04T04:05:06+01:00', 'commit': 'b' * 40},
    {'date': EVIL, 'commit': None},
  ]
  config = {'model': {'path': 'builtin:x'}, 'train': {'note': EVIL}}
  first = runs.Run(
    tmp_path, 'sd', 'sd', 7, config, [{'step': 9}], starts=starts
  )
  second = runs.Run(tmp_path, 'sd', config={'train': {'note': 'no'}})
  text = provenance.section([group('sd', first, second)], {})
  cells = re.findall(r'<td>(.*?)</td>', text)
  assert cells[:4] == [
    'sd', '7', '9',
    f'2031-02-03 04:05<small>{"a" * 10}+, {"b" * 10}</small>',
  ]  # fmt: skip
  assert cells[4] == f'{tmp_path}<small>builtin:x</small>'
  note = escape(repr(EVIL))
  assert cells[5] == f'<code>train.note = {note}</code>'
  assert '<script' not in text
  odd = runs.Run(tmp_path, 'x', starts=[{'date': 3, 'commit': [EVIL]}])
  assert '<script' not in provenance.section([group('x', odd)], {})


def test_options_of_a_run_are_not_without_end(tmp_path):
  many = {'train': {f'o{i:02}': i for i in range(40)}}
  members = runs.Run(tmp_path, 'a', config=many), runs.Run(tmp_path, 'b')
  # Beside one whose options are not known nothing differs.
  assert 'train.o' not in provenance.section([group('x', *members)], {})
  other = {'train': {f'o{i:02}': -i for i in range(1, 41)}}
  members = (
    runs.Run(tmp_path, 'a', config=many),
    runs.Run(tmp_path, 'b', config=other),
  )
  text = provenance.section([group('x', *members)], {})
  assert text.count('and 16 more') == 2 and 'train.o23' in text


@pytest.mark.parametrize('name', ['alarms', 'credit'])
def test_logs_that_a_run_need_not_have(tmp_path, name):
  workdir = make_run(tmp_path / 'sd')
  for content, problems in (('', 0), ('{"step": 1}\n{"ste', 0), ('{\n\n', 1)):
    (workdir / f'{name}.jsonl').write_text(content)
    run, notes = runs.load(workdir)
    assert run and len(notes) == problems


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
  asked = json.loads(data[1], parse_constant=pytest.fail)['asked']
  assert [head[2] for head in asked] == [1, 9]


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
