# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""Losses of single tokens by hand, where a step puts them together."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import chain
from sdjax.steps.view import View, counted_tokens

from sdjax.objectives.reduce import token_weights
from sdjax.steps import rl, sd
from sdjax.steps import teacher as teacher_lib
from sdjax.steps import view as view_lib
from sdjax.steps.teacher import Comparison
from sdjax.types import Evidence, Prompts, Rollout, Signal

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
SIGNAL = Signal(sample_mask=jnp.ones((1, 1), bool))


def token_loss(logp=LOGP, signal=SIGNAL, **options) -> Any:
  view = View(
    logp=logp, entropy=logp, kl_ref=None, extra=Comparison(EACH, RATIO)
  )
  options = {'importance_clip': 0.0, **options}
  return sd.token_loss(view, ROLLOUT, signal, **options)[..., :3]


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
  signal = SIGNAL.replace(sd_weight=jnp.array([[[3.0, 0.5, 1.0, 9.0]]]))
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
"""Rows: the law of the token after each."""

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


def whole(objective, aggregation='token_mean', **options) -> Any:
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
  evidence = Evidence(
    context_ids=jnp.ones((2, 1, 2), int),
    context_length=jnp.full((2, 1), 2),
    context_index=jnp.zeros((2, 2, 1), int),
    context_mask=jnp.array(HAS)[..., None],
  )
  signal = sd.signal_step(
    apply_fn,
    params,
    teacher,
    None,
    PROMPTS,
    rollout,
    evidence,
    objective=objective,
    **options,
  )
  weight = token_weights(
    counted_tokens(rollout, signal), signal.sample_mask, aggregation
  )
  loss, metrics = sd.loss(
    apply_fn,
    params,
    teacher,
    None,
    PROMPTS,
    rollout,
    signal,
    weight,
    objective=objective,
  )
  return SimpleNamespace(signal=signal, loss=loss, metrics=metrics)


def test_score_weighted_prefers_what_the_teacher_likes():
  """w_i = n softmax_i(mean log q): the better liked rollout weighs more."""
  logq = np.log(TEACHER[BEFORE, IDS])
  # Question 0: (log .6 + log .6) / 2 against log .2, so 3 to 1 of 2.
  mean = (logq * COUNTED).sum(-1) / LENGTH
  np.testing.assert_allclose(mean[0], np.log([0.6, 0.2]))
  got = whole('score_weighted')
  weight = np.array([[1.5, 0.5], [0, 1]])
  np.testing.assert_allclose(
    got.signal.sd_weight[HAS], np.repeat(weight[HAS], 2).reshape(3, 2), 1e-5
  )
  logp = np.log(STUDENT[BEFORE, IDS])
  counted = COUNTED & HAS[..., None]
  want = -(weight[..., None] * logp)[counted].sum() / counted.sum()
  np.testing.assert_allclose(got.loss, want, rtol=1e-5)
  assert got.signal.teacher_hidden is None
  np.testing.assert_array_equal(got.signal.sample_mask, HAS)


def test_rollouts_that_were_cut_off_do_not_count():
  got = whole('reverse_kl', mask_truncated=True)
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
  got = whole('reverse_kl', skip_tokens=skip)
  counted = COUNTED & HAS[..., None] & (np.arange(2) >= skip)
  assert counted.sum() == tokens
  p, q = STUDENT[BEFORE], TEACHER[BEFORE]
  want = np.sum(p * np.log(p / q), -1)[counted].mean()
  np.testing.assert_allclose(got.loss, want, rtol=1e-5)


REFERENCE = np.array([[0.2, 0.2, 0.6], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])
BEHAVIOUR = np.log(STUDENT[BEFORE, IDS]) + np.log([0.5, 2.0])
PUSHED = Rollout(
  ids=jnp.array(IDS),
  length=jnp.array(LENGTH),
  behavior_logp=jnp.array(BEHAVIOUR, jnp.float32),
  entropy=jnp.zeros(IDS.shape),
  finished=jnp.array([[True, False], [True, True]]),
)


