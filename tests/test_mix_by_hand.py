"""Rewards and a teacher together, computed by hand on a chain of tokens."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from models import chain

from sdjax.objectives.reduce import token_weights
from sdjax.steps import mix
from sdjax.steps.view import counted_tokens
from sdjax.types import Evidence, Prompts, Rollout

STUDENT = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
TEACHER = np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]])
UNIT = 0.5 / 0.5001
"""Advantage of the right one of two rollouts."""

PROMPTS = Prompts(
  ids=jnp.array([[0, 1]]), length=jnp.array([1]), question_id=jnp.array([0])
)
# The first is right: 2 0 1 after the prompt's 1. The second is wrong: 1 2.
IDS = np.array([[[2, 0, 1], [1, 2, 0]]])
LENGTH = np.array([[3, 2]])
COUNTED = np.array([[[1, 1, 1], [1, 1, 0]]], bool)
BEFORE = np.array([[[1, 2, 0], [1, 1, 2]]])
"""The token before each, in the prompt or in the rollout."""

ROLLOUT = Rollout(
  ids=jnp.array(IDS),
  length=jnp.array(LENGTH),
  behavior_logp=jnp.log(jnp.array(STUDENT[BEFORE, IDS])),
  entropy=jnp.zeros(IDS.shape),
  finished=jnp.ones((1, 2), bool),
)
REWARDED = np.array([[[UNIT], [-UNIT]]]) * np.ones(IDS.shape)


def evidence_of(mask=((True,), (True,)), index=((0,), (0,)), correct=(1, 0)):
  """Context 0 ends in token 1 as the prompt does, context 1 in token 0."""
  return Evidence(
    reward=jnp.array([[1.0, 0.0]]),
    correct=jnp.array([correct], bool),
    context_ids=jnp.array([[[2, 1], [1, 0]]]),
    context_length=jnp.array([[2, 2]]),
    context_index=jnp.array([index]),
    context_mask=jnp.array([mask]),
  )


def signal_of(
  rule, evidence=None, rollout=ROLLOUT, teacher=TEACHER, **options
) -> Any:
  apply_fn, params = chain(STUDENT)
  return mix.signal_step(
    apply_fn,
    params,
    chain(teacher)[1],
    None,
    PROMPTS,
    rollout,
    evidence_of() if evidence is None else evidence,
    rule=rule,
    **options,
  )


U = np.log(TEACHER[BEFORE, IDS] / STUDENT[BEFORE, IDS])
"""Of each token, where the teacher sees token 1 last as the student does."""


def test_mixed_advantage():
  got = signal_of('advantage', weight=0.25).advantage
  want = 0.25 * REWARDED + 0.75 * U
  np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)


def test_rlsd_is_clipped_by_its_own_width():
  # Ratios of the right rollout: 6/7, 2, 2; of the wrong one, the other way
  # round: 1, 7/6.
  for clip in (0.4, 0.1):
    got = signal_of('rlsd', weight=0.5, ratio_clip=clip).advantage
    factor = np.clip(np.exp(np.sign(REWARDED) * U), 1 - clip, 1 + clip)
    want = REWARDED * (0.5 + 0.5 * factor)
    np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)
  np.testing.assert_allclose(factor[0, 0], [0.9, 1.1, 1.1])
  np.testing.assert_allclose(factor[0, 1, :2], [1, 1.1])


def test_antisd():
  got = signal_of('antisd', weight=0.5).advantage
  want = REWARDED - 0.25 * (np.log1p(np.exp(U)) - np.log(2))
  np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)


def entropy(row):
  return -np.sum(row * np.log(row))


@pytest.mark.parametrize('unsure', [True, False])
def test_the_gate_of_antisd_reads_no_padding(unsure):
  """The median is over counted tokens: others have another entropy here."""
  flat, peaked = np.full(3, 1 / 3), np.array([0.98, 0.01, 0.01])
  # The first token is predicted from a 1, padding from 2 or 0.
  seen, padding = (flat, peaked) if unsure else (peaked, flat)
  teacher = np.array([padding, seen, padding])
  rollout = ROLLOUT.replace(length=jnp.ones((1, 2), int))
  # The mean of the two entropies, were all six tokens read, is .6.
  floor = 0.8 if unsure else 0.4
  assert entropy(peaked) < floor < entropy(flat)
  got = signal_of(
    'antisd', rollout=rollout, teacher=teacher, entropy_floor=floor, weight=2.0
  ).advantage
  u = np.log(teacher[BEFORE, IDS] / STUDENT[BEFORE, IDS])
  heard = REWARDED - (np.log1p(np.exp(u)) - np.log(2))
  want = heard if unsure else REWARDED
  np.testing.assert_allclose(got[..., 0], want[..., 0], rtol=1e-4)
  assert np.abs(heard - REWARDED)[..., 0].min() > 0.01


def test_the_gate_of_antisd_is_at_the_median():
  # Entropies of the five counted tokens: of row 1, 2, 0 and 1, 1.
  median = np.median([entropy(TEACHER[i]) for i in (1, 2, 0, 1, 1)])
  plain = signal_of('antisd', weight=1.0).advantage
  for floor, heard in ((median - 0.01, True), (median + 0.01, False)):
    got = signal_of('antisd', weight=1.0, entropy_floor=floor).advantage
    want = plain if heard else REWARDED
    np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)


CONTRAST = {
  'evidence': evidence_of(((True, True),) * 2, ((0, 1),) * 2),
  'num_contrast': 1,
  'contrast_temperature': 1.0,
  'contrast_clip': 0.5,
  'contrast_threshold': 0.02,
}


def test_rlcsd_contrasts_right_and_wrong_answers():
  """Only the first token's law depends on the context here."""
  got = signal_of('rlcsd', weight=0.7, **CONTRAST).advantage
  # Of token 2: log .6/.25. Of token 1: log .2/.5, which is past the bound.
  bonus = 0.7 * np.tanh(np.log([0.6 / 0.25, 0.2 / 0.5]))
  assert bonus[0] < 0.5 < -bonus[1]
  want = REWARDED.copy()
  want[0, :, 0] += [bonus[0], -0.5]
  np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)


def test_without_one_of_the_two_there_is_no_contrast():
  for mask in ((True, False), (False, True)):
    evidence = evidence_of((mask, mask), ((0, 1),) * 2)
    got = signal_of(
      'rlcsd', **{**CONTRAST, 'evidence': evidence}, weight=0.8
    ).advantage
    np.testing.assert_allclose(got[COUNTED], REWARDED[COUNTED], rtol=1e-4)


@pytest.mark.parametrize(
  'aggregation, want',
  [
    # Two tokens are touched, one in each rollout; three are not.
    ('token_mean', [[0.25 / 2, 1 / 3, 1 / 3], [0.25 / 2, 1 / 3, 0]]),
    ('sequence_mean', [[0.25 / 2, 0.5 / 2, 0.5 / 2], [0.25 / 2, 1 / 2, 0]]),
  ],
)
def test_touched_tokens_have_a_mean_of_their_own(aggregation, want):
  """The untouched ones' mean, and `touched_weight` times the touched."""
  signal = signal_of(
    'rlcsd', touched_weight=0.25, aggregation=aggregation, **CONTRAST
  )
  weight = token_weights(
    counted_tokens(ROLLOUT, signal), signal.sample_mask, aggregation
  )
  got = np.asarray(weight * signal.rl_weight)
  np.testing.assert_allclose(got[COUNTED], np.array([want])[COUNTED], rtol=1e-5)
