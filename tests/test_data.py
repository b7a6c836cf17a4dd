import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

from sdjax.config.schema import ConceptGraph
from sdjax.data.prompts import PromptIterator
from sdjax.tasks import Question, make_task
from sdjax.tasks.concept_graph import graph as graphs
from sdjax.tasks.concept_graph import store

SMALL = ConceptGraph(
  short=5, long=7, larger=9, larger_15=8, harder=5, subchains=2,
  num_concepts=6, names_per_concept=10, shuffle_ends=True, harder_cut='easy',
  train_size=23, eval_size=3, data_seed=0,
)  # fmt: skip


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  folder = tmp_path_factory.mktemp('cache')
  config = dataclasses.replace(SMALL, cache_dir=str(folder))
  make_task(config).questions('train')
  return config


def _copy(config, tmp_path):
  """A cache of its own with the same built folder."""
  source = store.data_folder(config)
  shutil.copytree(source, tmp_path / source.name)
  return dataclasses.replace(config, cache_dir=str(tmp_path))


def test_every_row_is_its_graph(cache):
  task = make_task(cache)
  seen = set()
  for split in task.splits:
    questions = task.questions(split)
    assert len(questions) == (23 if split == 'train' else 3)
    for i, question in enumerate(questions):
      assert question.payload == graphs.graph_at(cache, split, i)
      assert question.split == split
      seen.add(question.question_id)
  assert len(seen) == 23 + 4 * 3
  assert max(seen) < 2**31
  assert task.questions('train')[-1].question_id == 22
  assert [q.question_id for q in task.questions('train')[2:4]] == [2, 3]
  with pytest.raises(IndexError):
    task.questions('train')[23]


def test_both_renderings_share_the_graphs(cache):
  text = dataclasses.replace(cache, rendering='text')
  assert store.data_folder(text) == store.data_folder(cache)
  question = make_task(text).questions('harder')[1]
  assert question.text.startswith('Nodes:')
  assert question.payload == make_task(cache).questions('harder')[1].payload


def test_folder_name_holds_every_generator_setting(cache):
  changes = {
    'short': 4, 'long': 8, 'larger': 10, 'larger_15': 9, 'harder': 6,
    'subchains': 1, 'num_concepts': 7, 'names_per_concept': 11,
    'shuffle_ends': False, 'harder_cut': 'random', 'part': 'dev',
    'train_size': 24,
    'eval_size': 4, 'data_seed': 1,
  }  # fmt: skip
  fields = {field.name for field in dataclasses.fields(ConceptGraph)}
  other = {'name', 'rendering', 'template', 'reference_route', 'cache_dir'}
  assert fields == set(changes) | other
  folders = {store.data_folder(cache)}
  for field, value in changes.items():
    folders.add(store.data_folder(dataclasses.replace(cache, **{field: value})))
  assert len(folders) == 1 + len(changes)


def test_cache_folder_choice(monkeypatch, tmp_path):
  monkeypatch.setenv('SDJAX_CACHE', str(tmp_path / 'env'))
  assert store.data_folder(SMALL).parent == tmp_path / 'env'
  given = dataclasses.replace(SMALL, cache_dir=str(tmp_path / 'given'))
  assert store.data_folder(given).parent == tmp_path / 'given'
  monkeypatch.delenv('SDJAX_CACHE')
  monkeypatch.setenv('HOME', str(tmp_path))
  assert store.data_folder(SMALL).parent == tmp_path / '.cache' / 'sdjax'


def test_built_once(cache, monkeypatch):
  def fail(*args):
    raise AssertionError('built again')

  monkeypatch.setattr(store, '_build', fail)
  assert len(make_task(cache).questions('larger')) == 3


@pytest.mark.parametrize('damage', ['truncated', 'flipped', 'lost'])
def test_damaged_file_is_named(cache, tmp_path, damage):
  config = _copy(cache, tmp_path)
  folder = store.data_folder(config)
  path = next(folder.glob('*train*'))
  data = path.read_bytes()
  if damage == 'truncated':
    path.write_bytes(data[:-100])
  elif damage == 'flipped':
    path.write_bytes(bytes([data[0] ^ 1]) + data[1:])
  else:
    path.unlink()
  with pytest.raises(ValueError) as error:
    make_task(config).questions('train')
  assert str(path) in str(error.value)
  assert f'Delete the folder {folder}' in str(error.value)


@pytest.mark.parametrize('manifest', ['absent', 'truncated'])
def test_half_built_folder_is_built_again(cache, tmp_path, manifest):
  config = _copy(cache, tmp_path)
  folder = store.data_folder(config)
  if manifest == 'absent':
    (folder / store.MANIFEST).unlink()
  else:
    (folder / store.MANIFEST).write_text('{"a": [1')
  next(folder.glob('*train*')).write_bytes(b'')
  (folder / 'stray').write_text('left over')
  questions = make_task(config).questions('train')
  assert questions[5].payload == graphs.graph_at(config, 'train', 5)
  assert not (folder / 'stray').exists()
  assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_same_bytes_every_time(cache, tmp_path):
  config = dataclasses.replace(cache, cache_dir=str(tmp_path))
  make_task(config).questions('train')
  a, b = store.data_folder(cache), store.data_folder(config)
  for path in a.glob('*array_record*'):
    assert path.read_bytes() == (b / path.name).read_bytes()


