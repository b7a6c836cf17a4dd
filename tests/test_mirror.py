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

from sdjax.objectives.reference_kl import K3
from sdjax.objectives.support import SampledToken
from sdjax.steps import rl, sd
from sdjax.steps.score import token_logp
from sdjax.steps.student import Shared

NAMES = ['signal_step', 'token_loss', 'loss']
OWN = ('evidence', 'signal', 'options')  # types of the module


def positional(function):
  """What must be the same: order and names, and what is not of the method."""
  return [
    (p.name, None if p.name in OWN else (p.annotation, p.default))
    for p in inspect.signature(function).parameters.values()
  ]


@pytest.mark.parametrize('name', NAMES)
def test_signatures_are_the_same(name):
  ours, theirs = (getattr(m, name) for m in (sd, rl))
  assert len(positional(ours)) >= 3
  assert positional(ours) == positional(theirs)
  returned = [inspect.signature(f).return_annotation for f in (ours, theirs)]
  if name == 'signal_step':
    assert returned == [sd.Signal, rl.Signal]
  else:
    assert returned[0] == returned[1]


@pytest.mark.parametrize('name', OWN)
def test_what_differs_are_types_of_the_same_name(name):
  kind = name.capitalize()
  for module in (sd, rl):
    for function in (getattr(module, f) for f in NAMES):
      found = inspect.signature(function).parameters.get(name)
      assert found is None or found.annotation is getattr(module, kind)
  assert getattr(sd, kind) is not getattr(rl, kind)


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
  own = {sd: evidence.sd, rl: evidence.rl}[module]

  def f(params):
    signal = module.signal_step(
      apply_fn,
      params,
      params,
      params,
      prompts,
      rollout,
      own,
      shared=Shared(kl=K3(0.1)),
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
  # One teacher each, here for all rollouts.
  evidence = replace(
    evidence.sd,
    context_index=evidence.sd.context_index[..., :1],
    context_mask=jnp.ones((4, 3, 1), bool),
  )
  signal = jax.jit(functools.partial(sd.signal_step, apply_fn))(
    params, teacher_params, None, prompts, rollout, evidence
  )
  teacher_logp = token_logp(
    apply_fn,
    teacher_params,
    signal.teacher.hidden[..., 0, :],
    jnp.asarray(rollout.ids),
  )
  advantage = jax.lax.stop_gradient(teacher_logp - rollout.behavior_logp)
  weight = weights(rollout, signal.sample_mask)

  def gradient(module, signal, options):
    loss = functools.partial(module.loss, apply_fn, options=options)
    f = jax.jit(jax.grad(loss, has_aux=True))
    return f(params, teacher_params, None, prompts, rollout, signal, weight)[0]

  ours = gradient(sd, signal, sd.Options(support=SampledToken()))
  rewarded = rl.Signal(signal.sample_mask, advantage=advantage)
  theirs = gradient(rl, rewarded, rl.Options())
  assert max(jnp.abs(g).max() for g in jax.tree.leaves(ours)) > 0.1
  assert_close(theirs, ours, 1e-5)


@pytest.mark.parametrize('module', [sd, rl], ids=['sd', 'rl'])
def test_an_anchor_without_a_reference_is_named(module):
  apply_fn, params = model()
  data = batch()

  def f(params):
    return signal_then_loss(
      module, apply_fn, params, params, None, data, kl=K3(0.5)
    )

  with pytest.raises(ValueError, match=r"k3\(coef=0.5\)' needs a reference"):
    jax.eval_shape(f, params)
