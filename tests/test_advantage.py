from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.advantages import (
  GRPO,
  ROSA,
  Advantage,
  MaxRL,
  PassAtK,
  different_share,
  disjoint_share,
)
from sdjax.options import ConfigError
from sdjax.types import Rewards

# One of four right; all right; none.
REWARD = jnp.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
FLAT = [[0.0] * 4] * 2
STD = 3**0.5 / 4 + 1e-4


def grpo(reward, **options):
  return GRPO(**options)(Rewards(reward))


def pass_at_k(correct, k):
  return PassAtK(k)(Rewards(jnp.zeros(correct.shape), correct))


def rosa(set_reward):
  return ROSA()(Rewards(jnp.zeros(set_reward.shape[:2]), None, set_reward))


@pytest.mark.parametrize(
  'name, want',
  [
    # Mean 1/4, population std sqrt(3)/4.
    ('grpo', [[0.75 / STD, -0.25 / STD, -0.25 / STD, -0.25 / STD], *FLAT]),
    ('dr_grpo', [[0.75, -0.25, -0.25, -0.25], *FLAT]),
    # The others' means: 0, 1/3, 1/3, 1/3.
    ('rloo', [[1, -1 / 3, -1 / 3, -1 / 3], *FLAT]),
    ('reinforce', REWARD),
  ],
)
def test_each_by_hand(name, want):
  got = Advantage.parse(name)(Rewards(REWARD))
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_pass_at_k_by_hand():
  # N=4, W=3, k=2: R = 1 - 3/6 = 1/2, s = 1/2. Right: 1. Wrong:
  # (1/2 - C(2,1)/C(3,1)) / s = (1/2 - 2/3) * 2 = -1/3.
  got = pass_at_k(REWARD > 0, 2)
  np.testing.assert_allclose(
    got, [[1, -1 / 3, -1 / 3, -1 / 3], *FLAT], atol=1e-6
  )


def test_pass_at_1_is_grpo_and_a_sure_pass_teaches_nothing():
  correct = jnp.array([[1, 1, 0, 0, 1], [0, 0, 0, 1, 0]], bool)
  np.testing.assert_allclose(pass_at_k(correct, 1), grpo(correct), atol=5e-4)
  # Three right of five: every set of 3 holds a right one.
  assert (pass_at_k(correct, 3)[0] == 0).all()
  assert (pass_at_k(correct, 3)[1] != 0).all()


def test_pass_at_k_is_the_mean_over_subsets():
  import itertools

  rng = np.random.default_rng(0)
  for k in (1, 2, 3, 4):
    correct = rng.random(6) < 0.4
    sets = list(itertools.combinations(range(6), k))
    passed = np.array([correct[list(s)].any() for s in sets], float)
    spread = passed.std()
    if not spread:
      continue
    each = (passed - passed.mean()) / spread
    want = [
      np.mean([a for a, s in zip(each, sets, strict=True) if i in s])
      for i in range(6)
    ]
    got = pass_at_k(jnp.array(correct)[None], k)[0]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_maxrl_by_hand():
  # k = 1 of 4: (1 - 1/4) / (1/4) and (0 - 1/4) / (1/4).
  rare = [[3, -1, -1, -1], *FLAT]
  got = MaxRL()(Rewards(jnp.zeros((3, 4)), REWARD > 0))
  np.testing.assert_allclose(got, rare, atol=1e-6)
  # k = 2 of 3: (1 - 2/3) / (2/3) and -1, whatever the rewards are.
  correct = jnp.array([[True, False, True]])
  got = MaxRL()(Rewards(jnp.array([[-5.0, 7.0, 0.3]]), correct))
  np.testing.assert_allclose(got, [[0.5, -1, 0.5]], atol=1e-6)


def test_maxrl_is_the_slope_of_pass_at_1_and_half_of_pass_at_2():
  """By enumeration, in groups of 3: the sum of pass@n / n over n < 3."""
  import itertools

  right = jnp.array([True, False])
  groups = jnp.array(list(itertools.product(range(2), repeat=3)))
  advantage = MaxRL()(Rewards(jnp.zeros(groups.shape), right[groups]))

  def passes(logit):
    failed = 1 - jax.nn.sigmoid(logit)
    return 1 - failed + (1 - failed**2) / 2

  def surrogate(logit):
    logp = jax.nn.log_sigmoid(jnp.stack([logit, -logit]))[groups]
    p = jax.lax.stop_gradient(jnp.exp(logp.sum(axis=1)))
    return jnp.sum(p * (advantage * logp).mean(axis=1))

  for logit in (-2.0, 0.5):
    np.testing.assert_allclose(
      jax.grad(surrogate)(logit), jax.grad(passes)(logit), rtol=1e-5
    )


def test_rosa_by_hand():
  # Two concepts: the first is covered by two rollouts, the second by one.
  reward = jnp.array([[[1, 0], [1, 0], [0, 1], [0, 0]]], jnp.float32)
  np.testing.assert_allclose(rosa(reward), [[0, 0, 1, 0]])
  # Rewards that nobody earns change nothing.
  wide = jnp.pad(reward, ((0, 0), (0, 0), (0, 3)))
  np.testing.assert_allclose(rosa(wide), [[0, 0, 1, 0]])
  for same in (jnp.ones((2, 3, 4)), jnp.zeros((2, 3, 4))):
    assert (rosa(same) == 0).all()


