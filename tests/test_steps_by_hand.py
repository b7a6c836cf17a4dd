# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""Losses of single tokens by hand, where a step puts them together."""

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import chain

from sdjax.objectives.divergence import ReverseKL, ScoreWeighted
from sdjax.objectives.policy_loss import AdaptiveClip, Clip
from sdjax.objectives.pooling import Pooling
from sdjax.objectives.reduce import token_weights
from sdjax.objectives.reference_kl import K1, K2, K3, FullKL, NoKL
from sdjax.objectives.support import FullVocabulary
from sdjax.steps import rl, sd
from sdjax.steps import student as student_lib
from sdjax.steps import teacher as teacher_lib
from sdjax.steps.sampling import Sampling
from sdjax.steps.student import Shared, Student, counted_tokens
from sdjax.steps.teacher import Comparison, Target, TeacherStates
from sdjax.types import Prompts, Rollout, TeacherContexts

# One rollout of three tokens and a column of padding.
LOGP = jnp.log(jnp.array([[[0.5, 0.25, 0.4, 0.9]]]))
OLD = jnp.log(jnp.array([[[0.25, 0.5, 0.1, 0.1]]]))
EACH = jnp.array([[[1.0, 2.0, 4.0, 50.0]]])
RATIO = jnp.array([[[-0.5, 1.0, -2.0, 70.0]]])
"""The teacher's, log q - log p."""

ROLLOUT = Rollout(
  ids=jnp.zeros((1, 1, 4), int),
  length=jnp.array([[3]]),
  behavior_logp=OLD,
  entropy=jnp.zeros((1, 1, 4)),
  finished=jnp.ones((1, 1), bool),
)
SIGNAL = sd.Signal(sample_mask=jnp.ones((1, 1), bool))


def token_loss(logp=LOGP, signal=SIGNAL, **options) -> Any:
  student = Student(
    logp=logp, entropy=logp, kl_ref=None, compared=Comparison(EACH, RATIO)
  )
  how = sd.Options(**{'importance_clip': 0.0, **options})
  return sd.token_loss(student, ROLLOUT, signal, how)[..., :3]


def test_the_credit_of_a_token_is_the_cost_of_its_successors():
  """Descending, a token before costly ones becomes less likely."""
  # Costs 1, 2, 4, a half a token; padding costs nothing.
  later = np.array([[[0.5 * 2 + 0.25 * 4, 0.5 * 4, 0]]])
  got = token_loss(credit_discount=0.5)
  np.testing.assert_allclose(
    got, EACH[..., :3] + later * LOGP[..., :3], rtol=1e-5
  )
  slope = jax.grad(lambda x: token_loss(x, credit_discount=0.5).sum())(LOGP)
  np.testing.assert_allclose(slope[..., :3], later, rtol=1e-5)
  np.testing.assert_allclose(token_loss(), EACH[..., :3], rtol=1e-6)


def test_the_cost_of_a_sampled_token_is_log_p_less_log_q():
  # Costs .5, -1, 2.
  later = np.array([[[-1 + 2, 2, 0]]])
  got = token_loss(credit_discount=1.0, support='sampled')
  np.testing.assert_allclose(
    got, EACH[..., :3] + later * LOGP[..., :3], rtol=1e-5
  )


def test_credit_importance_and_weights_multiply():
  signal = SIGNAL.replace(weight=jnp.array([[[3.0, 0.5, 1.0, 9.0]]]))
  later = np.array([[[2, 2, 0]]])
  # Ratios 2, 1/2, 4; the cap is 3.
  factor = np.array([[[2 * 3, 0.5 * 0.5, 3 * 1]]])
  got = token_loss(signal=signal, credit_discount=0.5, importance_clip=3.0)
  want = (EACH[..., :3] + later * LOGP[..., :3]) * factor
  np.testing.assert_allclose(got, want, rtol=1e-5)
  # The old policy's word goes before the sampler's.
  signal = SIGNAL.replace(old_logp=LOGP - jnp.log(1.5))
  got = token_loss(signal=signal, importance_clip=3.0)
  np.testing.assert_allclose(got, 1.5 * EACH[..., :3], rtol=1e-5)
  # And the ratio is a constant.
  slope = jax.grad(lambda x: token_loss(x, importance_clip=3.0).sum())(LOGP)
  np.testing.assert_array_equal(slope, 0 * LOGP)


STUDENT = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
TEACHER = np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]])
"""Rows: the distribution of the token after each."""

