import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdjax.objectives.divergence import (
  DIVERGENCES,
  divergence,
  forward_kl,
  generalised_jsd,
  reverse_kl,
  sampled_reverse_kl,
)

STUDENT = jnp.log(jnp.array([0.5, 0.25, 0.25]))
TEACHER = jnp.log(jnp.array([0.25, 0.5, 0.25]))
SKEWED = jnp.log(jnp.array([0.25, 0.25, 0.5]))
OTHER = jnp.log(jnp.array([0.7, 0.2, 0.1]))


def test_kls_by_hand():
  # Student 1/2 1/4 1/4, teacher 1/4 1/2 1/4: both are (1/4) ln 2.
  quarter = np.log(2) / 4
  np.testing.assert_allclose(reverse_kl(STUDENT, TEACHER), quarter, rtol=1e-5)
  np.testing.assert_allclose(forward_kl(STUDENT, TEACHER), quarter, rtol=1e-5)


def test_the_direction_is_that_of_the_name():
  # Student (.7 .2 .1), teacher (.25 .25 .5).
  reverse = 0.7 * np.log(2.8) + 0.2 * np.log(0.8) + 0.1 * np.log(0.2)
  forward = 0.25 * np.log(1 / 2.8) + 0.25 * np.log(1.25) + 0.5 * np.log(5)
  np.testing.assert_allclose(reverse_kl(OTHER, SKEWED), reverse, rtol=1e-5)
  np.testing.assert_allclose(forward_kl(OTHER, SKEWED), forward, rtol=1e-5)
  assert abs(reverse - forward) > 0.05


def test_jsd_by_hand():
  # m = (3/8, 3/8, 1/4); both sides: 1/2 ln 4/3 + 1/4 ln 2/3 + 0.
  half = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3)
  np.testing.assert_allclose(
    generalised_jsd(STUDENT, TEACHER, alpha=0.5), half, rtol=1e-5
  )
  # alpha = 1/4, the teacher's share: m = 3/4 p + 1/4 q.
  p, q = np.exp(OTHER), np.exp(SKEWED)
  m = 0.75 * p + 0.25 * q
  want = 0.75 * np.sum(p * np.log(p / m)) + 0.25 * np.sum(q * np.log(q / m))
  np.testing.assert_allclose(
    generalised_jsd(OTHER, SKEWED, alpha=0.25), want, rtol=1e-5
  )


def test_a_clipped_jsd_by_hand():
  # alpha = 1/4, by tokens: 3/4 p log(p/m) + 1/4 q log(q/m), then the clip.
  p, q = np.array([0.7, 0.2, 0.1]), np.array([0.25, 0.25, 0.5])
  m = 0.75 * p + 0.25 * q
  each = 0.75 * p * np.log(p / m) + 0.25 * q * np.log(q / m)
  assert each[0] > 0.02 and each[2] > 0.05 > 0.01 > each[1] > 0
  for clip, want in (
    (0.01, 0.01 + each[1] + 0.01),
    (0.05, each[0] + each[1] + 0.05),
    (1.0, each.sum()),
  ):
    got = generalised_jsd(OTHER, SKEWED, alpha=0.25, clip=clip)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    scaled = divergence('jsd', 0.25, True, clip)(OTHER, SKEWED)
    np.testing.assert_allclose(scaled, want / (0.25 * 0.75), rtol=1e-5)


def test_a_clipped_jsd_is_seldom_below_zero():
  """Clipping either KL by itself would make most of these negative."""
  rng = np.random.default_rng(0)
  p, q = jax.nn.log_softmax(2 * rng.standard_normal((2, 200, 11)))
  got = generalised_jsd(p, q, clip=0.01)
  assert (got > 0).all()


def test_sampled_form_by_hand():
  # (ln 1/2 - ln 1/4) ln 1/2, and the slope is the bracket alone.
  student, teacher = jnp.log(0.5), jnp.log(0.25)
  value, slope = jax.value_and_grad(sampled_reverse_kl)(student, teacher)
  np.testing.assert_allclose(value, -(np.log(2) ** 2), rtol=1e-5)
  np.testing.assert_allclose(slope, np.log(2), rtol=1e-5)


def test_sampled_form_has_the_gradient_of_reverse_kl_on_average():
  logits = jnp.array([0.3, -1.0, 0.8])

  def full(logits):
    return reverse_kl(jax.nn.log_softmax(logits), OTHER)

  def expected(logits):
    logp = jax.nn.log_softmax(logits)
    law = jax.lax.stop_gradient(jnp.exp(logp))
    return jnp.sum(law * sampled_reverse_kl(logp, OTHER))

  np.testing.assert_allclose(
    jax.grad(expected)(logits), jax.grad(full)(logits), atol=1e-6
  )


@pytest.mark.parametrize('name', ['forward_kl', 'jsd', 'reverse_kl'])
def test_zero_at_equality_and_nowhere_below(name):
  f = divergence(name, 0.3)
  rng = np.random.default_rng(0)
  p, q = jax.nn.log_softmax(3 * rng.standard_normal((2, 50, 7)))
  np.testing.assert_allclose(f(p, p), 0, atol=1e-6)
  assert (f(p, q) > 1e-3).all()


@pytest.mark.parametrize('name', sorted(DIVERGENCES))
def test_gradients_equal_differences(name):
  f = divergence(name, 0.3)
  rng = np.random.default_rng(1)
  logits, teacher = rng.standard_normal((2, 2, 5))
  with jax.enable_x64(True):
    logits = jnp.array(logits)
    teacher = jax.nn.log_softmax(jnp.array(teacher))

    def value(logits):
      return f(jax.nn.log_softmax(logits), teacher)

    check_grads(value, (logits,), order=1, modes=['rev'], atol=1e-6, rtol=1e-6)
    at_teacher = jax.grad(lambda x: value(x).sum())(teacher)
  np.testing.assert_allclose(at_teacher, 0, atol=1e-12)


def test_options():
  np.testing.assert_allclose(
    divergence('jsd', 0.25)(OTHER, SKEWED),
    generalised_jsd(OTHER, SKEWED, alpha=0.25),
  )
  with pytest.raises(ValueError, match=r"'kl' is not one of .*reverse_kl"):
    divergence('kl', 0.5)
  for alpha in (0.0, 1.0, -1.0):
    with pytest.raises(ValueError, match=f'jsd_alpha={alpha}'):
      divergence('jsd', alpha)


def test_tokens_of_probability_nearly_zero_stay_finite():
  sharp = jax.nn.log_softmax(jnp.array([200.0, 0.0, -200.0]))
  for name in DIVERGENCES:
    f = divergence(name, 0.5)
    for p, q in ((sharp, OTHER), (OTHER, sharp)):
      value, slope = jax.value_and_grad(f)(jnp.asarray(p), jnp.asarray(q))
      assert jnp.isfinite(value) and jnp.isfinite(slope).all()
