import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mixing_inputs import inputs_of

from sdjax.objectives.credit import future_sum
from sdjax.objectives.mixing import (
  RLCSD,
  RLSD,
  Advantages,
  AntiSD,
  Debiased,
  debiased,
)

A = jnp.array([2.0, -2.0, 2.0, -2.0, 0.0])
U = jnp.log(jnp.array([1.1, 1.1, 4.0, 4.0, 2.0]))


def mixed(rule, advantage, log_ratio, weight):
  """A rule on the tokens of one rollout."""
  x = inputs_of(advantage[None, None], log_ratio[None, None], weight)
  return rule(x).advantage[0, 0]


def test_mixed_by_hand():
  got = mixed(Advantages(), A, U, 0.25)
  np.testing.assert_allclose(got, 0.25 * A + 0.75 * U, rtol=1e-6)
  np.testing.assert_array_equal(mixed(Advantages(), A, U, 1.0), A)
  np.testing.assert_array_equal(mixed(Advantages(), A, U, 0.0), U)


def test_debiased_by_hand():
  # One question: strategy 0 twice (sums 1.5 and 0.5, mean 1), strategy 1 once
  # (sum -3), one wrong rollout. The mean of 1 and -3 is -1.
  u = jnp.array([[[0.5, 1.0], [1.0, -0.5], [-1.0, -2.0], [-4.0, 1.0]]])
  mask = jnp.ones(u.shape, bool)
  strategy = jnp.array([[0, 0, 1, -1]])
  got = debiased(u, mask, strategy)
  want = [
    [0.5 - 2 / 3, 1.0 - 4 / 3],  # -2, of which |u| says 1 : 2
    [1.0 - 4 / 3, -0.5 - 2 / 3],
    [-1.0 + 2 / 3, -2.0 + 4 / 3],
    [-4.0, 1.0],
  ]
  np.testing.assert_allclose(got[0], want, rtol=1e-5)
  # Every strategy now has the mean, and within one the order is as before.
  totals = got.sum(-1)[0]
  np.testing.assert_allclose(totals[:3], [-0.5, -1.5, -1.0], rtol=1e-5)
  # The rule mixes it with A; a rollout without a teacher has no strategy.
  x = inputs_of(jnp.ones(u.shape), u, 0.25, strategy=strategy)
  np.testing.assert_allclose(
    Debiased()(x).advantage, 0.25 + 0.75 * got, rtol=1e-6
  )
  x = x._replace(taught=jnp.array([[True, True, False, True]]))
  np.testing.assert_allclose(
    Debiased()(x).advantage, 0.25 + 0.75 * u, rtol=1e-6
  )


def test_debiased_leaves_alone_what_it_cannot_compare():
  u = jnp.array([[[0.5, 1.0], [1.0, -0.5]], [[0.0, 0.0], [2.0, 9.0]]])
  mask = jnp.array([[[True, True]] * 2, [[True, True], [True, False]]])
  for strategy in ([[0, 0], [-1, 0]], [[0, -1], [-1, -1]]):
    got = debiased(u, mask, jnp.array(strategy))
    np.testing.assert_array_equal(got, u)
  # A rollout of nothing but zeros has no token to blame; padding has none.
  got = debiased(u, mask, jnp.array([[-1, -1], [0, 1]]))
  np.testing.assert_allclose(got[1], [[0, 0], [1, 9]], rtol=1e-6)


def test_rlsd_by_hand():
  # Factors: 1.1, 1/1.1, 4 -> 1.2, 1/4 -> 0.8; half of each.
  got = mixed(RLSD(clip=0.2), A, U, 0.5)
  want = [2 * 1.05, -2 * (1 + 1 / 1.1) / 2, 2 * 1.1, -2 * 0.9, 0]
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_array_equal(mixed(RLSD(), A, U, 0.0), A)
  np.testing.assert_array_equal(mixed(RLSD(), A, 0 * U, 1.0), A)


