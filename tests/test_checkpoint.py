"""Checkpoints: what comes back, after a kill, a broken file, another mesh."""

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.config import schema as config
from sdjax.models import sharding
from sdjax.training.checkpoint import CheckpointError, Checkpoints
from sdjax.types import TrainState

EXTRA = {'data': {'index': 7}, 'rows': [1, 2.5, None, 'x']}


def make_state(width=8, dtype=jnp.float32, teacher=True):
  names = ('q', 'o')
  params = {
    'embedding': jnp.arange(16 * width, dtype=dtype).reshape(16, width),
    'layers': {
      'attn': {x: {'kernel': jnp.ones((2, width, width), dtype)} for x in names}
    },
  }
  return TrainState(
    step=jnp.int32(3),
    params=params,
    opt_state=optax.adam(1e-3).init(params),
    teacher_params=jax.tree.map(lambda x: x / 3, params) if teacher else None,
  )


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)


@pytest.fixture
def open_checkpoints():
  opened = []

  def open_folder(folder, keep=2):
    opened.append(Checkpoints(folder, keep))
    return opened[-1]

  yield open_folder
  for checkpoints in opened:
    checkpoints.close()


@pytest.fixture(scope='module')
def two_steps(tmp_path_factory):
  """A folder with checkpoints 1 and 2 of different values."""
  folder = tmp_path_factory.mktemp('two')
  checkpoints = Checkpoints(folder)
  state = make_state()
  for step in (1, 2):
    scaled = jax.tree.map(lambda x, step=step: x * step, state)
    checkpoints.save(step, scaled, {'n': step})
  checkpoints.close()
  return folder


@pytest.mark.parametrize('teacher', [True, False])
def test_round_trip(teacher, tmp_path, open_checkpoints):
  state = make_state(dtype=jnp.bfloat16, teacher=teacher)
  checkpoints = open_checkpoints(tmp_path / 'new' / 'folder')
  assert checkpoints.latest_step() is None
  checkpoints.save(5, state, EXTRA)
  checkpoints.wait()
  again = open_checkpoints(tmp_path / 'new' / 'folder')
  assert again.latest_step() == 5
  restored, extra = again.restore(5, abstract(state))
  assert_same(restored, state)
  assert extra == EXTRA


def test_newest_are_kept(tmp_path, open_checkpoints):
  checkpoints = open_checkpoints(tmp_path, keep=2)
  for step in (1, 4, 6):
    checkpoints.save(step, {'w': jnp.full(3, step)}, {'n': step})
  checkpoints.wait()
  assert sorted(x.name for x in tmp_path.iterdir()) == ['4', '6']
  restored, extra = checkpoints.restore(4, {'w': jnp.zeros(3, int)})
  assert extra == {'n': 4}
  np.testing.assert_array_equal(restored['w'], [4, 4, 4])


def test_save_copies_before_donation(tmp_path, open_checkpoints):
  @jax.jit
  def make(seed):
    return {
      f'w{i}': jnp.arange(200_000, dtype=jnp.float32) + seed + i
      for i in range(10)
    }

  overwrite = jax.jit(
    lambda tree: jax.tree.map(lambda x: -x, tree), donate_argnums=0
  )
  checkpoints = open_checkpoints(tmp_path)
  state, expected = make(0), jax.tree.map(np.array, make(0))
  checkpoints.save(1, state, {})
  for _ in range(3):
    state = overwrite(state)
  jax.block_until_ready(state)
  checkpoints.wait()
  restored, _ = checkpoints.restore(1, abstract(state))
  assert_same(restored, jax.tree.map(jnp.asarray, expected))


def test_restore_into_another_mesh(tmp_path, open_checkpoints):
  state = make_state()
  checkpoints = open_checkpoints(tmp_path)
  devices = jax.devices()
  for step, (data, model) in enumerate([(4, 1), (2, 2), (1, 1)]):
    sizes = config.Mesh(data, model)
    mesh = sharding.make_mesh(sizes, devices[: data * model])
    place = sharding.state_sharding(state, mesh)
    state = jax.device_put(state, place)
    if step:
      checkpoints.wait()
      target = sharding.with_sharding(abstract(state), mesh)
      state, _ = checkpoints.restore(step - 1, target)
      assert_same(state, make_state())
      for leaf, where in zip(
        jax.tree.leaves(state), jax.tree.leaves(place), strict=True
      ):
        assert leaf.sharding == where
    checkpoints.save(step, state, {})


