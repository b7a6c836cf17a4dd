"""Narrow hidden states: what is summed and exponentiated stays float32.

The problem and the variants are those of `test_options`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import equations
from test_options import (
  TOKENIZER,
  VARIANTS,
  Letters,
  apply_fn,
  rollouts,
  table,
)

from sdjax import methods
from sdjax.feedback.grading import grade
from sdjax.objectives.reduce import token_weights
from sdjax.steps.student import counted_tokens

NARROW = [
  'sd',
  'sd:divergence=jsd(alpha=0.3)',
  'sd:divergence=cross_entropy,credit_discount=1.0',
  'sd:divergence=score_weighted',
  'sd:support=top_k(k=3)',
  "sd:support=top_k(k=2, of='teacher', tail=False)",
  'sd:support=sampled',
  'sd:demonstrations__count=3,pooling=mixture',
  'sd:teacher=current,anchor=trust_region(share=0.3)',
  'sd:kl=full(coef=0.1)',
  'rl',
  'rl:policy_loss=gspo',
  'rl:kl=k3(coef=0.1)',
  'mix:rule=loss,sd__divergence=jsd,rl__advantage=rloo',
  'mix:rule=srpo(entropy_exponent=0.5)',
]
"""Variants whose arithmetic differs."""

ROUNDING = ('exp', 'exp2', 'log', 'log1p', 'expm1', 'logistic', 'tanh')
SUMS = ('reduce_sum', 'cumsum', 'cumlogsumexp', 'reduce_max')


def losses(config, dtype):
  """Signal and loss as a function of parameters, in a dtype."""
  method = methods.METHODS[config.method.name](
    config, functools.partial(in_dtype, dtype), Letters(), TOKENIZER
  )
  prompts, rollout = rollouts()
  task = Letters()
  graded = grade(
    task, TOKENIZER, task.questions('train'), jax.device_get(rollout)
  )
  evidence = jax.tree.map(jnp.asarray, method.gather(graded, 1).evidence)

  def f(params):
    signal = method.signal(
      params, table(1), table(2), prompts, rollout, evidence
    )
    weight = token_weights(
      counted_tokens(rollout, signal), signal.sample_mask, 'token_mean'
    )
    return method.loss(
      params, table(1), table(2), prompts, rollout, signal, weight
    )[0]

  return f


def in_dtype(dtype, params, x, *, method, **kw):
  """The table with hidden states and logits in another dtype.

  Its head is rounded either way, so that only the arithmetic differs.
  """
  head = params.astype(jnp.bfloat16).astype(dtype)
  out = apply_fn(head, x, method=method, **kw)
  if method == 'head':
    return out.astype(jnp.bfloat16).astype(dtype)
  states, kv = out
  return states.astype(dtype), kv


@pytest.mark.parametrize('name', NARROW)
def test_bfloat16_states_change_a_loss_by_rounding_only(name):
  config = VARIANTS[name]
  wide = jax.value_and_grad(losses(config, jnp.float32))
  narrow = jax.value_and_grad(losses(config, jnp.bfloat16))
  want, slope = jax.jit(wide)(table())
  got, narrow_slope = jax.jit(narrow)(table())
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=1e-2)
  gap = jnp.linalg.norm(narrow_slope - slope) / jnp.linalg.norm(slope)
  assert gap < 3e-2


@pytest.mark.parametrize('name', NARROW)
def test_nothing_is_summed_or_exponentiated_in_bfloat16(name):
  traced = jax.make_jaxpr(losses(VARIANTS[name], jnp.bfloat16))(table())
  assert narrow_arithmetic(traced) == set()


def test_a_narrow_logsumexp_would_be_seen():
  traced = jax.make_jaxpr(jax.nn.log_softmax)(jnp.ones(3, jnp.bfloat16))
  assert {'exp', 'log', 'reduce_max'} <= narrow_arithmetic(traced)


def narrow_arithmetic(traced):
  return {
    equation.primitive.name
    for equation in equations(traced)
    if equation.primitive.name in (*ROUNDING, *SUMS)
    and any(
      getattr(v.aval, 'dtype', None) == jnp.bfloat16 for v in equation.invars
    )
  }