def test_antisd_by_hand():
  # softplus(log 3) = log 4: (log 4 - log 2) / 2 = log(2) / 2.
  got = mixed(AntiSD(), jnp.ones(1), jnp.log(jnp.array([3.0])), 0.5)
  np.testing.assert_allclose(got, 1 - 0.25 * np.log(2), rtol=1e-5)
  np.testing.assert_array_equal(mixed(AntiSD(), A, U, 0.0), A)
  np.testing.assert_allclose(mixed(AntiSD(), A, 0 * U, 3.0), A, atol=1e-6)


@pytest.mark.parametrize(
  'a, e, want, touched',
  [
    # A contrast far above the temperature: the whole weight, either way.
    (1.0, 1.0, 1.5, True),
    (1.0, -1.0, 0.5, True),
    (-1.0, 1.0, -0.5, True),
    # Never past zero, and never away from it.
    (0.3, -1.0, 0.0, True),
    (-0.3, 1.0, 0.0, True),
    (0.0, 1.0, 0.0, True),
    # 0.5 tanh(0.02) = 0.01 is below the threshold.
    (1.0, 0.0004, 1.0, False),
    (1.0, 0.0, 1.0, False),
  ],
)
def test_rlcsd_by_hand(a, e, want, touched):
  got, at = RLCSD().shaped(jnp.array(a), jnp.array(e), 0.5)
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert bool(at) == touched


def test_rlcsd_is_bounded_and_vanishes():
  got, _ = RLCSD(clip=2.0).shaped(jnp.array(1.0), jnp.array(9.0), 10.0)
  np.testing.assert_allclose(got, 3)
  got, touched = RLCSD().shaped(A, U, 0.0)
  np.testing.assert_array_equal(got, A)
  assert not touched.any()


def test_future_sum_by_hand():
  value = jnp.array([[1.0, 2.0, 4.0, 8.0], [1.0, 2.0, 4.0, 8.0]])
  mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
  got = future_sum(value, mask, 1.0)
  np.testing.assert_allclose(got, [[14, 12, 8, 0], [2, 0, 0, 0]])
  got = future_sum(value, mask, 0.5)
  np.testing.assert_allclose(got, [[1 + 1 + 1, 2 + 2, 4, 0], [1, 0, 0, 0]])
  np.testing.assert_array_equal(future_sum(value, mask, 0.0), 0 * got)


def test_future_credit_completes_the_gradient_of_a_sum():
  """Local slopes and credits are the slope of the expected total cost."""
  # Two steps, two tokens; what the second step costs depends on the first.
  first = jnp.array([0.4, -0.3])
  second = jnp.array([[0.2, -0.5], [0.9, 0.1]])
  cost = jnp.array([[1.0, 3.0], [0.5, 2.0]])

  def total(tables):
    p, q = jax.nn.softmax(tables[0]), jax.nn.softmax(tables[1])
    return jnp.sum(p[:, None] * q * cost)

  def surrogate(tables):
    logp, logq = (jax.nn.log_softmax(x) for x in tables)
    p = jax.lax.stop_gradient(jnp.exp(logp))
    local = jnp.sum(jnp.exp(logq) * cost, axis=-1)  # the second step's cost
    out = 0.0
    for token in (0, 1):
      values = jnp.stack([0.0, local[token]])
      later = jax.lax.stop_gradient(future_sum(values, jnp.ones(2, bool), 1.0))
      out += p[token] * (local[token] + later[0] * logp[token])
    return out

  tables = (first, second)
  for got, want in zip(
    jax.grad(surrogate)(tables), jax.grad(total)(tables), strict=True
  ):
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_small_tilt_is_spread_in_whole():
  """Sums .4 and -.2, mean .1: however small, all of it is moved."""
  u = jnp.array([[[0.1, 0.3], [-0.2, 0.0]]])
  got = debiased(u, jnp.ones(u.shape, bool), jnp.array([[0, 1]]))
  want = [[0.1 - 0.3 / 4, 0.3 - 0.9 / 4], [-0.2 + 0.3, 0]]
  np.testing.assert_allclose(got[0], want, atol=1e-6)
