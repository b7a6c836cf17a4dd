"""The best checkpoint: which it is, going back, being killed, a whole run."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from models import one_device
from test_train import SMALL, logged

from sdjax import export
from sdjax.config import schema as c
from sdjax.config.check import validate
from sdjax.config.convert import from_config_dict, replace, to_dict, to_json
from sdjax.data.json_files import read_json_lines
from sdjax.report import ending
from sdjax.training import evaluator, recorders
from sdjax.training import loop as train_lib
from sdjax.training import trainer as trainer_lib
from sdjax.training.best import FOLDER, BestCheckpoint
from sdjax.training.checkpoint import Checkpoints

KEY = 'harder/pass@1'


def record(step, value):
  return {'step': step, f'eval/{KEY}': value}


def state(step):
  return {'w': np.full(3, step, np.float32)}


def offer(best, values):
  for step, value in values.items():
    best.offer(
      record(step, value), jax.tree.map(jax.numpy.asarray, state(step))
    )


def steps(folder):
  return sorted(int(p.name) for p in (folder / FOLDER).iterdir())


VALUES = {1: 0.5, 2: 0.4, 3: 0.7, 5: 0.7, 6: 0.8}


@pytest.mark.parametrize(('metric', 'step'), [(KEY, 6), (f'-{KEY}', 2)])
def test_the_highest_or_lowest_is_kept_the_first_of_equals(
  metric, step, tmp_path
):
  best = BestCheckpoint(tmp_path, metric)
  assert best.step is None
  offer(best, VALUES)
  assert best.step == step
  best.forget(6)
  assert steps(tmp_path) == [step]
  np.testing.assert_array_equal(best.restore(state(0))['w'], state(step)['w'])
  best.close()


def test_it_goes_back_with_the_run(tmp_path):
  best = BestCheckpoint(tmp_path, KEY)
  offer(best, VALUES)
  best.forget(4)  # The run may go back to step 4: 3 was best then.
  assert steps(tmp_path) == [3, 6]
  best.close()
  best = BestCheckpoint(tmp_path, KEY)
  best.rewind(4)
  assert best.step == 3 and steps(tmp_path) == [3]
  offer(best, {5: 0.7})
  assert best.step == 3
  best.offer({'step': 6, 'eval/larger/pass@1': 0.9}, state(6))
  assert best.step == 3  # Of another set: it says nothing.
  offer(best, {6: 0.8})
  assert best.step == 6
  offer(best, {6: 0.9})  # Measured again with more samples, say.
  assert best.step == 6
  best.close()


def test_what_was_sampled_otherwise_replaces_nothing(tmp_path):
  best = BestCheckpoint(tmp_path, KEY, {'temperature': 1.0})
  offer(best, {3: 0.7})
  best.close()
  for temperature, kept in ((0.8, 3), (1.0, 5)):
    best = BestCheckpoint(tmp_path, KEY, {'temperature': temperature})
    best.rewind(4)
    offer(best, {5: 0.8})
    best.forget(5)
    assert steps(tmp_path) == [kept]
    best.close()


def test_a_run_that_goes_back_to_before_all_of_it_begins_anew(tmp_path):
  best = BestCheckpoint(tmp_path, KEY)
  offer(best, VALUES)
  best.wait()
  best.rewind(0)
  assert best.step is None
  offer(best, {1: 0.1})
  assert best.step == 1
  best.close()


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from sdjax.training.best import BestCheckpoint

best = BestCheckpoint(sys.argv[1], 'harder/pass@1')
state = {f'w{i}': jnp.arange(500_000, dtype=jnp.float32) for i in range(4)}
best.offer({'step': 1, 'eval/harder/pass@1': 0.5}, state)
best.forget(1)
best.offer({'step': 2, 'eval/harder/pass@1': 0.6}, state)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_while_saving_a_better_one_the_old_one_is_left(tmp_path):
  killed = subprocess.run(
    [sys.executable, '-c', KILLED, str(tmp_path)],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  left = [path.name for path in (tmp_path / FOLDER).iterdir()]
  assert '1' in left and '2' not in left and len(left) == 2
  best = BestCheckpoint(tmp_path, KEY)
  best.rewind(1)
  assert best.step == 1
  zeros = {f'w{i}': jax.numpy.zeros(500_000) for i in range(4)}
  again = best.restore(zeros)
  np.testing.assert_array_equal(again['w3'], np.arange(500_000))
  best.offer(record(2, 0.6), again)
  best.forget(2)
  assert steps(tmp_path) == [2]
  best.close()


@pytest.fixture(scope='module', autouse=True)
def on_one_device():
  """Sharding is tested elsewhere, and so are the plots."""
  with one_device(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(recorders, 'plot_run', lambda path: None)
    yield


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run with alarms at step 2 that goes on, keeping the best of 1 to 4."""
  root = tmp_path_factory.mktemp('best')
  config = replace(
    SMALL,
    task__cache_dir=str(root / 'data'),
    method=c.PolicyGradient(),
    optimizer__learning_rate=0.003,
    train__eval_every=1,
    train__checkpoint_every=3,
    train__keep_best='-in_distribution/token_entropy',
    eval__sets=('in_distribution', 'larger'),
    # Whatever the lengths of steps 1 and 2, if they differ.
    alarm=c.Alarm(
      window=1,
      length_factor=1.0,
      idle_share=1.0,
      entropy_share=0.0,
      variety_drop=1.0,
      success_drop=1.0,
      finished_share=0.0,
      finished_drop=1.0,
      reward_drop=1.0,
    ),
  )
  train_lib.train(config, str(root / 'run'))
  return config, root / 'run'


