import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.steps import sampling as module
from sdjax.steps.sampling import Sampling

sampling_logp = jax.jit(module.sampling_logp, static_argnums=1)

PROBS = [0.4, 0.3, 0.2, 0.1]


def probs_of(options, probs=PROBS):
  logits = jnp.log(jnp.array(probs)) + 5  # a shift means nothing
  return np.exp(sampling_logp(logits, Sampling(**options)))


@pytest.mark.parametrize(
  'options, want',
  [
    ({}, PROBS),
    # Squares of 4 3 2 1, over 30.
    ({'temperature': 0.5}, [16 / 30, 9 / 30, 4 / 30, 1 / 30]),
    ({'temperature': 0}, [1, 0, 0, 0]),
    ({'top_k': 1}, [1, 0, 0, 0]),
    ({'top_k': 3}, [4 / 9, 3 / 9, 2 / 9, 0]),
    ({'top_k': 4}, PROBS),
    ({'top_k': 9}, PROBS),
    # 0.4 falls short of 0.65, 0.4 + 0.3 does not.
    ({'top_p': 0.65}, [4 / 7, 3 / 7, 0, 0]),
    ({'top_p': 0.75}, [4 / 9, 3 / 9, 2 / 9, 0]),
    ({'top_p': 0.01}, [1, 0, 0, 0]),
    # At least 0.6 of 0.4 is 0.24.
    ({'min_p': 0.6}, [4 / 7, 3 / 7, 0, 0]),
    ({'min_p': 0.3}, [4 / 9, 3 / 9, 2 / 9, 0]),
    # In order: the mass of top_p is of what top_k left, 4/9 and 7/9.
    ({'top_k': 3, 'top_p': 0.7}, [4 / 7, 3 / 7, 0, 0]),
    # The temperature comes first: 16/30 and 25/30 of the mass.
    ({'temperature': 0.5, 'top_p': 0.5}, [1, 0, 0, 0]),
    (
      {'temperature': 2.0, 'min_p': 0.8},
      [
        2 / (2 + 3**0.5),
        3**0.5 / (2 + 3**0.5),
        0,
        0,
      ],
    ),
  ],
)
def test_distribution_by_hand(options, want):
  np.testing.assert_allclose(probs_of(options), want, atol=1e-6)


def test_ties_at_the_edge_all_stay():
  tied = [0.4, 0.2, 0.2, 0.2]
  np.testing.assert_allclose(probs_of({'top_k': 2}, tied), tied, atol=1e-6)
  np.testing.assert_allclose(probs_of({'top_p': 0.5}, tied), tied, atol=1e-6)


def test_greedy_takes_the_first_of_a_tie():
  assert probs_of({'temperature': 0}, [0.2, 0.4, 0.4]).tolist() == [0, 1, 0]


def test_rows_are_truncated_one_by_one_whatever_their_order():
  logits = jnp.log(jnp.array([PROBS, PROBS[::-1]])[None])
  out = np.exp(sampling_logp(logits, Sampling(top_k=2)))[0]
  np.testing.assert_allclose(out[0], [4 / 7, 3 / 7, 0, 0], atol=1e-6)
  np.testing.assert_allclose(out[1], out[0][::-1], atol=1e-6)


def test_the_mass_before_a_token_is_of_its_own_row():
  # Of the second row 0.5 is short of 0.6, so that its second token stays.
  rows = [[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]
  out = probs_of({'top_p': 0.6}, rows)
  np.testing.assert_allclose(out, [[1, 0, 0], [5 / 8, 3 / 8, 0]], atol=1e-6)


def test_bfloat16_logits_are_normalised_in_float32():
  logits = jnp.zeros((257,), jnp.bfloat16)
  out = sampling_logp(logits, Sampling())
  assert out.dtype == jnp.float32
  np.testing.assert_allclose(out, -np.log(257), rtol=1e-6)


@pytest.mark.parametrize(
  'options',
  [
    {'temperature': -0.1},
    {'top_k': -1},
    {'top_p': 0.0},
    {'top_p': 1.5},
    {'min_p': 1.0},
    {'min_p': -0.2},
  ],
)
def test_values_out_of_range_are_named(options):
  ((name, value),) = options.items()
  with pytest.raises(ValueError, match=f'{name}={value} must be'):
    Sampling(**options)


def test_values_in_range_pass():
  for values in (
    {},
    {'temperature': 0, 'top_k': 3},
    {'top_p': 1, 'min_p': 0.5},
  ):
    sampling = Sampling(**values)
    for name, value in values.items():
      assert getattr(sampling, name) == value
