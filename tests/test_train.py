"""Whole runs from the shipped model: outputs, resuming, and being killed."""

import contextlib
import dataclasses
import gc
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from models import one_device

from sdjax import export, methods
from sdjax.config import schema as c
from sdjax.config.check import validate
from sdjax.config.convert import from_config_dict, replace, to_dict
from sdjax.data.json_files import read_json_lines
from sdjax.evaluate.score_file import score_file
from sdjax.feedback.demonstration_file import read_lines
from sdjax.feedback.strategies import Demonstrations, External
from sdjax.models import load as language_model
from sdjax.models.load import load_from_config
from sdjax.objectives.diversity_reward import Bonus
from sdjax.objectives.mixing import Losses
from sdjax.objectives.policy_loss import Clip
from sdjax.objectives.reference_kl import FullKL
from sdjax.objectives.schedule import Trapezoid
from sdjax.steps.teacher import Snapshot
from sdjax.tasks import make_task
from sdjax.training import loop as train_lib
from sdjax.training import trainer as trainer_lib
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.log import Progress
from sdjax.training.run_folder import Workdir, WorkdirError
from sdjax.types import TrainState

SMALL = c.Config(
  rollout=c.Rollout(num_questions=4, num_samples=4),
  train=c.Train(num_steps=4, eval_every=2, checkpoint_every=2),
  eval=c.Eval(
    sets=('in_distribution', 'harder'),
    during=('in_distribution',),
    num_questions=4,
    num_samples=4,
    batch_questions=4,
  ),
)
METHODS = {
  'sd': c.SelfDistillation(demonstrations=Demonstrations(count=2)),
  'rl': c.PolicyGradient(diversity=Bonus(0.5)),
}


@pytest.fixture(scope='module', autouse=True)
def on_one_device():
  """Sharding is tested elsewhere."""
  with one_device():
    yield


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  """One data cache for all runs of the session."""
  return str(tmp_path_factory.mktemp('data'))


def small(method, cache, **changes):
  config = replace(SMALL, task__cache_dir=cache, method=METHODS[method])
  return replace(config, **changes)


def logged(folder: Path):
  """What a run wrote, without what depends on the clock."""
  metrics = [
    {k: v for k, v in record.items() if not k.startswith('time/')}
    for record in read_json_lines(folder / 'metrics.jsonl')
  ]
  rollouts = (folder / 'rollouts.jsonl').read_bytes()
  evals = json.loads((folder / 'eval.json').read_text())
  return metrics, rollouts, evals


def final_state(folder: Path, config: c.Config) -> TrainState:
  trainer = trainer_lib.Trainer(config)
  checkpoints = Checkpoints(folder / 'checkpoints')
  state, _ = checkpoints.restore(config.train.num_steps, trainer.state)
  checkpoints.close()
  return jax.device_get(state)


def assert_same(a: TrainState, b: TrainState):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def assert_same_run(a: Path, b: Path, config: c.Config):
  assert logged(a) == logged(b)
  assert_same(final_state(a, config), final_state(b, config))
  assert best_and_alarms(a) == best_and_alarms(b)


def best_and_alarms(folder: Path):
  best = folder / 'checkpoints_best'
  names = sorted(p.name for p in best.iterdir()) if best.is_dir() else []
  logs = [folder / f'{name}.jsonl' for name in ('alarms', 'credit')]
  return names, [log.read_bytes() for log in logs]


COMPILED = r'(\d+) compilations in \d+ s'


@pytest.fixture(scope='module', params=['sd', 'rl'])
def unbroken(request, cache, tmp_path_factory):
  folder = tmp_path_factory.mktemp(request.param)
  config = small(request.param, cache)
  said = io.StringIO()
  with contextlib.redirect_stderr(said):
    train_lib.train(config, str(folder))
  (folder / 'said').write_text(said.getvalue())
  return config, folder


