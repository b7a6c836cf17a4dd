"""Losses of single tokens by hand, where a step puts them together."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import chain

from sdjax.objectives.reduce import token_weights
from sdjax.steps import sd
from sdjax.steps.teacher import Comparison
from sdjax.steps.view import View, counted_tokens
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
