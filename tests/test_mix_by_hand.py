# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
"""Rewards and a teacher together, computed by hand on a chain of tokens."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from models import chain

from sdjax.feedback.strategies import Demonstrations
from sdjax.objectives.anchor import Tempered, TrustRegion
from sdjax.objectives.divergence import ForwardKL
from sdjax.objectives.mixing import (
  RLCSD,
  RLSD,
  SDPG,
  SRPO,
  Advantages,
  AntiSD,
  Debiased,
  Losses,
)
from sdjax.objectives.reduce import token_weights
from sdjax.objectives.reference_kl import K3, ReferenceKL
from sdjax.steps import mix, sd
from sdjax.steps.sampling import Sampling
from sdjax.steps.score import student_hidden
from sdjax.steps.student import Shared, counted_tokens
from sdjax.types import Prompts, Rewards, Rollout, TeacherContexts

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


def evidence_of(
  mask=((True,), (True,)), index=((0,), (0,)), correct=(1, 0), **changes: Any
):
  """Context 0 ends in token 1 as the prompt does, context 1 in token 0."""
  contexts = TeacherContexts(
    context_ids=jnp.array([[[2, 1], [1, 0]]]),
    context_length=jnp.array([[2, 2]]),
    context_index=jnp.array([index]),
    context_mask=jnp.array([mask]),
    correct=jnp.array([correct], bool),
  )
  rewards = Rewards(reward=jnp.array([[1.0, 0.0]]))
  return mix.Evidence(**{'sd': contexts, 'rl': rewards} | changes)


def options_of(rule, **how) -> mix.Options:
  """Options whose last context is a wrong answer, where the rule needs one."""
  if rule.needs_contrast:
    how['demonstrations'] = Demonstrations(contrast=1)
  return mix.Options(rule=rule, sd=sd.Options(**how))


def signal_of(
  rule, evidence=None, rollout=ROLLOUT, teacher=TEACHER, **shared
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
    options_of(rule),
    Shared(**shared),
  )


U = np.log(TEACHER[BEFORE, IDS] / STUDENT[BEFORE, IDS])
"""Of each token, where the teacher sees token 1 last as the student does."""


def test_mixed_advantage():
  got = signal_of(Advantages(weight=0.25)).advantage
  want = 0.25 * REWARDED + 0.75 * U
  np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)


def test_rlsd_is_clipped_by_its_own_width():
  # Ratios of the right rollout: 6/7, 2, 2; of the wrong one, the other way
  # round: 1, 7/6.
  for clip in (0.4, 0.1):
    got = signal_of(RLSD(weight=0.5, clip=clip)).advantage
    factor = np.clip(np.exp(np.sign(REWARDED) * U), 1 - clip, 1 + clip)
    want = REWARDED * (0.5 + 0.5 * factor)
    np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)
  np.testing.assert_allclose(factor[0, 0], [0.9, 1.1, 1.1])
  np.testing.assert_allclose(factor[0, 1, :2], [1, 1.1])


def test_antisd():
  got = signal_of(AntiSD(weight=0.5)).advantage
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
    AntiSD(weight=2.0, entropy_floor=floor), rollout=rollout, teacher=teacher
  ).advantage
  u = np.log(teacher[BEFORE, IDS] / STUDENT[BEFORE, IDS])
  heard = REWARDED - (np.log1p(np.exp(u)) - np.log(2))
  want = heard if unsure else REWARDED
  np.testing.assert_allclose(got[..., 0], want[..., 0], rtol=1e-4)
  assert np.abs(heard - REWARDED)[..., 0].min() > 0.01


def test_the_gate_of_antisd_is_at_the_median():
  # Entropies of the five counted tokens: of row 1, 2, 0 and 1, 1.
  median = np.median([entropy(TEACHER[i]) for i in (1, 2, 0, 1, 1)])
  plain = signal_of(AntiSD(weight=1.0)).advantage
  for floor, heard in ((median - 0.01, True), (median + 0.01, False)):
    got = signal_of(AntiSD(weight=1.0, entropy_floor=floor)).advantage
    want = plain if heard else REWARDED
    np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)


def contrasted(mask=(True, True), weight=0.5, touched_weight=1.0, **how) -> Any:
  """The signal of `rlcsd`, each rollout shown a right and a wrong answer."""
  rule = RLCSD(weight, 1.0, 0.5, 0.02, touched_weight)
  return signal_of(rule, evidence_of((mask, mask), ((0, 1),) * 2), **how)


def test_rlcsd_contrasts_right_and_wrong_answers():
  """Only the first token's distribution depends on the context here."""
  got = contrasted(weight=0.7).advantage
  # Of token 2: log .6/.25. Of token 1: log .2/.5, which is past the bound.
  bonus = 0.7 * np.tanh(np.log([0.6 / 0.25, 0.2 / 0.5]))
  assert bonus[0] < 0.5 < -bonus[1]
  want = REWARDED.copy()
  want[0, :, 0] += [bonus[0], -0.5]
  np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)


