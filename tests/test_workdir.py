"""What a run's folder is refused for, and what may change when it goes on."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from models import model

from sdjax.config import schema as c
from sdjax.config.convert import replace, to_json
from sdjax.models.load import fingerprint
from sdjax.models.sharding import make_mesh, state_sharding
from sdjax.training.run_folder import (
  FREE_TO_CHANGE,
  Origin,
  Workdir,
  WorkdirError,
  check_folder,
  full_name,
  measured,
)

CONFIG = c.Config(
  method=c.PolicyGradient(),
  reward=c.Reward(name='function', function='a.py:f'),
)
WIDER = {'rollout__max_context': 40, 'rollout__context_buckets': (28, 40)}


def opened(path, config=CONFIG, **origin):
  Workdir(path, config, Origin(**origin) if origin else None).close()


def folder_content(path):
  return {p.name: p.read_bytes() for p in path.iterdir()}


def test_a_check_touches_nothing(tmp_path):
  for _ in range(2):
    assert check_folder(tmp_path / 'a' / 'b', CONFIG) is None
  assert list(tmp_path.iterdir()) == []
  opened(tmp_path)
  before = folder_content(tmp_path)
  assert check_folder(tmp_path, CONFIG) == to_json(CONFIG)
  assert folder_content(tmp_path) == before


@pytest.mark.parametrize(
  'changes',
  [
    {'print': True},
    {'model__remat': 'full'},
    WIDER,
    {'data__over_length': 'skip'},
    WIDER | {'data__over_length': 'truncate_question'},
    {'reward__workers': 7},
    {'loss__chunk': 3},
    {'train__num_steps': 999},
    {'train__micro_batches': 2},
    {'train__eval_every': 3},
    {'train__checkpoint_every': 3, 'train__keep_checkpoints': 1},
    {'train__compilation_cache': False},
    {'mesh__data': 4},
    {'eval__max_context': 60, 'eval__num_samples': 2},
    {'alarm__action': 'off'},
    {'mode': 'forecast'},
  ],
  ids=str,
)
def test_what_changes_no_mathematics_is_free(tmp_path, changes):
  opened(tmp_path)
  opened(tmp_path, replace(CONFIG, **changes))


@pytest.mark.parametrize(
  'changes',
  [
    {'seed': 1},
    {'model__dtype': 'bfloat16'},
    {'model__param_dtype': 'bfloat16'},
    {'model__thinking': True},
    {'model__lora__rank': 2},
    {'model__path': 'elsewhere'},  # without a fingerprint to go by
    {'task__data_seed': 1},
    {'reward__timeout': 3.0},
    {'rollout__max_new_tokens': 5},
    {'rollout__num_samples': 4},
    {'loss__kl': 'k3(coef=0.1)'},
    {'loss__aggregation': 'sequence_mean'},
    {'train__mini_batches': 2},
    {'train__epochs': 2},
    {'optimizer__b1': 0.5},
    {'method__advantage': 'rloo'},
  ],
  ids=str,
)
def test_what_changes_the_mathematics_is_refused(tmp_path, changes):
  opened(tmp_path, weights='a')
  (tmp_path / 'origin.json').unlink()
  before = folder_content(tmp_path)
  with pytest.raises(WorkdirError, match='another config|other weights'):
    opened(tmp_path, replace(CONFIG, **changes), weights='a')
  assert folder_content(tmp_path) == before


def test_every_free_option_exists():
  flat = json.dumps(to_json(CONFIG))
  for name in FREE_TO_CHANGE:
    assert f'"{name.strip(".").split(".")[-1]}"' in flat


def test_in_a_run_that_passes_questions_over_the_width_counts(tmp_path):
  for how in ('skip', 'truncate_question'):
    config = replace(CONFIG, data__over_length=how)
    opened(tmp_path / how, config)
    # The same widest one, another width below it.
    opened(tmp_path / how, replace(config, rollout__context_buckets=(9, 28)))
    for changes in (WIDER, {'data__over_length': 'error'}):
      with pytest.raises(WorkdirError, match='max_context: 28|over_length: '):
        opened(tmp_path / how, replace(config, **changes))


def test_the_same_weights_may_have_moved(tmp_path):
  opened(tmp_path, weights='a')
  moved = replace(CONFIG, model__path='elsewhere')
  opened(tmp_path, moved, weights='a')
  opened(tmp_path, CONFIG, weights='a')
  with pytest.raises(WorkdirError, match="other weights than model.path='else"):
    opened(tmp_path, moved, weights='b')
  with pytest.raises(WorkdirError, match='other weights'):
    opened(tmp_path, CONFIG, weights='b')  # at the same path
  for mode in ('eval', 'forecast'):
    with pytest.raises(WorkdirError, match='other weights'):
      opened(tmp_path, replace(CONFIG, mode=mode), weights='b')


def test_a_folder_of_an_older_release_learns_its_origin(tmp_path):
  opened(tmp_path)
  opened(tmp_path, weights='a', method='mine.f')
  with pytest.raises(WorkdirError, match='other weights'):
    opened(tmp_path, weights='b', method='mine.f')


def test_a_run_goes_on_with_the_method_it_began_with(tmp_path):
  opened(tmp_path / 'own', weights='a', method='mine.f')
  opened(tmp_path / 'own', weights='a', method='mine.f')
  for method, here in ('', 'the method of its config'), ('mine.g', 'mine.g'):
    with pytest.raises(WorkdirError, match=f'by method=mine.f.*by .*{here}'):
      opened(tmp_path / 'own', weights='a', method=method)
  opened(tmp_path / 'named', weights='a')
  with pytest.raises(WorkdirError, match='by the method of its config'):
    opened(tmp_path / 'named', weights='a', method='mine.f')
  # An evaluation needs none, and says nothing of it.
  opened(tmp_path / 'own', replace(CONFIG, mode='eval'), weights='a')
  opened(tmp_path / 'new', replace(CONFIG, mode='eval'), weights='a')
  opened(tmp_path / 'own', weights='a', method='mine.f')


def test_methods_have_full_names():
  import functools

  class Callable:
    def __call__(self):
      pass

  assert full_name(np.linalg.norm) == 'numpy.linalg.norm'
  assert (
    full_name(functools.partial(full_name))
    == 'sdjax.training.run_folder.full_name'
  )
  assert full_name(Callable()).endswith('full_names.<locals>.Callable')


def test_an_evaluation_needs_neither_method_nor_rewards(tmp_path):
  opened(tmp_path, weights='a')
  file = tmp_path / 'config.json'
  options = json.loads(file.read_text())
  options['method'] = {'name': 'mine', 'power': 3}
  options['reward'] = {'name': 'mine'}
  file.write_text(json.dumps(options))
  evaluation = c.Config(mode='eval', eval=c.Eval(num_samples=4))
  opened(tmp_path, evaluation, weights='a')
  after = json.loads(file.read_text())
  assert after['method'] == options['method'] and after['mode'] == 'train'
  assert after['eval']['num_samples'] == 4
  with pytest.raises(WorkdirError, match='not readable.*mine'):
    opened(tmp_path, CONFIG, weights='a')
  with pytest.raises(WorkdirError, match='seed: 0 there, 1 now'):
    opened(tmp_path, replace(evaluation, seed=1), weights='a')
  with pytest.raises(WorkdirError, match='over_length'):
    opened(tmp_path, replace(evaluation, data__over_length='skip'))


@dataclasses.dataclass(frozen=True)
class Sums(c.ConceptGraph):
  """A user's own task."""

  name: str = 'sums'
  digits: int = 3


