import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.objectives.anchor import geometric_mixture
from sdjax.objectives.divergence import JSD, ForwardKL, ReverseKL
from sdjax.objectives.pooling import arithmetic_mixture, sequence_log_weight
from sdjax.objectives.support import FullVocabulary, Support, TopK
from sdjax.options import ConfigError

STUDENT = np.array([0.4, 0.1, 0.3, 0.2])
TEACHER = np.array([0.1, 0.6, 0.1, 0.2])


def distributions(support):
  out = support.restrict(jnp.log(STUDENT), jnp.log(TEACHER))
  return [np.exp(x) for x in out]


@pytest.mark.parametrize(
  'of, student, teacher',
  [
    # The student's best two are tokens 0 and 2, the teacher's 1 and 3.
    ('student', [0.4, 0.3, 0.3], [0.1, 0.1, 0.8]),
    ('teacher', [0.1, 0.2, 0.7], [0.6, 0.2, 0.2]),
  ],
)
def test_a_tail_is_one_more_event_by_hand(of, student, teacher):
  got = distributions(TopK(2, of))
  np.testing.assert_allclose(got[0], student, rtol=1e-5)
  np.testing.assert_allclose(got[1], teacher, rtol=1e-5)


def test_without_a_tail_the_chosen_sum_to_one():
  student, teacher = distributions(TopK(2, tail=False))
  np.testing.assert_allclose(student, [4 / 7, 3 / 7], rtol=1e-5)
  np.testing.assert_allclose(teacher, [0.5, 0.5], rtol=1e-5)


def test_nothing_is_done_to_the_full_vocabulary():
  for support in (FullVocabulary(), TopK(4)):
    np.testing.assert_allclose(distributions(support)[0], STUDENT)


def test_teachers_broadcast():
  student = jnp.log(STUDENT)[None]
  teacher = jnp.log(np.stack([TEACHER, STUDENT]))
  got = TopK(1, of='teacher').restrict(student, teacher)
  np.testing.assert_allclose(
    np.exp(got[0]), [[0.1, 0.9], [0.4, 0.6]], rtol=1e-5
  )
  np.testing.assert_allclose(
    np.exp(got[1]), [[0.6, 0.4], [0.4, 0.6]], rtol=1e-5
  )


@pytest.mark.parametrize('of', ['student', 'teacher'])
@pytest.mark.parametrize('divergence', [ForwardKL(), ReverseKL(), JSD()])
def test_seen_coarsely_nothing_is_farther(divergence, of):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    p, q = jax.nn.log_softmax(2 * rng.standard_normal((2, 40, 9)))
    full = divergence(p, q)
    for top_k in (8, 3, 1):  # with 8 of 9, the tail is the ninth token
      coarse = divergence(*TopK(top_k, of).restrict(p, q))
      assert (coarse <= full + 1e-9).all() and (coarse >= -1e-9).all()
      if top_k == 8:
        np.testing.assert_allclose(coarse, full, atol=1e-9)
    assert (coarse < full - 1e-3).any()


def test_a_certain_student_has_a_finite_tail():
  certain = jax.nn.log_softmax(jnp.array([200.0, 0.0, 0.0]))

  def value(logits):
    coarse = TopK(1).restrict(
      jax.nn.log_softmax(logits), jnp.log(jnp.array([0.5, 0.3, 0.2]))
    )
    return ReverseKL()(*coarse)

  got, slope = jax.value_and_grad(value)(certain)
  np.testing.assert_allclose(got, np.log(2), rtol=1e-3)
  assert jnp.isfinite(slope).all()


def test_ties_choose_k_tokens():
  even = jnp.log(jnp.full(4, 0.25))
  student, _ = TopK(2).restrict(even, jnp.log(TEACHER))
  np.testing.assert_allclose(np.exp(student), [0.25, 0.25, 0.5], rtol=1e-5)


@pytest.mark.parametrize(
  'text, message',
  [
    ('top', r"'top' is not one of full, top_k, sampled"),
    ('top_k(k=0)', r'top_k\(k=0\) must be .*at least 1'),
    ("top_k(of='all')", "of='all'.* must be 'student' or 'teacher'"),
  ],
)
def test_bad_options_are_named(text, message):
  with pytest.raises(ConfigError, match=message):
    Support.parse(text)


def test_the_mixture_keeps_what_any_teacher_says():
  logp = jnp.log(jnp.array([[0.98, 0.01, 0.01], [0.01, 0.98, 0.01], [1, 1, 1]]))
  mask = jnp.array([True, True, False])
  got = np.exp(arithmetic_mixture(logp, mask))
  np.testing.assert_allclose(got, [0.495, 0.495, 0.01], rtol=1e-5)
  # Averaged losses pool geometrically: each excludes the other's.
  np.testing.assert_allclose(
    np.exp(arithmetic_mixture(logp[:2], ~mask[:2])), got, rtol=1e-5
  )


def test_a_weighted_mixture_by_hand():
  logp = jnp.log(jnp.array([[0.99, 0.01], [0.2, 0.8], [0.5, 0.5]]))
  weight = jnp.log(jnp.array([3.0, 1.0, 100.0]))  # 3/4, 1/4, not there
  got = arithmetic_mixture(logp, jnp.array([True, True, False]), weight)
  want = [0.75 * 0.99 + 0.25 * 0.2, 0.75 * 0.01 + 0.25 * 0.8]
  np.testing.assert_allclose(np.exp(got), want, rtol=1e-5)


def test_a_mixture_of_answers_is_the_mean_of_their_distributions():
  """Next-token ones so weighted multiply to the mean of the products."""
  logp = jax.nn.log_softmax(
    2 * jax.random.normal(jax.random.key(0), (4, 6, 3, 5)), axis=-1
  )  # [N, T, K, V]: four answers of six tokens, three teachers
  ids = jax.random.randint(jax.random.key(1), (4, 6), 0, 5)
  taken = jnp.take_along_axis(logp, ids[..., None, None], axis=-1)[..., 0]
  mask = jnp.array([[1, 1, 1], [1, 1, 1], [1, 0, 1], [0, 1, 0]], bool)
  mask = jnp.broadcast_to(mask[:, None], taken.shape)
  next_token = arithmetic_mixture(logp, mask, sequence_log_weight(taken))
  np.testing.assert_allclose(jnp.exp(next_token).sum(-1), 1, rtol=1e-5)
  got = jnp.take_along_axis(next_token, ids[..., None], axis=-1).sum((1, 2))
  answers = np.exp(taken.sum(axis=1))
  want = np.log((answers * mask[:, 0]).sum(-1) / mask[:, 0].sum(-1))
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_the_geometric_mixture_by_hand():
  q, o = jnp.log(STUDENT), jnp.log(TEACHER)
  want = STUDENT**0.75 * TEACHER**0.25
  got = jax.nn.softmax(geometric_mixture(q, o, jnp.array(0.25)))
  np.testing.assert_allclose(got, want / want.sum(), rtol=1e-5)
  for weight, end in ((0.0, q), (1.0, o)):
    got = geometric_mixture(q, o, jnp.array(weight))
    np.testing.assert_array_equal(got, end)
