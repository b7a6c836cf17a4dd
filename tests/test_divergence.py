import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from sdjax.objectives.divergence import (
  JSD,
  CrossEntropy,
  Divergence,
  ForwardKL,
  ReverseKL,
  SkewedKL,
  sampled_reverse_kl,
)
from sdjax.options import ConfigError

STUDENT = jnp.log(jnp.array([0.5, 0.25, 0.25]))
TEACHER = jnp.log(jnp.array([0.25, 0.5, 0.25]))
SKEWED = jnp.log(jnp.array([0.25, 0.25, 0.5]))
OTHER = jnp.log(jnp.array([0.7, 0.2, 0.1]))

ALL = [
  JSD(0.3) if kind is JSD else kind()
  for kind in Divergence.choices.values()
  if kind.compares
]


def test_kls_by_hand():
  # Student 1/2 1/4 1/4, teacher 1/4 1/2 1/4: both are (1/4) ln 2.
  quarter = np.log(2) / 4
  np.testing.assert_allclose(ReverseKL()(STUDENT, TEACHER), quarter, rtol=1e-5)
  np.testing.assert_allclose(ForwardKL()(STUDENT, TEACHER), quarter, rtol=1e-5)


def test_the_direction_is_that_of_the_name():
  # Student (.7 .2 .1), teacher (.25 .25 .5).
  reverse = 0.7 * np.log(2.8) + 0.2 * np.log(0.8) + 0.1 * np.log(0.2)
  forward = 0.25 * np.log(1 / 2.8) + 0.25 * np.log(1.25) + 0.5 * np.log(5)
  np.testing.assert_allclose(ReverseKL()(OTHER, SKEWED), reverse, rtol=1e-5)
  np.testing.assert_allclose(ForwardKL()(OTHER, SKEWED), forward, rtol=1e-5)
  assert abs(reverse - forward) > 0.05


def test_jsd_by_hand():
  # m = (3/8, 3/8, 1/4); both sides: 1/2 ln 4/3 + 1/4 ln 2/3 + 0.
  half = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3)
  np.testing.assert_allclose(JSD(alpha=0.5)(STUDENT, TEACHER), half, rtol=1e-5)
  # alpha = 1/4, the teacher's share: m = 3/4 p + 1/4 q.
  p, q = np.exp(OTHER), np.exp(SKEWED)
  m = 0.75 * p + 0.25 * q
  want = 0.75 * np.sum(p * np.log(p / m)) + 0.25 * np.sum(q * np.log(q / m))
  np.testing.assert_allclose(JSD(alpha=0.25)(OTHER, SKEWED), want, rtol=1e-5)


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
    got = JSD(alpha=0.25, clip=clip)(OTHER, SKEWED)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    scaled = JSD(0.25, True, clip)(OTHER, SKEWED)
    np.testing.assert_allclose(scaled, want / (0.25 * 0.75), rtol=1e-5)


def test_a_clipped_jsd_is_seldom_below_zero():
  """Clipping either KL by itself would make most of these negative."""
  rng = np.random.default_rng(0)
  p, q = jax.nn.log_softmax(2 * rng.standard_normal((2, 200, 11)))
  got = JSD(clip=0.01)(p, q)
  assert (got > 0).all()


def test_skewed_kl_by_hand():
  # alpha = 1/2: m = (3/8, 3/8, 1/4); 1/4 ln 2/3 + 1/2 ln 4/3 + 1/4 ln 1.
  want = 0.25 * np.log(2 / 3) + 0.5 * np.log(4 / 3)
  got = SkewedKL(alpha=0.5)(STUDENT, TEACHER)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  # By default a tenth is the teacher's: .9 (.7 .2 .1) + .1 (.25 .25 .5).
  m = np.array([0.655, 0.205, 0.14])
  want = 0.25 * np.log(0.25 / m[0]) + 0.25 * np.log(0.25 / m[1])
  want += 0.5 * np.log(0.5 / m[2])
  np.testing.assert_allclose(SkewedKL()(OTHER, SKEWED), want, rtol=1e-5)


def test_skewed_kl_goes_to_the_forward_kl_and_to_nothing():
  forward = ForwardKL()(OTHER, SKEWED)
  np.testing.assert_allclose(SkewedKL(1e-6)(OTHER, SKEWED), forward, rtol=1e-5)
  np.testing.assert_allclose(SkewedKL(0.999)(OTHER, SKEWED), 0, atol=1e-5)