PROMPTS = Prompts(
  ids=jnp.array([[0, 1], [0, 1]]),
  length=jnp.array([1, 2]),
  question_id=jnp.arange(2),
)
# Question 0: both rollouts have a teacher. Question 1: only the second does.
IDS = np.array([[[2, 0], [1, 0]], [[0, 0], [2, 2]]])
LENGTH = np.array([[2, 1], [2, 2]])
COUNTED = np.arange(2) < LENGTH[..., None]
BEFORE = np.concatenate([np.ones((2, 2, 1), int), IDS[..., :1]], axis=-1)
HAS = np.array([[True, True], [False, True]])


def whole(
  divergence: Any = 'reverse_kl', aggregation='token_mean', **shared
) -> Any:
  """Signal and loss of two questions with two rollouts each."""
  apply_fn, params = chain(STUDENT)
  _, teacher = chain(TEACHER)
  rollout = Rollout(
    ids=jnp.array(IDS),
    length=jnp.array(LENGTH),
    behavior_logp=jnp.log(jnp.array(STUDENT[BEFORE, IDS])),
    entropy=jnp.zeros(IDS.shape),
    finished=jnp.array([[True, False], [True, True]]),
  )
  # Both contexts end in token 1, as the prompt does.
  evidence = TeacherContexts(
    context_ids=jnp.ones((2, 1, 2), int),
    context_length=jnp.full((2, 1), 2),
    context_index=jnp.zeros((2, 2, 1), int),
    context_mask=jnp.array(HAS)[..., None],
  )
  models = (apply_fn, params, teacher, None)
  options, together = sd.Options(divergence=divergence), Shared(**shared)
  signal = sd.signal_step(
    *models, PROMPTS, rollout, evidence, options, together
  )
  weight = token_weights(
    counted_tokens(rollout, signal), signal.sample_mask, aggregation
  )
  loss, metrics = sd.loss(
    *models, PROMPTS, rollout, signal, weight, options, together
  )
  return SimpleNamespace(signal=signal, loss=loss, metrics=metrics)


def test_score_weighted_prefers_what_the_teacher_likes():
  """w_i = n softmax_i(mean log q): the better liked rollout weighs more."""
  logq = np.log(TEACHER[BEFORE, IDS])
  # Question 0: (log .6 + log .6) / 2 against log .2, so 3 to 1 of 2.
  mean = (logq * COUNTED).sum(-1) / LENGTH
  np.testing.assert_allclose(mean[0], np.log([0.6, 0.2]))
  got = whole(ScoreWeighted())
  weight = np.array([[1.5, 0.5], [0, 1]])
  np.testing.assert_allclose(
    got.signal.weight[HAS], np.repeat(weight[HAS], 2).reshape(3, 2), 1e-5
  )
  logp = np.log(STUDENT[BEFORE, IDS])
  counted = COUNTED & HAS[..., None]
  want = -(weight[..., None] * logp)[counted].sum() / counted.sum()
  np.testing.assert_allclose(got.loss, want, rtol=1e-5)
  assert got.signal.teacher is None
  np.testing.assert_array_equal(got.signal.sample_mask, HAS)


def test_rollouts_that_were_cut_off_do_not_count():
  got = whole(mask_truncated=True)
  np.testing.assert_array_equal(
    got.signal.sample_mask, [[True, False], [False, True]]
  )
  rows = [TEACHER[i] for i in (1, 2, 1, 2)]
  kls = [
    np.sum(STUDENT[i] * np.log(STUDENT[i] / row))
    for i, row in zip((1, 2, 1, 2), rows, strict=True)
  ]
  np.testing.assert_allclose(got.loss, np.mean(kls), rtol=1e-5)


@pytest.mark.parametrize('skip, tokens', [(0, 5), (1, 2)])
def test_first_tokens_may_be_skipped(skip, tokens):
  got = whole(skip_tokens=skip)
  counted = COUNTED & HAS[..., None] & (np.arange(2) >= skip)
  assert counted.sum() == tokens
  p, q = STUDENT[BEFORE], TEACHER[BEFORE]
  want = np.sum(p * np.log(p / q), -1)[counted].mean()
  np.testing.assert_allclose(got.loss, want, rtol=1e-5)