def test_without_one_of_the_two_there_is_no_contrast():
  for mask in ((True, False), (False, True)):
    got = contrasted(mask, weight=0.8).advantage
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
  signal = contrasted(touched_weight=0.25, aggregation=aggregation)
  weight = token_weights(
    counted_tokens(ROLLOUT, signal), signal.sample_mask, aggregation
  )
  got = np.asarray(weight * signal.weight)
  np.testing.assert_allclose(got[COUNTED], np.array([want])[COUNTED], rtol=1e-5)


REFERENCE = np.array([[0.2, 0.2, 0.6], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1]])


def with_reference(options, evidence=None, kl='k3(coef=0.1)') -> Any:
  apply_fn, params = chain(STUDENT)
  return mix.signal_step(
    apply_fn,
    params,
    chain(TEACHER)[1],
    chain(REFERENCE)[1],
    PROMPTS,
    ROLLOUT,
    evidence_of() if evidence is None else evidence,
    options,
    Shared(kl=ReferenceKL.parse(kl)),
  )


@pytest.mark.parametrize('anchor', [TrustRegion(), Tempered()], ids=str)
def test_an_anchored_teacher_credits_tokens(anchor):
  """It is T^.25 R^.75, normalised; R reads the same last tokens here."""
  options = options_of(Advantages(), anchor=anchor)
  contexts = evidence_of().sd.replace(teacher_share=jnp.array([0.25]))
  signal = with_reference(options, evidence_of(sd=contexts))
  target = TEACHER**0.25 * REFERENCE**0.75
  target /= target.sum(-1, keepdims=True)
  u = np.log(target[BEFORE, IDS] / STUDENT[BEFORE, IDS])
  want = 0.5 * REWARDED + 0.5 * u
  np.testing.assert_allclose(
    signal.advantage[COUNTED], want[COUNTED], rtol=1e-4
  )
  logr = np.log(REFERENCE[BEFORE, IDS])
  np.testing.assert_allclose(signal.ref_logp[COUNTED], logr[COUNTED], rtol=1e-4)
  assert with_reference(options, kl='none').ref_logp is None


def test_the_reference_reads_the_rollouts_once():
  apply_fn, params = chain(STUDENT)
  ref_params = chain(REFERENCE)[1]
  read = []

  def counting(params, x, *, method, **options):
    if params is ref_params and method != 'head':
      read.append(method)
    return apply_fn(params, x, method=method, **options)

  mix.signal_step(
    counting,
    params,
    chain(TEACHER)[1],
    ref_params,
    PROMPTS,
    ROLLOUT,
    evidence_of(),
    options_of(Losses()),
    Shared(kl=K3(coef=0.1)),
  )
  once = list(read)
  read.clear()
  student_hidden(counting, ref_params, PROMPTS, ROLLOUT.ids)
  assert read and once == read


# Sampled by others: the first token at half, the others at twice their
# probability under the student.
SHIFT = np.log([0.5, 2.0, 2.0])
ELSEWHERE = ROLLOUT.replace(behavior_logp=ROLLOUT.behavior_logp + SHIFT)


def test_credit_is_to_the_behaviour_policy():
  # A truncating sampler's word is computed anew.
  for top_p, base in ((1.0, SHIFT), (0.999, 0 * SHIFT)):
    sampling = Sampling(top_p=top_p)
    signal = signal_of(Advantages(), rollout=ELSEWHERE, sampling=sampling)
    want = 0.5 * REWARDED + 0.5 * (U - base)
    np.testing.assert_allclose(
      signal.advantage[COUNTED], want[COUNTED], rtol=1e-4
    )
  logp = np.log(STUDENT[BEFORE, IDS])
  np.testing.assert_allclose(signal.old_logp[COUNTED], logp[COUNTED], rtol=1e-4)


def test_weights_for_the_sampler_reach_both_losses():
  # Ratios 2, 1/2, 1/2; the cap is 1.5.
  factor = np.array([1.5, 0.5, 0.5]) * np.ones(IDS.shape)
  for rule in (Losses(), SDPG(), SRPO()):
    plain = signal_of(rule, rollout=ELSEWHERE)
    got = signal_of(rule, rollout=ELSEWHERE, sampler_clip=1.5)
    for own, other in ((got, plain), (got.taught, plain.taught)):
      want = np.asarray(other.weight) * factor
      np.testing.assert_allclose(own.weight[COUNTED], want[COUNTED], rtol=1e-4)
  how = {'weight': 0.7, 'touched_weight': 0.25, 'rollout': ELSEWHERE}
  plain = contrasted(**how)
  got = contrasted(**how, sampler_clip=1.5)
  np.testing.assert_allclose(
    got.weight[COUNTED], (plain.weight * factor)[COUNTED], rtol=1e-4
  )