def test_a_run_leaves_what_it_promises(unbroken):
  config, folder = unbroken
  names = {p.name for p in folder.iterdir()}
  assert names >= {
    'config.json',
    'metrics.jsonl',
    'eval.json',
    'eval_questions.json',
    'rollouts.jsonl',
    'run.json',
    'checkpoints',
    'plots',
  }
  assert from_config_dict(json.loads((folder / 'config.json').read_text()))
  metrics, rollouts, evals = logged(folder)
  steps = [r['step'] for r in metrics if 'train/loss' in r]
  assert steps == [1, 2, 3, 4]
  assert [r['step'] for r in metrics if 'eval/in_distribution/pass@1' in r] == [
    2
  ]
  for when in ('base', 'final'):
    for name in ('pass@1', 'pass@4', 'concepts_correct', 'distinct_paths'):
      assert f'{when}/harder/{name}' in evals
  assert all(isinstance(v, float) for v in evals.values())
  lines = list(map(json.loads, rollouts.splitlines()))
  assert set(lines[0]) >= {'answer', 'correct', 'reason', 'demonstrations'}
  # Step n of the rollouts is step n of the metrics, of which they are all.
  for record in metrics:
    if 'train/correct' in record:
      right = [r['correct'] for r in lines if r['step'] == record['step']]
      assert len(right) == 16
      assert np.mean(right) == pytest.approx(record['train/correct'])
  assert len(list((folder / 'plots').glob('*.png'))) >= 2


def test_training_moves_the_weights(unbroken):
  config, folder = unbroken
  before = jax.device_get(trainer_lib.Trainer(config).state.params)
  after = final_state(folder, config).params
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, after)
  assert all(m > 0 for m in jax.tree.leaves(moved))


def test_no_compilation_after_warm_up(unbroken):
  _, folder = unbroken
  records = read_json_lines(folder / 'metrics.jsonl')
  counts = {r['time/compilations'] for r in records if 'train/loss' in r}
  before = re.search(COMPILED, (folder / 'said').read_text())
  assert before and counts == {float(before[1])}


def test_a_stopped_run_goes_on_exactly(unbroken, tmp_path):
  config, folder = unbroken
  half = replace(config, train__num_steps=2)
  train_lib.train(half, str(tmp_path))
  # The shorter run ended at the step of an evaluation: it is made up for.
  train_lib.train(config, str(tmp_path))
  assert_same_run(folder, tmp_path, config)


@pytest.mark.parametrize('unbroken', ['sd'], indirect=True)
def test_ended_by_signals_a_run_goes_on_exactly(
  unbroken, tmp_path, monkeypatch
):
  """In evaluations before, in the midst of and after training, and in steps."""
  config, folder = unbroken
  last, over = [0], set()
  plain = Progress.update

  def update(self, step, *rest, **more):
    last[0] = step
    plain(self, step, *rest, **more)
    if step in (1, 3):
      end_once('step', step)

  def evaluated(self, name, done, total):
    end_once('evaluation', last[0])

  def end_once(*moment):
    if moment not in over:
      over.add(moment)
      os.kill(os.getpid(), signal.SIGTERM)
      time.sleep(0.01)

  monkeypatch.setattr(Progress, 'update', update)
  monkeypatch.setattr(Progress, 'evaluated', evaluated)
  said = []
  while True:
    try:
      train_lib.train(config, str(tmp_path))
      break
    except KeyboardInterrupt as error:
      said.append(str(error).replace(str(tmp_path), 'run'))
  after = 'SIGTERM: run is saved at step {} of 4; the same command goes on from'
  assert said == ['SIGTERM: ended; the same command starts again.'] + [
    f'{after.format(step)} there.' for step in (1, 2, 3, 4)
  ]
  assert_same_run(folder, tmp_path, config)


