# pyright: reportIndexIssue=false
"""The step with rewards and a teacher, and its ends: pure RL, pure SD."""

import functools
import itertools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import assert_close, bags, batch
from sdjax.steps.view import counted_tokens

from sdjax.objectives.reduce import token_weights
from sdjax.steps import mix, rl, sd
from sdjax.steps.score import completion_hidden, token_logp
from sdjax.types import Evidence

# Rollout (1, 0) of the batch has no teacher, nor has (3, 2).
CORRECT = np.array([[1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 0]], bool)


@functools.cache
def sampled():
  """Questions and rollouts, as if the student had sampled these."""
  apply_fn, params = bags()
  prompts, rollout, _ = batch()
  hidden = completion_hidden(
    apply_fn,
    params,
    prompts.ids[:, None],
    prompts.length[:, None],
    rollout.ids,
  )
  logp = token_logp(apply_fn, params, hidden, rollout.ids)
  return prompts, replace(rollout, behavior_logp=logp)


def evidence_of(**changes) -> Evidence:
  *_, evidence = batch()
  graded = {
    'correct': jnp.asarray(CORRECT),
    'reward': jnp.asarray(CORRECT, jnp.float32),
    'strategy': jnp.where(jnp.asarray(CORRECT), jnp.arange(3), -1),
  }
  return replace(evidence, **(graded | changes))


def everyone(**changes) -> Evidence:
  """Evidence in which no rollout lacks a teacher."""
  evidence = evidence_of(**changes)
  assert evidence.context_mask is not None
  return replace(evidence, context_mask=evidence.context_mask | True)


@functools.cache
def step(module, signal_options, loss_options, aggregation='token_mean'):
  """Compiled (params, teacher, evidence) to signal, loss and gradient."""
  apply_fn, _ = bags()
  prompts, rollout = sampled()

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
      how: Any = module
      options = dict(loss_options)
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

    return signal, jax.value_and_grad(loss)(params)

  return jax.jit(f)


def both(
  module,
  signal=(),
  loss=(),
  evidence=None,
  aggregation='token_mean',
  strength=0.5,
):
  """The signal, and loss and gradient; the weight compiles nothing anew."""
  evidence = evidence_of() if evidence is None else evidence
  if strength is not None:
    evidence = replace(evidence, strength=jnp.full(4, strength))
  return step(module, signal, loss, aggregation)(
    bags()[1], bags(seed=1)[1], evidence
  )


@pytest.mark.parametrize(
  ('module', 'field', 'options'),
  [
    (sd, 'sd_weight', {'objective': 'score_weighted'}),
    (mix, 'advantage', {}),
  ],
  ids=['sd', 'mix'],
)
def test_without_a_teacher_the_student_teaches(module, field, options):
  apply_fn, params = bags()
  prompts, rollout = sampled()

  def signal(teacher):
    made = module.signal_step(
      apply_fn,
      params,
      teacher,
      None,
      prompts,
      rollout,
      evidence_of(),
      **options,
    )
    return getattr(made, field)

  np.testing.assert_allclose(signal(None), signal(params), rtol=1e-6)
  assert not np.allclose(signal(None), signal(bags(seed=1)[1]), atol=1e-3)


def run(*args, **kw):
  """Loss and gradient of a step."""
  return both(*args, **kw)[1]


def signal_of(*args, **kw):
  """What a step makes of the evidence."""
  return both(*args, **kw)[0]


def options(**values):
  return tuple(values.items())


def mixed(rule, **values):
  """A rule's options; `rlcsd` takes the last context for a wrong answer."""
  if rule == 'rlcsd':
    values['num_contrast'] = 1
  return options(rule=rule, **values)