def test_lost_race_uses_the_winner(cache, tmp_path, monkeypatch):
  """Another process finishes while this one is still writing."""
  from sdjax.tasks.concept_graph import builder

  config = dataclasses.replace(cache, cache_dir=str(tmp_path))
  real = builder.build

  def slow(*args):
    built = real(*args)
    _copy(cache, tmp_path)
    return built

  monkeypatch.setattr(builder, 'build', slow)
  assert len(make_task(config).questions('train')) == 23
  assert len(list(tmp_path.iterdir())) == 1


def test_unwritable_cache(tmp_path):
  blocked = tmp_path / 'file'
  blocked.write_text('')
  config = dataclasses.replace(SMALL, cache_dir=str(blocked))
  with pytest.raises(OSError, match='cache_dir or .SDJAX_CACHE'):
    make_task(config).questions('train')


SCRIPT = """
import sys
from sdjax.config import ConceptGraph
from sdjax.tasks import make_task
config = ConceptGraph(train_size=int(sys.argv[2]), eval_size=3,
                      cache_dir=sys.argv[1])
task = make_task(config)
assert 'tensorflow_datasets' not in sys.modules
assert 'grain' not in sys.modules and 'transformers' not in sys.modules
questions = task.questions('train')
assert 'tensorflow' not in sys.modules
print(len(questions), questions[7].text)
"""


def _start(folder, size):
  return subprocess.Popen(
    [sys.executable, '-c', SCRIPT, str(folder), str(size)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
  )


def test_processes_build_at_once_and_quietly(tmp_path):
  outputs = [p.communicate() for p in [_start(tmp_path, 50) for _ in range(2)]]
  assert outputs[0] == outputs[1]
  # No log, no progress bar: the output is the script's own line.
  assert outputs[0][0].startswith('50 ')
  assert outputs[0][0].count('\n') == 1
  assert outputs[0][1] == ''
  assert len(list(tmp_path.iterdir())) == 1


def test_killed_while_building(tmp_path):
  process = _start(tmp_path, 1_000_000)
  try:
    deadline = time.time() + 60
    while not list(tmp_path.glob('building-*/**/*incomplete*')):
      assert time.time() < deadline and process.poll() is None
      time.sleep(0.05)
  finally:
    process.send_signal(signal.SIGKILL)
    process.communicate()
  config = ConceptGraph(train_size=1_000_000, eval_size=3)
  config = dataclasses.replace(config, cache_dir=str(tmp_path))
  # Nothing that looks finished is left, so the next start builds.
  assert not store.check(store.data_folder(config))
  small = dataclasses.replace(config, train_size=5)
  assert len(make_task(small).questions('train')) == 5


ALPHABET = 'abcdefghijklmnopqrstuvw'
LETTERS = [Question(i, 'train', c, None) for i, c in enumerate(ALPHABET)]


def _take(iterator, count):
  return [[q.text for q in next(iterator)] for _ in range(count)]


def test_epochs_follow_without_a_gap():
  batches = _take(PromptIterator(LETTERS, 4, seed=3), 23)
  assert all(len(batch) == 4 for batch in batches)
  flat = sum(batches, [])
  epochs = [flat[i : i + 23] for i in range(0, 92, 23)]
  assert all(''.join(sorted(epoch)) == ALPHABET for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4


def test_order_depends_on_the_seed_only():
  first = _take(PromptIterator(LETTERS, 4, seed=3), 8)
  assert first == _take(PromptIterator(LETTERS, 4, seed=3), 8)
  assert first != _take(PromptIterator(LETTERS, 4, seed=4), 8)


@pytest.mark.parametrize('position', [0, 1, 3, 5, 6, 12, 40])
def test_restored_exactly(position):
  """In the middle of an epoch, across its end (batch 5) and epochs later."""
  iterator = PromptIterator(LETTERS, 4, seed=3)
  _take(iterator, position)
  state = json.dumps(iterator.get_state())
  expected = _take(iterator, 9)
  fresh = PromptIterator(LETTERS, 4, seed=3)
  fresh.set_state(json.loads(state))
  assert _take(fresh, 9) == expected
  # Restoring also works on an iterator that has already moved.
  iterator.set_state(json.loads(state))
  assert _take(iterator, 9) == expected
  # The saved state is a copy, not a view of the live position.
  assert json.dumps(fresh.get_state()) == json.dumps(iterator.get_state())


def test_state_of_another_run():
  state = PromptIterator(LETTERS, 4, seed=3).get_state()
  for other, word in (
    (PromptIterator(LETTERS[:22], 4, seed=3), 'size'),
    (PromptIterator(LETTERS, 5, seed=3), 'num_questions'),
    (PromptIterator(LETTERS, 4, seed=5), 'seed'),
  ):
    with pytest.raises(ValueError, match=word):
      other.set_state(state)


@pytest.mark.parametrize('size', [0, 24])
def test_batch_size_out_of_range(size):
  with pytest.raises(ValueError, match=f'{size}; allowed: 1..23'):
    PromptIterator(LETTERS, size, seed=0)
  with pytest.raises(ValueError, match='seed'):
    PromptIterator(LETTERS, 2, seed=-1)


def test_questions_of_the_task(cache):
  questions = make_task(cache).questions('train')
  batch = next(PromptIterator(questions, 3, seed=0))
  assert all(q.split == 'train' for q in batch)
  assert len({q.question_id for q in batch}) == 3
