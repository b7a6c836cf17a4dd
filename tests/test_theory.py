"""Closed forms by hand, and against minimisers found without them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tabular import (
  ONE_TOKEN,
  THREE_TOKENS,
  problem,
  sequence_distributions,
  sequence_optimum,
  total_variation,
)

from sdjax.forecast import closed_forms as theory
from sdjax.objectives.reference_kl import K3


def test_two_answers_by_hand():
  # Each answer is shown half the time and is then certain to 0.8.
  logp0 = np.log([0.6, 0.4])
  given = np.log([[0.8, 0.2], [0.2, 0.8]])
  tilt = theory.pcmi(given, logp0)
  np.testing.assert_allclose(
    np.exp(tilt), [[0.8 / 0.6, 0.2 / 0.6], [0.2 / 0.4, 0.8 / 0.4]]
  )
  # Pooling 0.8 and 0.2 geometrically gives 0.4 for either answer.
  pooled = theory.sdsd_optimum(logp0, tilt @ [0.5, 0.5])
  np.testing.assert_allclose(pooled, [0.5, 0.5])
  # beta 1: the geometric mean of that and the base, sqrt(0.3) : sqrt(0.2).
  anchored = theory.sdsd_optimum(logp0, tilt @ [0.5, 0.5], 1.0)
  np.testing.assert_allclose(anchored[0] / anchored[1], np.sqrt(1.5))
  # The mean of the two teachers says 0.5 too; shown the first three times in
  # four it says 0.65, and the pool 0.8^.75 0.2^.25 : 0.2^.75 0.8^.25 = 2 : 1.
  mixed = theory.mixture_optimum(logp0, given, [0.75, 0.25])
  np.testing.assert_allclose(mixed, [0.65, 0.35])
  pooled = theory.sdsd_optimum(logp0, tilt @ [0.75, 0.25])
  np.testing.assert_allclose(pooled, [2 / 3, 1 / 3])
  # Reward 1 for the first at beta 1 / log 2 doubles its odds.
  best = theory.kl_rl_optimum(logp0, np.array([1.0, 0.0]), 1 / np.log(2))
  np.testing.assert_allclose(best, [0.75, 0.25])
  # Forward anchor at beta 1: 0.6 / (1 + g - 1) + 0.4 / (1 + g) = 1 at
  # g = lambda - 1 = sqrt(0.6).
  best = theory.kl_rl_optimum(
    logp0, np.array([1.0, 0.0]), 1.0, anchor='forward_kl'
  )
  np.testing.assert_allclose(best[0], np.sqrt(0.6))


def lowest(objective, start, betas):
  """The policies whose logits minimise `objective(logits, beta)`, in float64.

  Found by L-BFGS, for each beta: [betas, Y].
  """

  def search(beta):
    optimizer = optax.lbfgs()
    fn = functools.partial(objective, beta=beta)

    def step(carry, _):
      logits, state = carry
      value, grad = optax.value_and_grad_from_state(fn)(logits, state=state)
      updates, state = optimizer.update(
        grad, state, logits, value=value, grad=grad, value_fn=fn
      )
      return (optax.apply_updates(logits, updates), state), None

    logits = jnp.asarray(start)
    carry = (logits, optimizer.init(logits))
    (best, _), _ = jax.lax.scan(step, carry, length=300)
    return jax.nn.softmax(jnp.asarray(best))

  with jax.enable_x64(True):
    return np.asarray(jax.jit(jax.vmap(search))(jnp.asarray(betas)))


def kl(logp, logq):
  return jnp.sum(jnp.exp(logp) * (logp - logq))


def test_the_exact_minimiser_of_sdsd_is_the_closed_form():
  logp0, given, _, demo_prob = sequence_distributions(*THREE_TOKENS)
  betas = [0.0, 0.1, 1.0]

  def objective(logits, beta):
    return theory.sdsd_objective(logits, given, demo_prob, logp0, beta)

  found = lowest(objective, np.zeros_like(logp0), betas)
  for beta, policy in zip(betas, found, strict=True):
    want = sequence_optimum(*THREE_TOKENS, beta)
    np.testing.assert_allclose(policy, want, rtol=0, atol=1e-6)
    assert total_variation(want, np.exp(logp0)) > 0.1
    # The objective is the mean of plain KLs, not just alike in its minimum.
    teachers = [kl(jnp.log(policy), given[:, c]) for c in range(given.shape[1])]
    value = np.dot(teachers, demo_prob) + beta * kl(jnp.log(policy), logp0)
    np.testing.assert_allclose(
      objective(np.log(policy), beta), value, rtol=1e-4
    )


@pytest.mark.parametrize(
  'kind, anchor',
  [
    ('sdsd', 'forward_kl'),
    ('mixture', 'reverse_kl'),
    ('rl', 'reverse_kl'),
    ('rl', 'forward_kl'),
  ],
)
def test_exact_minimisers_of_the_other_objectives(kind, anchor):
  logp0, given, reward, demo_prob = sequence_distributions(*THREE_TOKENS)
  betas = [0.25, 1.0]

  def objective(logits, beta):
    logp = jax.nn.log_softmax(logits)
    if kind == 'rl':
      fit = -jnp.sum(jnp.exp(logp) * reward)
    elif kind == 'mixture':
      fit = kl(logp, jnp.log(jnp.exp(given) @ demo_prob))
    else:
      fit = theory.sdsd_objective(logits, given, demo_prob, logp0)
    pair = (logp, logp0) if anchor == 'reverse_kl' else (logp0, logp)
    return fit + beta * kl(*pair)

  def closed_form(beta):
    if kind == 'rl':
      return theory.kl_rl_optimum(logp0, reward, beta, anchor)
    if kind == 'mixture':
      return theory.mixture_optimum(logp0, given, demo_prob, beta)
    tilt = theory.pcmi(given, logp0) @ demo_prob
    return theory.sdsd_optimum(logp0, tilt, beta, anchor)

  found = lowest(objective, logp0, betas)
  want = [closed_form(beta) for beta in betas]
  np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)


def test_the_gradient_of_k3_is_that_of_the_forward_kl():
  logp0, *_ = sequence_distributions(*ONE_TOKEN)
  logits = jnp.asarray(np.roll(logp0, 1))
  prob = jax.nn.softmax(logits)

  def mean_k3(logits):  # over sampled tokens, which are constants
    logp = jax.nn.log_softmax(logits)
    return jnp.sum(prob * K3(1.0)(logp, jnp.asarray(logp0)))

  got = jax.grad(mean_k3)(logits)
  forward, reverse = (
    jax.grad(lambda z, order=order: kl(*order(jax.nn.log_softmax(z))))(logits)
    for order in (lambda p: (logp0, p), lambda p: (p, logp0))
  )
  np.testing.assert_allclose(got, forward, atol=1e-6)
  assert jnp.abs(got - reverse).max() > 0.05
  # Its value is the reverse KL all the same.
  want = kl(jax.nn.log_softmax(logits), logp0)
  np.testing.assert_allclose(mean_k3(logits), want, rtol=1e-5)


@pytest.mark.parametrize('beta', [0.1, 0.5])
def test_rl_keeps_the_ratio_of_correct_answers_and_sdsd_does_not(beta):
  logp0, given, reward, demo_prob = sequence_distributions(*THREE_TOKENS)
  one, two = np.flatnonzero(reward)[[0, 1]]
  k = np.exp(logp0[one] - logp0[two])
  for anchor in theory.ANCHORS:
    best = theory.kl_rl_optimum(logp0, reward, beta, anchor)
    np.testing.assert_allclose(best[one] / best[two], k)
  tilt = theory.pcmi(given, logp0) @ demo_prob
  best = theory.sdsd_optimum(logp0, tilt, beta)
  bias = np.exp((tilt[one] - tilt[two]) / (1 + beta))
  np.testing.assert_allclose(best[one] / best[two], k * bias)
  assert abs(np.log(bias)) > 0.2


def test_optima_of_every_prefix_at_once():
  logp_CNV, _, demo_prob = problem(*THREE_TOKENS)
  logp0, given = logp_CNV[-1], np.moveaxis(logp_CNV[:-1], 0, -1)
  tilt = theory.pcmi(given, logp0) @ demo_prob
  reward = np.arange(logp0.size).reshape(logp0.shape) / 10
  for anchor in theory.ANCHORS:
    best = theory.sdsd_optimum(logp0, tilt, 0.3, anchor)
    one = theory.sdsd_optimum(logp0[4], tilt[4], 0.3, anchor)
    np.testing.assert_allclose(best[4], one)
    best = theory.kl_rl_optimum(logp0, reward, 0.3, anchor)
    one = theory.kl_rl_optimum(logp0[4], reward[4], 0.3, anchor)
    np.testing.assert_allclose(best[4], one)


def test_small_weights_of_the_kl_do_not_drown():
  logp0 = np.log([0.5, 0.3, 0.2])
  reward = np.array([1.0, 1.0, 0.0])
  for anchor in theory.ANCHORS:
    best = theory.kl_rl_optimum(logp0, reward, 1e-9, anchor)
    np.testing.assert_allclose(best, [0.625, 0.375, 0], atol=1e-8)
    tilt = np.array([0.0, 1.0, 0.0])
    best = theory.sdsd_optimum(logp0, tilt, 1e-9, anchor)
    want = theory.sdsd_optimum(logp0, tilt)
    np.testing.assert_allclose(best, want, atol=1e-8)


LOGP0 = np.log([0.5, 0.5])


@pytest.mark.parametrize(
  'call, message',
  [
    (lambda: theory.pcmi(np.zeros((2, 1)), LOGP0), 'logp_given must be norm'),
    (lambda: theory.pcmi(LOGP0, LOGP0), 'needs 2 or more axes'),
    (
      lambda: theory.pcmi(np.log(np.full((3, 2), 1 / 3)), LOGP0),
      r'it must be \[2, C\]',
    ),
    (lambda: theory.sdsd_optimum([0.0, 0.0], LOGP0), 'sum to 2'),
    (lambda: theory.sdsd_optimum([0.0, -np.inf], LOGP0), 'must be finite'),
    (lambda: theory.sdsd_optimum(LOGP0, [1.0]), r'shape \(1,\), but logp0'),
    (lambda: theory.sdsd_optimum(LOGP0, LOGP0, -1), 'beta=-1 must be at'),
    (lambda: theory.sdsd_optimum(LOGP0, LOGP0, 1, 'kl'), "anchor='kl'"),
    (lambda: theory.kl_rl_optimum(LOGP0, LOGP0, 0), 'beta=0 must be pos'),
    (
      lambda: theory.mixture_optimum(LOGP0, LOGP0[:, None], [0.5, 0.5]),
      'there are 1 demonstrations',
    ),
    (
      lambda: theory.mixture_optimum(LOGP0, LOGP0[:, None], [0.5]),
      'sum to 1; got',
    ),
    (
      lambda: theory.sdsd_objective(LOGP0, LOGP0, LOGP0, LOGP0),
      r'shapes \[Y\], \[Y, C\]',
    ),
    (lambda: theory.group_gain(1.1, 4), 'correct_prob=1.1'),
  ],
)
def test_bad_inputs_are_named(call, message):
  with pytest.raises(ValueError, match=message):
    call()


def test_gain_of_a_group_by_hand():
  # Of two, the other one decides: alike, no advantage; else 1 and -1.
  assert abs(theory.group_gain(0.3, 2) - (0.7 + 0.3) / (1 + 2e-4)) < 1e-9
  assert theory.group_gain(0.3, 1) == 0
  limit = 1 / np.sqrt(0.3 * 0.7)
  np.testing.assert_allclose(theory.group_gain(0.3, 500), limit, rtol=0.01)