def differ(a, b):
  return max(
    float(jnp.abs(x - y).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.mark.parametrize(
  'rule, strength',
  [
    ('advantage', 1.0),
    ('debiased', 1.0),
    ('rlsd', 0.0),
    ('antisd', 0.0),
    ('rlcsd', 0.0),
    ('loss', 1.0),
    ('sdpg', 0.0),
  ],
)
def test_one_end_is_pure_rl(rule, strength):
  # Rollouts without right and wrong answers do not count in `rlcsd`.
  evidence = everyone() if rule == 'rlcsd' else evidence_of()
  want = run(rl)
  assert_close(run(mix, mixed(rule), (), evidence, strength=strength), want)
  # At another weight it is not.
  other = run(mix, mixed(rule), (), evidence, strength=0.4)
  assert differ(other[1], want[1]) > 1e-3


def test_debiased_differs_only_where_there_are_two_strategies():
  correct = jnp.asarray(CORRECT)
  plain = run(mix, mixed('advantage'))
  one = evidence_of(strategy=jnp.where(correct, 3, -1))
  assert_close(run(mix, mixed('debiased'), (), one), plain)
  assert differ(run(mix, mixed('debiased'))[1], plain[1]) > 1e-3
  with pytest.raises(ValueError, match=r'needs evidence\.strategy'):
    run(mix, mixed('debiased'), (), evidence_of(strategy=None))


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
  complete = replace(evidence, context_mask=evidence.context_mask | True)
  taken = options(support='sampled')
  _, got = run(mix, mixed('advantage'), (), complete, strength=0.0)
  assert_close(got, run(sd, (), taken, complete)[1])
  _, got = run(mix, mixed('advantage'), (), evidence, strength=0.0)
  # The gradient is that of the counted ones, over more tokens.
  _, rollout = sampled()
  tokens = np.asarray(rollout.length)
  share = (tokens * np.asarray(evidence.context_mask)[..., 0]).sum()
  share = share / tokens.sum()
  _, want = run(sd, (), taken, evidence)
  assert_close(got, jax.tree.map(lambda x: share * x, want))


@pytest.mark.parametrize('aggregation', ['token_mean', 'sequence_mean'])
@pytest.mark.parametrize('objective', ['reverse_kl', 'jsd'])
def test_the_other_end_of_the_loss_is_pure_sd(objective, aggregation):
  how = options(objective=objective)
  want = run(sd, (), how, aggregation=aggregation)
  signal = mixed('loss', aggregation=aggregation)
  got = run(mix, signal, how, aggregation=aggregation, strength=0.0)
  assert_close(got, want)


def test_between_the_ends_the_loss_is_the_weighted_sum():
  ends = run(rl), run(sd)
  got = run(mix, mixed('loss'), strength=0.25)
  want = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *ends)
  assert_close(got, want)


def test_srpo_is_rl_where_all_are_right_and_sd_where_none_is():
  right = replace(evidence_of(), correct=jnp.asarray(CORRECT | True))
  assert_close(run(mix, mixed('srpo'), (), right), run(rl))
  wrong = everyone(correct=jnp.asarray(CORRECT & False))
  plain = mixed('srpo', entropy_exponent=0.0)
  want = run(sd, (), (), wrong)
  assert_close(run(mix, plain, (), wrong), want)
  # Where the teacher is unsure it counts for less, in the mean not at all.
  weighted = run(mix, mixed('srpo', entropy_exponent=2.0), (), wrong)
  assert differ(weighted[1], want[1]) > 1e-3


def test_srpo_routes_by_the_verdict():
  _, rollout = sampled()
  signal = signal_of(mix, mixed('srpo'))
  has = np.asarray(evidence_of().context_mask).any(-1)
  failed = ~CORRECT & has
  # A failed rollout without a teacher is left to the rewards, and counts.
  assert (~CORRECT & ~has).sum() == 2
  assert signal.sample_mask.all()
  assert signal.rl_weight is not None and signal.sd_weight is not None
  np.testing.assert_array_equal(signal.rl_weight[..., 0], ~failed)
  np.testing.assert_array_equal(signal.sd_weight[..., 0] > 0, failed)
  counted = counted_tokens(rollout, signal) & failed[..., None]
  mean = np.asarray(signal.sd_weight)[np.asarray(counted)].mean()
  np.testing.assert_allclose(mean, 1, rtol=1e-5)


def test_srpo_by_hand():
  """Each token's loss, over the tokens of all rollouts."""
  apply_fn, params = bags()
  prompts, rollout = sampled()
  signal = signal_of(mix, mixed('srpo', entropy_exponent=0.0))
  failed = ~CORRECT & np.asarray(evidence_of().context_mask).any(-1)
  mask = np.asarray(counted_tokens(rollout, signal))
  _, each = sd.distilled(
    apply_fn,
    params,
    bags(seed=1)[1],
    None,
    prompts,
    rollout,
    replace(signal, sd_weight=None),
  )
  # (R - mean) / (std + 1e-4) of 0/1 rewards, p their mean; the ratio is 1.
  p = CORRECT.mean(axis=1, keepdims=True)
  advantage = (CORRECT - p) / (np.sqrt(p * (1 - p)) + 1e-4)
  want = np.where(failed[..., None], each, -advantage[..., None])
  got, _ = run(mix, mixed('srpo', entropy_exponent=0.0))
  np.testing.assert_allclose(got, want[mask].mean(), rtol=1e-5)


@pytest.mark.parametrize('positive_only', [False, True])
def test_sdpg_distils_all_or_where_the_advantage_is_positive(positive_only):
  gate = mixed('sdpg', positive_only=positive_only)
  signal = signal_of(mix, gate, strength=0.3)
  where = np.asarray(evidence_of().context_mask).any(-1)
  if positive_only:
    where = where & CORRECT & ~CORRECT.all(1, keepdims=True)
  np.testing.assert_allclose(
    signal.sd_weight, np.broadcast_to(0.3 * where[..., None], (4, 3, 5))
  )
  assert signal.sample_mask.all()


def test_rlcsd_leaves_out_who_lacks_a_right_or_a_wrong_answer():
  # The last context shows a wrong answer.
  has = np.asarray(evidence_of().context_mask).all(-1)
  assert has.any() and not has.all()
  signal = signal_of(mix, mixed('rlcsd'), strength=0.0)
  value, _ = run(mix, mixed('rlcsd'), strength=0.0)
  np.testing.assert_array_equal(signal.sample_mask, has)
  # Nothing is touched at weight 0: the plain mean over those that are left.
  _, rollout = sampled()
  p = CORRECT.mean(axis=1, keepdims=True)
  advantage = (CORRECT - p) / (np.sqrt(p * (1 - p)) + 1e-4)
  tokens = np.asarray(rollout.length) * has
  want = -(advantage * tokens).sum() / tokens.sum()
  np.testing.assert_allclose(value, want, rtol=1e-5)


def test_the_spread_of_a_group_is_as_asked():
  plain = np.asarray(signal_of(rl).advantage)[0, :, 0]
  sample = options(std='sample', std_epsilon=1e-6)
  # One of three right: 2/3 over sqrt(1/3), where the population has sqrt(2)/3.
  for module, how in ((rl, sample), (mix, mixed('rlsd', **dict(sample)))):
    got = signal_of(module, how, strength=0.0).advantage
    assert got is not None
    np.testing.assert_allclose(got[0, 0, 0], 2 / 3 * 3**0.5, rtol=1e-5)
  np.testing.assert_allclose(plain[0], 2 / 2**0.5, rtol=1e-3)


def test_a_scheduled_weight_comes_from_the_evidence():
  got = run(mix, mixed('loss', weight=0.25), strength=None)
  assert_close(got, run(mix, mixed('loss'), strength=0.25))


def test_no_two_rules_are_the_same():
  found = {rule: run(mix, mixed(rule))[1] for rule in mix.RULES}
  for rule, other in itertools.combinations(mix.RULES, 2):
    assert differ(found[rule], found[other]) > 1e-3, (rule, other)


def test_antisd_is_silent_below_its_floor():
  floor = mixed('antisd', entropy_floor=50.0)
  assert_close(run(mix, floor, strength=2.0), run(rl))


def test_rollouts_without_a_teacher_keep_their_advantage():
  plain = signal_of(rl).advantage
  has = np.asarray(evidence_of().context_mask).any(-1)
  for rule in ('rlsd', 'antisd'):
    got = signal_of(mix, mixed(rule), strength=1.0).advantage
    assert got is not None and plain is not None
    np.testing.assert_allclose(got[~has], plain[~has], atol=1e-6)
    assert (np.abs(got[has] - plain[has]).max(-1) > 1e-3).any()


def test_sc_sdpo_weighs_questions_and_its_end_is_pure_sd():
  # Pass rates 1/3, 2/3, 1, 0: roots of 2/9, 2/9, 0, 0 over their mean.
  signal, (_, slope) = both(sd, options(success_exponent=0.5))
  assert signal.sd_weight is not None
  np.testing.assert_allclose(signal.sd_weight[:, 0, 0], [2, 2, 0, 0], rtol=1e-5)
  plain, (_, want) = both(sd)
  assert plain.sd_weight is None
  assert_close(run(sd, options(success_exponent=0.0))[1], want)
  assert differ(slope, want) > 1e-3


def test_an_unknown_rule_is_named():
  with pytest.raises(ValueError, match="rule='grpo' is not one of"):
    run(mix, mixed('grpo'))


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
  apply_fn, params = bags()
  teacher, reference = bags(seed=1)[1], bags(seed=2)[1]
  prompts, rollout = sampled()
  evidence = evidence_of()

  @functools.partial(jax.jit, static_argnames='anchor')
  def loss(teacher, ref_params, share, evidence, anchor):
    signal = sd.signal_step(
      apply_fn,
      params,
      teacher,
      ref_params,
      prompts,
      rollout,
      evidence,
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

  def alone(teacher, evidence):
    return loss(teacher, None, 1.0, evidence, anchor='none')

  def anchored(anchor, share):
    return loss(teacher, reference, share, evidence, anchor=anchor)

  plain = alone(teacher, evidence)
  for anchor in ('student', 'teacher'):
    np.testing.assert_allclose(anchored(anchor, 1.0), plain, rtol=1e-5)
    assert abs(anchored(anchor, 0.5) - plain) > 1e-3
  # The reference shown what the teacher is shown.
  np.testing.assert_allclose(
    anchored('teacher', 0.0), alone(reference, evidence), rtol=1e-5
  )
  # The reference asked the plain question, in both contexts' places.
  width = evidence.context_ids.shape[-1] - prompts.ids.shape[-1]
  ids = jnp.pad(jnp.asarray(prompts.ids), ((0, 0), (width, 0)))
  length = jnp.asarray(prompts.length)
  asked = replace(
    evidence,
    context_ids=jnp.repeat(ids[:, None], 2, axis=1),
    context_length=jnp.repeat(length[:, None], 2, axis=1),
  )
  np.testing.assert_allclose(
    anchored('student', 0.0), alone(reference, asked), rtol=1e-5
  )