@pytest.mark.parametrize('unbroken', ['rl'], indirect=True)
def test_what_only_its_program_knows_is_not_needed_afterwards(
  unbroken, tmp_path
):
  """Task, method and rewards may be a user's own."""
  config, source = unbroken
  shutil.copytree(source, tmp_path / 'run')
  file = tmp_path / 'run' / 'config.json'
  options = json.loads(file.read_text())
  options |= {'method': {'name': 'own', 'x': 1}, 'reward': {'name': 'own'}}
  file.write_text(json.dumps(options))
  (tmp_path / 'run' / 'eval.json').unlink()
  evaluation = replace(
    dataclasses.replace(config, method=c.SelfDistillation()), mode='eval'
  )
  train_lib.evaluate(evaluation, str(tmp_path / 'run'))
  now, before = (
    json.loads((folder / 'eval.json').read_text())
    for folder in (tmp_path / 'run', source)
  )
  assert now == before
  # An export does not need to know the task either.
  options['task'] = {'name': 'gsm8k', 'files': ['a', 'b']}
  file.write_text(json.dumps(options))
  arguments = ['--workdir', str(tmp_path / 'run'), '--out', str(tmp_path / 'x')]
  export.main(arguments)
  loaded = language_model.load(str(tmp_path / 'x'))
  trained = final_state(source, config).params
  jax.tree.map(np.testing.assert_array_equal, loaded.params, trained)


def own_method(config, apply_fn, task, tokenizer):
  """GRPO under a name of its own."""
  return methods.policy_gradient(config, apply_fn, task, tokenizer)


@pytest.mark.parametrize('unbroken', ['rl'], indirect=True)
def test_no_other_method_goes_on_with_a_run(unbroken):
  config, folder = unbroken
  before = logged(folder)
  with pytest.raises(WorkdirError, match='by method=test_train.own_method'):
    train_lib.train(config, str(folder), own_method)
  assert logged(folder) == before


def test_what_is_wrong_is_said_before_the_folder_is_touched(cache, tmp_path):
  own = small('rl', cache)
  for config, words in (
    (replace(own, mode='eval'), "mode='eval'; this is for mode='train'"),
    (replace(own, model__path='/nope'), "no checkpoint '/nope'"),
    (replace(own, eval__sets=('hardest',)), "'hardest'.*not a split"),
    (
      replace(own, rollout__max_context=9, rollout__context_buckets=(9,)),
      'questions of train are too long.*rollout.max_context=9',
    ),
    (replace(own, eval__max_context=9), 'too long.*eval.max_context=9'),
    (replace(own, rollout__num_questions=4001), 'num_questions is 4001'),
  ):
    with pytest.raises(ValueError, match=words):
      train_lib.train(config, str(tmp_path / 'run'))
    assert not (tmp_path / 'run').exists()


REWARD = """
def short(question, answer):
  assert question.text
  return 1 / (1 + len(answer.split()))
"""


def test_a_run_of_many_parts_goes_on_exactly(cache, tmp_path):
  """Rewards of a function, other questions for idle ones, several updates."""
  (tmp_path / 'reward.py').write_text(REWARD)
  config = dataclasses.replace(
    small('sd', cache),
    method=c.Mix(
      rule=Losses(),
      schedule=Trapezoid(rise=2),
      sd=c.SelfDistillation(teacher=Snapshot(1)),
      rl=c.PolicyGradient(policy_loss=Clip(high=0.28)),
    ),
    reward=c.Reward(
      name='function', function=f'{tmp_path}/reward.py:short', workers=1
    ),
  )
  config = replace(
    config,
    rollout__resample=2,
    loss__kl=FullKL(0.01),
    train__mini_batches=2,
    train__num_steps=2,
    train__checkpoint_every=1,
    train__eval_every=0,
    eval__sets=('in_distribution',),
  )
  validate(config)
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  train_lib.train(config, str(whole))
  metrics, rollouts, _ = logged(whole)
  steps = [r for r in metrics if 'train/loss' in r]
  assert [r['train/weight'] for r in steps] == [0.5 / 3, 1 / 3]
  assert all(r['train/reward_errors'] == 0 for r in steps)
  assert all(r['train/drawn_questions'] in (4, 8, 12) for r in steps)
  record = json.loads(rollouts.splitlines()[0])
  words = len(record['answer'].split())
  np.testing.assert_allclose(record['reward'], 1 / (1 + words), rtol=1e-6)
  train_lib.train(replace(config, train__num_steps=1), str(parts))
  train_lib.train(config, str(parts))
  assert_same_run(whole, parts, config)


