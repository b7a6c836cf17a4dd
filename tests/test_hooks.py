"""Hooks and tasks of a user's own, in whole runs."""

import contextlib
import json

import pytest
from models import one_device
from test_train import SMALL, assert_same_run

import sdjax
from sdjax.config import schema as c
from sdjax.config.convert import replace
from sdjax.objectives.diversity_reward import Bonus
from sdjax.tasks import make_task
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.hooks import Hook, HookError

MOMENTS = [name for name in vars(Hook) if name.startswith('on_')]


@pytest.fixture(scope='module', autouse=True)
def on_one_device():
  """Sharding is tested elsewhere."""
  with one_device():
    yield


class Seen(Hook):
  """Notes what it is shown."""

  def __init__(self):
    self.calls, self.records = [], []


def seen(moment):
  def note(self, run):
    self.calls.append((moment, run.step))
    self.records.append((moment, dict(run.record), run.batch))

  return note


for name in MOMENTS:
  setattr(Seen, name, seen(name))


def counted(task, verified):
  """A task that is told apart from the one of the config."""
  verify = task.verify

  def noted(question, answer):
    verified.append(answer)
    return verify(question, answer)

  task.verify = noted
  return task


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run with a hook and a task of its own."""
  root = tmp_path_factory.mktemp('hooks')
  config = replace(
    SMALL,
    task__cache_dir=str(root / 'data'),
    method=c.PolicyGradient(diversity=Bonus(weight=0.5)),
    train__num_steps=3,
    train__checkpoint_every=3,
    eval__sets=('in_distribution',),
  )
  hook, verified = Seen(), []
  task = counted(make_task(config.task), verified)
  sdjax.train(config, str(root / 'run'), task=task, hooks=[hook])
  return config, root / 'run', hook, verified


def test_a_hook_is_called_at_every_moment(whole):
  _, folder, hook, _ = whole
  steps = [[('on_rollouts', n), ('on_step', n)] for n in range(1, 4)]
  assert hook.calls == [
    ('on_start', 0),
    *steps[0],
    *steps[1],
    ('on_evaluation', 2),
    *steps[2],
    ('on_checkpoint', 3),
    ('on_end', 3),
  ]
  lines = [json.loads(line) for line in (folder / 'metrics.jsonl').open()]
  logged = [r for moment, r, _ in hook.records if moment in MOMENTS[2:4]]
  assert logged == lines
  for moment, record, batch in hook.records:
    assert (batch is not None) == (moment in ('on_rollouts', 'on_step'))
    if moment == 'on_step':
      assert batch.graded.correct.mean() == record['train/correct']
    if moment == 'on_end':
      final = json.loads((folder / 'eval.json').read_text())
      name = 'in_distribution/pass@1'
      assert record[f'eval/{name}'] == final[f'final/{name}']


def test_a_task_of_ones_own_judges_all_answers(whole):
  _, folder, _, verified = whole
  lines = [json.loads(line) for line in (folder / 'rollouts.jsonl').open()]
  assert len(lines) == 3 * 16
  assert {line['answer'] for line in lines} <= set(verified)


def failing(moment, step):
  def fail(self, run):
    if run.step == step:
      raise ZeroDivisionError('oh')

  return type('Faulty', (Hook,), {moment: fail})()


@pytest.mark.parametrize(
  ('moment', 'step', 'saved'),
  [
    ('on_start', 0, 0),
    ('on_rollouts', 1, 1),
    ('on_evaluation', 2, 2),
    ('on_checkpoint', 3, 3),
  ],
)
def test_a_hook_that_raises_loses_no_step(whole, tmp_path, moment, step, saved):
  config, folder, *_ = whole
  after = Seen()
  says = (
    rf'hook Faulty.{moment} at step {step} raised ZeroDivisionError: oh. .*'
    f'is saved at step {saved} of 3'
  )
  with pytest.raises(HookError, match=says) as caught:
    hooks = [failing(moment, step), after]
    sdjax.train(config, str(tmp_path), hooks=hooks)
  assert isinstance(caught.value.__cause__, ZeroDivisionError)
  # The others were told all of that step all the same.
  assert max(n for _, n in after.calls) == saved
  with contextlib.closing(Checkpoints(tmp_path / 'checkpoints')) as found:
    assert found.latest_step() == saved
  sdjax.train(config, str(tmp_path))
  assert_same_run(folder, tmp_path, config)


def test_a_hook_that_raises_at_the_end_has_the_run_complete(whole, tmp_path):
  config, folder, *_ = whole
  with pytest.raises(HookError, match='on_end at step 3 .*step 3 of 3'):
    sdjax.train(config, str(tmp_path), hooks=[failing('on_end', 3)])
  assert_same_run(folder, tmp_path, config)


def test_a_hook_may_stop_a_run(whole, tmp_path, capsys):
  config, folder, *_ = whole

  class Enough(Hook):
    def on_step(self, run):
      if run.step == 1:
        run.stop('its patience.')

  sdjax.train(config, str(tmp_path), hooks=[Enough()])
  said = capsys.readouterr().err
  assert f'{tmp_path} is stopped at step 1 of 3 by its patience.' in said
  sdjax.train(config, str(tmp_path))
  assert_same_run(folder, tmp_path, config)
