"""The step with rewards and a teacher, and its ends: pure RL, pure SD."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import assert_close, batch, jit, model

from sdjax.objectives.reduce import token_weights
from sdjax.steps import mix, rl, sd
from sdjax.steps.view import counted_tokens
from sdjax.types import Evidence

# Rollout (1, 0) of the batch has no teacher, nor has (3, 2).
CORRECT = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]], bool)


def evidence_of(**changes) -> Evidence:
  *_, evidence = batch()
  return replace(
    evidence,
    correct=jnp.asarray(CORRECT),
    reward=jnp.asarray(CORRECT, jnp.float32),
    **changes,
  )


@functools.cache
def step(module, signal_options, loss_options, aggregation='token_mean'):
  """Compiled (params, teacher, evidence) to loss and gradient."""
  apply_fn, _ = model()
  prompts, rollout, _ = batch()

  def f(params, teacher_params, evidence):
    signal = module.signal_step(
      apply_fn,
      params,
      teacher_params,
      None,
      prompts,
      rollout,
      evidence,
      **dict(signal_options),
    )
    weight = token_weights(
      counted_tokens(rollout, signal), signal.sample_mask, aggregation
    )

    def loss(params):
      how, options = module, dict(loss_options)
      if module is mix and signal.sd_weight is None:
        how = rl  # a rule on the advantage ends in the policy loss
      elif module is mix:
        options = {'distance': options}
      return how.loss(
        apply_fn,
        params,
        teacher_params,
        None,
        prompts,
        rollout,
        signal,
        weight,
        **options,
      )[0]

    return jax.value_and_grad(loss)(params)

  return jit(f)


def run(module, signal=(), loss=(), evidence=None, aggregation='token_mean'):
  evidence = evidence_of() if evidence is None else evidence
  return step(module, signal, loss, aggregation)(
    model()[1], model(seed=1)[1], evidence
  )


def options(**values):
  return tuple(values.items())


def differ(a, b):
  return max(
    float(jnp.abs(x - y).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.mark.parametrize(
  'rule, weight',
  [
    ('advantage', 1.0),
    ('debiased', 1.0),
    ('rlsd', 0.0),
    ('antisd', 0.0),
    ('loss', 1.0),
    ('sdpg', 0.0),
  ],
)
def test_one_end_is_pure_rl(rule, weight):
  want = run(rl)
  evidence = evidence_of(strategy=jnp.where(jnp.asarray(CORRECT), 0, -1))
  got = run(mix, options(rule=rule, weight=weight), (), evidence)
  assert_close(got, want)
  # At another weight it is not.
  other = run(mix, options(rule=rule, weight=0.4), (), evidence)
  assert differ(other[1], want[1]) > 1e-3


def test_debiased_differs_only_where_there_are_two_strategies():
  correct = jnp.asarray(CORRECT)
  plain = run(mix, options(rule='advantage', weight=0.3))
  how = options(rule='debiased', weight=0.3)
  one = evidence_of(strategy=jnp.where(correct, 3, -1))
  assert_close(run(mix, how, (), one), plain)
  each = jnp.broadcast_to(jnp.arange(correct.shape[1]), correct.shape)
  several = evidence_of(strategy=jnp.where(correct, each, -1))
  assert differ(run(mix, how, (), several)[1], plain[1]) > 1e-3
  with pytest.raises(ValueError, match=r'needs evidence\.strategy'):
    run(mix, how)


def test_one_end_of_rlcsd_is_pure_rl():
  want = run(rl)
  how = {'rule': 'rlcsd', 'num_contrast': 1}
  assert_close(run(mix, options(weight=0.0, **how)), want)
  assert differ(run(mix, options(weight=0.5, **how))[1], want[1]) > 1e-3


def one_teacher():
  """Every rollout has one teacher, but for two that have none."""
  evidence = evidence_of()
  assert evidence.context_index is not None
  assert evidence.context_mask is not None
  return replace(
    evidence,
    context_index=evidence.context_index[..., :1],
    context_mask=evidence.context_mask[..., :1],
  )


def test_the_other_end_of_the_advantage_is_the_sampled_reverse_kl():
  """Rollouts without a teacher count in the mean, and pull nowhere."""
  evidence = one_teacher()
  assert evidence.context_mask is not None
  everyone = replace(evidence, context_mask=evidence.context_mask | True)
  sampled = options(support='sampled')
  _, got = run(mix, options(rule='advantage', weight=0.0), (), everyone)
  assert_close(got, run(sd, (), sampled, everyone)[1])
  _, got = run(mix, options(rule='advantage', weight=0.0), (), evidence)
  # The gradient is that of the counted ones, over more tokens.
  _, rollout, _ = batch()
  tokens = np.asarray(rollout.length)
  share = (tokens * np.asarray(evidence.context_mask)[..., 0]).sum()
  share = share / tokens.sum()
  _, want = run(sd, (), sampled, evidence)
  assert_close(got, jax.tree.map(lambda x: share * x, want))


@pytest.mark.parametrize('aggregation', ['token_mean', 'sequence_mean'])
@pytest.mark.parametrize('objective', ['reverse_kl', 'jsd'])
def test_the_other_end_of_the_loss_is_pure_sd(objective, aggregation):
  how = options(objective=objective)
  want = run(sd, (), how, aggregation=aggregation)
  signal = options(rule='loss', weight=0.0, aggregation=aggregation)
  assert_close(run(mix, signal, how, aggregation=aggregation), want)


def test_between_the_ends_the_loss_is_the_weighted_sum():
  ends = run(rl), run(sd)
  got = run(mix, options(rule='loss', weight=0.25))
  want = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *ends)
  assert_close(got, want)


def test_srpo_is_rl_where_all_are_right_and_sd_where_none_is():
  right = replace(evidence_of(), correct=jnp.asarray(CORRECT | True))
  assert_close(run(mix, options(rule='srpo'), (), right), run(rl))
  wrong = replace(evidence_of(), correct=jnp.asarray(CORRECT & False))
  plain = options(rule='srpo', entropy_exponent=0.0)
  assert_close(run(mix, plain, (), wrong), run(sd))
  # Where the teacher is unsure it counts for less, in the mean not at all.
  weighted = run(mix, options(rule='srpo', entropy_exponent=2.0), (), wrong)
  assert differ(weighted[1], run(sd)[1]) > 1e-3


def test_srpo_routes_by_the_verdict():
  apply_fn, params = model()
  prompts, rollout, _ = batch()
  signal = mix.signal_step(
    apply_fn,
    params,
    model(seed=1)[1],
    None,
    prompts,
    rollout,
    evidence_of(),
    rule='srpo',
  )
  has = np.asarray(evidence_of().context_mask).any(-1)
  failed = ~CORRECT & has
  np.testing.assert_array_equal(signal.sample_mask, CORRECT | failed)
  assert signal.rl_weight is not None and signal.sd_weight is not None
  np.testing.assert_array_equal(signal.rl_weight[..., 0] > 0, CORRECT)
  np.testing.assert_array_equal(signal.sd_weight[..., 0] > 0, failed)
  counted = counted_tokens(rollout, signal) & failed[..., None]
  mean = np.asarray(signal.sd_weight)[np.asarray(counted)].mean()
  np.testing.assert_allclose(mean, 1, rtol=1e-5)


def test_sdpg_distils_where_the_advantage_is_positive():
  apply_fn, params = model()
  prompts, rollout, _ = batch()
  signal = mix.signal_step(
    apply_fn,
    params,
    model(seed=1)[1],
    None,
    prompts,
    rollout,
    evidence_of(),
    rule='sdpg',
    weight=0.3,
  )
  has = np.asarray(evidence_of().context_mask).any(-1)
  better = CORRECT & ~CORRECT.all(1, keepdims=True) & has
  np.testing.assert_allclose(
    signal.sd_weight, np.broadcast_to(0.3 * better[..., None], (4, 3, 5))
  )
  assert signal.sample_mask.all()


def test_a_scheduled_weight_comes_from_the_evidence():
  evidence = evidence_of(strength=jnp.full(4, 0.25))
  got = run(mix, options(rule='loss', weight=0.9), (), evidence)
  assert_close(got, run(mix, options(rule='loss', weight=0.25)))


def test_antisd_is_silent_below_its_floor():
  floor = options(rule='antisd', weight=2.0, entropy_floor=50.0)
  assert_close(run(mix, floor), run(rl))


def test_rollouts_without_a_teacher_keep_their_advantage():
  apply_fn, params = model()
  prompts, rollout, _ = batch()
  evidence = evidence_of()
  args = (apply_fn, params, model(seed=1)[1], None, prompts, rollout, evidence)
  plain = rl.signal_step(*args).advantage
  has = np.asarray(evidence.context_mask).any(-1)
  for rule in ('rlsd', 'antisd'):
    got = mix.signal_step(*args, rule=rule, weight=1.0).advantage
    assert got is not None and plain is not None
    np.testing.assert_allclose(got[~has], plain[~has], atol=1e-6)
    assert (np.abs(got[has] - plain[has]).max(-1) > 1e-3).any()


def test_sc_sdpo_weighs_questions_and_its_end_is_pure_sd():
  def weight(exponent):
    apply_fn, params = model()
    prompts, rollout, _ = batch()
    signal = sd.signal_step(
      apply_fn,
      params,
      model(seed=1)[1],
      None,
      prompts,
      rollout,
      evidence_of(),
      success_exponent=exponent,
    )
    return signal.sd_weight

  # Pass rates 1/3, 2/3, 1, 0: roots of 2/9, 2/9, 0, 0 over their mean.
  got = weight(0.5)
  assert got is not None
  np.testing.assert_allclose(got[:, 0, 0], [2, 2, 0, 0], rtol=1e-5)
  assert weight(0.0) is None
  full = run(sd)
  assert differ(run(sd, options(success_exponent=0.5))[1], full[1]) > 1e-3


def test_an_unknown_rule_is_named():
  with pytest.raises(ValueError, match="rule='grpo' is not one of"):
    run(mix, options(rule='grpo'))


def test_distil_without_its_credit_is_the_forward_kl():
  (_, want), (_, got) = (
    run(sd, (), options(objective=name))
    for name in ('forward_kl', 'cross_entropy')
  )
  assert_close(got, want)
  _, other = run(
    sd, (), options(objective='cross_entropy', credit_discount=1.0)
  )
  assert differ(other, want) > 1e-3


def test_the_ends_of_an_anchored_target():
  """A share of 1 is the teacher itself, a share of 0 the reference."""
  apply_fn, params = model()
  teacher, reference = model(seed=1)[1], model(seed=2)[1]
  prompts, rollout, _ = batch()
  evidence = evidence_of()

  def loss(teacher, ref_params, anchor, share, context):
    shown = evidence
    if context is not None:
      shown = replace(
        evidence, context_ids=context[0], context_length=context[1]
      )
    signal = sd.signal_step(
      apply_fn,
      params,
      teacher,
      ref_params,
      prompts,
      rollout,
      shown,
      anchor=anchor,
      teacher_share=share,
      with_ref_kl=False,
    )
    weight = token_weights(
      counted_tokens(rollout, signal), signal.sample_mask, 'token_mean'
    )
    return sd.loss(
      apply_fn,
      params,
      teacher,
      ref_params,
      prompts,
      rollout,
      signal,
      weight,
    )[0]

  plain = loss(teacher, None, 'none', 1.0, None)
  for anchor in ('student', 'teacher'):
    got = loss(teacher, reference, anchor, 1.0, None)
    np.testing.assert_allclose(got, plain, rtol=1e-5)
    assert abs(loss(teacher, reference, anchor, 0.5, None) - plain) > 1e-3
  # The reference shown what the teacher is shown.
  np.testing.assert_allclose(
    loss(teacher, reference, 'teacher', 0.0, None),
    loss(reference, None, 'none', 1.0, None),
    rtol=1e-5,
  )
  # The reference asked the plain question, in both contexts' places.
  width = evidence.context_ids.shape[-1] - prompts.ids.shape[-1]
  ids = jnp.pad(jnp.asarray(prompts.ids), ((0, 0), (width, 0)))
  question = (
    jnp.repeat(ids[:, None], 2, axis=1),
    jnp.repeat(jnp.asarray(prompts.length)[:, None], 2, axis=1),
  )
  np.testing.assert_allclose(
    loss(teacher, reference, 'student', 0.0, None),
    loss(reference, None, 'none', 1.0, question),
    rtol=1e-5,
  )