def last_state(trainer, folder):
  checkpoints = Checkpoints(folder / 'checkpoints')
  state, _ = checkpoints.restore(4, trainer.state)
  checkpoints.close()
  return jax.device_get(state)


def alarms(folder):
  return list(read_json_lines(folder / 'alarms.jsonl'))


def evaluations(folder):
  key = 'eval/in_distribution/token_entropy'
  records = read_json_lines(folder / 'metrics.jsonl')
  return {r['step']: r[key] for r in records if key in r}


def test_a_run_keeps_and_measures_its_best(whole):
  config, folder = whole
  values = evaluations(folder)
  evals = json.loads((folder / 'eval.json').read_text())
  values[4] = evals['final/in_distribution/token_entropy']
  assert list(values) == [1, 2, 3, 4] and len(set(values.values())) == 4
  step = min(values, key=lambda s: values[s])
  assert steps(folder) == [step]
  assert evals['best_step'] == step
  # The same weights under the same noise.
  assert evals['best/in_distribution/token_entropy'] == values[step]
  assert 'best/larger/pass@1' in evals and 'final/larger/pass@1' in evals
  detail = json.loads((folder / 'eval_questions.json').read_text())
  assert detail.keys() >= {'best/larger', 'final/larger', 'base/larger'}
  assert export.restore(folder, best=True).step == step


def test_training_steps_tell_of_their_groups(whole):
  _, folder = whole
  for line in read_json_lines(folder / 'metrics.jsonl'):
    if 'train/loss' in line:
      wrong, right = (line[f'train/all_{x}_groups'] for x in ('wrong', 'right'))
      # Rewards are the verdicts: groups that are all alike teach RL nothing.
      assert wrong + right == line['train/idle_groups'] <= 1
      assert 4 * wrong == int(4 * wrong)
      assert line['train/token_entropy'] == pytest.approx(
        line['train/entropy'], rel=1e-5
      )


def test_a_run_stopped_by_its_alarm_says_so_and_goes_on_when_told(
  whole, tmp_path, capsys
):
  config, folder = whole
  stopping = replace(config, alarm__action='stop')
  train_lib.train(stopping, str(tmp_path))
  result, said = capsys.readouterr()
  first = alarms(folder)[0]
  assert f'\nALARM at step 2: {first["cause"]}\n' in result
  assert 'in_distribution  0.' in result and 'best step: ' in result
  assert result.endswith(f'\nreport: {ending.command(tmp_path)}\n')
  assert first['step'] == 2 and first['kind'] in ('longer', 'shorter')
  assert f'ALARM at step 2: {first["text"]}' in said
  assert 'is stopped at step 2 of 4 by its alarm of step 2' in said
  assert list(evaluations(tmp_path)) == [1, 2]
  before = logged(tmp_path), alarms(tmp_path)
  assert 'final/larger/pass@1' in before[0][2]

  train_lib.train(stopping, str(tmp_path))
  said = capsys.readouterr().err
  assert 'is stopped at step 2 of 4 by its alarm of step 2' in said
  assert "alarm.action='warn'" in said and 'evaluating' not in said
  assert (logged(tmp_path), alarms(tmp_path)) == before

  # Going on, it becomes what the unbroken run is.
  train_lib.train(config, str(tmp_path))
  assert logged(tmp_path) == logged(folder)
  assert alarms(tmp_path) == alarms(folder)
  assert steps(tmp_path) == steps(folder)
  trainer = trainer_lib.Trainer(config)
  jax.tree.map(
    np.testing.assert_array_equal,
    *(last_state(trainer, one) for one in (tmp_path, folder)),
  )


