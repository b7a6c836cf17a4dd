import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.reduce import AGGREGATIONS, token_weights
from sdjax.types import length_mask

LENGTH = jnp.array([[1, 3], [2, 3]])
ALL = jnp.ones((2, 2), bool)


def test_length_mask_by_hand():
  out = length_mask(jnp.array([[0, 2], [3, 1]]), 3)
  assert out.dtype == bool
  assert out.tolist() == [
    [[False] * 3, [True, True, False]],
    [[True] * 3, [True, False, False]],
  ]


def test_token_mean_by_hand():
  # Rollout (0, 1) does not count: 1 + 2 + 3 tokens are left.
  counted = ALL.at[0, 1].set(False)
  out = token_weights(length_mask(LENGTH, 3), counted, 'token_mean')
  sixth = 1 / 6
  np.testing.assert_allclose(
    out,
    [[[sixth, 0, 0], [0, 0, 0]], [[sixth, sixth, 0], [sixth] * 3]],
    rtol=1e-6,
  )


def test_sequence_mean_by_hand():
  counted = ALL.at[0, 1].set(False)
  out = token_weights(length_mask(LENGTH, 3), counted, 'sequence_mean')
  np.testing.assert_allclose(
    out,
    [[[1 / 3, 0, 0], [0, 0, 0]], [[1 / 6, 1 / 6, 0], [1 / 9] * 3]],
    rtol=1e-6,
  )


def test_a_rollout_without_tokens_does_not_count():
  mask = length_mask(jnp.array([[0, 2]]), 2)
  out = token_weights(mask, jnp.ones((1, 2), bool), 'sequence_mean')
  np.testing.assert_allclose(out, [[[0, 0], [0.5, 0.5]]])


@pytest.mark.parametrize('aggregation', AGGREGATIONS)
def test_nothing_counted_is_zero_not_nan(aggregation):
  mask = length_mask(LENGTH, 3)
  assert (token_weights(mask, ~ALL, aggregation) == 0).all()
  assert (token_weights(mask & False, ALL, aggregation) == 0).all()


@pytest.mark.parametrize('aggregation', AGGREGATIONS)
def test_padding_and_order_change_nothing(aggregation):
  rng = np.random.default_rng(0)
  length = jnp.array(rng.integers(0, 5, (3, 4)))
  counted = jnp.array(rng.random((3, 4)) < 0.7)
  weigh = functools.partial(
    token_weights, sample_mask_QG=counted, aggregation=aggregation, horizon=4
  )
  out, wide = weigh(length_mask(length, 4)), weigh(length_mask(length, 9))
  np.testing.assert_array_equal(wide[..., :4], out)
  assert (wide[..., 4:] == 0).all()
  tokens = np.asarray(length * counted)
  total = {
    'sequence_sum': tokens.sum() / (tokens > 0).sum(),
    'sequence_sum_norm': tokens.sum() / (tokens > 0).sum() / 4,
  }.get(aggregation, 1)
  np.testing.assert_allclose(out.sum(), total, rtol=1e-6)
  turned = token_weights(
    length_mask(length[::-1], 4), counted[::-1], aggregation
  )
  np.testing.assert_array_equal(turned[::-1], out)


def test_weights_are_as_wide_as_floats_are():
  mask = length_mask(LENGTH, 3)
  assert token_weights(mask, ALL, 'token_mean').dtype == jnp.float32
  with jax.enable_x64(True):
    wide = token_weights(mask, ALL, 'token_mean')
    assert wide.dtype == jnp.float64
    np.testing.assert_allclose(wide.sum(), 1, rtol=1e-15)


def test_an_unknown_aggregation_is_named():
  with pytest.raises(ValueError, match="'mean' is not one of .*token_mean"):
    token_weights(length_mask(LENGTH, 3), ALL, 'mean')
