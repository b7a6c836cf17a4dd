import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.advantages import GRPO
from sdjax.objectives.policy_loss import (
  CISPO,
  GSPO,
  AdaptiveClip,
  Clip,
  PolicyLoss,
  Reinforce,
  adaptive_clip,
  clipped_away,
  truncated_ratio,
)
from sdjax.objectives.reduce import token_weights
from sdjax.objectives.reference_kl import K3
from sdjax.options import ConfigError
from sdjax.types import Rewards

k3 = K3(1.0)


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
    lambda logp: Clip(low=0.2, high=0.3)(
      logp, jnp.array(-1.0), jnp.array(advantage)
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
    lambda logp: Clip(low=0.2, high=0.2, dual=3.0)(
      logp, jnp.array(-1.0), jnp.array(advantage)
    )
  )(jnp.log(ratio) - 1.0)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  np.testing.assert_allclose(gradient, slope, atol=1e-5)


@pytest.mark.parametrize('ratio, weight', [(1.0, 1.0), (2.0, 1.3), (0.1, 0.8)])
def test_cispo_weighs_and_never_drops_a_token(ratio, weight):
  logp = jnp.log(ratio) - 1.0
  value, gradient = jax.value_and_grad(
    lambda logp: CISPO(low=0.2, high=0.3)(logp, jnp.array(-1.0), jnp.array(2.0))
  )(logp)
  np.testing.assert_allclose(value, -2 * weight * logp, rtol=1e-5)
  np.testing.assert_allclose(gradient, -2 * weight, rtol=1e-5)


@pytest.mark.parametrize('advantage', [2.0, -2.0, 0.0])
def test_tokens_are_clipped_away_where_the_clip_has_no_slope(advantage):
  logp = jnp.log(jnp.array([0.1, 0.75, 0.85, 1.0, 1.25, 1.35, 9.0])) - 3.0
  slope = jax.grad(
    lambda logp: Clip(low=0.2, high=0.3)(
      logp, jnp.array(-3.0), jnp.array(advantage)
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
    each = GSPO(low=0.2, high=0.3)(logp, old, jnp.full((2, 2), 2.0), mask)
    return jnp.where(mask, each, 0).sum(), each

  (_, each), slope = jax.value_and_grad(f, has_aux=True)(old + gaps)
  np.testing.assert_allclose(each[mask], [-2, -2, -2.6], rtol=1e-5)
  # Both tokens carry the loss, and each moves the ratio by a half.
  np.testing.assert_allclose(slope, [[-2, -2], [0, 0]], atol=1e-5)


def test_gspo_keeps_the_advantages_of_tokens():
  logp = jnp.zeros((1, 3))
  advantage = jnp.array([[1.0, -1.0, 0.0]])

  def f(x):
    return GSPO(low=0.2, high=0.2)(x, logp, advantage, logp == 0).sum()

  np.testing.assert_allclose(jax.grad(f)(logp), [[-1, 1, 0]], atol=1e-6)


def test_reinforce_by_hand():
  value, slope = jax.value_and_grad(
    lambda logp: Reinforce()(logp, jnp.array(0.0), jnp.array(3.0))
  )(-0.5)
  np.testing.assert_allclose([value, slope], [1.5, -3])


@pytest.mark.parametrize('name', PolicyLoss.choices)
def test_at_ratio_one_all_have_the_slope_of_reinforce(name):
  logp = jnp.log(jnp.array([[0.5, 0.25, 0.8], [0.1, 0.9, 0.5]]))
  advantage = jnp.array([[1.0], [-2.0]]) * jnp.ones((2, 3))
  mask = jnp.ones((2, 3), bool)

  def f(x):
    return PolicyLoss.parse(name)(x, logp, advantage, mask).sum()

  np.testing.assert_allclose(jax.grad(f)(logp), -advantage, rtol=1e-5)


def test_a_ratio_of_any_size_stays_finite():
  value, slope = jax.value_and_grad(
    lambda logp: Clip(low=0.2, high=0.2)(
      logp, jnp.array(-500.0), jnp.array(-1.0)
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


def test_each_token_has_its_own_width_by_hand():
  # Ratio 2 and advantage 1: cut at 1 + width, where that is below it; the
  # dual clip bounds what a negative advantage costs.
  logp, old = jnp.log(jnp.full(3, 2.0)), jnp.zeros(3)
  width = jnp.array([0.1, 0.6, 3.0])
  got = AdaptiveClip()(logp, old, jnp.ones(3), width=width)
  np.testing.assert_allclose(got, [-1.1, -1.6, -2], rtol=1e-6)
  got = AdaptiveClip(dual=1.5)(logp, old, -jnp.ones(3), width=width)
  np.testing.assert_allclose(got, [1.5] * 3, rtol=1e-6)
  np.testing.assert_array_equal(
    AdaptiveClip().width_of(logp, old, logp > 0),
    adaptive_clip(logp, old, logp > 0),
  )


@pytest.mark.parametrize('kind', [Clip, AdaptiveClip, GSPO])
@pytest.mark.parametrize('dual', [0.5, 1.0])
def test_a_dual_clip_below_the_loss_itself_is_refused(kind, dual):
  with pytest.raises(ConfigError, match=f'dual={dual}.* must be above 1, or 0'):
    kind(dual=dual)


def test_the_behaviour_policy_is_constant():
  slope = jax.grad(
    lambda b: Clip(low=9.0, high=9.0)(jnp.float32(-1.0), b, jnp.array(1.0))
  )(-1.1)
  assert slope == 0


def test_two_groups_by_hand():
  # Rewards 1 0 0 1 give advantages +-0.5 / (0.5 + 1e-4); 1 1 1 1 give 0.
  reward_QG = jnp.array([[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
  unit = 0.5 / 0.5001
  advantage_QG = GRPO()(Rewards(reward_QG))
  np.testing.assert_allclose(
    advantage_QG, [[unit, -unit, -unit, unit], [0, 0, 0, 0]], rtol=1e-5
  )
  length = jnp.array([[1, 2, 1, 2], [2, 1, 1, 1]])
  mask = jnp.arange(2) < length[..., None]
  weight = token_weights(mask, jnp.ones((2, 4), bool), 'token_mean')
  logp = jnp.full((2, 4, 2), -1.0)

  def total(logp):
    each = Clip(low=0.2, high=0.2)(
      logp, jnp.array(-1.0), advantage_QG[..., None]
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
