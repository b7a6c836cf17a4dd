"""Named random streams: every key is derived, none is carried.

A key is `fold_in(root, stream, step)`, then the question's id, then the
sample's index, then the token's. So a sample depends neither on how a batch
was split, nor on the number of devices, nor on when a run was interrupted.
"""

import zlib

import jax


def stream(seed: int, name: str, step: int | jax.Array = 0) -> jax.Array:
  """Returns the key of a named stream, e.g. `'rollout'`, at a training step."""
  named = jax.random.fold_in(
    jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF
  )
  return jax.random.fold_in(named, step)


def sample_keys(
  key: jax.Array, question_id_Q: jax.Array, num_samples: int
) -> jax.Array:
  """Returns one key [Q, G] for each sample of each question."""
  fold = jax.random.fold_in
  keys_Q = jax.vmap(lambda q: fold(key, q))(question_id_Q)
  samples_G = jax.numpy.arange(num_samples)
  return jax.vmap(lambda k: jax.vmap(lambda g: fold(k, g))(samples_G))(keys_Q)
