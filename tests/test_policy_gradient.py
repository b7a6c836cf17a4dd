import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sdjax.objectives.advantage import group_normalised
from sdjax.objectives.policy_gradient import (
  POLICY_LOSSES,
  adaptive_clip,
  clipped_away,
  clipped_policy_gradient,
  truncated_ratio,
)

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


@pytest.mark.parametrize(
  'ratio, advantage, want, slope',
  [
    (1.0, 2.0, -2.0, -2.0),
    # At most 3 |A|, and constant there.
    (2.5, -2.0, 5.0, 5.0),
    (4.0, -2.0, 6.0, 0.0),
    # A positive advantage has its own clip.
    (4.0, 2.0, -2.4, 0.0),
  ],
)
def test_dual_clip_by_hand(ratio, advantage, want, slope):
  value, gradient = jax.value_and_grad(
    lambda logp: clipped_policy_gradient(
      logp,
      jnp.array(-1.0),
      jnp.array(advantage),
      clip_low=0.2,
      clip_high=0.2,
      dual_clip=3.0,
    )
  )(jnp.log(ratio) - 1.0)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  np.testing.assert_allclose(gradient, slope, atol=1e-5)


@pytest.mark.parametrize('ratio, weight', [(1.0, 1.0), (2.0, 1.3), (0.1, 0.8)])
def test_cispo_weighs_and_never_drops_a_token(ratio, weight):
  logp = jnp.log(ratio) - 1.0
  value, gradient = jax.value_and_grad(
    lambda logp: POLICY_LOSSES['cispo'](
      logp, jnp.array(-1.0), jnp.array(2.0), clip_low=0.2, clip_high=0.3
    )
  )(logp)
  np.testing.assert_allclose(value, -2 * weight * logp, rtol=1e-5)
  np.testing.assert_allclose(gradient, -2 * weight, rtol=1e-5)


@pytest.mark.parametrize('advantage', [2.0, -2.0, 0.0])
def test_tokens_are_clipped_away_where_the_clip_has_no_slope(advantage):
  logp = jnp.log(jnp.array([0.1, 0.75, 0.85, 1.0, 1.25, 1.35, 9.0])) - 3.0
  slope = jax.grad(
    lambda logp: clipped_policy_gradient(
      logp, jnp.array(-3.0), jnp.array(advantage), clip_low=0.2, clip_high=0.3
    ).sum()
  )(logp)
  got = clipped_away(logp, jnp.array(-3.0), jnp.array(advantage), 0.2, 0.3)
  want = (slope == 0) & (advantage != 0)
  np.testing.assert_array_equal(got, want)
  assert int(got.sum()) == (2 if advantage else 0)


def test_gspo_has_one_ratio_a_sequence_by_hand():
  # Ratios 2 and 1/2 of the first (mean log 0: ratio 1); 4 and padding of the
  # second (ratio 4, clipped at 1.3).
  old = jnp.full((2, 2), -1.0)
  gaps = jnp.log(jnp.array([[2.0, 0.5], [4.0, 9.0]]))
  mask = jnp.array([[True, True], [True, False]])

  def f(logp):
    each = POLICY_LOSSES['gspo'](
      logp, old, jnp.full((2, 2), 2.0), clip_low=0.2, clip_high=0.3, mask=mask
    )
    return jnp.where(mask, each, 0).sum(), each

  (_, each), slope = jax.value_and_grad(f, has_aux=True)(old + gaps)
  np.testing.assert_allclose(each[mask], [-2, -2, -2.6], rtol=1e-5)
  # Both tokens carry the loss, and each moves the ratio by a half.
  np.testing.assert_allclose(slope, [[-2, -2], [0, 0]], atol=1e-5)


def test_gspo_keeps_the_advantages_of_tokens():
  logp = jnp.zeros((1, 3))
  advantage = jnp.array([[1.0, -1.0, 0.0]])

  def f(x):
    return POLICY_LOSSES['gspo'](
      x, logp, advantage, clip_low=0.2, clip_high=0.2, mask=logp == 0
    ).sum()

  np.testing.assert_allclose(jax.grad(f)(logp), [[-1, 1, 0]], atol=1e-6)


def test_reinforce_by_hand():
  value, slope = jax.value_and_grad(
    lambda logp: POLICY_LOSSES['reinforce'](logp, None, jnp.array(3.0))
  )(-0.5)
  np.testing.assert_allclose([value, slope], [1.5, -3])


@pytest.mark.parametrize('name', POLICY_LOSSES)
def test_at_ratio_one_all_have_the_slope_of_reinforce(name):
  logp = jnp.log(jnp.array([[0.5, 0.25, 0.8], [0.1, 0.9, 0.5]]))
  advantage = jnp.array([[1.0], [-2.0]]) * jnp.ones((2, 3))
  mask = jnp.ones((2, 3), bool)

  def f(x):
    return POLICY_LOSSES[name](
      x, logp, advantage, clip_low=0.2, clip_high=0.2, mask=mask
    ).sum()

  np.testing.assert_allclose(jax.grad(f)(logp), -advantage, rtol=1e-5)


def test_a_ratio_of_any_size_stays_finite():
  value, slope = jax.value_and_grad(
    lambda logp: clipped_policy_gradient(
      logp, jnp.array(-500.0), jnp.array(-1.0), clip_low=0.2, clip_high=0.2
    )
  )(0.0)
  assert jnp.isfinite(value) and jnp.isfinite(slope)
  assert truncated_ratio(jnp.array(0.0), jnp.array(-500.0), 2.0) == 2


def test_adaptive_clip_by_hand():
  # Probabilities .5 and .55 share a bin of 5, .9 has its own; ratios 1.2 and
  # 0.8 have deviation 0.2, a single one has none.
  logp = jnp.log(jnp.array([0.5, 0.55, 0.9, 0.5]))
  ratios = jnp.array([1.2, 0.8, 3.0, 9.0])
  mask = jnp.array([True, True, True, False])
  got = adaptive_clip(logp, logp - jnp.log(ratios), mask)
  alone = 0.2 + 3e-4
  np.testing.assert_allclose(got[:3], [0.8, 0.8, alone], rtol=1e-4)
  # Far apart: as wide as is allowed.
  far = logp - jnp.log(jnp.array([5.0, 0.1, 3.0, 9.0]))
  assert adaptive_clip(logp, far, mask)[0] == 3
  # And as narrow, where the base is narrower.
  got = adaptive_clip(logp, logp, mask, base=0.01, scale=1.0, smallest=0.05)
  np.testing.assert_allclose(got[:3], 0.05, rtol=1e-6)


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