def new_signal(reference=True, **options) -> Any:
  apply_fn, params = chain(STUDENT)
  ref_params = chain(REFERENCE)[1] if reference else None
  return view_lib.new_signal(
    apply_fn, params, ref_params, PROMPTS, PUSHED, **options
  )


def powered(law, temperature):
  law = law ** (1 / temperature)
  return law / law.sum(-1, keepdims=True)


def test_what_a_signal_holds_of_other_weights():
  signal = new_signal(reference=False)
  for name in ('token_mask', 'old_logp', 'rl_weight', 'ref_logp', 'ref_hidden'):
    assert getattr(signal, name) is None
  assert signal.sample_mask.all()
  signal = new_signal(temperature=0.5, recompute=True, mask_truncated=True)
  np.testing.assert_array_equal(signal.sample_mask, PUSHED.finished)
  for got, law in ((signal.ref_logp, REFERENCE), (signal.old_logp, STUDENT)):
    want = np.log(powered(law, 0.5)[BEFORE, IDS])
    np.testing.assert_allclose(got, want, rtol=1e-4)
  assert signal.rl_weight is None
  assert new_signal(kl_estimator='full').ref_logp is None
  signal = new_signal(reference=False, sampler_clip=1.5, skip_tokens=1)
  # p / s is 2 and 1/2; the base of ratios is p.
  want = np.array([1.5, 0.5]) * np.ones(IDS.shape)
  np.testing.assert_allclose(signal.rl_weight, want, rtol=1e-5)
  np.testing.assert_allclose(signal.sd_weight, want, rtol=1e-5)
  logp = np.log(STUDENT[BEFORE, IDS])
  np.testing.assert_allclose(signal.old_logp, logp, rtol=1e-4)
  np.testing.assert_array_equal(signal.token_mask, [[[0, 1]] * 2] * 2)
  counted = counted_tokens(PUSHED, signal)
  np.testing.assert_array_equal(counted, COUNTED & [False, True])


@pytest.mark.parametrize('estimator', ['k1', 'k2', 'k3', 'full'])
def test_the_anchor_is_added_with_its_weight(estimator):
  apply_fn, params = chain(STUDENT)
  ref_params = chain(REFERENCE)[1]
  signal = new_signal(kl_estimator=estimator)
  view = view_lib.student_view(
    apply_fn, params, ref_params, PROMPTS, PUSHED, signal
  )
  weight = jnp.asarray(COUNTED / COUNTED.sum(), jnp.float32)
  total, metrics = view_lib.add_reference_kl(
    jnp.float32(2), {'policy': 3}, view, signal, weight, 0.5, estimator
  )
  p, r = STUDENT[BEFORE], REFERENCE[BEFORE]
  gap = np.log(STUDENT[BEFORE, IDS] / REFERENCE[BEFORE, IDS])
  each = {
    'k1': gap,
    'k2': gap**2 / 2,
    'k3': np.exp(-gap) + gap - 1,
    'full': (p * np.log(p / r)).sum(-1),
  }[estimator]
  want = each[COUNTED].mean()
  np.testing.assert_allclose(metrics['kl_ref'], want, rtol=1e-4)
  np.testing.assert_allclose(total, 2 + 0.5 * want, rtol=1e-4)
  uncertain = -(p * np.log(p)).sum(-1)[COUNTED].mean()
  np.testing.assert_allclose(metrics['entropy'], uncertain, rtol=1e-4)
  assert metrics['policy'] == 3
  alone, metrics = view_lib.add_reference_kl(
    jnp.float32(2), {}, view, signal, weight, 0.0, estimator
  )
  assert alone == 2 and metrics.keys() == {'entropy', 'kl_ref'}
  np.testing.assert_allclose(metrics['kl_ref'], want, rtol=1e-4)
  with pytest.raises(ValueError, match="'k4' is not one of k1, k2, k3, full"):
    view_lib.add_reference_kl(
      jnp.float32(2), {}, view, signal, weight, 0.5, 'k4'
    )
  with pytest.raises(ValueError, match='needs a reference'):
    bare = new_signal(reference=False)
    view_lib.add_reference_kl(
      jnp.float32(2), {}, view._replace(kl_ref=None), bare, weight, 0.5,
      estimator,
    )  # fmt: skip


