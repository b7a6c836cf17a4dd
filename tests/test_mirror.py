import functools
import inspect
from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from models import (
  assert_close,
  batch,
  model,
  signal_then_loss,
  weights,
)

from sdjax.steps import rl, sd
from sdjax.steps.score import token_logp

NAMES = ['signal_step', 'token_loss', 'loss']


def positional(function):
  """What must be the same: order, names, types and defaults."""
  return [
    (p.name, p.annotation, p.default)
    for p in inspect.signature(function).parameters.values()
    if p.kind is p.POSITIONAL_OR_KEYWORD
  ]


@pytest.mark.parametrize('name', NAMES)
def test_signatures_are_the_same(name):
  ours, theirs = (getattr(m, name) for m in (sd, rl))
  assert len(positional(ours)) >= 3
  assert positional(ours) == positional(theirs)
  assert (
    inspect.signature(ours).return_annotation
    == inspect.signature(theirs).return_annotation
  )


def test_shared_options_have_the_same_default():
  for name in NAMES:
    options = [inspect.signature(getattr(m, name)).parameters for m in (sd, rl)]
    shared = options[0].keys() & options[1].keys()
    assert name == 'token_loss' or {'temperature', 'chunk'} <= shared
    for option in shared:
      assert options[0][option].default == options[1][option].default


def test_the_functions_come_in_the_same_order():
  for module in (sd, rl):
    found = [
      name
      for name, f in inspect.getmembers(module, inspect.isfunction)
      if f.__module__ == module.__name__
    ]
    found.sort(key=lambda n, m=module: inspect.getsourcelines(getattr(m, n))[1])
    assert found[: len(NAMES)] == NAMES


@pytest.mark.parametrize('module', [sd, rl], ids=['sd', 'rl'])
def test_a_signal_is_constant(module):
  apply_fn, params = model()
  prompts, rollout, evidence = batch()

  def f(params):
    signal = module.signal_step(
      apply_fn, params, params, params, prompts, rollout, evidence
    )
    leaves = jax.tree.leaves(signal)
    floats = [x for x in leaves if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) == 2, 'the target, and the reference'
    return sum(x.sum() for x in floats)

  grads = jax.jit(jax.grad(f))(params)
  assert all((g == 0).all() for g in jax.tree.leaves(grads))


def test_the_gradient_identity():
  """RL on teacher_logp - behavior_logp is the sampled-token reverse KL."""
  apply_fn, params = model()
  _, teacher_params = model(seed=1)
  prompts, rollout, evidence = batch()
  assert evidence.context_index is not None
  # One teacher each, here for all rollouts.
  evidence = replace(
    evidence,
    context_index=evidence.context_index[..., :1],
    context_mask=jnp.ones((4, 3, 1), bool),
  )
  signal = jax.jit(functools.partial(sd.signal_step, apply_fn))(
    params, teacher_params, None, prompts, rollout, evidence
  )
  teacher_logp = token_logp(
    apply_fn,
    teacher_params,
    signal.teacher_hidden[..., 0, :],
    jnp.asarray(rollout.ids),
  )
  advantage = jax.lax.stop_gradient(teacher_logp - rollout.behavior_logp)
  weight = weights(rollout, signal.sample_mask)

  def gradient(module, signal, **options):
    loss = functools.partial(module.loss, apply_fn, **options)
    f = jax.jit(jax.grad(loss, has_aux=True))
    return f(params, teacher_params, None, prompts, rollout, signal, weight)[0]

  ours = gradient(sd, signal, support='sampled')
  theirs = gradient(rl, replace(signal, advantage=advantage))
  assert max(jnp.abs(g).max() for g in jax.tree.leaves(ours)) > 0.1
  assert_close(theirs, ours, 1e-5)


@pytest.mark.parametrize('module', [sd, rl], ids=['sd', 'rl'])
def test_an_anchor_without_a_reference_is_named(module):
  apply_fn, params = model()
  data = batch()

  def f(params):
    return signal_then_loss(
      module, apply_fn, params, params, None, data, kl_coef=0.5
    )

  with pytest.raises(ValueError, match='kl_coef=0.5 needs a reference'):
    jax.eval_shape(f, params)
