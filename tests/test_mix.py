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

from sdjax.feedback.strategies import Demonstrations
from sdjax.objectives.advantages import GRPO
from sdjax.objectives.anchor import Anchor, NoAnchor, Tempered, TrustRegion
from sdjax.objectives.divergence import (
  JSD,
  CrossEntropy,
  ForwardKL,
  ReverseKL,
  ScoreWeighted,
)
from sdjax.objectives.mixing import (
  RLCSD,
  RLSD,
  SDPG,
  SRPO,
  Advantages,
  AntiSD,
  Debiased,
  Losses,
  Rule,
)
from sdjax.objectives.reduce import token_weights
from sdjax.objectives.support import SampledToken
from sdjax.steps import mix, rl, sd
from sdjax.steps.score import completion_hidden, token_logp
from sdjax.steps.student import Shared, counted_tokens

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


def evidence_of(correct=CORRECT, **changes: Any) -> mix.Evidence:
  """The batch's contexts, with verdicts; `changes` of the mix's own fields."""
  *_, evidence = batch()
  right = jnp.asarray(correct)
  graded = {'strategy': jnp.where(jnp.asarray(CORRECT), jnp.arange(3), -1)}
  return replace(
    evidence,
    sd=replace(evidence.sd, correct=right),
    rl=replace(
      evidence.rl, correct=right, reward=jnp.asarray(CORRECT, jnp.float32)
    ),
    **(graded | changes),
  )


def teachers(evidence: mix.Evidence, **changes: Any) -> mix.Evidence:
  """Evidence with other teachers."""
  return replace(evidence, sd=replace(evidence.sd, **changes))


def everyone(correct=CORRECT) -> mix.Evidence:
  """Evidence in which no rollout lacks a teacher."""
  evidence = evidence_of(correct)
  return teachers(evidence, context_mask=evidence.sd.context_mask | True)


def part(module, evidence: mix.Evidence) -> Any:
  """What a step gathers, of what both do."""
  return {sd: evidence.sd, rl: evidence.rl, mix: evidence}[module]


@functools.cache
def step(module, options, shared):
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
      options,
      shared,
    )
    weight = token_weights(
      counted_tokens(rollout, signal), signal.sample_mask, shared.aggregation
    )

    def loss(params):
      return module.loss(
        apply_fn,
        params,
        teacher_params,
        None,
        prompts,
        rollout,
        signal,
        weight,
        options,
        shared,
      )[0]

    return signal, jax.value_and_grad(loss)(params)

  return jax.jit(f)


def both(
  module,
  options=None,
  evidence=None,
  aggregation: Any = 'token_mean',
  weight: float | None = 0.5,
):
  """The signal, and loss and gradient; the weight compiles nothing anew."""
  evidence = evidence_of() if evidence is None else evidence
  if weight is not None:
    evidence = replace(evidence, weight=jnp.full(4, weight))
  f = step(module, options or module.Options(), Shared(aggregation=aggregation))
  return f(bags()[1], bags(seed=1)[1], part(module, evidence))