def test_each_loss_has_its_own_mean():
  """The sum of w L_rl and (1 - w) L_sd: the second rollout has no teacher."""
  signal = signal_of(Losses(weight=0.75), evidence_of(((True,), (False,))))
  counted = counted_tokens(ROLLOUT, signal)
  weight = token_weights(counted, signal.sample_mask, 'token_mean')
  assert signal.sample_mask.all()
  reinforced = np.asarray(weight * signal.weight)
  distilled = np.asarray(weight * signal.taught.weight)
  np.testing.assert_allclose(reinforced, 0.75 * COUNTED / 5, rtol=1e-5)
  np.testing.assert_allclose(distilled[0, 0], [0.25 / 3] * 3, rtol=1e-5)
  np.testing.assert_array_equal(distilled[0, 1], 0)


def test_srpo_hears_a_teacher_that_is_sure():
  """Failed tokens weigh exp(-c H), with mean 1; the others are reinforced."""
  signal = signal_of(SRPO(entropy_exponent=2.0))
  # The failed rollout has two tokens, each behind a 1, so of equal entropy.
  np.testing.assert_allclose(signal.taught.weight[0, 1, :2], 1, rtol=1e-5)
  np.testing.assert_array_equal(signal.taught.weight[0, 0], 0)
  np.testing.assert_array_equal(signal.weight[0, :, 0], [1, 0])
  other = ROLLOUT.replace(
    ids=jnp.array([[[2, 0, 1], [2, 0, 0]]]), length=jnp.array([[3, 3]])
  )
  signal = signal_of(SRPO(entropy_exponent=2.0), rollout=other)
  calm = np.exp([-2 * entropy(TEACHER[i]) for i in (1, 2, 0)])
  np.testing.assert_allclose(
    signal.taught.weight[0, 1], calm / calm.mean(), rtol=1e-4
  )


def test_sdpg_adds_the_weighted_teacher():
  signal = signal_of(SDPG(weight=0.3), evidence_of(((True,), (True,))))
  np.testing.assert_allclose(signal.taught.weight, 0.3, rtol=1e-6)
  np.testing.assert_array_equal(signal.weight, 1)
  signal = signal_of(SDPG(weight=0.3), evidence_of(((True,), (False,))))
  np.testing.assert_allclose(signal.taught.weight[0, :, 0], [0.3, 0], rtol=1e-6)


def test_the_two_losses_are_added():
  """Of one rollout, at the weights that sampled: -A a token, and the KLs."""
  apply_fn, params = chain(STUDENT)
  options = options_of(SDPG(weight=0.5), divergence=ForwardKL())
  signal = with_reference(options)
  weight = jnp.asarray(COUNTED / 5, jnp.float32)
  loss, metrics = mix.loss(
    apply_fn,
    params,
    chain(TEACHER)[1],
    chain(REFERENCE)[1],
    PROMPTS,
    ROLLOUT,
    signal,
    weight,
    options,
    Shared(kl=K3(0.1)),
  )
  q, p = TEACHER[BEFORE], STUDENT[BEFORE]
  divergence = (q * np.log(q / p)).sum(-1)[COUNTED].mean()
  gap = np.log(REFERENCE[BEFORE, IDS] / STUDENT[BEFORE, IDS])[COUNTED]
  anchor = np.mean(np.exp(gap) - gap - 1)
  policy = -REWARDED[COUNTED].mean()
  np.testing.assert_allclose(metrics['policy'], policy, rtol=1e-4)
  np.testing.assert_allclose(metrics['divergence'], 0.5 * divergence, rtol=1e-4)
  np.testing.assert_allclose(metrics['kl_ref'], anchor, rtol=1e-4)
  np.testing.assert_allclose(
    metrics['teacher_log_ratio'], U[COUNTED].mean(), rtol=1e-3
  )
  want = policy + 0.5 * divergence + 0.1 * anchor
  np.testing.assert_allclose(loss, want, rtol=1e-4)


def test_a_weight_of_the_step_goes_before_the_options():
  evidence = evidence_of(weight=jnp.array([0.2]))
  got = signal_of(Advantages(weight=0.9), evidence).advantage
  want = 0.2 * REWARDED + 0.8 * U
  np.testing.assert_allclose(got[COUNTED], want[COUNTED], rtol=1e-4)


def test_debiased_tilts_only_those_that_are_taught():
  """Two right rollouts by two strategies; without a teacher one is left."""
  both = {
    'correct': (1, 1),
    'strategy': jnp.array([[0, 1]]),
    'rl': Rewards(reward=jnp.array([[1.0, 1.0]])),
  }
  u = np.where(COUNTED, U, 0)
  tilt = u.sum(-1)
  size = np.abs(u) / np.abs(u).sum(-1, keepdims=True)
  change = (tilt.mean() - tilt)[..., None] * size
  got = signal_of(Debiased(weight=0.0), evidence_of(**both)).advantage
  np.testing.assert_allclose(got[COUNTED], (u + change)[COUNTED], rtol=1e-3)
  lone = evidence_of(((True,), (False,)), **both)
  got = signal_of(Debiased(weight=0.0), lone).advantage
  np.testing.assert_allclose(got[0, 0], u[0, 0], rtol=1e-3)
  np.testing.assert_allclose(got[0, 1], 0, atol=1e-6)