OTHER = np.array([[0.1, 0.1, 0.8], [0.7, 0.2, 0.1], [0.3, 0.5, 0.2]])


def law_of(pooling='loss', sharpness=1.0, temperature=1.0, **changes) -> Any:
  """Laws of two teachers at one place: after token 1, and after token 2."""
  apply_fn, params = chain(TEACHER)
  inputs = teacher_lib.TeacherInputs(
    hidden=jnp.eye(3)[jnp.array([1, 2])][None, None, None],
    mask=jnp.ones((1, 1, 1, 2), bool),
    log_weight=None,
    anchor_hidden=None,
    anchor_weight=None,
  )
  logp, mask = teacher_lib.teacher_law(
    apply_fn,
    params,
    chain(REFERENCE)[1],
    inputs._replace(**changes),
    temperature,
    pooling,
    sharpness,
  )
  return np.exp(logp[0, 0, 0]), mask[0, 0, 0]


def test_laws_of_teachers_by_hand():
  law, mask = law_of(temperature=0.5)
  np.testing.assert_allclose(law, powered(TEACHER[[1, 2]], 0.5), rtol=1e-4)
  assert mask.tolist() == [True, True]
  law, mask = law_of('mixture')
  np.testing.assert_allclose(law, [TEACHER[[1, 2]].mean(0)], rtol=1e-4)
  assert mask.tolist() == [True]
  # 3 to 1, up to a constant.
  law, _ = law_of(
    'sequence_mixture', log_weight=jnp.log(jnp.array([[[[6.0, 2.0]]]]))
  )
  want = 0.75 * TEACHER[1] + 0.25 * TEACHER[2]
  np.testing.assert_allclose(law, [want], rtol=1e-4)
  law, _ = law_of('mixture', sharpness=0.5)
  np.testing.assert_allclose(
    law, [powered(TEACHER[[1, 2]].mean(0), 0.5)], rtol=1e-4
  )
  # One that does not exist; and none.
  one = jnp.array([[[[False, True]]]])
  law, mask = law_of('mixture', mask=one)
  np.testing.assert_allclose(law, [TEACHER[2]], rtol=1e-4)
  law, mask = law_of('mixture', mask=one & False)
  np.testing.assert_allclose(law, [TEACHER[[1, 2]].mean(0)], rtol=1e-4)
  assert mask.tolist() == [False]


def test_an_anchor_is_mixed_in_before_pooling():
  anchor = {
    'anchor_hidden': jnp.eye(3)[jnp.array([0])][None, None, None],
    'anchor_weight': jnp.full((1, 1, 1), 0.25),
  }
  law, _ = law_of(**anchor)
  want = TEACHER[[1, 2]] ** 0.75 * REFERENCE[[0]] ** 0.25
  want /= want.sum(-1, keepdims=True)
  np.testing.assert_allclose(law, want, rtol=1e-4)
  law, _ = law_of('mixture', **anchor)
  np.testing.assert_allclose(law, [want.mean(0)], rtol=1e-4)