def test_started_again_when_complete_nothing_changes(whole):
  config, folder = whole
  before = logged(folder), (folder / 'alarms.jsonl').read_bytes()
  assert before[1]
  # As a checkpoint from before there were alarms: they are found again.
  (folder / 'alarms.jsonl').write_bytes(b'')
  for extra in (folder / 'checkpoints').glob('*/extra/*'):
    if b'"alarms"' in (text := extra.read_bytes()):
      content = json.loads(text)
      del content['log']['alarms']
      extra.write_text(json.dumps(content))
  train_lib.train(config, str(folder))
  assert before == (logged(folder), (folder / 'alarms.jsonl').read_bytes())


def test_a_metric_that_does_not_exist_is_refused_before_anything_is_made(
  tmp_path,
):
  config = replace(SMALL, train__keep_best='in_distribution/pass@64')
  with pytest.raises(c.ConfigError, match=r"'pass@64'.*pass@1, pass@2, pass@4"):
    train_lib.train(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


def test_the_known_metrics_are_those_of_an_evaluation(whole):
  config, folder = whole
  evals = json.loads((folder / 'eval.json').read_text())
  prefix = 'base/larger/'
  assert evaluator.metric_names(config.eval.num_samples) == [
    name.removeprefix(prefix)
    for name in evals
    if name.startswith(prefix) and 'reason/' not in name
  ]


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'train__keep_best': 'harder/pass@1'}, "'harder/pass@1' must begin with"),
    ({'train__keep_best': 'pass@1'}, "e.g. 'in_distribution/pass@1'"),
    (
      {'train__keep_best': 'in_distribution/pass@1', 'train__eval_every': 0},
      'keep_best=.* does nothing when train.eval_every=0',
    ),
    (
      {'train__keep_best': 'in_distribution/pass@1', 'train__eval_every': 4},
      'keep_best=.* does nothing when train.eval_every=4',
    ),
    ({'alarm__action': 'halt'}, "alarm.action='halt' is not one of warn, stop"),
    ({'alarm__window': 0}, 'alarm.window=0 must be at least 1'),
    ({'alarm__variety_drop': 2.0}, 'alarm.variety_drop=2.0 must be at most 1'),
    ({'alarm__finished_share': 1.5}, 'finished_share=1.5 must be at most 1'),
    ({'alarm__finished_drop': -0.1}, 'finished_drop=-0.1 must be at least 0'),
    ({'alarm__reward_drop': 2.0}, 'alarm.reward_drop=2.0 must be at most 1'),
    ({'alarm__length_factor': 0.5}, 'alarm.length_factor=0.5 must be at least'),
    (
      {'alarm__action': 'off', 'alarm__window': 9},
      "alarm.window=9 does nothing when action='off'",
    ),
  ],
)
def test_options_that_mean_nothing(changes, says):
  values = to_dict(SMALL)
  for option, value in changes.items():
    section, _, name = option.partition('__')
    values[section][name] = value
  with pytest.raises(c.ConfigError, match=says):
    from_config_dict(values)


def test_pretraining_has_neither():
  pretraining = replace(
    SMALL,
    mode='pretrain',
    model=None,
    rollout=None,
    loss=None,
    method=c.Pretraining(),
  )
  validate(pretraining)
  for changes in (
    {'alarm__action': 'stop'},
    {'train__keep_best': 'in_distribution/pass@1'},
  ):
    with pytest.raises(c.ConfigError, match="nothing when mode='pretrain'"):
      validate(replace(pretraining, **changes))


def test_exporting_a_best_that_is_not_kept(tmp_path, capsys):
  (tmp_path / 'config.json').write_text(json.dumps(to_json(SMALL)))
  with pytest.raises(export.ExportError, match='train.keep_best is empty'):
    export.restore(tmp_path, best=True)
  with pytest.raises(SystemExit):
    export.main(
      ['--workdir', str(tmp_path), '--out', 'x', '--best', '--step', '1']
    )
  assert 'give one' in capsys.readouterr().err