def test_rosa_is_the_slope_of_the_best_of_a_set():
  """By enumeration: answers A, B, and a wrong one; two rewards; sets of 3."""
  import itertools

  logits = jnp.log(jnp.array([0.3, 0.1, 0.6]))
  earns = jnp.array([[1.0, 0], [0, 1], [0, 0]])
  sets = jnp.array(list(itertools.product(range(3), repeat=3)))

  def best(logits):
    p = jax.nn.softmax(logits)[sets].prod(axis=1)
    return jnp.sum(p * earns[sets].max(axis=1).sum(axis=-1))

  def surrogate(logits):
    logp = jax.nn.log_softmax(logits)[sets]
    p = jax.lax.stop_gradient(jnp.exp(logp.sum(axis=1)))
    return jnp.sum(p * (rosa(earns[sets]) * logp).sum(axis=1))

  np.testing.assert_allclose(
    jax.grad(surrogate)(logits), jax.grad(best)(logits), atol=1e-6
  )


@pytest.mark.parametrize('name', ['rloo', 'rosa'])
def test_a_group_of_one_is_named(name):
  one = jnp.ones((2, 1))
  with pytest.raises(ValueError, match=f'{name} needs at least 2 rollouts'):
    Advantage.parse(name)(Rewards(one, set_reward=one[..., None]))


def test_k_beyond_the_group_is_named():
  with pytest.raises(ValueError, match='k=5 must be in 1..4'):
    pass_at_k(REWARD > 0, 5)
  with pytest.raises(ConfigError, match=r'k=0\) must be .*at least 1'):
    PassAtK(0)


def test_different_share_by_hand():
  same = jnp.array([[[1, 1, 0], [1, 1, 0], [0, 0, 1]]], bool)
  np.testing.assert_allclose(different_share(same), [[0.5, 0.5, 1]])
  # The diagonal is not read.
  np.testing.assert_allclose(
    different_share(same & ~jnp.eye(3, dtype=bool)), [[0.5, 0.5, 1]]
  )


def test_group_by_hand():
  # Mean 1, population std sqrt(2/4): the sample std would be sqrt(2/3).
  out = grpo(jnp.array([[2.0, 1.0, 1.0, 0.0]]))
  unit = 1 / (0.5**0.5 + 1e-4)
  np.testing.assert_allclose(out, [[unit, 0, 0, -unit]], rtol=1e-5)


def test_all_right_and_all_wrong_have_no_advantage():
  out = grpo(jnp.array([[1.0] * 4, [0.0] * 4, [0.7] * 4]))
  assert (out == 0).all()
  # Compiled, a mean of three is a product with 0.33333334.
  thirds = jnp.array([[1.0] * 3, [0.7] * 3])
  assert (jax.jit(grpo)(thirds) == 0).all()


def test_groups_do_not_mix():
  reward = jnp.array([[1.0, 0.0], [5.0, 3.0]])
  out = grpo(reward)
  np.testing.assert_array_equal(out[1:], grpo(reward[1:]))
  np.testing.assert_allclose(out.mean(axis=1), 0, atol=1e-6)


def test_a_group_of_one_has_no_advantage():
  assert grpo(jnp.array([[3.0]])).tolist() == [[0.0]]


def test_the_standard_deviation_of_a_sample_by_hand():
  # Deviations 1 0 0 -1: 2/4 over the population, 2/3 over the sample.
  reward = jnp.array([[2.0, 1.0, 1.0, 0.0], [3.0, 3.0, 3.0, 3.0]])
  out = grpo(reward, std='sample', epsilon=1e-6)
  unit = 1 / ((2 / 3) ** 0.5 + 1e-6)
  np.testing.assert_allclose(out, [[unit, 0, 0, -unit], [0] * 4], rtol=1e-6)
  # The constant is added to the deviation, not to the variance.
  out = grpo(reward[:1], std='population', epsilon=0.5)
  np.testing.assert_allclose(out[0, 0], 1 / (0.5**0.5 + 0.5), rtol=1e-6)
  read = Advantage.parse("grpo(std='sample', epsilon=1e-6)")(Rewards(reward))
  np.testing.assert_allclose(read[0, 0], unit, rtol=1e-6)


def test_a_sample_of_one_has_mean_0_and_deviation_1():
  out = grpo(jnp.array([[3.0], [0.0]]), std='sample', epsilon=0.5)
  np.testing.assert_allclose(out, [[2], [0]])


def test_an_unknown_spread_is_named():
  given: Any = 'range'
  with pytest.raises(
    ConfigError, match="std='range'.* must be 'population' or 'sample'"
  ):
    GRPO(given)


def test_integer_and_bool_rewards():
  for dtype in (jnp.int32, bool):
    out = grpo(jnp.array([[1, 0]], dtype))
    np.testing.assert_allclose(out, [[0.9998, -0.9998]], rtol=1e-5)


def test_disjoint_share_by_hand():
  # Concepts {0} {0,1} {2} {}: the last shares nothing with anyone.
  member = jnp.array([[[1, 0, 0], [1, 1, 0], [0, 0, 1], [0, 0, 0]]], bool)
  np.testing.assert_allclose(
    disjoint_share(member), [[2 / 3, 2 / 3, 1, 1]], rtol=1e-6
  )


def test_disjoint_share_leaves_the_rollout_itself_out():
  assert disjoint_share(jnp.zeros((1, 1, 2), bool)).tolist() == [[0.0]]
  assert disjoint_share(jnp.zeros((1, 3, 2), bool)).tolist() == [[1.0] * 3]
  assert disjoint_share(jnp.ones((1, 3, 2), bool)).tolist() == [[0.0] * 3]