KILLED = """
import os, signal, sys
import jax.numpy as jnp
from sdjax.training.checkpoint import Checkpoints

checkpoints = Checkpoints(sys.argv[1])
state = {f'w{i}': jnp.arange(500_000, dtype=jnp.float32) for i in range(4)}
checkpoints.save(1, state, {'n': 1})
checkpoints.wait()
checkpoints.save(2, state, {'n': 2})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_save_killed_in_the_middle_is_ignored(tmp_path, open_checkpoints):
  environment = {**os.environ, 'JAX_PLATFORMS': 'cpu'}
  killed = subprocess.run(
    [sys.executable, '-c', KILLED, str(tmp_path)],
    env=environment,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  left = sorted(x.name for x in tmp_path.iterdir())
  assert '1' in left and '2' not in left
  assert len(left) == 2, 'the kill came before the second save had begun'
  checkpoints = open_checkpoints(tmp_path)
  assert checkpoints.latest_step() == 1
  assert sorted(x.name for x in tmp_path.iterdir()) == left
  zeros = {f'w{i}': jnp.zeros(500_000) for i in range(4)}
  state, extra = checkpoints.restore(1, zeros)
  assert extra == {'n': 1}
  np.testing.assert_array_equal(state['w3'], np.arange(500_000))
  checkpoints.save(2, state, {'n': 22})
  checkpoints.wait()
  assert sorted(x.name for x in tmp_path.iterdir()) == ['1', '2']
  assert checkpoints.restore(2, zeros)[1] == {'n': 22}


def damaged_files(folder):
  """Files of checkpoint 2 without which it cannot be right."""
  state = folder / '2' / 'state'
  # All data files: some are left over from merging, and which ones varies.
  return [
    sorted(state.rglob('d/*')),
    [state / 'manifest.ocdbt'],
    [state / '_METADATA'],
    [folder / '2' / 'extra' / 'metadata'],
  ]


# A thread of TensorStore finds its event loop gone after a failed read.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('which', range(4))
@pytest.mark.parametrize('how', ['deleted', 'truncated'])
def test_damaged_newest(
  which, how, two_steps, tmp_path, open_checkpoints, capfd
):
  folder = Path(shutil.copytree(two_steps, tmp_path / 'copy'))
  contents = {p: p.read_bytes() for p in damaged_files(folder)[which]}
  for path, content in contents.items():
    if how == 'deleted':
      path.unlink()
    else:
      path.write_bytes(content[: len(content) // 2])
  before = sorted(folder.rglob('*'))
  checkpoints = open_checkpoints(folder)
  assert checkpoints.latest_step() == 2
  target = abstract(make_state())
  capfd.readouterr()
  with pytest.raises(CheckpointError) as error:
    checkpoints.restore(2, target)
  message = str(error.value)
  assert len(message) < 800
  assert f'delete the folder {folder / "2"} to go back to' in message
  assert 'checkpoint 1' in message
  assert capfd.readouterr().err == ''
  assert sorted(folder.rglob('*')) == before
  assert_same(checkpoints.restore(1, target)[0], make_state())
  for path, content in contents.items():
    path.write_bytes(content)
  assert open_checkpoints(folder).restore(2, target)[1] == {'n': 2}
  shutil.rmtree(folder / '2')
  assert open_checkpoints(folder).latest_step() == 1


def test_only_checkpoint_damaged(two_steps, tmp_path, open_checkpoints):
  shutil.copytree(two_steps / '2', tmp_path / '2')
  (tmp_path / '2' / 'state' / 'manifest.ocdbt').unlink()
  with pytest.raises(CheckpointError, match='no older one is kept'):
    open_checkpoints(tmp_path).restore(2, abstract(make_state()))


@pytest.mark.parametrize(
  'other, words',
  [
    (
      lambda: make_state(width=4),
      ['params/embedding', '(16, 8) there', '(16, 4) in this run'],
    ),
    (
      lambda: make_state(dtype=jnp.bfloat16),
      ['params/embedding', 'float32', 'bfloat16'],
    ),
    (
      lambda: make_state(teacher=False),
      ['teacher_params/embedding', 'absent in this run'],
    ),
    (
      lambda: dataclasses.replace(make_state(), opt_state=()),
      ['opt_state/0/count', 'absent in this run'],
    ),
  ],
  ids=['width', 'dtype', 'teacher', 'optimizer'],
)
def test_another_structure(other, words, two_steps, open_checkpoints):
  with pytest.raises(CheckpointError) as error:
    open_checkpoints(two_steps).restore(2, abstract(other()))
  for word in ['checkpoint 2', str(two_steps), *words]:
    assert word in str(error.value)


def test_leaf_the_checkpoint_lacks(tmp_path, open_checkpoints):
  checkpoints = open_checkpoints(tmp_path)
  checkpoints.save(1, make_state(teacher=False), {})
  checkpoints.wait()
  with pytest.raises(
    CheckpointError, match='teacher_params/embedding is absent there'
  ):
    checkpoints.restore(1, abstract(make_state()))


def test_misuse(two_steps, tmp_path, open_checkpoints):
  checkpoints = open_checkpoints(two_steps)
  state = make_state()
  with pytest.raises(CheckpointError, match=r'no checkpoint 3.*\[1, 2\]'):
    checkpoints.restore(3, abstract(state))
  with pytest.raises(CheckpointError, match='checkpoint 2 comes after .* 2 of'):
    checkpoints.save(2, state, {})
  with pytest.raises(CheckpointError, match='JSON values only'):
    checkpoints.save(3, state, {'rows': np.zeros(2)})
  with pytest.raises(CheckpointError, match='keep_checkpoints=0'):
    Checkpoints(tmp_path, 0)
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match='another workdir'):
    Checkpoints(tmp_path / 'file' / 'checkpoints')


def test_orbax_is_quiet(tmp_path):
  script = """
import sys
import jax.numpy as jnp
from absl import app, logging
from sdjax.training.checkpoint import Checkpoints

def main(_):
  logging.set_verbosity(logging.INFO)
  checkpoints = Checkpoints(sys.argv[1])
  checkpoints.save(1, {'w': jnp.ones(3)}, {})
  checkpoints.wait()
  checkpoints.restore(1, {'w': jnp.ones(3)})
  checkpoints.close()
  logging.info('the end')

app.run(main)
"""
  done = subprocess.run(
    [sys.executable, '-c', script, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert 'the end' in done.stderr
  assert 'orbax' not in done.stderr and 'checkpoint' not in done.stderr
  assert done.stdout == ''