REFERENCE = np.array([[0.2, 0.2, 0.6], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
BEHAVIOUR = np.log(STUDENT[BEFORE, IDS]) + np.log([0.5, 2.0])
DRIFTED = Rollout(
  ids=jnp.array(IDS),
  length=jnp.array(LENGTH),
  behavior_logp=jnp.array(BEHAVIOUR, jnp.float32),
  entropy=jnp.zeros(IDS.shape),
  finished=jnp.array([[True, False], [True, True]]),
)


def new_signal(reference=True, ratios=False, **shared) -> Any:
  apply_fn, params = chain(STUDENT)
  ref_params = chain(REFERENCE)[1] if reference else None
  fields = student_lib.new_signal(
    apply_fn,
    params,
    ref_params,
    PROMPTS,
    DRIFTED,
    Shared(**shared),
    ratios=ratios,
  )
  return rl.Signal(**fields)


def powered(rows, temperature):
  rows = rows ** (1 / temperature)
  return rows / rows.sum(-1, keepdims=True)


def test_what_a_signal_holds_of_other_weights():
  signal = new_signal(reference=False)
  for name in ('token_mask', 'old_logp', 'weight', 'ref_logp', 'ref_hidden'):
    assert getattr(signal, name) is None
  assert signal.sample_mask.all()
  # A truncating sampler's log-probabilities are computed anew, for ratios.
  sampling = Sampling(0.5, top_p=0.999)
  assert new_signal(sampling=sampling).old_logp is None
  signal = new_signal(ratios=True, sampling=sampling, mask_truncated=True)
  np.testing.assert_array_equal(signal.sample_mask, DRIFTED.finished)
  for got, rows in ((signal.ref_logp, REFERENCE), (signal.old_logp, STUDENT)):
    want = np.log(powered(rows, 0.5)[BEFORE, IDS])
    np.testing.assert_allclose(got, want, rtol=1e-4)
  assert signal.weight is None
  assert new_signal(kl=FullKL(0.5)).ref_logp is None
  signal = new_signal(reference=False, sampler_clip=1.5, skip_tokens=1)
  # p / s is 2 and 1/2; the base of ratios is p.
  want = np.array([1.5, 0.5]) * np.ones(IDS.shape)
  np.testing.assert_allclose(signal.weight, want, rtol=1e-5)
  logp = np.log(STUDENT[BEFORE, IDS])
  np.testing.assert_allclose(signal.old_logp, logp, rtol=1e-4)
  np.testing.assert_array_equal(signal.token_mask, [[[0, 1]] * 2] * 2)
  counted = counted_tokens(DRIFTED, signal)
  np.testing.assert_array_equal(counted, COUNTED & [False, True])


@pytest.mark.parametrize(
  'kl', [K1(0.5), K2(0.5), K3(0.5), FullKL(0.5)], ids=str
)
def test_the_kl_is_added_with_its_weight(kl):
  apply_fn, params = chain(STUDENT)
  ref_params = chain(REFERENCE)[1]
  signal = new_signal(kl=kl)
  student = student_lib.student_tokens(
    apply_fn, params, ref_params, PROMPTS, DRIFTED, signal, Shared(kl=kl)
  )
  weight = jnp.asarray(COUNTED / COUNTED.sum(), jnp.float32)

  def added(student=student, signal=signal, kl=kl):
    return student_lib.with_reference_kl(
      jnp.float32(2), {'policy': jnp.float32(3)}, student, signal, weight, kl
    )

  total, metrics = added()
  p, r = STUDENT[BEFORE], REFERENCE[BEFORE]
  gap = np.log(STUDENT[BEFORE, IDS] / REFERENCE[BEFORE, IDS])
  each = {
    'k1': gap,
    'k2': gap**2 / 2,
    'k3': np.exp(-gap) + gap - 1,
    'full': (p * np.log(p / r)).sum(-1),
  }[kl.name]
  want = each[COUNTED].mean()
  np.testing.assert_allclose(metrics['kl_ref'], want, rtol=1e-4)
  np.testing.assert_allclose(total, 2 + 0.5 * want, rtol=1e-4)
  uncertain = -(p * np.log(p)).sum(-1)[COUNTED].mean()
  np.testing.assert_allclose(metrics['entropy'], uncertain, rtol=1e-4)
  assert metrics['policy'] == 3
  alone, metrics = added(kl=NoKL())
  assert alone == 2 and metrics.keys() == {'policy', 'entropy'}
  with pytest.raises(ValueError, match='kl=.* needs a reference'):
    added(student._replace(kl_ref=None), new_signal(reference=False))


def test_an_unknown_kl_is_named():
  with pytest.raises(ValueError, match="kl='k4.*: 'k4' is not one of none, k1"):
    Shared(kl='k4(coef=0.5)')  # pyright: ignore[reportArgumentType]


OTHER = np.array([[0.1, 0.1, 0.8], [0.7, 0.2, 0.1], [0.3, 0.5, 0.2]])


def target_of(
  pooling: Any = 'loss', sharpness=1.0, temperature=1.0, **changes: Any
) -> Any:
  """What two teachers say at one place: after token 1, and after token 2."""
  apply_fn, params = chain(TEACHER)
  states = TeacherStates(
    hidden=jnp.eye(3)[jnp.array([1, 2])][None, None, None],
    mask=jnp.ones((1, 1, 1, 2), bool),
  )
  logp, mask = teacher_lib.teacher_distribution(
    apply_fn,
    params,
    chain(REFERENCE)[1],
    replace(states, **changes),
    Target(Pooling.parse(pooling), sharpness),
    temperature,
  )
  return np.exp(logp[0, 0, 0]), mask[0, 0, 0]


def test_distributions_of_teachers_by_hand():
  target, mask = target_of(temperature=0.5)
  np.testing.assert_allclose(target, powered(TEACHER[[1, 2]], 0.5), rtol=1e-4)
  assert mask.tolist() == [True, True]
  target, mask = target_of('mixture')
  np.testing.assert_allclose(target, [TEACHER[[1, 2]].mean(0)], rtol=1e-4)
  assert mask.tolist() == [True]
  # 3 to 1, up to a constant.
  target, _ = target_of(
    'sequence_mixture', log_weight=jnp.log(jnp.array([[[[6.0, 2.0]]]]))
  )
  want = 0.75 * TEACHER[1] + 0.25 * TEACHER[2]
  np.testing.assert_allclose(target, [want], rtol=1e-4)
  target, _ = target_of('mixture', sharpness=0.5)
  np.testing.assert_allclose(
    target, [powered(TEACHER[[1, 2]].mean(0), 0.5)], rtol=1e-4
  )
  # One that does not exist; and none.
  one = jnp.array([[[[False, True]]]])
  target, mask = target_of('mixture', mask=one)
  np.testing.assert_allclose(target, [TEACHER[2]], rtol=1e-4)
  target, mask = target_of('mixture', mask=one & False)
  np.testing.assert_allclose(target, [TEACHER[[1, 2]].mean(0)], rtol=1e-4)
  assert mask.tolist() == [False]


def test_an_anchor_is_mixed_in_before_pooling():
  anchor = {
    'anchor_hidden': jnp.eye(3)[jnp.array([0])][None, None, None],
    'anchor_weight': jnp.full((1, 1, 1), 0.25),
  }
  target, _ = target_of(**anchor)
  want = TEACHER[[1, 2]] ** 0.75 * REFERENCE[[0]] ** 0.25
  want /= want.sum(-1, keepdims=True)
  np.testing.assert_allclose(target, want, rtol=1e-4)
  target, _ = target_of('mixture', **anchor)
  np.testing.assert_allclose(target, [want.mean(0)], rtol=1e-4)


@pytest.mark.parametrize('clip', [np.inf, 0.1])
def test_a_comparison_by_hand(clip):
  """The mean over the teachers that exist, of divergence and log-ratio."""
  apply_fn, params = chain(TEACHER)
  compare = teacher_lib.comparison(
    functools.partial(FullVocabulary().compare, ReverseKL(clip)),
    functools.partial(
      teacher_lib.teacher_distribution,
      apply_fn,
      params,
      None,
      target=sd.Options().target,
      temperature=1.0,
    ),
  )
  states = TeacherStates(
    hidden=jnp.eye(3)[jnp.array([[1, 2], [0, 2]])][None, None],
    mask=jnp.array([[[[True, True], [False, True]]]]),
  )
  student = STUDENT[[1, 0]]
  ids = np.array([2, 1])
  got = compare(jnp.log(student)[None, None], ids[None, None], states)

  def divergence(p, q):
    return np.minimum(p * np.log(p / q), clip).sum()

  want = [
    sum(divergence(student[0], TEACHER[i]) for i in (1, 2)) / 2,
    divergence(student[1], TEACHER[2]),
  ]
  np.testing.assert_allclose(got.each[0, 0], want, rtol=1e-4)
  ratio = [
    np.log(TEACHER[[1, 2], 2] / student[0, 2]).mean(),
    np.log(TEACHER[2, 1] / student[1, 1]),
  ]
  np.testing.assert_allclose(got.log_ratio[0, 0], ratio, rtol=1e-4)


def test_questions_weigh_by_their_pass_rate():
  """(p (1 - p))^e over its mean: here p is 1/2 and 1."""
  apply_fn, params = chain(STUDENT)
  evidence = TeacherContexts(
    correct=jnp.array([[True, False], [True, True]]),
    context_ids=jnp.ones((2, 1, 2), int),
    context_length=jnp.full((2, 1), 2),
    context_index=jnp.zeros((2, 2, 1), int),
    context_mask=jnp.ones((2, 2, 1), bool),
  )
  signal = sd.signal_step(
    apply_fn,
    params,
    chain(TEACHER)[1],
    None,
    PROMPTS,
    DRIFTED,
    evidence,
    sd.Options(success_exponent=0.5),
    Shared(sampler_clip=1.5),
  )
  want = np.array([2, 0])[:, None, None] * [1.5, 0.5] * np.ones(IDS.shape)
  np.testing.assert_allclose(np.asarray(signal.weight), want, rtol=1e-4)


def test_policy_losses_are_weighted_and_dropped():
  apply_fn, params = chain(STUDENT)
  signal = new_signal(reference=False)
  advantage = jnp.array([[[1.0] * 2, [-1.0] * 2], [[2.0] * 2, [0.0] * 2]])
  signal = signal.replace(advantage=advantage)
  student = student_lib.student_tokens(
    apply_fn, params, None, PROMPTS, DRIFTED, signal, Shared()
  )
  logp = np.log(STUDENT[BEFORE, IDS])
  np.testing.assert_allclose(student.logp, logp, rtol=1e-4)

  def token_loss(signal, policy_loss):
    options = rl.Options(policy_loss=policy_loss)
    return rl.token_loss(student, DRIFTED, signal, options)

  # Ratios 2 and 1/2; clips at 1 -+ .2.
  got = token_loss(signal, Clip())
  gain = np.array([[[1.2, 0.5], [-2, -0.8]], [[2.4, 1.0], [0, 0]]])
  np.testing.assert_allclose(got, -gain, rtol=1e-4)
  weight = jnp.array([[[3.0, 1.0]] * 2] * 2)
  got = token_loss(signal.replace(weight=weight), Clip())
  np.testing.assert_allclose(got, -gain * [3, 1], rtol=1e-4)
  # Each token may have a width of its own.
  own = signal.replace(clip_width=jnp.full(IDS.shape, 0.75))
  got = token_loss(own, AdaptiveClip())
  gain = np.array([[[1.75, 0.5], [-2, -0.5]], [[3.5, 1.0], [0, 0]]])
  np.testing.assert_allclose(got, -gain, rtol=1e-4)
  # The base of the ratio is the old policy's, where it is known.
  old = signal.replace(old_logp=student.logp)
  got = token_loss(old, Clip())
  np.testing.assert_allclose(got, -advantage, rtol=1e-4)


def test_clip_widths_are_of_counted_tokens():
  """One bin holds two counted tokens, with ratios 2 and 1/2: deviation 3/4."""
  rows = np.array([[0.5, 0.25, 0.25], [0.15, 0.22, 0.63], [0.35, 0.3, 0.35]])
  apply_fn, params = chain(rows)
  shift = np.log([0.5, 2.0])
  rollout = DRIFTED.replace(
    behavior_logp=jnp.log(jnp.array(rows[BEFORE, IDS])) + shift
  )
  signal = new_signal(reference=False).replace(
    sample_mask=jnp.array([[True, True], [True, False]])
  )
  options = rl.Options(policy_loss=AdaptiveClip())
  signal = rl.refresh(
    apply_fn, params, PROMPTS, rollout, signal, options, Shared()
  )
  got = np.asarray(signal.clip_width)
  # Counted: .63 and .35; .22, with padding of .15; .15 and .5.
  alone, pair = 0.2 + 3e-4, 0.2 + 3 * 0.75
  want = [[[alone, pair], [pair, alone]], [[alone, alone]] * 2]
  counted = COUNTED & np.asarray(signal.sample_mask)[..., None]
  np.testing.assert_allclose(got[counted], np.array(want)[counted], rtol=1e-3)