@pytest.mark.parametrize('clip', [0.0, 0.1])
def test_a_comparison_by_hand(clip):
  """The mean over the teachers that exist, of distance and of log-ratio."""
  apply_fn, params = chain(TEACHER)
  compare = teacher_lib.comparison(
    apply_fn, params, None, objective='reverse_kl', pointwise_clip=clip
  )
  inputs = teacher_lib.TeacherInputs(
    hidden=jnp.eye(3)[jnp.array([[1, 2], [0, 2]])][None, None],
    mask=jnp.array([[[[True, True], [False, True]]]]),
    log_weight=None,
    anchor_hidden=None,
    anchor_weight=None,
  )
  student = STUDENT[[1, 0]]
  ids = np.array([2, 1])
  got = compare(jnp.log(student)[None, None], ids[None, None], inputs)

  def distance(p, q):
    return np.minimum(p * np.log(p / q), clip or np.inf).sum()

  want = [
    (distance(student[0], TEACHER[1]) + distance(student[0], TEACHER[2])) / 2,
    distance(student[1], TEACHER[2]),
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
  evidence = Evidence(
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
    PUSHED,
    evidence,
    success_exponent=0.5,
    sampler_clip=1.5,
  )
  want = np.array([2, 0])[:, None, None] * [1.5, 0.5] * np.ones(IDS.shape)
  np.testing.assert_allclose(signal.sd_weight, want, rtol=1e-4)


def test_policy_losses_are_weighted_and_dropped():
  apply_fn, params = chain(STUDENT)
  signal = new_signal(reference=False)
  advantage = jnp.array([[[1.0] * 2, [-1.0] * 2], [[2.0] * 2, [0.0] * 2]])
  signal = signal.replace(advantage=advantage)
  view = view_lib.student_view(apply_fn, params, None, PROMPTS, PUSHED, signal)
  np.testing.assert_allclose(view.logp, np.log(STUDENT[BEFORE, IDS]), rtol=1e-4)
  # Ratios 2 and 1/2; clips at 1 -+ .2.
  got = rl.token_loss(view, PUSHED, signal)
  gain = np.array([[[1.2, 0.5], [-2, -0.8]], [[2.4, 1.0], [0, 0]]])
  np.testing.assert_allclose(got, -gain, rtol=1e-4)
  weight = jnp.array([[[3.0, 1.0]] * 2] * 2)
  got = rl.token_loss(view, PUSHED, signal.replace(rl_weight=weight))
  np.testing.assert_allclose(got, -gain * [3, 1], rtol=1e-4)
  # Each token's own width goes before the two.
  own = signal.replace(clip_width=jnp.full(IDS.shape, 0.75))
  got = rl.token_loss(view, PUSHED, own)
  gain = np.array([[[1.75, 0.5], [-2, -0.5]], [[3.5, 1.0], [0, 0]]])
  np.testing.assert_allclose(got, -gain, rtol=1e-4)
  # The base of the ratio is the old policy's, where it is known.
  old = signal.replace(old_logp=view.logp)
  got = rl.token_loss(view, PUSHED, old)
  np.testing.assert_allclose(got, -advantage, rtol=1e-4)


def test_clip_widths_are_of_counted_tokens():
  """One bin holds two counted tokens, with ratios 2 and 1/2: deviation 3/4."""
  law = np.array([[0.5, 0.25, 0.25], [0.15, 0.22, 0.63], [0.35, 0.3, 0.35]])
  apply_fn, params = chain(law)
  shift = np.log([0.5, 2.0])
  rollout = PUSHED.replace(
    behavior_logp=jnp.log(jnp.array(law[BEFORE, IDS])) + shift
  )
  signal = new_signal(reference=False).replace(
    sample_mask=jnp.array([[True, True], [True, False]])
  )
  got = rl.adapt_clip(apply_fn, params, PROMPTS, rollout, signal).clip_width
  # Counted: .63 and .35; .22, with padding of .15; .15 and .5.
  alone, pair = 0.2 + 3e-4, 0.2 + 3 * 0.75
  want = [[[alone, pair], [pair, alone]], [[alone, alone]] * 2]
  counted = COUNTED & np.asarray(signal.sample_mask)[..., None]
  np.testing.assert_allclose(got[counted], np.array(want)[counted], rtol=1e-3)