def test_options_of_a_users_own_task_are_compared(tmp_path):
  own = dataclasses.replace(CONFIG, task=Sums())
  opened(tmp_path, own)
  opened(tmp_path, own)
  opened(tmp_path, replace(own, mode='eval'))
  with pytest.raises(WorkdirError, match='task.digits: 3 there, 4 now'):
    opened(tmp_path, replace(own, task__digits=4))
  with pytest.raises(WorkdirError, match='unknown option task.digits'):
    opened(tmp_path, CONFIG)


def test_a_width_is_no_way_to_measure_unless_questions_are_cut():
  wide = replace(CONFIG, eval__max_context=99)
  assert measured(to_json(wide)) == measured(to_json(CONFIG))
  cut = [replace(x, data__over_length='skip') for x in (CONFIG, wide)]
  assert measured(to_json(cut[0])) != measured(to_json(cut[1]))
  assert measured(to_json(cut[0])) != measured(to_json(CONFIG))
  older = to_json(CONFIG)
  del older['data']
  assert measured(older) == measured(to_json(CONFIG))


def test_fingerprints_tell_weights_apart():
  _, params = model(vocab_size=24)
  mark = fingerprint(params)
  assert len(mark) == 32 and mark == fingerprint(jax.device_get(params))
  mesh = make_mesh(c.Mesh(data=4, model=2))
  spread = jax.device_put(params, state_sharding(params, mesh))
  assert fingerprint(spread) == mark
  others = {
    mark,
    fingerprint(jax.tree.map(lambda x: x.astype('bfloat16'), params)),
  }
  leaves, tree = jax.tree.flatten(params)
  for number, leaf in enumerate(leaves):
    for change in (
      lambda x: np.roll(x, 1),  # the same numbers elsewhere
      lambda x: x.at[(0,) * x.ndim].add(1e-6),
    ):
      changed = [*leaves[:number], change(leaf), *leaves[number + 1 :]]
      others.add(fingerprint(tree.unflatten(changed)))
  assert len(others) == 2 + 2 * len(leaves)
