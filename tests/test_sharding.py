"""Meshes of fake devices: where arrays live, and that it changes nothing."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec
from models import assert_close, make_prompts, model

from sdjax.config import schema as config
from sdjax.feedback.strategies import Balanced, Demonstrations
from sdjax.models import sharding
from sdjax.models.sharding import ShardingError
from sdjax.options import ConfigError
from sdjax.steps import rl, sd
from sdjax.steps.rollout import rollout_step
from sdjax.steps.update import Options, update_step
from sdjax.training import trainer
from sdjax.training.optim import make_optimizer
from sdjax.types import Rewards, TeacherContexts, TrainState

SIZES = {'vocab_size': 24, 'tie_embeddings': False}
Q, G, T, C = 8, 2, 5, 6
MESHES = ['1x1', '4x1', '2x2']


COLUMNS = PartitionSpec(None, 'data', 'model')
ROWS = PartitionSpec(None, 'model', 'data')
WHOLE = PartitionSpec()


@functools.cache
def mesh_of(name) -> Any:
  if name == 'none':
    return None
  data, model_size = map(int, name.split('x'))
  devices = jax.devices()[: data * model_size]
  return sharding.make_mesh(config.Mesh(data, model_size), devices)


@functools.cache
def prompts():
  return make_prompts([6, 1, 4, 3, 6, 2, 5, 1], C)


@functools.cache
def sampled(mesh_name):
  """The rollouts on a mesh, gathered to the host."""
  apply_fn, params = model(**SIZES)
  step = functools.partial(
    rollout_step, apply_fn, num_samples=G, max_new_tokens=T, eos_ids=(3, 4)
  )
  batch, key, mesh = prompts(), jax.random.key(5), mesh_of(mesh_name)
  if mesh is not None:
    params = jax.device_put(params, sharding.state_sharding(params, mesh))
    batch = sharding.shard_batch(batch, mesh)
    key = jax.device_put(key, sharding.replicated(mesh))
  return jax.device_get(jax.jit(step)(params, batch, key))


@pytest.mark.parametrize('mesh_name', MESHES)
def test_rollout_is_the_same_on_any_mesh(mesh_name):
  expected, found = sampled('none'), sampled(mesh_name)
  assert len(np.unique(expected.ids)) > 8
  assert len(np.unique(expected.length)) > 1
  for name in ('ids', 'length', 'finished'):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
  assert_close(found.behavior_logp, expected.behavior_logp)


def evidence(method):
  rng = np.random.default_rng(0)
  if method == 'rl':
    return Rewards(reward=rng.random((Q, G)).astype(np.float32))
  mask = rng.random((Q, G, 2)) < 0.7
  assert 0 < mask.sum() < mask.size
  return TeacherContexts(
    context_ids=rng.integers(0, 24, (Q, 2, C + 3)).astype(np.int32),
    context_length=rng.integers(1, C + 4, (Q, 2)).astype(np.int32),
    context_index=rng.integers(0, 2, (Q, G, 2)).astype(np.int32),
    context_mask=mask,
  )


@functools.cache
def optimizer():
  # eps far above the noise of float32: else Adam's first update is the sign
  # of a gradient, and where that is 0 the sign is noise. No clip: the first
  # moment is then 0.1 times the gradient.
  options = config.Optimizer(learning_rate=0.1, eps=0.01, clip_norm=0)
  return make_optimizer(options, 10)


@functools.cache
def updated(method, mesh_name, micro_batches):
  """State and metrics after signal and update on a mesh."""
  step = {'sd': sd, 'rl': rl}[method]
  apply_fn, params = model(**SIZES)
  rollout = sampled('none')
  # Not the weights that sampled: the ratio of the policy gradient is not 1.
  params = jax.tree.map(lambda x: 1.02 * x, params)
  teacher = jax.tree.map(lambda x: 0.9 * x, params) if step is sd else None
  state = TrainState(
    step=jnp.int32(0),
    params=params,
    opt_state=optimizer().init(params),
    teacher_params=teacher,
  )

  def whole_step(state, prompts, rollout, evidence):
    signal = step.signal_step(
      apply_fn,
      state.params,
      state.teacher_params,
      None,
      prompts,
      rollout,
      evidence,
    )
    return update_step(
      state,
      None,
      None,
      prompts,
      rollout,
      signal,
      loss_fn=functools.partial(step.loss, apply_fn),
      optimizer=optimizer(),
      options=Options(micro_batches=micro_batches, ema_rate=0.25),
    )

  mesh, places = mesh_of(mesh_name), None
  batch = (prompts(), rollout, evidence(method))
  if mesh is not None:
    places = sharding.state_sharding(state, mesh)
    state = jax.device_put(state, places)
    batch = sharding.shard_batch(batch, mesh)
    places = (places, sharding.replicated(mesh))
  jitted = jax.jit(whole_step, out_shardings=places)
  return jitted(state, *batch)


@pytest.mark.parametrize(
  'method, mesh_name, micro_batches',
  [
    ('sd', 'none', 2),
    ('sd', '1x1', 1),
    ('sd', '4x1', 1),
    ('sd', '4x1', 4),
    ('sd', '2x2', 1),
    ('sd', '2x2', 2),
    ('rl', '1x1', 1),
    ('rl', '4x1', 4),
    ('rl', '2x2', 2),
  ],
)
def test_update_is_the_same(method, mesh_name, micro_batches):
  state, metrics = updated(method, mesh_name, micro_batches)
  expected, expected_metrics = updated(method, 'none', 1)
  assert expected_metrics['grad_norm'] > 0.01
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(
      metrics[name], value, rtol=1e-5, atol=1e-6, err_msg=name
    )
  gradient, expected_gradient = (
    s.opt_state[0][0][0].mu for s in (state, expected)
  )
  assert float(jnp.abs(expected_gradient['embedding']).max()) > 1e-4
  assert_close(gradient, expected_gradient)
  assert_close(state.params, expected.params)
  if method == 'sd':
    assert_close(state.teacher_params, expected.teacher_params)


def test_places_of_an_updated_state():
  state, _ = updated('sd', '2x2', 1)
  adam = state.opt_state[0][0][0]
  for tree in (state.params, adam.mu, adam.nu, state.teacher_params):
    layers, attn = tree['layers'], tree['layers']['attn']
    specs = {
      COLUMNS: [
        attn['q']['kernel'],
        attn['k']['kernel'],
        attn['v']['kernel'],
        layers['gate']['kernel'],
        layers['up']['kernel'],
      ],
      ROWS: [attn['o']['kernel'], layers['down']['kernel']],
      WHOLE: [
        tree['norm']['scale'],
        layers['attn_norm']['scale'],
        layers['mlp_norm']['scale'],
        attn['q_norm']['scale'],
        attn['k_norm']['scale'],
      ],
      PartitionSpec('model', 'data'): [tree['embedding']],
      PartitionSpec('data', 'model'): [tree['unembedding']],
    }
    listed = [leaf for leaves in specs.values() for leaf in leaves]
    assert len(listed) == len(jax.tree.leaves(tree))
    for spec, leaves in specs.items():
      for leaf in leaves:
        assert leaf.sharding.spec == spec
    # [L, D, F] = [2, 16, 24] in four parts.
    shard = layers['gate']['kernel'].addressable_shards[0].data
    assert shard.shape == (2, 8, 12)
  assert state.step.sharding.spec == WHOLE
  assert adam.count.sharding.spec == WHOLE


def test_bfloat16_remainders_follow_the_weights():
  _, params = model(**SIZES, param_dtype='bfloat16')
  state = jax.eval_shape(optimizer().init, params)
  places = sharding.state_sharding(state, mesh_of('2x2'))
  assert places[1].remainder['layers']['up']['kernel'].spec == COLUMNS


def test_make_mesh():
  mesh = sharding.make_mesh(config.Mesh())
  assert dict(mesh.shape) == {'data': 8, 'model': 1}
  assert mesh.axis_types == (AxisType.Auto, AxisType.Auto)
  mesh = sharding.make_mesh(config.Mesh(data=-1, model=4))
  assert dict(mesh.shape) == {'data': 2, 'model': 4}


@pytest.mark.parametrize(
  'data, model_size',
  [(3, 1), (4, 1), (-1, 3), (8, 2), (0, 1)],
)
def test_mesh_that_does_not_fit(data, model_size):
  with pytest.raises(ShardingError) as error:
    sharding.make_mesh(config.Mesh(data, model_size))
  for word in [f'mesh.data={data}', f'mesh.model={model_size}', '8 devices']:
    assert word in str(error.value)


@pytest.mark.parametrize('model_size', [0, -1])
def test_a_model_is_split_into_at_least_one_part(model_size):
  with pytest.raises(
    ConfigError, match=f'^model={model_size} must be at least 1'
  ):
    config.Mesh(1, model_size)


def test_unknown_path():
  with pytest.raises(ShardingError, match="'params/layers/router/kernel'"):
    sharding.state_sharding(
      {'params': {'layers': {'router': {'kernel': jnp.ones((2, 4, 4))}}}},
      mesh_of('2x2'),
    )


def test_wrong_rank():
  with pytest.raises(ShardingError, match=r"up/kernel' has shape \(4, 4\)"):
    sharding.leaf_spec('layers/up/kernel', (4, 4), mesh_of('2x2'))


@pytest.mark.parametrize(
  'shape, words',
  [
    ((2, 6, 7), ['dimension 2', 'size 7', 'mesh.model=2']),
    ((2, 5, 8), ['dimension 1', 'size 5', 'mesh.data=2']),
  ],
)
def test_dimension_that_does_not_divide(shape, words):
  with pytest.raises(ShardingError) as error:
    sharding.leaf_spec('params/layers/up/kernel', shape, mesh_of('2x2'))
  for word in ['params/layers/up/kernel', 'choose mesh.', *words]:
    assert word in str(error.value)


def test_shard_batch():
  mesh = mesh_of('4x1')
  batch = sharding.shard_batch({'ids': np.arange(24).reshape(8, 3)}, mesh)
  assert batch['ids'].sharding.spec == PartitionSpec('data')
  assert batch['ids'].addressable_shards[3].data.tolist() == [
    [18, 19, 20],
    [21, 22, 23],
  ]
  with pytest.raises(ShardingError, match=r"'ids' of shape \(6, 3\).*=4"):
    sharding.shard_batch({'ids': np.ones((6, 3))}, mesh)
  with pytest.raises(ShardingError, match=r'of shape \(\)'):
    sharding.shard_batch({'step': np.int32(1)}, mesh)


METHODS = {
  'sd': config.SelfDistillation(),
  'balanced_rl': config.Mix(
    sd=config.SelfDistillation(
      demonstrations=Demonstrations(strategy=Balanced())
    )
  ),
}


def train(method, devices, folder, monkeypatch):
  """Metrics of two steps of a whole trainer, and its state after them."""
  data, model_size = devices
  settings = config.Config(
    rollout=config.Rollout(num_questions=4, num_samples=4),
    # As above: no sign of what is noise; and a model that is still right now
    # and then in its second step.
    optimizer=config.Optimizer(learning_rate=0.001, eps=0.01, clip_norm=0),
    task=config.ConceptGraph(train_size=16, eval_size=4, cache_dir=str(folder)),
    eval=config.Eval(num_questions=4, batch_questions=4),
    method=METHODS[method],
    mesh=config.Mesh(data, model_size),
  )
  made = jax.devices()[: data * model_size]
  monkeypatch.setattr(
    trainer, 'make_mesh', lambda sizes: sharding.make_mesh(sizes, made)
  )
  run = trainer.Trainer(settings)
  questions = run.task.questions('train')
  metrics = []
  for number in range(2):
    asked = questions[4 * number : 4 * number + 4]
    batch, _ = run.sample(asked, number)
    metrics.append(run.update(batch, number))
  return metrics, run.state


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


@pytest.mark.parametrize('method', METHODS)
def test_a_trainer_on_four_devices_is_one_on_one(method, folder, monkeypatch):
  metrics, state = train(method, (2, 2), folder, monkeypatch)
  want, alone = train(method, (1, 1), folder, monkeypatch)
  assert state.params['embedding'].sharding.mesh.devices.shape == (2, 2)
  for got, expected in zip(metrics, want, strict=True):
    assert got.keys() == expected.keys()
    assert expected['grad_norm'] > 0.01
    for name, value in expected.items():
      assert np.isfinite(got[name]), name
      # Sums over four devices are taken in another order: errors of a few
      # float32 roundings, 1e-7 each, and those of step 1 are in step 2's
      # weights. The answers are the same, so counts are equal.
      np.testing.assert_allclose(
        got[name], value, rtol=1e-4, atol=1e-5, err_msg=name
      )
  assert_close(jax.device_get(state.params), jax.device_get(alone.params), 1e-4)
  assert int(state.step) == 2
