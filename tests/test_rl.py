import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import (
  assert_close,
  batch,
  chain,
  largest_logits,
  model,
  signal_then_loss,
  weights,
)

from sdjax.objectives.advantages import GRPO, RLOO, DrGRPO, RewardItself
from sdjax.objectives.policy_loss import CISPO, Clip
from sdjax.objectives.reference_kl import K3, KLReward
from sdjax.steps import rl
from sdjax.steps.sampling import Sampling
from sdjax.steps.student import Shared
from sdjax.types import Prompts, Rewards, Rollout

STUDENT = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]])
REF = np.array([[0.25, 0.5, 0.25], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]])

# Question 0: one of two is right. Question 1: all right. Question 2: none.
PROMPTS = Prompts(
  ids=jnp.array([[0, 1], [0, 1], [0, 1]]),
  length=jnp.array([1, 2, 2]),
  question_id=jnp.arange(3),
)
IDS = [[[2, 0], [0, 0]], [[2, 0], [1, 2]], [[1, 0], [0, 0]]]
LENGTH = [[2, 1], [2, 2], [1, 1]]
REWARD = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
ROLLOUT = Rollout(
  ids=jnp.array(IDS),
  length=jnp.array(LENGTH),
  # After 1 comes 2 (.7), then 0 (.3); or 0 (.1); those of question 0.
  behavior_logp=jnp.log(
    jnp.array(
      [[[0.7, 0.3], [0.1, 1]], [[0.7, 0.3], [0.2, 0.7]], [[0.2, 1], [0.1, 1]]]
    )
  ),
  entropy=jnp.zeros((3, 2, 2)),
  finished=jnp.ones((3, 2), bool),
)
EVIDENCE = Rewards(reward=jnp.array(REWARD))


def by_hand(rollout=ROLLOUT, ref=None, policy_loss=None, **shared):
  apply_fn, params = chain(STUDENT)
  ref_params = None if ref is None else chain(ref)[1]

  def f(params):
    return signal_then_loss(
      rl,
      apply_fn,
      params,
      None,
      ref_params,
      (PROMPTS, rollout, EVIDENCE),
      rl.Options(policy_loss=policy_loss or Clip()),
      **shared,
    )

  (loss, metrics), slope = jax.value_and_grad(f, has_aux=True)(params)
  return loss, metrics, slope


UNIT = 0.5 / 0.5001


def test_advantages_by_hand():
  signal = rl.signal_step(
    chain(STUDENT)[0], None, None, None, PROMPTS, ROLLOUT, EVIDENCE
  )
  assert signal.advantage is not None
  np.testing.assert_allclose(
    signal.advantage[..., 0], [[UNIT, -UNIT], [0, 0], [0, 0]], rtol=1e-5
  )
  np.testing.assert_array_equal(
    signal.advantage[..., 1:], signal.advantage[..., :1]
  )
  assert signal.sample_mask.all() and signal.weight is None


def test_loss_and_gradient_at_ratio_one_by_hand():
  # 9 tokens count; those of question 0 pull with +1 +1 -1.
  loss, metrics, slope = by_hand()
  np.testing.assert_allclose(loss, -UNIT / 9, rtol=1e-4)
  np.testing.assert_allclose(metrics['behavior_gap'], 0, atol=1e-6)
  # d log p / d logits = one-hot - p: rows 1 (tokens 2, then 0 against) and 2.
  one = np.eye(3)
  want = np.zeros((3, 3))
  want[1] = -(one[2] - STUDENT[1]) + (one[0] - STUDENT[1])
  want[2] = -(one[0] - STUDENT[2])
  np.testing.assert_allclose(slope, want * UNIT / 9, atol=1e-6)
  entropy = -np.sum(STUDENT * np.log(STUDENT), -1)
  # Column 0 after token 1: 6 times; column 1 after 2, 2, 1: once each.
  want = (7 * entropy[1] + 2 * entropy[2]) / 9
  np.testing.assert_allclose(metrics['entropy'], want, rtol=1e-5)