def test_skewed_kl_is_bounded():
  # Nothing in common: all the mixture has of the teacher is its share of it.
  apart = jax.nn.log_softmax(jnp.array([[300.0, 0.0], [0.0, 300.0]]))
  got = SkewedKL(0.2)(apart[0], apart[1])
  np.testing.assert_allclose(got, -np.log(0.2), rtol=1e-6)


def test_the_slope_of_skewed_kl_by_hand():
  # alpha = 1/2, the student's parts of m: (2/3, 1/3, 1/2); q w = (1/6, 1/6,
  # 1/8), together 11/24.
  slope = jax.grad(lambda x: SkewedKL(0.5)(jax.nn.log_softmax(x), TEACHER))(
    STUDENT
  )
  want = 11 / 24 * np.array([0.5, 0.25, 0.25]) - [1 / 6, 1 / 6, 1 / 8]
  np.testing.assert_allclose(slope, want, atol=1e-6)


@pytest.mark.parametrize('alpha', [0.0, 1.0])
def test_a_skew_without_a_mixture_is_refused(alpha):
  with pytest.raises(
    ConfigError, match=f'alpha={alpha}.* must be (above|below)'
  ):
    SkewedKL(alpha)


def test_sampled_form_by_hand():
  # (ln 1/2 - ln 1/4) ln 1/2, and the slope is the bracket alone.
  student, teacher = jnp.log(0.5), jnp.log(0.25)
  value, slope = jax.value_and_grad(sampled_reverse_kl)(student, teacher)
  np.testing.assert_allclose(value, -(np.log(2) ** 2), rtol=1e-5)
  np.testing.assert_allclose(slope, np.log(2), rtol=1e-5)


def test_sampled_form_has_the_gradient_of_reverse_kl_on_average():
  logits = jnp.array([0.3, -1.0, 0.8])

  def full(logits):
    return ReverseKL()(jax.nn.log_softmax(logits), OTHER)

  def expected(logits):
    logp = jax.nn.log_softmax(logits)
    p = jax.lax.stop_gradient(jnp.exp(logp))
    return jnp.sum(p * sampled_reverse_kl(logp, OTHER))

  np.testing.assert_allclose(
    jax.grad(expected)(logits), jax.grad(full)(logits), atol=1e-6
  )


@pytest.mark.parametrize(
  'f', [f for f in ALL if not isinstance(f, CrossEntropy)], ids=str
)
def test_zero_at_equality_and_nowhere_below(f):
  rng = np.random.default_rng(0)
  p, q = jax.nn.log_softmax(3 * rng.standard_normal((2, 50, 7)))
  np.testing.assert_allclose(f(p, p), 0, atol=1e-6)
  assert (f(p, q) > 1e-3).all()


@pytest.mark.parametrize('f', ALL, ids=str)
def test_gradients_equal_differences(f):
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
    Divergence.parse('jsd(alpha=0.25)')(OTHER, SKEWED),
    JSD(alpha=0.25)(OTHER, SKEWED),
  )
  with pytest.raises(ConfigError, match=r"'kl' is not one of .*reverse_kl"):
    Divergence.parse('kl')
  for alpha, side in ((0.0, 'above 0'), (1.0, 'below 1'), (-1.0, 'above 0')):
    with pytest.raises(ConfigError, match=f'alpha={alpha}.* must be {side}'):
      JSD(alpha)


@pytest.mark.parametrize('kind', [ReverseKL, ForwardKL, JSD, CrossEntropy])
def test_a_clip_of_nothing_is_refused(kind):
  for clip in (0.0, -1.0):
    with pytest.raises(ConfigError, match=f'clip={clip}.* must be above 0'):
      kind(clip=clip)


def test_tokens_of_probability_nearly_zero_stay_finite():
  sharp = jax.nn.log_softmax(jnp.array([200.0, 0.0, -200.0]))
  for f in (*ALL, JSD(0.5)):
    for p, q in ((sharp, OTHER), (OTHER, sharp)):
      value, slope = jax.value_and_grad(f)(jnp.asarray(p), jnp.asarray(q))
      assert jnp.isfinite(value) and jnp.isfinite(slope).all()
