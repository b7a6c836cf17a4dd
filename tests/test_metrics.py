import io
import json
import math
import os

import numpy as np
import pytest

from sdjax.data import json_files
from sdjax.training import log as metrics


def _lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_record_is_one_readable_line_at_once(tmp_path):
  path = tmp_path / 'new' / 'rollouts.jsonl'
  with json_files.JsonLines(path) as log:
    log.append({'text': 'two\nlines ü', 'n': 1})
    assert path.read_text() == '{"text": "two\\nlines ü", "n": 1}\n'


def test_truncate_takes_back_what_a_checkpoint_does_not_know(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  with metrics.MetricsLog(path) as log:
    log.write(1, {'train/loss': 0.5})
    known = log.offset()
    log.write(2, {'train/loss': 0.25})
  assert known == len('{"step": 1, "train/loss": 0.5}\n')
  with open(path, 'a') as file:
    file.write('{"step": 3, "tr')
  with metrics.MetricsLog(path) as log:
    log.truncate(known)
    log.write(2, {'train/loss': 0.125})
    assert log.offset() == os.path.getsize(path)
  assert _lines(path) == [
    {'step': 1, 'train/loss': 0.5},
    {'step': 2, 'train/loss': 0.125},
  ]


def test_opening_drops_only_a_half_written_line(tmp_path):
  path = tmp_path / 'log.jsonl'
  long = json.dumps({'text': 'x' * 200_000})  # longer than one block read
  for before, after in [
    ('', ''),
    ('{"a', ''),
    (long, ''),
    ('{"a": 1}\n', '{"a": 1}\n'),
    ('{"a": 1}\n{"b', '{"a": 1}\n'),
    ('{"a": 1}\n' + long, '{"a": 1}\n'),
    (long + '\n{"b', long + '\n'),
  ]:
    path.write_text(before)
    with json_files.JsonLines(path):
      pass
    assert path.read_text() == after


def test_truncate_refuses_a_file_that_is_not_the_checkpoints(tmp_path):
  path = tmp_path / 'log.jsonl'
  with json_files.JsonLines(path) as log:
    log.append({'a': 1})
    with pytest.raises(ValueError, match='holds 9 bytes, but 10'):
      log.truncate(10)
    with pytest.raises(ValueError, match='byte 5 .* not the end of a line'):
      log.truncate(5)
    assert path.read_text() == '{"a": 1}\n'
    log.truncate(0)
  assert path.read_text() == ''


def test_numpy_and_jax_scalars_become_floats(tmp_path):
  jnp = pytest.importorskip('jax.numpy')
  path = tmp_path / 'metrics.jsonl'
  with metrics.MetricsLog(path) as log:
    log.write(
      3,
      {'a/b': np.float32(0.5), 'a/c': jnp.asarray(2), 'eval/set/pass@1': 1},
    )
  assert path.read_text() == (
    '{"step": 3, "a/b": 0.5, "a/c": 2.0, "eval/set/pass@1": 1.0}\n'
  )


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  with metrics.MetricsLog(path) as log:
    with pytest.raises(FloatingPointError) as caught:
      log.write(
        7, {'train/loss': math.nan, 'train/reward': 1, 'train/kl': math.inf}
      )
    for word in ('step 7', 'train/loss is nan', 'train/kl is inf'):
      assert word in str(caught.value)
    assert 'reward' not in str(caught.value)
    assert path.read_text() == ''
    log.write(8, {'time/tokens': math.inf})
  assert _lines(path) == [{'step': 8, 'time/tokens': None}]


@pytest.mark.parametrize('name', ['loss', '/loss', 'train/'])
def test_metrics_have_a_stage_and_a_name(tmp_path, name):
  with metrics.MetricsLog(tmp_path / 'm.jsonl') as log:
    with pytest.raises(ValueError, match='stage/name'):
      log.write(1, {name: 0.0})


def test_write_json_atomic_keeps_the_old_file_when_it_fails(tmp_path):
  path = tmp_path / 'new' / 'eval.json'
  json_files.write_json_atomic(path, {'a': [1, 2]})
  assert json.loads(path.read_text()) == {'a': [1, 2]}
  for bad, error in (({'a': math.nan}, ValueError), ({'a': {1}}, TypeError)):
    with pytest.raises(error):
      json_files.write_json_atomic(path, bad)
  assert json.loads(path.read_text()) == {'a': [1, 2]}
  json_files.write_json_atomic(path, {'a': [1, 2]}, indent=None)
  assert path.read_text() == '{"a": [1, 2]}\n'
  assert os.listdir(path.parent) == ['eval.json']


def test_write_json_atomic_leaves_no_temporary_file(tmp_path, monkeypatch):
  path = tmp_path / 'eval.json'
  path.write_text('old')

  def fail(*_):
    raise OSError('disk full')

  monkeypatch.setattr(os, 'replace', fail)
  with pytest.raises(OSError, match='disk full'):
    json_files.write_json_atomic(path, {})
  assert os.listdir(tmp_path) == ['eval.json'] and path.read_text() == 'old'


class _Terminal(io.StringIO):
  def isatty(self):
    return True


class _Clock:
  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def _progress(stream, **options):
  clock = _Clock()
  return metrics.Progress(100, stream=stream, clock=clock, **options), clock


def test_progress_rates_leave_out_the_first_step():
  stream = io.StringIO()
  progress, clock = _progress(stream, every=0)
  clock.now += 30  # compilation
  progress.update(1, tokens=3000, reward=0.25)
  for step in (2, 3):
    clock.now += 0.5
    progress.update(step, tokens=1000, reward=0.5, loss=0.125)
  first, second, third = stream.getvalue().splitlines()
  assert first == 'train 1/100  100 tokens/s  reward 0.25  ETA 49m30s'
  assert second.startswith('train 2/100  2.0k tokens/s')
  assert third == (
    'train 3/100  2.0k tokens/s  reward 0.5  loss 0.125  ETA 48s'
  )


def test_progress_without_a_terminal_prints_now_and_then_and_the_end():
  stream = io.StringIO()
  progress, clock = _progress(stream, every=10)
  for step in range(1, 101):
    clock.now += 0.3
    progress.update(step)
  progress.finish()
  shown = [line.split()[1] for line in stream.getvalue().splitlines()]
  # The first step, then the first one 10 seconds (34 steps) later.
  assert shown == ['1/100', '35/100', '69/100', '100/100']
  assert '\r' not in stream.getvalue() and 'ETA' not in shown[-1]


def test_progress_on_a_terminal_rewrites_one_line(monkeypatch):
  monkeypatch.setenv('COLUMNS', '20')
  stream = _Terminal()
  progress, clock = _progress(stream)
  for step in (1, 2):
    clock.now += 1
    progress.update(step, reward=0.123456, loss=1.0)
  assert '\n' not in stream.getvalue()
  assert len(stream.getvalue().split('\r')[1].removesuffix('\x1b[K')) == 19
  progress.note('saved')
  progress.finish()
  assert stream.getvalue().endswith('\r\x1b[Ksaved\n')


def test_progress_of_a_resumed_run_counts_its_own_steps():
  stream = io.StringIO()
  progress, clock = _progress(stream, every=0)
  clock.now += 500
  progress.note('resuming after step 89')
  clock.now += 2
  progress.update(90)
  assert 'ETA 20s' in stream.getvalue()


def test_time_that_says_nothing_of_a_step_is_left_out():
  stream = io.StringIO()
  progress, clock = _progress(stream, every=0)
  progress.note('begins')
  clock.now += 62
  progress.leave_out(60)  # compiled in the first step all the same
  progress.update(1)
  clock.now += 1
  progress.update(2)
  clock.now += 33
  progress.leave_out(30)
  progress.update(3)
  lines = stream.getvalue().splitlines()[1:]
  # 2 s, then 1 s without the first step, then the mean of 1 s and 3 s.
  found = [line.split('ETA ')[1] for line in lines]
  assert found == ['3m18s', '1m38s', '3m14s']


def test_an_evaluation_is_shown_in_place():
  stream = _Terminal()
  progress, clock = _progress(stream)
  progress.note('evaluating')
  for done in (16, 32):
    clock.now += 0.01
    progress.evaluated('harder', done, 32)
  progress.finish()
  assert stream.getvalue() == (
    'evaluating\n'
    '\revaluating harder: 16 of 32 questions\x1b[K'
    '\revaluating harder: 32 of 32 questions\x1b[K\n'
  )


def test_an_evaluation_leaves_a_log_alone_unless_it_is_long():
  stream = io.StringIO()
  progress, clock = _progress(stream)
  progress.note('evaluating')
  for done in range(1, 15):
    clock.now += 10
    progress.evaluated('harder', done, 14)
  assert stream.getvalue().splitlines() == [
    'evaluating',
    'evaluating harder: 6 of 14 questions',
    'evaluating harder: 12 of 14 questions',
  ]