def test_the_ratio_is_clipped_on_both_sides():
  # The right rollout has become likelier by 1.5, the wrong one by 0.5:
  # both are past their clips, and nothing pulls.
  shift = jnp.log(jnp.array([[1.5], [0.5]]))
  rollout = replace(ROLLOUT, behavior_logp=ROLLOUT.behavior_logp - shift)
  loss, _, slope = by_hand(rollout, policy_loss=Clip(low=0.2, high=0.3))
  np.testing.assert_allclose(loss, (-2 * 1.3 + 0.8) * UNIT / 9, rtol=1e-4)
  np.testing.assert_allclose(slope, 0, atol=1e-7)
  # With wider clips it does.
  loss, _, slope = by_hand(rollout, policy_loss=Clip(low=0.6, high=0.6))
  np.testing.assert_allclose(loss, (-2 * 1.5 + 0.5) * UNIT / 9, rtol=1e-4)
  assert jnp.abs(slope).max() > 0.01


def test_tokens_that_ppo_would_clip_can_be_dropped():
  # The right rollout's tokens became likelier by 1.5, the wrong one's by 0.5.
  shift = jnp.log(jnp.array([[1.5], [0.5]]))
  rollout = replace(ROLLOUT, behavior_logp=ROLLOUT.behavior_logp - shift)
  how = {'low': 1.0, 'high': 0.3}
  right = -1.3 * np.log(0.7 * 0.3) * UNIT / 9
  wrong = 0.5 * np.log(0.1) * UNIT / 9
  for drops, want in (
    ({}, right + wrong),
    ({'drop_high': 0.4}, wrong),
    ({'drop_high': 0.6}, right + wrong),
    ({'drop_low': 0.4}, right),
    ({'drop_low': 0.6}, right + wrong),
    ({'drop_low': 0.4, 'drop_high': 0.4}, 0),
  ):
    loss, _, slope = by_hand(rollout, policy_loss=CISPO(**how, **drops))
    np.testing.assert_allclose(loss, want, rtol=1e-4, atol=1e-7)
    assert bool(jnp.abs(slope).max() > 1e-3) == bool(want)


def test_kl_to_the_reference_by_hand():
  plain, *_ = by_hand()
  loss, metrics, _ = by_hand(ref=REF, kl=K3(0.5))
  ratios = np.array(
    [
      [0.6 / 0.7, 0.6 / 0.3],
      [0.2 / 0.1, 1],
      [0.6 / 0.7, 0.6 / 0.3],
      [0.2 / 0.2, 0.6 / 0.7],
      [0.2 / 0.2, 1],
      [0.2 / 0.1, 1],
    ]
  )
  want = np.sum(ratios - np.log(ratios) - 1) / 9
  np.testing.assert_allclose(metrics['kl_ref'], want, rtol=1e-4)
  np.testing.assert_allclose(loss, plain + 0.5 * want, rtol=1e-4)


# log p - log r summed over the rollouts of question 0: ids 2 0, and 0.
COST = np.log([0.7 / 0.6 * 0.3 / 0.6, 0.1 / 0.2])


def charged(rollout=ROLLOUT, advantage=None, to_go=False, **shared):
  """Advantages with a KL of weight 0.5 in the reward."""
  apply_fn, params = chain(STUDENT)
  _, ref_params = chain(REF)
  signal = rl.signal_step(
    apply_fn,
    params,
    None,
    ref_params,
    PROMPTS,
    rollout,
    EVIDENCE,
    rl.Options(advantage=advantage or DrGRPO()),
    Shared(kl=KLReward(0.5, to_go=to_go), **shared),
  )
  assert signal.advantage is not None
  return signal.advantage[0]


@pytest.mark.parametrize(
  'advantage, want',
  [
    (DrGRPO(), np.array([0.5, -0.5]) - 0.5 * (COST - COST.mean())),
    (RLOO(), np.array([1.0, -1.0]) - 0.5 * (COST - COST[::-1])),
    (RewardItself(), np.array([1.0, 0.0]) - 0.5 * COST),
    # The KL is not divided by the spread of the rewards.
    (GRPO(), np.array([UNIT, -UNIT]) - 0.5 * (COST - COST.mean())),
  ],
)
def test_a_kl_in_the_reward_by_hand(advantage, want):
  got = charged(advantage=advantage)
  np.testing.assert_allclose(got[:, 0], want, rtol=1e-5)
  np.testing.assert_array_equal(got[:, 1:], got[:, :1])


def test_a_kl_to_go_by_hand():
  got = charged(to_go=True)
  np.testing.assert_allclose(got[:, 0], charged()[:, 0], rtol=1e-6)
  # Of the second token on; the other rollout has ended and has none to go.
  np.testing.assert_allclose(got[0, 1], 0.5 - 0.25 * np.log(0.5), rtol=1e-5)


TRUNCATES = Sampling(top_p=0.999)


