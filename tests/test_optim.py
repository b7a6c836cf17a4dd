"""The update rule: schedules and steps by hand, bfloat16 weights."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sdjax.config import schema as config
from sdjax.training.optim import kept_remainder, learning_rate, make_optimizer


def rates(num_steps, **options):
  schedule: Any = learning_rate(config.Optimizer(**options), num_steps)
  return [float(schedule(i)) for i in range(num_steps)]


def test_constant_with_warmup():
  found = rates(6, learning_rate=0.4, warmup_steps=3)
  np.testing.assert_allclose(found, [0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)


def test_cosine_ends_at_a_tenth():
  found = rates(5, learning_rate=1.0, schedule='cosine')
  # 0.1 + 0.9 (1 + cos(pi i / 4)) / 2
  half = 0.45 * 2**-0.5
  np.testing.assert_allclose(
    found, [1, 0.55 + half, 0.55, 0.55 - half, 0.1], rtol=1e-6
  )


def test_cosine_after_warmup():
  found = rates(4, learning_rate=1.0, schedule='cosine', warmup_steps=1)
  np.testing.assert_allclose(found, [0.5, 1, 0.55, 0.1], rtol=1e-6)
  schedule = learning_rate(config.Optimizer(schedule='cosine'), 4)
  np.testing.assert_allclose(schedule(jnp.int32(99)), 3e-5, rtol=1e-5)


@pytest.mark.parametrize('warmup_steps', [4, 9])
def test_warmup_out_of_range(warmup_steps):
  with pytest.raises(ValueError, match=f'warmup_steps={warmup_steps} .* 4 st'):
    rates(4, warmup_steps=warmup_steps)


@pytest.mark.parametrize(
  ('options', 'allowed'),
  [
    ({'warmup_steps': -1}, 'at least 0'),
    ({'schedule': 'linear'}, "'constant' or 'cosine'"),
  ],
)
def test_what_no_section_holds(options, allowed):
  ((name, value),) = options.items()
  with pytest.raises(ValueError, match=f'{name}={value!r} must be {allowed}'):
    rates(4, **options)


def part(state, name) -> Any:
  """The one field of this name in an optimizer's state."""
  return optax.tree.get(state, name)


def one_update(params, gradient, **options) -> Any:
  optimizer = make_optimizer(config.Optimizer(**options), 10)
  state = optimizer.init(params)
  updates, state = optimizer.update(gradient, state, params)
  return optax.apply_updates(params, updates), state


def test_first_two_steps_by_hand():
  optimizer = make_optimizer(
    config.Optimizer(learning_rate=0.1, b1=0.5, b2=0.75, eps=1.0, clip_norm=0),
    10,
  )
  params: Any = {'kernel': jnp.array([3.0])}
  state = optimizer.init(params)
  for gradient in (2.0, -1.0):
    updates, state = optimizer.update(
      {'kernel': jnp.array([gradient])}, state, params
    )
    params = optax.apply_updates(params, updates)
  # step 1: m = 1 / 0.5 = 2, v = 1 / 0.25 = 4:  -0.1 * 2 / (2 + 1)
  # step 2: m = 0 / 0.75,  so nothing moves
  np.testing.assert_allclose(params['kernel'], [3 - 0.2 / 3], rtol=1e-6)


def test_clip_is_global():
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  gradient = {'a': jnp.array([30.0]), 'b': jnp.array([40.0])}
  _, state = one_update(params, gradient, clip_norm=1.0)
  moments = part(state, 'mu')
  # 30 and 40 have norm 50; clipped to norm 1 and times 1 - b1 = 0.1.
  np.testing.assert_allclose(moments['a'], [0.06], rtol=1e-5)
  np.testing.assert_allclose(moments['b'], [0.08], rtol=1e-5)
  _, state = one_update(params, gradient, clip_norm=0.0)
  np.testing.assert_allclose(part(state, 'mu')['a'], [3], rtol=1e-5)