def test_idle_questions_are_replaced(cache):
  """A method that only learns from some questions ends with more of those."""
  trainer = trainer_lib.Trainer(small('rl', cache, rollout__resample=3))
  source = trainer.task.questions('train')
  drawn = iter(range(4, 100))
  asked = []

  def more():
    batch = [source[next(drawn)] for _ in range(4)]
    asked.extend(q.question_id for q in batch)
    return batch

  plain = trainer.method.gather

  def gather(graded, step):
    gathered = plain(graded, step)
    useful = np.array([q.question_id % 3 == 0 for q in graded.questions])
    return dataclasses.replace(gathered, useful=useful)

  trainer.method = dataclasses.replace(trainer.method, gather=gather)
  first = [source[i] for i in range(4)]
  batch, logged = trainer.sample(first, 0, more)
  ids = [q.question_id for q in batch.graded.questions]
  # 0 and 3 stay; 6 and 9 are the first useful ones of the batches after.
  assert ids == [0, 6, 9, 3] and asked == list(range(4, 12))
  assert logged == {'drawn_questions': 12}
  np.testing.assert_array_equal(batch.prompts.question_id, ids)
  np.testing.assert_array_equal(batch.rollout.ids, batch.host.ids)
  assert batch.graded.answers[0] != batch.graded.answers[1]


def test_started_again_when_complete_changes_nothing(unbroken):
  config, folder = unbroken
  before = logged(folder)
  train_lib.train(config, str(folder))
  assert logged(folder) == before


def test_a_folder_of_another_run_is_refused_untouched(unbroken, cache):
  config, folder = unbroken
  before = (folder / 'metrics.jsonl').read_bytes()
  other = replace(config, optimizer__learning_rate=0.5, seed=9)
  with pytest.raises(WorkdirError, match=r'optimizer.learning_rate: 0.0003'):
    train_lib.train(other, str(folder))
  assert (folder / 'metrics.jsonl').read_bytes() == before


def test_steps_are_not_free_under_a_schedule_that_counts_them(tmp_path):
  cosine = replace(SMALL, optimizer__schedule='cosine')
  Workdir(str(tmp_path), cosine).close()
  with pytest.raises(WorkdirError, match=r'train.num_steps: 4 there, 9 now'):
    Workdir(str(tmp_path), replace(cosine, train__num_steps=9))
  other = tmp_path / 'constant'
  Workdir(str(other), SMALL).close()
  Workdir(str(other), replace(SMALL, train__num_steps=9)).close()


def test_a_run_is_not_made_shorter(unbroken):
  config, folder = unbroken
  before = (folder / 'config.json').read_bytes()
  fewer = replace(config, train__num_steps=3)
  with pytest.raises(WorkdirError, match='trained 4 steps.*Choose 4 or more'):
    train_lib.train(fewer, str(folder))
  assert (folder / 'config.json').read_bytes() == before
  train_lib.evaluate(replace(fewer, mode='eval'), str(folder))


OPEN = """
import json, sys
from sdjax.config.convert import from_config_dict
from sdjax.training.run_folder import Workdir
Workdir(sys.argv[2], from_config_dict(json.loads(sys.argv[1])))
"""


def test_one_process_at_a_time_is_in_a_folder(tmp_path):
  workdir = Workdir(str(tmp_path), SMALL)
  options = json.dumps(to_dict(SMALL))
  command = [sys.executable, '-c', OPEN, options, str(tmp_path)]
  other = subprocess.run(command, capture_output=True, text=True)
  assert f'in use: process {os.getpid()} is running' in other.stderr
  # A notebook whose run was interrupted has never closed it.
  again = Workdir(str(tmp_path), SMALL)
  del workdir
  gc.collect()
  assert subprocess.run(command, capture_output=True).returncode
  again.close()
  subprocess.run(command, check=True)


