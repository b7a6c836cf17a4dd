import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.models.rope import Rope, frequencies, rotate


def turn(x, position, rope):
  return rotate(x, jnp.array([[[position]]]), frequencies(rope, x.shape[-1]))


def draw(seed):
  return np.random.default_rng(seed).standard_normal((1, 1, 1, 1, 8))


def test_rope_turns_a_pair_by_its_position():
  x = jnp.array([1.0, 0.0]).reshape(1, 1, 1, 1, 2)
  out = turn(x, 2, Rope())
  np.testing.assert_allclose(out.ravel(), [np.cos(2), np.sin(2)], atol=1e-6)


def test_rope_pairs_halves_and_slows_down():
  # theta = 100, H = 4: angles 3 * (1, 0.1); pairs are (0, 2) and (1, 3).
  x = jnp.array([1.0, 2.0, 0.0, 0.0]).reshape(1, 1, 1, 1, 4)
  out = turn(x, 3, Rope(theta=100.0))
  want = [np.cos(3), 2 * np.cos(0.3), np.sin(3), 2 * np.sin(0.3)]
  np.testing.assert_allclose(out.ravel(), want, atol=1e-6)


def test_rope_scores_depend_on_the_distance_only():
  q, k = (jnp.array(draw(s)) for s in (1, 2))

  def score(i, j):
    turned = (turn(x, p, Rope(theta=50.0)) for x, p in ((q, i), (k, j)))
    return jnp.vdot(*turned)

  np.testing.assert_allclose(score(7, 3), score(24, 20), atol=1e-5)
  assert abs(score(7, 3) - score(7, 4)) > 1e-3


def test_linear_scaling_is_a_slower_position():
  x = jnp.array(draw(0))
  slow = turn(x, 12, Rope(theta=50.0, scaling='linear', factor=4.0))
  np.testing.assert_allclose(slow, turn(x, 3, Rope(theta=50.0)), atol=1e-5)


def test_llama3_scaling_by_hand():
  # Frequencies 1, 1/10, 1/100, 1/1000: wavelengths 6.28, 62.8, 628, 6283 in a
  # context of 400: 63.7, 6.37, 0.637 and 0.064 turns.
  rope = Rope(
    theta=1e4,
    scaling='llama3',
    factor=8.0,
    original_context=400,
    low=1.0,
    high=10.0,
  )
  kept = (400 / (20 * np.pi) - 1) / 9
  want = [1, 0.1 * (kept + (1 - kept) / 8), 0.01 / 8, 0.001 / 8]
  np.testing.assert_allclose(frequencies(rope, 8), want, rtol=1e-6)


def test_yarn_scaling_by_hand():
  # With theta = e^8 and H = 16, dimension d turns 400 / (2 pi e^d) times:
  # 64 pi^-1 ... the dimension of n turns is ln(400 / (2 pi n)).
  rope = Rope(
    theta=float(np.exp(8)),
    scaling='yarn',
    factor=4.0,
    original_context=400,
    low=1.0,
    high=32.0,
  )
  first = np.floor(np.log(400 / (2 * np.pi * 32)))  # 0
  last = np.ceil(np.log(400 / (2 * np.pi)))  # 5
  assert (first, last) == (0, 5)
  plain = np.exp(-np.arange(8.0))
  kept = np.clip(1 - np.arange(8) / 5, 0, 1)
  want = plain * kept + plain / 4 * (1 - kept)
  np.testing.assert_allclose(frequencies(rope, 16), want, rtol=1e-5)


def test_the_magnitude_multiplies_what_is_turned():
  x = jnp.array(draw(0))
  frequency = jnp.asarray(frequencies(Rope(), 8))
  out = rotate(x, jnp.array([[[5]]]), frequency, 1.5)
  np.testing.assert_allclose(
    out, 1.5 * rotate(x, jnp.array([[[5]]]), frequency), rtol=1e-6
  )


def test_an_unknown_scaling_is_named():
  with pytest.raises(ValueError, match="'ntk' is not one of"):
    frequencies(Rope(scaling='ntk'), 8)
