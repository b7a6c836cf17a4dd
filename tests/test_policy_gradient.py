import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.advantage import group_normalised
from sdjax.objectives.policy_gradient import clipped_policy_gradient
from sdjax.objectives.reduce import token_weights
from sdjax.objectives.reference_kl import k3


@pytest.mark.parametrize(
  'ratio, advantage, want, slope',
  [
    (1.0, 2.0, -2.0, -2.0),
    (1.0, -2.0, 2.0, 2.0),
    # Inside the clip.
    (1.2, 2.0, -2.4, -2.4),
    (0.9, -2.0, 1.8, 1.8),
    # Beyond it on the side that pays: constant.
    (1.5, 2.0, -2.6, 0.0),
    (0.5, -2.0, 1.6, 0.0),
    # Beyond it on the side that costs: not clipped.
    (0.5, 2.0, -1.0, -1.0),
    (1.5, -2.0, 3.0, 3.0),
    (1.5, 0.0, 0.0, 0.0),
  ],
)
def test_clip_by_hand(ratio, advantage, want, slope):
  # The slope is with respect to the log-probability: d ratio = ratio.
  value, gradient = jax.value_and_grad(
    lambda logp: clipped_policy_gradient(
      logp, jnp.array(-1.0), jnp.array(advantage), clip_low=0.2, clip_high=0.3
    )
  )(jnp.log(ratio) - 1.0)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  np.testing.assert_allclose(gradient, slope, rtol=1e-5)


def test_the_behaviour_policy_is_constant():
  slope = jax.grad(
    lambda b: clipped_policy_gradient(
      jnp.float32(-1.0), b, jnp.array(1.0), clip_low=9.0, clip_high=9.0
    )
  )(-1.1)
  assert slope == 0


def test_two_groups_by_hand():
  # Rewards 1 0 0 1 give advantages +-0.5 / (0.5 + 1e-4); 1 1 1 1 give 0.
  reward_QG = jnp.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
  unit = 0.5 / 0.5001
  advantage_QG = group_normalised(reward_QG)
  np.testing.assert_allclose(
    advantage_QG, [[unit, -unit, -unit, unit], [0, 0, 0, 0]], rtol=1e-5
  )
  length = jnp.array([[1, 2, 1, 2], [2, 1, 1, 1]])
  mask = jnp.arange(2) < length[..., None]
  weight = token_weights(mask, jnp.ones((2, 4), bool), 'token_mean')
  logp = jnp.full((2, 4, 2), -1.0)

  def total(logp):
    each = clipped_policy_gradient(
      logp,
      jnp.array(-1.0),
      advantage_QG[..., None],
      clip_low=0.2,
      clip_high=0.2,
    )
    return jnp.sum(weight * each)

  value, slope = jax.value_and_grad(total)(logp)
  # 11 tokens; 3 of rollouts with +unit, 3 with -unit.
  np.testing.assert_allclose(value, 0, atol=1e-6)
  want = np.zeros((2, 4, 2))
  want[0] = [[-1, 0], [1, 1], [1, 0], [-1, -1]]
  np.testing.assert_allclose(slope, want * unit / 11, rtol=1e-5)


def test_k3_by_hand():
  # exp(ln 2) - ln 2 - 1, and exp(-ln 2) + ln 2 - 1.
  np.testing.assert_allclose(
    k3(jnp.log(0.25), jnp.log(0.5)), 1 - np.log(2), rtol=1e-5
  )
  np.testing.assert_allclose(
    k3(jnp.log(0.5), jnp.log(0.25)), np.log(2) - 0.5, rtol=1e-5
  )
  assert k3(jnp.log(0.5), jnp.log(0.5)) == 0


def test_k3_is_unbiased_and_its_reference_constant():
  p, q = np.array([0.7, 0.2, 0.1]), np.array([0.25, 0.25, 0.5])
  mean = np.sum(p * k3(jnp.log(p), jnp.log(q)))
  np.testing.assert_allclose(mean, np.sum(p * np.log(p / q)), rtol=1e-5)
  assert jax.grad(k3, argnums=1)(-1.0, -2.0) == 0
  # d/dlogp = 1 - exp(ref - logp).
  np.testing.assert_allclose(
    jax.grad(k3)(-1.0, -2.0), 1 - np.exp(-1), rtol=1e-5
  )
