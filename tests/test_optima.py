"""What the step functions converge to: training against closed forms.

Whoever changes an objective learns here whether its optimum moved.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tabular import (
  ONE_TOKEN,
  THREE_TOKENS,
  normalise,
  problem,
  sequence_distributions,
  sequence_logp,
  sequence_optimum,
  table_model,
  token_optimum,
  total_variation,
)

from sdjax import rl, rollout_step, sd, update_step
from sdjax.forecast import closed_forms as theory
from sdjax.objectives.advantages import DrGRPO
from sdjax.objectives.divergence import ForwardKL
from sdjax.objectives.reference_kl import K1, K2, K3, FullKL, KLReward
from sdjax.steps.student import Shared
from sdjax.types import Prompts, Rewards, TeacherContexts, TrainState

NUM_Q, NUM_G, STEPS = 16, 8, 1000


def train(sizes, module, gather, options=None, **shared):
  """Trains the table with the library's own steps.

  The base policy is the start, the frozen teacher and the reference.

  Args:
    sizes: of the `problem`.
    module: `sd` or `rl`.
    gather: (rollout, key) to the evidence.
    options: of the step; None: its defaults.
    **shared: of all methods.

  Returns:
    Its distribution over answers.
  """
  how = {'options': options or module.Options(), 'shared': Shared(**shared)}
  vocab, length, num_demos = sizes
  logp_CNV, *_ = problem(*sizes)
  apply_fn, base = table_model(logp_CNV)
  prompts = Prompts(
    ids=jnp.full((NUM_Q, 1), num_demos),
    length=jnp.ones(NUM_Q, jnp.int32),
    question_id=jnp.arange(NUM_Q),
  )
  # The rate falls to 0, so that what is left is bias and not noise.
  optimizer = optax.adam(optax.cosine_decay_schedule(0.1, STEPS))
  loss_fn = functools.partial(module.loss, apply_fn, **how)

  def step(state, key):
    draw, choose = jax.random.split(key)
    rollout = rollout_step(
      apply_fn,
      state.params,
      prompts,
      draw,
      num_samples=NUM_G,
      max_new_tokens=length,
      eos_ids=(vocab,),  # never drawn: every answer has full length
    )
    signal = module.signal_step(
      apply_fn,
      state.params,
      base,
      base,
      prompts,
      rollout,
      gather(rollout, choose),
      **how,
    )
    state, _ = update_step(
      state,
      base,
      base,
      prompts,
      rollout,
      signal,
      loss_fn=loss_fn,
      optimizer=optimizer,
    )
    return state, None

  keys = jax.random.split(jax.random.key(0), STEPS)
  state = TrainState(
    step=jnp.zeros((), jnp.int32), params=base, opt_state=optimizer.init(base)
  )
  state, _ = jax.jit(lambda s, k: jax.lax.scan(step, s, k))(state, keys)
  student_NV = normalise(state.params.reshape(logp_CNV.shape)[-1])
  return np.exp(sequence_logp(student_NV, length))


def shown_to_the_teacher(sizes, num_demo=1, num_plain=0):
  """Gathers a demonstration for each rollout, from a fixed distribution.

  Args:
    sizes: of the `problem`.
    num_demo: times the demonstration counts among the averaged losses.
    num_plain: times the teacher shown NO demonstration, which is the base
      policy, counts: a KL to it with weight num_plain / num_demo.
  """
  *_, demo_prob = problem(*sizes)
  none = len(demo_prob)
  contexts = jnp.broadcast_to(
    jnp.arange(none + 1)[:, None], (NUM_Q, none + 1, 1)
  )

  def gather(rollout, key):
    shape = rollout.length.shape
    demo_QG = jax.random.categorical(key, jnp.log(demo_prob), shape=shape)
    index_QGK = jnp.stack(
      [demo_QG] * num_demo + [jnp.full(shape, none)] * num_plain, axis=-1
    )
    return TeacherContexts(
      context_ids=contexts,
      context_length=jnp.ones_like(contexts[..., 0]),
      context_index=index_QGK,
      context_mask=jnp.ones(index_QGK.shape, bool),
    )

  return gather


def number_of(rollout, vocab):
  """Each rollout's place in the list of answers, int [Q, G]."""
  width = rollout.ids.shape[-1]
  return rollout.ids @ (vocab ** jnp.arange(width)[::-1])


def rewarded(sizes):
  """Gathers the rewards, for the library's own advantage."""
  reward = jnp.asarray(problem(*sizes)[1])
  return lambda rollout, _: Rewards(reward=reward[number_of(rollout, sizes[0])])


@pytest.mark.parametrize('support', ['full', 'sampled'])
def test_sd_of_one_token_ends_at_the_closed_form(support):
  gather = shown_to_the_teacher(ONE_TOKEN)
  got = train(ONE_TOKEN, sd, gather, sd.Options(support=support))
  assert total_variation(got, sequence_optimum(*ONE_TOKEN, 0.0)) < 0.02


