# pyright: reportCallIssue=false, reportArgumentType=false
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from models import assert_close, batch, model, signal_then_loss

from sdjax.config import schema as config
from sdjax.models import sharding
from sdjax.models.lora import adapt, factors, init_adapter, merge
from sdjax.models.transformer import Dense, TransformerConfig
from sdjax.steps import rl, sd
from sdjax.training.optim import make_optimizer


def adapter_of(rank=2, targets='attn/(q|v)/kernel', key=0):
  return init_adapter(model()[1], rank, targets, jax.random.key(key))


IDS = jnp.asarray(np.random.default_rng(0).integers(0, 23, (4, 12)))


def moved(adapter, size, seed=1):
  """An adapter whose second factors have left 0."""
  draw = np.random.default_rng(seed).standard_normal

  def move(path, x):
    return x + size * draw(x.shape) if path[-1].key == 'b' else x

  return jax.tree_util.tree_map_with_path(move, adapter)


def test_a_new_adapter_changes_nothing():
  apply_fn, params = model()
  adapter = adapter_of(targets='kernel')
  assert len(factors(adapter)) == 7
  same = merge(params, adapter, 8.0)
  jax.tree.map(np.testing.assert_array_equal, same, params)
  np.testing.assert_array_equal(
    apply_fn(adapt(params, adapter, 8.0), IDS), apply_fn(params, IDS)
  )


def test_a_merged_matrix_by_hand():
  _, params = model()
  adapter = adapter_of()
  pair = adapter['layers']['attn']['v']['kernel']
  assert pair['a'].shape == (2, 16, 2) and pair['b'].shape == (2, 2, 16)
  assert jnp.abs(pair['a']).max() <= 16**-0.5 and pair['a'].std() > 0.1
  pair['b'] = jnp.ones_like(pair['b'])
  out = merge(params, adapter, 0.5)
  old, new = (
    np.asarray(tree['layers']['attn']['v']['kernel']) for tree in (params, out)
  )
  # b of ones: every column moves by half the sum of a's row.
  change = 0.5 * np.asarray(pair['a']).sum(-1)[1, 3]
  np.testing.assert_allclose(new[1, 3] - old[1, 3], change, atol=1e-6)
  assert out['layers']['attn']['k'] is params['layers']['attn']['k']


def test_the_product_of_an_adapted_matrix_by_hand():
  cfg = TransformerConfig(8, 2, 1, 1, 1, 2, 2)
  frozen = {'kernel': jnp.array([[1.0, 2.0], [3.0, 4.0]]), 'bias': jnp.ones(2)}
  adapter = {'kernel': {'a': jnp.array([[1.0], [2.0]]), 'b': jnp.ones((1, 2))}}
  got = Dense(cfg, 2, bias=True).apply(
    {'params': adapt(frozen, adapter, 0.5)}, jnp.array([[1.0, -1.0]])
  )
  # [1, -1] W = [-2, -2], plus half of (1 - 2) times ones, plus the bias.
  np.testing.assert_allclose(got, [[-1.5, -1.5]], rtol=1e-6)


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_beside_a_matrix_is_as_in_it(remat):
  apply_fn, params = model(remat=remat)
  adapter = moved(adapter_of(targets='kernel'), 0.3)
  beside = apply_fn(adapt(params, adapter, 0.5), IDS)
  assert_close(beside, apply_fn(merge(params, adapter, 0.5), IDS))
  assert jnp.abs(beside - apply_fn(params, IDS)).max() > 0.1


def narrow(params):
  return jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)


def test_a_small_adapter_is_not_lost_in_bfloat16_weights():
  """Ten updates of 1e-5 change the model as they do a float32 one."""
  apply_fn, params = model(param_dtype='bfloat16')
  adapter = moved(adapter_of(targets='kernel'), 1e-4)
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)

  def change(weights):
    return apply_fn(weights, IDS) - apply_fn(params, IDS)

  want = change(merge(wide, adapter, 1.0))

  def error(weights):
    return jnp.linalg.norm(change(weights) - want) / jnp.linalg.norm(want)

  assert error(adapt(params, adapter, 1.0)) < 0.01
  assert error(narrow(merge(params, adapter, 1.0))) > 0.6


def test_a_small_adapter_is_not_lost_in_bfloat16_products():
  """Rounding changes few entries by much: what must be kept is the mean.

  Rounding twice, or merging, keeps a tenth of it.
  """
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((4096, 64)), jnp.bfloat16)
  frozen = {'kernel': jnp.asarray(rng.standard_normal((64, 64)) / 8)}
  pair = {
    'a': jnp.asarray(rng.uniform(-1 / 8, 1 / 8, (64, 4)), jnp.float32),
    'b': jnp.asarray(1e-4 * rng.standard_normal((4, 64)), jnp.float32),
  }
  frozen, adapter = narrow(frozen), {'kernel': pair}
  cfg = TransformerConfig(8, 64, 1, 1, 1, 8, 8, dtype='bfloat16')
  want = x.astype(jnp.float32) @ (pair['a'] @ pair['b'])

  def kept(weights):
    """How much of the change arrives: the slope of its regression."""
    new, old = (
      Dense(cfg, 64).apply({'params': w}, x) for w in (weights, frozen)
    )
    assert isinstance(new, jax.Array) and isinstance(old, jax.Array)
    assert new.dtype == jnp.bfloat16
    got = new.astype(jnp.float32) - old.astype(jnp.float32)
    return jnp.vdot(got, want) / jnp.vdot(want, want)

  assert abs(kept(adapt(frozen, adapter, 1.0)) - 1) < 0.05
  assert kept(narrow(merge(frozen, adapter, 1.0))) < 0.2


def test_no_match_names_what_there_is():
  with pytest.raises(ValueError, match=r"'q_proj'.*layers/attn/q/kernel"):
    adapter_of(targets='q_proj')


@pytest.mark.parametrize('module', [sd, rl], ids=['sd', 'rl'])
def test_the_gradient_is_that_of_the_matrix(module):
  """d/da = scale dW b^T and d/db = scale a^T dW."""
  apply_fn, params = model()
  _, teacher = model(seed=1)
  adapter = adapter_of(targets='attn/q')
  pair = adapter['layers']['attn']['q']['kernel']
  pair['b'] = jax.random.normal(jax.random.key(1), pair['b'].shape)
  scale, data = 0.25, batch()

  def loss(weights):
    return signal_then_loss(module, apply_fn, weights, teacher, None, data)[0]

  @jax.jit
  def both(adapter):
    weights = merge(params, adapter, scale)
    return jax.grad(loss)(weights), jax.grad(
      lambda a: loss(adapt(params, a, scale))
    )(adapter)

  whole, thin = both(adapter)
  slope = whole['layers']['attn']['q']['kernel']
  assert jnp.abs(slope).max() > 1e-3
  want = {
    'a': scale * slope @ jnp.swapaxes(pair['b'], 1, 2),
    'b': scale * jnp.swapaxes(pair['a'], 1, 2) @ slope,
  }
  assert_close(thin['layers']['attn']['q']['kernel'], want, 1e-5)


def test_every_device_holds_the_factors_whole():
  mesh = sharding.make_mesh(config.Mesh(2, 2), jax.devices()[:4])
  adapter = adapter_of(targets='kernel')
  optimizer = make_optimizer(config.Optimizer(), 10)
  places = sharding.state_sharding(
    {'params': adapter, 'opt_state': optimizer.init(adapter)}, mesh
  )
  leaves = jax.tree.leaves(places)
  assert len(leaves) > 3 * 14
  assert all(place.spec == PartitionSpec() for place in leaves)