def test_all_logs_go_back_to_the_checkpoint(tmp_path):
  workdir = Workdir(str(tmp_path), SMALL)
  logs = workdir.metrics, workdir.rollouts, workdir.alarms
  for log in logs:
    log.append({'step': 1})
  position = workdir.position()
  for log in logs:
    log.append({'step': 2})
  workdir.rewind(position)
  for log in logs:
    assert list(read_json_lines(log.path)) == [{'step': 1}]
  # From before there were alarms: they are found again from the metrics.
  del position['alarms']
  workdir.rewind(position)
  assert workdir.alarms.path.read_bytes() == b''
  assert list(read_json_lines(workdir.metrics.path)) == [{'step': 1}]
  workdir.close()


def test_unusable_workdir(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(WorkdirError, match=r'--workdir=.*cannot be made'):
    Workdir(str(tmp_path / 'file' / 'run'), SMALL)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run' / 'config.json').write_text('{"mode": ')
  with pytest.raises(WorkdirError, match='not readable as a config'):
    Workdir(str(tmp_path / 'run'), SMALL)


def test_sets_that_do_not_exist(cache):
  with pytest.raises(c.ConfigError, match="'hardest'.*not a split.*harder"):
    trainer_lib.Trainer(small('rl', cache, eval__sets=('hardest',)))
  with pytest.raises(c.ConfigError, match='eval.num_questions=400'):
    trainer_lib.Trainer(
      small('rl', cache, eval__num_questions=400, eval__batch_questions=4)
    )


def test_evaluation_mode_measures_start_and_checkpoint(unbroken):
  config, folder = unbroken
  before = json.loads((folder / 'eval.json').read_text())
  train_lib.evaluate(replace(config, mode='eval'), str(folder))
  assert json.loads((folder / 'eval.json').read_text()) == before


@pytest.mark.parametrize('mode', ['train', 'eval'])
def test_one_file_never_holds_numbers_of_two_ways_to_sample(
  unbroken, tmp_path, mode
):
  config, source = unbroken
  folder = tmp_path / 'run'
  shutil.copytree(source, folder)
  before = json.loads((folder / 'eval.json').read_text())
  other = replace(
    config, mode=mode, eval__sets=('harder',), eval__num_samples=2
  )
  {'train': train_lib.train, 'eval': train_lib.evaluate}[mode](
    other, str(folder)
  )
  after = json.loads((folder / 'eval.json').read_text())
  assert {name.split('/')[0] for name in after} == {'base', 'final'}
  for name in after:
    assert name.split('/')[1] == 'harder' and not name.endswith('pass@4')
  assert 'base/harder/pass@2' in after and 'base/harder/pass@4' in before
  found = from_config_dict(json.loads((folder / 'config.json').read_text()))
  assert found.eval == other.eval and found.train == config.train
  # Back again, it is what it was.
  train_lib.train(config, str(folder))
  assert json.loads((folder / 'eval.json').read_text()) == before


def test_the_answers_of_an_evaluation_can_be_scored_and_shown(unbroken):
  config, folder = unbroken
  before = json.loads((folder / 'eval.json').read_text())
  train_lib.evaluate(
    replace(config, mode='eval', eval__save_samples=True), str(folder)
  )
  assert json.loads((folder / 'eval.json').read_text()) == before
  for when in ('base', 'final'):
    file = folder / f'samples_{when}.jsonl'
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    sets = config.eval.sets
    each = config.eval.num_questions * config.eval.num_samples
    assert [x['set'] for x in lines] == [s for s in sets for _ in range(each)]
    scores = score_file(str(file))
    want = np.mean([before[f'{when}/{name}/pass@1'] for name in sets])
    np.testing.assert_allclose(scores['pass@1'], want, rtol=1e-6)
    # As demonstrations, only the right ones.
    shown = read_lines(str(file))
    assert len(shown) == sum(x['correct'] for x in lines)
    assert all(line.question for line in shown)


def test_a_file_for_other_questions_is_refused_before_anything(cache, unbroken):
  """What the library writes names its questions, so no seed is mistaken."""
  config, folder = unbroken
  file = folder / 'rollouts.jsonl'
  given = Demonstrations(External(str(file)))
  shown = replace(small('sd', cache), method__demonstrations=given)
  make = methods.METHODS['sd']
  model = load_from_config(config.model)

  def notes(config):
    task = make_task(config.task)
    return make(config, model.apply_fn, task, model.tokenizer).notes

  (note,) = notes(shown)
  assert re.search(r'covers \d+ of 4000 training questions', note)
  with pytest.raises(c.ConfigError, match=r'line \d+: answers .*another seed'):
    notes(replace(shown, task__data_seed=1))


def test_a_method_s_notes_are_said_at_the_start(unbroken, monkeypatch, capsys):
  config, folder = unbroken
  make = methods.METHODS[config.method.name]
  monkeypatch.setitem(
    methods.METHODS,
    config.method.name,
    lambda *args: dataclasses.replace(make(*args), notes=('covers 3 of 4',)),
  )
  train_lib.train(config, str(folder))
  out = capsys.readouterr()
  said = out.out + out.err
  assert said.index('covers 3 of 4') < said.index('is complete')


def test_no_two_leaves_of_the_state_share_a_buffer(cache):
  trainer = trainer_lib.Trainer(small('sd', cache))
  state = trainer.state
  pointers = [
    shard.data.unsafe_buffer_pointer()
    for leaf in jax.tree.leaves((state.params, state.teacher_params))
    for shard in leaf.addressable_shards
  ]
  assert len(pointers) == len(set(pointers))


RUN = """
import json, sys
from sdjax.config.convert import from_config_dict
from sdjax.training.loop import train
train(from_config_dict(json.loads(sys.argv[1])), sys.argv[2])
"""


def start(config: c.Config, folder: Path) -> subprocess.Popen:
  environment = dict(os.environ)
  flags = environment.get('XLA_FLAGS', '').split()
  # One device, as a user would have. (XLA takes a blank for a file's name.)
  environment['XLA_FLAGS'] = ' '.join(
    flag for flag in flags if 'host_platform_device_count' not in flag
  )
  environment['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
  return subprocess.Popen(
    [sys.executable, '-c', RUN, json.dumps(to_dict(config)), str(folder)],
    env=environment,
    stderr=subprocess.DEVNULL,
  )


def wait_for_steps(process: subprocess.Popen, folder: Path, steps: int):
  """Waits until so many steps are logged (0: until the folder is there)."""
  file = folder / 'metrics.jsonl'
  deadline = time.monotonic() + 300
  while time.monotonic() < deadline:
    text = file.read_bytes() if file.exists() else None
    if text is not None and text.count(b'train/loss') >= steps:
      return
    assert process.poll() is None, 'the run ended before it could be killed'
    time.sleep(0.005)
  raise AssertionError(f'{steps} steps were not reached')


@pytest.mark.slow
@pytest.mark.parametrize('method', ['sd', 'rl'])
def test_killed_at_any_moment_a_run_ends_the_same(method, cache, tmp_path):
  config = small(
    method,
    cache,
    train__num_steps=8,
    train__eval_every=1,
    train__keep_best='-in_distribution/token_entropy',
    alarm__window=1,
    alarm__length_factor=1.0,
  )
  whole = tmp_path / 'whole'
  assert start(config, whole).wait() == 0
  killed = tmp_path / 'killed'
  # Before the first checkpoint, between two, right after one (while it is
  # being written in the background), and once more after resuming.
  for steps in (0, 1, 4, 5, 7):
    process = start(config, killed)
    wait_for_steps(process, killed, steps)
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert start(config, killed).wait() == 0
  assert_same_run(whole, killed, config)
