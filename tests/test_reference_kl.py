import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.divergence import ForwardKL, ReverseKL
from sdjax.objectives.reference_kl import K1, K2, K3

LOGITS = jnp.array([0.3, -1.0, 0.8])
REF = jnp.log(jnp.array([0.7, 0.2, 0.1]))


@pytest.mark.parametrize(
  'kind, want',
  [
    (K1, np.log(4)),
    (K2, np.log(4) ** 2 / 2),
    (K3, 0.25 + np.log(4) - 1),
  ],
)
def test_values_by_hand(kind, want):
  # p = 0.8, r = 0.2.
  got = kind(1.0)(jnp.log(0.8), jnp.log(0.2))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def expected(kind, logits):
  """The mean over tokens the student samples, its distribution constant."""
  logp = jax.nn.log_softmax(logits)
  p = jax.lax.stop_gradient(jnp.exp(logp))
  return jnp.sum(p * kind(1.0)(logp, REF))


@pytest.mark.parametrize(
  'kind, divergence',
  [(K1, ReverseKL()), (K2, ReverseKL()), (K3, ForwardKL())],
)
def test_the_mean_slope_is_that_of_a_kl(kind, divergence):
  """That of k3 is the other direction's: KL(reference || student)."""
  assert kind.descends == divergence.name
  slope = jax.grad(lambda x: expected(kind, x))(LOGITS)
  want = jax.grad(lambda x: divergence(jax.nn.log_softmax(x), REF))(LOGITS)
  np.testing.assert_allclose(slope, want, atol=1e-6)


@pytest.mark.parametrize('kind', [K1, K3])
def test_the_mean_value_is_the_kl(kind):
  want = ReverseKL()(jax.nn.log_softmax(LOGITS), REF)
  np.testing.assert_allclose(expected(kind, LOGITS), want, rtol=1e-5)


@pytest.mark.parametrize('kind', [K1, K2, K3])
def test_nothing_pulls_at_the_reference(kind):
  value, slope = jax.value_and_grad(kind(1.0))(REF[0], REF[0])
  assert value == slope == 0


@pytest.mark.parametrize('gap', [-60.0, -1.0, 19.0, 20.0, 24.0, 1000.0])
def test_k3_never_pulls_away_from_the_reference(gap):
  """Below, at and beyond the edge from which its exponential is a line."""
  ref, e20 = -1.0, np.exp(20.0)
  value, slope = jax.value_and_grad(K3(1.0))(ref - gap, ref)
  if gap <= 20:
    np.testing.assert_allclose(value, np.exp(gap) - gap - 1, rtol=1e-5)
  else:  # the tangent at 20
    np.testing.assert_allclose(value, e20 * (gap - 19) - gap - 1, rtol=1e-5)
  want = 1 - np.exp(min(gap, 20.0))
  np.testing.assert_allclose(slope, want, rtol=1e-5)
  assert slope * gap < 0  # less likely than under the reference: made likelier