@pytest.mark.parametrize(
  ('module', 'field', 'options'),
  [
    (sd, 'weight', sd.Options(divergence=ScoreWeighted())),
    (mix, 'advantage', mix.Options()),
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
      part(module, evidence_of()),
      options,
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


def mixed(rule: Rule, **how: Any) -> mix.Options:
  """Both, `how` of the distillation; rlcsd's last context is a wrong answer."""
  if rule.needs_contrast:
    how['demonstrations'] = Demonstrations(contrast=1)
  return mix.Options(rule=rule, sd=sd.Options(**how))


def differ(a, b):
  return max(
    float(jnp.abs(x - y).max())
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  )


@pytest.mark.parametrize(
  'rule, weight',
  [
    (Advantages(), 1.0),
    (Debiased(), 1.0),
    (RLSD(), 0.0),
    (AntiSD(), 0.0),
    (RLCSD(), 0.0),
    (Losses(), 1.0),
    (SDPG(), 0.0),
  ],
  ids=str,
)
def test_one_end_is_pure_rl(rule, weight):
  # Rollouts without right and wrong answers do not count in `rlcsd`.
  evidence = everyone() if rule.needs_contrast else evidence_of()
  want = run(rl)
  assert_close(run(mix, mixed(rule), evidence, weight=weight), want)
  # At another weight it is not.
  other = run(mix, mixed(rule), evidence, weight=0.4)
  assert differ(other[1], want[1]) > 1e-3


def test_debiased_differs_only_where_there_are_two_strategies():
  correct = jnp.asarray(CORRECT)
  plain = run(mix, mixed(Advantages()))
  one = evidence_of(strategy=jnp.where(correct, 3, -1))
  assert_close(run(mix, mixed(Debiased()), one), plain)
  assert differ(run(mix, mixed(Debiased()))[1], plain[1]) > 1e-3
  with pytest.raises(ValueError, match=r'needs evidence\.strategy'):
    run(mix, mixed(Debiased()), evidence_of(strategy=None))


def one_teacher():
  """Every rollout has one teacher, but for two that have none."""
  evidence = evidence_of()
  return teachers(
    evidence,
    context_index=evidence.sd.context_index[..., :1],
    context_mask=evidence.sd.context_mask[..., :1],
  )


def test_the_other_end_of_the_advantage_is_the_sampled_reverse_kl():
  """Rollouts without a teacher count in the mean, and pull nowhere."""
  evidence = one_teacher()
  mask = evidence.sd.context_mask
  complete = teachers(evidence, context_mask=mask | True)
  taken = sd.Options(support=SampledToken())
  _, got = run(mix, mixed(Advantages()), complete, weight=0.0)
  assert_close(got, run(sd, taken, complete)[1])
  _, got = run(mix, mixed(Advantages()), evidence, weight=0.0)
  # The gradient is that of the counted ones, over more tokens.
  _, rollout = sampled()
  tokens = np.asarray(rollout.length)
  share = (tokens * np.asarray(mask)[..., 0]).sum()
  share = share / tokens.sum()
  _, want = run(sd, taken, evidence)
  assert_close(got, jax.tree.map(lambda x: share * x, want))


@pytest.mark.parametrize('aggregation', ['token_mean', 'sequence_mean'])
@pytest.mark.parametrize('divergence', [ReverseKL(), JSD()], ids=str)
def test_the_other_end_of_the_loss_is_pure_sd(divergence, aggregation):
  want = run(sd, sd.Options(divergence=divergence), aggregation=aggregation)
  how = mixed(Losses(), divergence=divergence)
  got = run(mix, how, aggregation=aggregation, weight=0.0)
  assert_close(got, want)


def test_between_the_ends_the_loss_is_the_weighted_sum():
  ends = run(rl), run(sd)
  got = run(mix, mixed(Losses()), weight=0.25)
  want = jax.tree.map(lambda a, b: 0.25 * a + 0.75 * b, *ends)
  assert_close(got, want)


def test_srpo_is_rl_where_all_are_right_and_sd_where_none_is():
  right = evidence_of(CORRECT | True)
  assert_close(run(mix, mixed(SRPO()), right), run(rl))
  wrong = everyone(CORRECT & False)
  plain = mixed(SRPO(entropy_exponent=0.0))
  want = run(sd, sd.Options(), wrong)
  assert_close(run(mix, plain, wrong), want)
  # Where the teacher is unsure it counts for less, in the mean not at all.
  weighted = run(mix, mixed(SRPO(entropy_exponent=2.0)), wrong)
  assert differ(weighted[1], want[1]) > 1e-3


def test_srpo_routes_by_the_verdict():
  _, rollout = sampled()
  signal = signal_of(mix, mixed(SRPO()))
  has = np.asarray(evidence_of().sd.context_mask).any(-1)
  failed = ~CORRECT & has
  # A failed rollout without a teacher is left to the rewards, and counts.
  assert (~CORRECT & ~has).sum() == 2
  assert signal.sample_mask.all()
  taught = signal.taught.weight
  np.testing.assert_array_equal(signal.weight[..., 0], ~failed)
  np.testing.assert_array_equal(taught[..., 0] > 0, failed)
  counted = counted_tokens(rollout, signal) & failed[..., None]
  mean = np.asarray(taught)[np.asarray(counted)].mean()
  np.testing.assert_allclose(mean, 1, rtol=1e-5)


def test_srpo_by_hand():
  """Each token's loss, over the tokens of all rollouts."""
  apply_fn, params = bags()
  prompts, rollout = sampled()
  signal = signal_of(mix, mixed(SRPO(entropy_exponent=0.0)))
  failed = ~CORRECT & np.asarray(evidence_of().sd.context_mask).any(-1)
  mask = np.asarray(counted_tokens(rollout, signal))
  student = sd.compared(
    apply_fn,
    params,
    bags(seed=1)[1],
    None,
    prompts,
    rollout,
    signal.taught,
    sd.Options(),
    Shared(),
  )
  each = student.compared.each
  # (R - mean) / (std + 1e-4) of 0/1 rewards, p their mean; the ratio is 1.
  p = CORRECT.mean(axis=1, keepdims=True)
  advantage = (CORRECT - p) / (np.sqrt(p * (1 - p)) + 1e-4)
  want = np.where(failed[..., None], each, -advantage[..., None])
  got, _ = run(mix, mixed(SRPO(entropy_exponent=0.0)))
  np.testing.assert_allclose(got, want[mask].mean(), rtol=1e-5)


@pytest.mark.parametrize('positive_only', [False, True])
def test_sdpg_distils_all_or_where_the_advantage_is_positive(positive_only):
  gate = mixed(SDPG(positive_only=positive_only))
  signal = signal_of(mix, gate, weight=0.3)
  where = np.asarray(evidence_of().sd.context_mask).any(-1)
  if positive_only:
    where = where & CORRECT & ~CORRECT.all(1, keepdims=True)
  np.testing.assert_allclose(
    signal.taught.weight, np.broadcast_to(0.3 * where[..., None], (4, 3, 5))
  )
  assert signal.sample_mask.all()


def test_rlcsd_leaves_out_who_lacks_a_right_or_a_wrong_answer():
  # The last context shows a wrong answer.
  has = np.asarray(evidence_of().sd.context_mask).all(-1)
  assert has.any() and not has.all()
  signal = signal_of(mix, mixed(RLCSD()), weight=0.0)
  value, _ = run(mix, mixed(RLCSD()), weight=0.0)
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
  sample = rl.Options(advantage=GRPO(std='sample', epsilon=1e-6))
  # One of three right: 2/3 over sqrt(1/3), where the population has sqrt(2)/3.
  mixing = mix.Options(rule=RLSD(), rl=sample)
  for module, how in ((rl, sample), (mix, mixing)):
    got = signal_of(module, how, weight=0.0).advantage
    assert got is not None
    np.testing.assert_allclose(got[0, 0, 0], 2 / 3 * 3**0.5, rtol=1e-5)
  np.testing.assert_allclose(plain[0], 2 / 2**0.5, rtol=1e-3)


def test_a_scheduled_weight_comes_from_the_evidence():
  got = run(mix, mixed(Losses(weight=0.25)), weight=None)
  assert_close(got, run(mix, mixed(Losses()), weight=0.25))


def test_no_two_rules_are_the_same():
  rules = Rule.choices
  found = {name: run(mix, mixed(rules[name]()))[1] for name in rules}
  for rule, other in itertools.combinations(rules, 2):
    assert differ(found[rule], found[other]) > 1e-3, (rule, other)


def test_antisd_is_silent_below_its_floor():
  floor = mixed(AntiSD(entropy_floor=50.0))
  assert_close(run(mix, floor, weight=2.0), run(rl))


def test_rollouts_without_a_teacher_keep_their_advantage():
  plain = signal_of(rl).advantage
  has = np.asarray(evidence_of().sd.context_mask).any(-1)
  for rule in (RLSD(), AntiSD()):
    got = signal_of(mix, mixed(rule), weight=1.0).advantage
    assert got is not None and plain is not None
    np.testing.assert_allclose(got[~has], plain[~has], atol=1e-6)
    assert (np.abs(got[has] - plain[has]).max(-1) > 1e-3).any()


def test_sc_sdpo_weighs_questions_and_its_end_is_pure_sd():
  # Pass rates 1/3, 2/3, 1, 0: roots of 2/9, 2/9, 0, 0 over their mean.
  signal, (_, slope) = both(sd, sd.Options(success_exponent=0.5))
  np.testing.assert_allclose(signal.weight[:, 0, 0], [2, 2, 0, 0], rtol=1e-5)
  plain, (_, want) = both(sd)
  assert plain.weight is None
  assert_close(run(sd, sd.Options(success_exponent=0.0))[1], want)
  assert differ(slope, want) > 1e-3


def test_an_unknown_rule_is_named():
  with pytest.raises(ValueError, match="rule='grpo': 'grpo' is not one of"):
    mix.Options(rule='grpo')  # pyright: ignore[reportArgumentType]


def test_distil_without_its_credit_is_the_forward_kl():
  (_, want), (_, got) = (
    run(sd, sd.Options(divergence=value))
    for value in (ForwardKL(), CrossEntropy())
  )
  assert_close(got, want)
  _, other = run(sd, sd.Options(divergence=CrossEntropy(), credit_discount=1.0))
  assert differ(other, want) > 1e-3


def test_the_ends_of_an_anchored_target():
  """A share of 1 is the teacher itself, a share of 0 the reference."""
  apply_fn, params = bags()
  teacher, reference = bags(seed=1)[1], bags(seed=2)[1]
  prompts, rollout = sampled()
  evidence = evidence_of().sd

  @functools.partial(jax.jit, static_argnames='anchor')
  def loss(teacher, ref_params, share, evidence, anchor):
    evidence = replace(evidence, teacher_share=jnp.full(4, share))
    models = (apply_fn, params, teacher, ref_params)
    options = sd.Options(anchor=anchor)
    signal = sd.signal_step(*models, prompts, rollout, evidence, options)
    weight = token_weights(
      counted_tokens(rollout, signal), signal.sample_mask, 'token_mean'
    )
    return sd.loss(*models, prompts, rollout, signal, weight, options)[0]

  def alone(teacher, evidence):
    return loss(teacher, None, 1.0, evidence, anchor=NoAnchor())

  def anchored(anchor: Anchor, share):
    return loss(teacher, reference, share, evidence, anchor=anchor)

  plain = alone(teacher, evidence)
  for anchor in (Tempered(), TrustRegion()):
    np.testing.assert_allclose(anchored(anchor, 1.0), plain, rtol=1e-5)
    assert abs(anchored(anchor, 0.5) - plain) > 1e-3
  # The reference shown what the teacher is shown.
  np.testing.assert_allclose(
    anchored(TrustRegion(), 0.0), alone(reference, evidence), rtol=1e-5
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
    anchored(Tempered(), 0.0), alone(reference, asked), rtol=1e-5
  )
