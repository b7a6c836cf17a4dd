import jax.numpy as jnp
import numpy as np

from sdjax.objectives.advantage import disjoint_share, group_normalised


def test_group_by_hand():
  # Mean 1, population std sqrt(2/4): the sample std would be sqrt(2/3).
  out = group_normalised(jnp.array([[2.0, 1.0, 1.0, 0.0]]))
  unit = 1 / (0.5**0.5 + 1e-4)
  np.testing.assert_allclose(out, [[unit, 0, 0, -unit]], rtol=1e-5)


def test_all_right_and_all_wrong_have_no_advantage():
  out = group_normalised(jnp.array([[1.0] * 4, [0.0] * 4, [0.7] * 4]))
  np.testing.assert_allclose(out, 0, atol=1e-3)
  assert (out[:2] == 0).all()


def test_groups_do_not_mix():
  reward = jnp.array([[1.0, 0.0], [5.0, 3.0]])
  out = group_normalised(reward)
  np.testing.assert_array_equal(out[1:], group_normalised(reward[1:]))
  np.testing.assert_allclose(out.mean(axis=1), 0, atol=1e-6)


def test_a_group_of_one_has_no_advantage():
  assert group_normalised(jnp.array([[3.0]])).tolist() == [[0.0]]


def test_integer_and_bool_rewards():
  for dtype in (jnp.int32, bool):
    out = group_normalised(jnp.array([[1, 0]], dtype))
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
