import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from models import assert_close, batch, model, signal_then_loss

from sdjax import config, sharding
from sdjax.lora import adapt, factors, init_adapter
from sdjax.optim import make_optimizer
from sdjax.steps import rl, sd


def adapter_of(rank=2, targets='attn/(q|v)/kernel', key=0):
  return init_adapter(model()[1], rank, targets, jax.random.key(key))


def test_a_new_adapter_changes_nothing():
  _, params = model()
  adapter = adapter_of(targets='kernel')
  assert len(factors(adapter)) == 7
  same = adapt(params, adapter, 8.0)
  jax.tree.map(np.testing.assert_array_equal, same, params)


def test_an_adapted_matrix_by_hand():
  _, params = model()
  adapter = adapter_of()
  pair = adapter['layers']['attn']['v']['kernel']
  assert pair['a'].shape == (2, 16, 2) and pair['b'].shape == (2, 2, 16)
  assert jnp.abs(pair['a']).max() <= 16**-0.5 and pair['a'].std() > 0.1
  pair['b'] = jnp.ones_like(pair['b'])
  out = adapt(params, adapter, 0.5)
  old, new = (
    np.asarray(tree['layers']['attn']['v']['kernel']) for tree in (params, out)
  )
  # b of ones: every column moves by half the sum of a's row.
  change = 0.5 * np.asarray(pair['a']).sum(-1)[1, 3]
  np.testing.assert_allclose(new[1, 3] - old[1, 3], change, atol=1e-6)
  assert out['layers']['attn']['k'] is params['layers']['attn']['k']


def test_adapted_weights_keep_their_dtype():
  params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model()[1])
  out = adapt(params, adapter_of(), 1.0)
  assert all(x.dtype == jnp.bfloat16 for x in jax.tree.leaves(out))


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
    weights = adapt(params, adapter, scale)
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
