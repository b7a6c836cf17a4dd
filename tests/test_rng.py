import jax
import jax.numpy as jnp

from sdjax import rng


def data(key):
  return jax.random.key_data(key).tolist()


def test_streams_differ_by_seed_name_and_step():
  keys = [
    rng.stream(seed, name, step)
    for seed in (0, 1)
    for name in ('rollout', 'data')
    for step in (0, 1)
  ]
  assert len({tuple(data(k)) for k in keys}) == 8


def test_a_stream_is_the_same_on_every_call_and_under_jit():
  want = data(rng.stream(3, 'rollout', 7))
  assert data(rng.stream(3, 'rollout', 7)) == want
  traced = jax.jit(lambda step: rng.stream(3, 'rollout', step))
  assert data(traced(jnp.int32(7))) == want


def test_a_sample_has_its_own_key_whatever_is_beside_it():
  key = rng.stream(0, 'rollout', 0)
  keys = rng.sample_keys(key, jnp.array([4, 9, 2]), 5)
  assert keys.shape == (3, 5)
  assert len({tuple(k) for row in data(keys) for k in row}) == 15
  alone = rng.sample_keys(key, jnp.array([9]), 2)
  assert data(alone)[0] == data(keys)[1][:2]
