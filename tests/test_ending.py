"""What a run says when it ends, and what it notes when it begins."""

import json
import subprocess

import pytest
from test_report import make_run

from sdjax.data import json_files
from sdjax.report import build as report
from sdjax.report import ending, origin, runs


def test_a_result_in_a_table(tmp_path):
  workdir = make_run(tmp_path / 'sd')
  numbers = {
    'pass@1': (0.38, 0.9912),
    'pass@2': (0.4, 0.5),
    'pass@16': (0.8, 1.0),
    'concepts_correct': (1.77, 1.13),
    'distinct_paths': (10.0, None),
  }
  flat = {}
  for name in ('in_distribution', 'harder'):
    for metric, pair in numbers.items():
      for when, value in zip(('base', 'final'), pair, strict=True):
        if value is not None:
          flat[f'{when}/{name}/{metric}'] = value
  flat['base/harder/pass@1'] = 0.25
  json_files.write_json_atomic(workdir / 'eval.json', flat)
  assert ending.result(workdir).splitlines() == [
    'base -> final    pass@1        pass@16       concepts      solutions',
    'in_distribution  0.38 -> 0.99  0.80 -> 1.00  1.77 -> 1.13  10.00 -> ?',
    'harder           0.25 -> 0.99  0.80 -> 1.00  1.77 -> 1.13  10.00 -> ?',
    'alarms: none',
    f'report: python -m sdjax.report {workdir} --out={workdir}/report',
  ]
  flat['best_step'] = 25
  json_files.write_json_atomic(workdir / 'eval.json', flat)
  lines = ending.result(workdir, watched=False).splitlines()
  assert lines[3:5] == [
    'best step: 25, kept in checkpoints_best/',
    'alarms: off',
  ]


def test_each_alarm_is_a_line(tmp_path):
  workdir = make_run(tmp_path / 'sd')
  records = [
    {'step': 3, 'cause': 'it\nfell.', 'text': 'it fell. Try x.'},
    {'step': 9, 'text': 'of an older release'},
  ]
  with json_files.JsonLines(workdir / 'alarms.jsonl') as log:
    for record in records:
      log.append(record)
  assert ending.result(workdir).splitlines()[3:6] == [
    'ALARM at step 3: it fell.',
    'ALARM at step 9: of an older release',
    f'what to try: {workdir}/alarms.jsonl',
  ]


def test_the_command_can_be_typed(tmp_path, monkeypatch):
  folder = tmp_path / 'a run; of $mine'
  workdir = make_run(folder)
  shown = ending.command(workdir)
  # A shell takes it apart as it was meant.
  said = subprocess.run(
    ['bash', '-c', f'printf "%s\\n" {shown.partition(" ")[2]}'],
    capture_output=True, text=True, check=True,
  ).stdout.splitlines()  # fmt: skip
  assert said == ['-m', 'sdjax.report', str(folder), f'--out={folder}/report']
  assert report.main([*said[2:], '--resamples=0']) == 0
  assert (folder / 'report' / 'index.html').exists()


def test_a_folder_without_anything_has_no_table(tmp_path):
  assert ending.result(tmp_path).splitlines()[0] == 'alarms: none'


def test_every_start_is_noted(tmp_path, monkeypatch):
  kinds = iter([{'commit': 'a', 'changed': True}, {'commit': 'b'}])
  monkeypatch.setattr(origin, 'checkout', lambda: next(kinds))
  origin.record(tmp_path)
  origin.record(tmp_path)
  first, second = json.loads((tmp_path / 'run.json').read_text())['starts']
  assert (first['commit'], first['changed']) == ('a', True)
  assert second['commit'] == 'b' and second['date'] >= first['date']
  assert runs.starts(tmp_path) == [first, second]


@pytest.mark.parametrize(
  'content', ['', '[]', '{"starts": 3}', '{"starts": [1]}']
)
def test_a_broken_note_is_no_start(tmp_path, content):
  (tmp_path / 'run.json').write_text(content)
  assert runs.starts(tmp_path) == []


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path):
  package = tmp_path / 'package'
  package.mkdir()
  (package / '__init__.py').write_text('')
  nothing = {'commit': None, 'changed': None}
  assert origin.checkout(package) == nothing

  def git(*arguments):
    identity = ['-c', 'user.name=n', '-c', 'user.email=e@x']
    return subprocess.run(
      ['git', '-C', str(tmp_path), *identity, *arguments],
      capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip

  git('init')
  (tmp_path / 'other').write_text('')
  git('add', 'other')
  git('commit', '-m', 'x')
  # Installed into a folder of somebody else's checkout.
  assert origin.checkout(package) == nothing
  git('add', 'package')
  git('commit', '-m', 'y')
  head = git('rev-parse', 'HEAD')
  assert origin.checkout(package) == {'commit': head, 'changed': False}
  (tmp_path / 'other').write_text('of no concern')
  assert origin.checkout(package)['changed'] is False
  (package / '__init__.py').write_text('a = 1')
  assert origin.checkout(package) == {'commit': head, 'changed': True}