def test_sd_with_the_base_as_a_second_teacher_ends_at_the_closed_form():
  gather = shown_to_the_teacher(ONE_TOKEN, num_demo=2, num_plain=1)
  got = train(ONE_TOKEN, sd, gather)
  assert total_variation(got, sequence_optimum(*ONE_TOKEN, 0.5)) < 0.02
  assert total_variation(got, sequence_optimum(*ONE_TOKEN, 0.0)) > 0.1


def test_sd_with_k3_ends_at_the_closed_form_with_the_forward_anchor():
  gather = shown_to_the_teacher(ONE_TOKEN)
  got = train(ONE_TOKEN, sd, gather, kl=K3(1.0))
  anchored = token_optimum(*ONE_TOKEN, 1.0, anchor='forward_kl')
  assert total_variation(got, anchored) < 0.02
  assert total_variation(got, sequence_optimum(*ONE_TOKEN, 1.0)) > 0.04


@pytest.mark.parametrize('kl', [K1(1.0), K2(1.0), FullKL(1.0)], ids=str)
def test_sd_with_another_estimator_ends_at_the_paper_s_form(kl):
  """Their slope is that of KL(student || reference), the propositions' own."""
  gather = shown_to_the_teacher(ONE_TOKEN)
  got = train(ONE_TOKEN, sd, gather, kl=kl)
  assert total_variation(got, sequence_optimum(*ONE_TOKEN, 1.0)) < 0.02
  anchored = token_optimum(*ONE_TOKEN, 1.0, anchor='forward_kl')
  assert total_variation(got, anchored) > 0.04


@pytest.mark.parametrize('num_demo, num_plain', [(1, 0), (2, 1)])
def test_sd_of_three_tokens_ends_at_the_token_level_form(num_demo, num_plain):
  gather = shown_to_the_teacher(THREE_TOKENS, num_demo, num_plain)
  got = train(THREE_TOKENS, sd, gather)
  beta = num_plain / num_demo
  assert total_variation(got, token_optimum(*THREE_TOKENS, beta)) < 0.02
  # Not at the sequence-level one: rollouts are constants to the loss, so no
  # token learns what it does to the ones after it.
  assert total_variation(got, sequence_optimum(*THREE_TOKENS, beta)) > 0.1


def test_forward_kl_ends_at_the_mean_of_the_teachers():
  gather = shown_to_the_teacher(ONE_TOKEN)
  got = train(ONE_TOKEN, sd, gather, sd.Options(divergence=ForwardKL()))
  logp0, given, _, demo_prob = sequence_distributions(*ONE_TOKEN)
  mixture = theory.mixture_optimum(logp0, given, demo_prob)
  assert total_variation(got, mixture) < 0.02
  assert total_variation(got, sequence_optimum(*ONE_TOKEN, 0.0)) > 0.2


def ends_of_rl(sizes, kl):
  """Where RL with a KL ends, and the optimum of whole answers (Prop. 1)."""
  options = rl.Options(advantage=DrGRPO())
  got = train(sizes, rl, rewarded(sizes), options, kl=kl)
  logp0, _, reward, _ = sequence_distributions(*sizes)
  return got, theory.kl_rl_optimum(logp0, reward, kl.coef)


@pytest.mark.parametrize('sizes', [ONE_TOKEN, THREE_TOKENS])
def test_a_kl_in_the_reward_ends_at_the_closed_form_at_any_length(sizes):
  """To the last bit: there R - beta K is the same for all answers."""
  got, want = ends_of_rl(sizes, KLReward(0.5))
  assert total_variation(got, want) < 1e-5


def test_a_kl_to_go_ends_at_the_closed_form_but_for_noise():
  got, want = ends_of_rl(THREE_TOKENS, KLReward(0.5, to_go=True))
  assert total_variation(got, want) < 0.02


@pytest.mark.parametrize('kl', [K1(0.5), FullKL(0.5)], ids=str)
def test_a_kl_in_the_loss_ends_elsewhere_for_several_tokens(kl):
  """No token pays for those it makes likely behind it."""
  got, want = ends_of_rl(THREE_TOKENS, kl)
  assert total_variation(got, want) > 0.04


def test_grpo_ends_at_the_closed_form_of_its_gain_and_anchor():
  beta = 1.0
  got = train(ONE_TOKEN, rl, rewarded(ONE_TOKEN), kl=K3(beta))
  logp0, _, reward, _ = sequence_distributions(*ONE_TOKEN)

  def ends(gain, anchor='forward_kl'):
    return theory.kl_rl_optimum(logp0, gain * reward, beta, anchor)

  gain = 1.0
  for _ in range(200):
    gain = theory.group_gain(float(ends(gain) @ reward), NUM_G)
  assert total_variation(got, ends(gain)) < 0.02
  assert total_variation(got, ends(1.0)) > 0.1
  assert total_variation(got, ends(gain, 'reverse_kl')) > 0.05
  # What the paper says of RL holds: correct answers keep their ratios.
  kept = np.exp(logp0) * reward / (np.exp(logp0) @ reward)
  assert total_variation(got * reward / (got @ reward), kept) < 0.02
