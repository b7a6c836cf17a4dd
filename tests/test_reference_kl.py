import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.divergence import forward_kl, reverse_kl
from sdjax.objectives.reference_kl import KL_ESTIMATORS

LOGITS = jnp.array([0.3, -1.0, 0.8])
REF = jnp.log(jnp.array([0.7, 0.2, 0.1]))


@pytest.mark.parametrize(
  'name, want',
  [
    ('k1', np.log(4)),
    ('k2', np.log(4) ** 2 / 2),
    ('k3', 0.25 + np.log(4) - 1),
  ],
)
def test_values_by_hand(name, want):
  # p = 0.8, r = 0.2.
  got = KL_ESTIMATORS[name](jnp.log(0.8), jnp.log(0.2))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def expected(name, logits):
  """The mean over tokens the student samples, its law held constant."""
  logp = jax.nn.log_softmax(logits)
  law = jax.lax.stop_gradient(jnp.exp(logp))
  return jnp.sum(law * KL_ESTIMATORS[name](logp, REF))


@pytest.mark.parametrize(
  'name, divergence',
  [('k1', reverse_kl), ('k2', reverse_kl), ('k3', forward_kl)],
)
def test_the_mean_slope_is_that_of_a_kl(name, divergence):
  """That of k3 is the other direction's: KL(reference || student)."""
  slope = jax.grad(lambda x: expected(name, x))(LOGITS)
  want = jax.grad(lambda x: divergence(jax.nn.log_softmax(x), REF))(LOGITS)
  np.testing.assert_allclose(slope, want, atol=1e-6)


@pytest.mark.parametrize('name', ['k1', 'k3'])
def test_the_mean_value_is_the_kl(name):
  want = reverse_kl(jax.nn.log_softmax(LOGITS), REF)
  np.testing.assert_allclose(expected(name, LOGITS), want, rtol=1e-5)


@pytest.mark.parametrize('name', KL_ESTIMATORS)
def test_nothing_pulls_at_the_reference(name):
  value, slope = jax.value_and_grad(KL_ESTIMATORS[name])(REF[0], REF[0])
  assert value == slope == 0


@pytest.mark.parametrize('gap', [-60.0, -1.0, 19.0, 20.0, 24.0, 1000.0])
def test_k3_never_pulls_away_from_the_reference(gap):
  """Below, at and beyond the edge from which its exponential is a line."""
  ref, e20 = -1.0, np.exp(20.0)
  value, slope = jax.value_and_grad(KL_ESTIMATORS['k3'])(ref - gap, ref)
  if gap <= 20:
    np.testing.assert_allclose(value, np.exp(gap) - gap - 1, rtol=1e-5)
  else:  # the tangent at 20
    np.testing.assert_allclose(value, e20 * (gap - 19) - gap - 1, rtol=1e-5)
  want = 1 - np.exp(min(gap, 20.0))
  np.testing.assert_allclose(slope, want, rtol=1e-5)
  assert slope * gap < 0  # less likely than under the reference: made likelier