def test_matrices_decay_and_scales_do_not():
  params = {
    'attn': {'kernel': jnp.ones((2, 2))},
    'norm': {'scale': jnp.ones((3, 2))},
    'embedding': jnp.ones((2, 2)),
  }
  zeros = jax.tree.map(jnp.zeros_like, params)
  new, _ = one_update(params, zeros, learning_rate=0.1, weight_decay=0.5)
  np.testing.assert_allclose(new['attn']['kernel'], 0.95)
  np.testing.assert_allclose(new['embedding'], 0.95)
  np.testing.assert_array_equal(new['norm']['scale'], 1)


def test_state_is_float32_and_keeps_its_dtypes():
  params = {'kernel': jnp.ones(4, jnp.bfloat16)}
  optimizer = make_optimizer(config.Optimizer(), 10)
  state = optimizer.init(params)
  dtypes = {str(x.dtype) for x in jax.tree.leaves(state)}
  assert dtypes == {'float32', 'int32'}
  _, after = optimizer.update(
    {'kernel': jnp.ones(4, jnp.float32)}, state, params
  )
  assert [x.dtype for x in jax.tree.leaves(after)] == [
    x.dtype for x in jax.tree.leaves(state)
  ]
  full = optimizer.init({'kernel': jnp.ones(4)})
  assert len(jax.tree.leaves(full)) == len(jax.tree.leaves(state)) - 1


@pytest.mark.parametrize('count', [100, 1000])
def test_bfloat16_weights_move_by_small_updates(count):
  """A thousand updates of 1e-5 move 1 to 1.01; a plain bfloat16 stays at 1."""
  transform = kept_remainder()
  update = {'kernel': jnp.full(3, 1e-5)}
  start = {'kernel': jnp.ones(3, jnp.bfloat16)}

  @jax.jit  # compiled, so that XLA may do its worst to the rounding
  def run(params):
    def step(carry, _):
      params, state, plain = carry
      plain = optax.apply_updates(plain, update)
      updates, state = transform.update(update, state, params)
      return (optax.apply_updates(params, updates), state, plain), None

    carry = (params, transform.init(params), params)
    return jax.lax.scan(step, carry, length=count)[0]

  params, state, plain = run(start)
  assert params['kernel'].dtype == plain['kernel'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(plain['kernel'], 1)
  total = params['kernel'].astype(jnp.float32) + state.remainder['kernel']
  np.testing.assert_allclose(total, 1 + count * 1e-5, rtol=1e-6)
  # 1.01 lies between the bfloat16 numbers 1.0078125 and 1.015625; 1.001 is
  # nearest to 1.
  expected = {100: 1, 1000: 1.0078125}[count]
  np.testing.assert_array_equal(params['kernel'], expected)


def test_bfloat16_follows_float32():
  """The pair (weight, remainder) takes the path of a float32 weight."""
  optimizer = make_optimizer(
    config.Optimizer(learning_rate=1e-4, weight_decay=0.1), 200
  )
  draw = np.random.default_rng(0).standard_normal
  start = jnp.asarray(draw((4, 4)), jnp.bfloat16)

  @jax.jit
  def run(params):
    def step(carry, gradient):
      params, state = carry
      updates, state = optimizer.update({'kernel': gradient}, state, params)
      return (optax.apply_updates(params, updates), state), None

    carry = (params, optimizer.init(params))
    return jax.lax.scan(step, carry, gradients)[0]

  gradients = jnp.asarray(draw((200, 4, 4)) + 0.5, jnp.float32)
  wide, _ = run({'kernel': start.astype(jnp.float32)})
  narrow, state = run({'kernel': start})
  remainder = part(state, 'remainder')['kernel']
  exact = narrow['kernel'].astype(jnp.float32) + remainder
  moved = np.abs(wide['kernel'] - start.astype(jnp.float32))
  assert moved.max() > 5e-3
  # Only the decay sees the rounded weight: 1e-4 * 0.1 * 2**-9 * 200 steps.
  np.testing.assert_allclose(exact, wide['kernel'], rtol=0, atol=5e-6)
  np.testing.assert_array_equal(narrow['kernel'], exact.astype(jnp.bfloat16))