def test_a_kl_in_the_reward_is_of_counted_tokens_under_the_own_weights():
  # Without the first tokens only the second one of rollout 0 is left.
  got = charged(skip_tokens=1)
  np.testing.assert_allclose(got[0, 0], 0.5 - 0.25 * np.log(0.5), rtol=1e-5)
  # A truncating sampler's log-probabilities are not the weights' own.
  other = replace(ROLLOUT, behavior_logp=0.5 * ROLLOUT.behavior_logp)
  assert_close(charged(other, sampling=TRUNCATES), charged(), 1e-6)
  assert jnp.abs(charged(other) - charged()).max() > 0.01


def test_a_kl_in_the_reward_is_measured_and_not_added_to_the_loss():
  _, params = chain(STUDENT)
  _, ref_params = chain(REF)
  # Without the charge, so that the signal's other parts are what is read.
  signal = rl.signal_step(
    chain(STUDENT)[0],
    params,
    None,
    ref_params,
    PROMPTS,
    ROLLOUT,
    EVIDENCE,
    shared=Shared(kl=K3(0.5)),
  )
  total, metrics = rl.loss(
    chain(STUDENT)[0],
    params,
    None,
    ref_params,
    PROMPTS,
    ROLLOUT,
    signal,
    weights(ROLLOUT, signal.sample_mask),
    shared=Shared(kl=KLReward(0.5)),
  )
  assert total == metrics['policy']
  gaps = [*COST, COST[0], np.log(0.7 / 0.6), 0, COST[1]]
  np.testing.assert_allclose(metrics['kl_ref'], np.sum(gaps) / 9, rtol=1e-5)


def test_a_kl_in_the_reward_needs_a_reference():
  with pytest.raises(ValueError, match="kl='rewards': 'rewards' is not one of"):
    Shared(kl='rewards')  # pyright: ignore[reportArgumentType]
  with pytest.raises(ValueError, match=r"'reward\(coef=0.5\)' needs ref_par"):
    rl.signal_step(
      *(chain(STUDENT)[0], None, None, None, PROMPTS, ROLLOUT, EVIDENCE),
      shared=Shared(kl=KLReward(0.5)),
    )


def test_groups_that_agree_do_not_pull():
  _, _, want = by_hand()
  other = replace(ROLLOUT, ids=jnp.asarray(IDS).at[1:].set(1))
  _, _, slope = by_hand(other)
  np.testing.assert_allclose(slope, want, atol=1e-7)


@functools.cache
def loss_and_gradient(chunk=16, dtype='float32'):
  apply_fn, _ = model(dtype=dtype)
  prompts, _, evidence = batch()

  def f(params, ref_params, rollout):
    data = (prompts, rollout, evidence)
    return signal_then_loss(
      rl, apply_fn, params, None, ref_params, data, chunk=chunk, kl=K3(0.3)
    )

  return jax.jit(jax.value_and_grad(f, has_aux=True))


def run(rollout=None, **options):
  params, ref_params = model()[1], model(seed=1)[1]
  (loss, _), grads = loss_and_gradient(**options)(
    params, ref_params, rollout or batch()[1]
  )
  return loss, grads


def test_chunks_change_nothing():
  assert_close(run(chunk=2), run())


def test_columns_behind_a_rollouts_end_change_nothing():
  _, rollout, _ = batch()
  padding = jnp.arange(5) >= rollout.length[..., None]
  other = replace(
    rollout,
    ids=jnp.where(padding, 9, rollout.ids),
    behavior_logp=jnp.where(padding, -3.0, rollout.behavior_logp),
  )
  assert padding.any()
  assert_close(run(other), run(), 1e-6)


def test_bfloat16_is_finite_and_close():
  want, _ = run()
  loss, grads = run(dtype='bfloat16')
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, want, rtol=1e-2)
  assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_logits_exist_for_one_chunk_only():
  vocab, num_q, num_g, width = 199, 4, 3, 5
  apply_fn, params = model(vocab_size=vocab)
  data = batch()

  def trace(chunk):
    def f(params):
      return signal_then_loss(
        rl, apply_fn, params, None, params, data, chunk=chunk, kl=K3(0.1)
      )[0]

    return largest_logits(jax.make_jaxpr(jax.value_and_grad(f))(params), vocab)

  all_logits = num_q * num_g * width * vocab
  largest, logits = trace(chunk=1)
  assert logits == num_q * num_g * vocab
  assert largest < all_logits
  # The measure sees them when they are there.
  assert trace(chunk=width)[1] == all_logits
