import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from models import assert_close, batch, model

from sdjax.objectives.reference_kl import K3
from sdjax.steps import rl, sd
from sdjax.steps.student import Shared, Signal
from sdjax.steps.update import Options, ema, gradient, update_step
from sdjax.types import Prompts, Rollout, TrainState


def test_ema_by_hand():
  out = ema({'a': jnp.array([1.0, 2.0])}, {'a': jnp.array([3.0, 2.0])}, 0.25)
  np.testing.assert_allclose(out['a'], [1.5, 2.0])


def test_ema_of_bfloat16_keeps_small_steps():
  # 1 -> 1 + 2^-7, the next bfloat16, at rate 2^-4: far below its spacing.
  student = jnp.array(1 + 2**-7, jnp.bfloat16)
  out = ema(jnp.array(1.0), student, 2**-4)
  assert out.dtype == jnp.float32
  assert out == 1 + 2**-11
  from_bfloat16 = ema(jnp.array(1.0, jnp.bfloat16), student, 2**-4)
  assert from_bfloat16.dtype == jnp.float32 and from_bfloat16 == out


def one_token(num_q=4):
  """Q questions with one rollout of one token each, all counted."""
  ones = jnp.ones((num_q, 1), jnp.int32)
  return (
    Prompts(ids=ones, length=ones[:, 0], question_id=jnp.arange(num_q)),
    Rollout(
      ids=ones[..., None],
      length=ones,
      behavior_logp=jnp.zeros((num_q, 1, 1)),
      entropy=jnp.zeros((num_q, 1, 1)),
      finished=jnp.ones((num_q, 1), bool),
    ),
    Signal(sample_mask=jnp.ones((num_q, 1), bool)),
  )


def product_loss(
  params, teacher_params, ref_params, prompts, rollout, signal, weight
):
  """sum(weight) * params . teacher, whose gradient is the teacher."""
  del ref_params, prompts, rollout, signal
  value = weight.sum() * jnp.sum(params['w'] * teacher_params['w'])
  return value, {'weight': weight.sum()}


def state_of(w, optimizer, teacher=None, dtype=jnp.float32):
  params = {'w': jnp.array(w, dtype)}
  return TrainState(
    step=jnp.int32(7),
    params=params,
    opt_state=optimizer.init(params),
    teacher_params=None if teacher is None else {'w': jnp.array(teacher)},
  )


def update(state, teacher_params=None, **options):
  return update_step(
    state,
    teacher_params,
    None,
    *one_token(),
    loss_fn=product_loss,
    optimizer=optax.sgd(0.5),
    options=Options(**options),
  )


def test_sgd_and_ema_by_hand():
  # Gradient = teacher = (3, 4); w = (1, 1) - (1.5, 2); norm 5; loss 3 + 4.
  state, metrics = update(
    state_of([1.0, 1.0], optax.sgd(0.5), [3.0, 4.0]), ema_rate=0.1
  )
  np.testing.assert_allclose(state.params['w'], [-0.5, -1.0], rtol=1e-6)
  # The NEW weights enter: 0.9 * (3, 4) + 0.1 * (-0.5, -1).
  assert state.teacher_params is not None
  np.testing.assert_allclose(state.teacher_params['w'], [2.65, 3.5], rtol=1e-6)
  assert state.step == 8
  np.testing.assert_allclose(metrics['grad_norm'], 5, rtol=1e-6)
  np.testing.assert_allclose(metrics['loss'], 7, rtol=1e-6)
  np.testing.assert_allclose(metrics['weight'], 1, rtol=1e-6)


@pytest.mark.parametrize(
  'in_state, given, want',
  [
    (None, None, [1.0, 2.0]),  # current: the student's own, as a constant
    ([3.0, 4.0], None, [3.0, 4.0]),  # ema
    (None, [5.0, 6.0], [5.0, 6.0]),  # frozen
    ([3.0, 4.0], [5.0, 6.0], [5.0, 6.0]),
  ],
  ids=['current', 'ema', 'frozen', 'given'],
)
def test_who_the_teacher_is(in_state, given, want):
  before = state_of([1.0, 2.0], optax.sgd(0.5), in_state)
  given = None if given is None else {'w': jnp.array(given)}
  state, _ = update(before, given, ema_rate=0.5)
  # The gradient is the teacher.
  np.testing.assert_allclose(
    (before.params['w'] - state.params['w']) / 0.5, want, rtol=1e-6
  )
  assert (state.teacher_params is None) == (in_state is None)


def test_bfloat16_weights_stay_so_and_their_gradient_is_float32():
  optimizer = optax.sgd(0.5)
  state = state_of([1.0, 1.0], optimizer, [3.0, 4.0], jnp.bfloat16)
  grads, _ = gradient(
    product_loss, state.params, state.teacher_params, None, *one_token()
  )
  assert grads['w'].dtype == jnp.float32
  after, _ = update(state, ema_rate=0.1)
  assert after.params['w'].dtype == jnp.bfloat16
  assert after.teacher_params is not None
  assert after.teacher_params['w'].dtype == jnp.float32


def problem(method):
  """The tiny decoder's batch with the signal of a method, and its loss."""
  apply_fn, _ = model()
  prompts, rollout, evidence = batch()
  module, evidence = {'sd': (sd, evidence.sd), 'rl': (rl, evidence.rl)}[method]
  shared = Shared(kl=K3(0.2), chunk=2)
  signal = jax.jit(
    functools.partial(module.signal_step, apply_fn, shared=shared)
  )(
    model()[1],
    model(seed=1)[1],
    model(seed=1)[1],
    prompts,
    rollout,
    evidence,
  )
  loss_fn = functools.partial(module.loss, apply_fn, shared=shared)
  return loss_fn, (prompts, rollout, signal)


@pytest.mark.parametrize(
  'method, aggregation, parts',
  [('sd', 'token_mean', (2, 4)), ('rl', 'sequence_mean', (4,))],
)
def test_micro_batches_change_nothing(method, aggregation, parts):
  loss_fn, data = problem(method)

  def run(micro_batches):
    f = functools.partial(
      gradient,
      loss_fn,
      options=Options(aggregation=aggregation, micro_batches=micro_batches),
    )
    return jax.jit(f)(model()[1], model(seed=1)[1], model(seed=1)[1], *data)

  want = run(1)
  for number in parts:
    assert_close(run(number), want)


def test_parts_must_be_equal():
  with pytest.raises(ValueError, match='micro_batches=3 .* the 4 questions'):
    gradient(product_loss, {}, {}, None, *one_token(), Options(micro_batches=3))


def test_parts_of_unequal_weight_by_hand():
  """The loss of a token does not depend on the part it lands in."""
  prompts, rollout, signal = one_token()
  signal = replace(signal, sample_mask=jnp.array([[1], [1], [1], [0]], bool))

  def loss_fn(params, teacher, ref, prompts, rollout, signal, weight):
    value = params * jnp.sum(weight[:, 0, 0] * prompts.question_id)
    return value, {}

  for parts in (1, 2, 4):
    grad, _ = gradient(
      loss_fn,
      jnp.array(1.0),
      None,
      None,
      prompts,
      rollout,
      signal,
      Options(micro_batches=parts),
    )
    np.testing.assert_allclose(grad, (0 + 1 + 2) / 3, rtol=1e-6)


def test_a_donated_state_shares_no_buffer():
  optimizer = optax.adam(0.1)
  step = functools.partial(
    update_step,
    loss_fn=product_loss,
    optimizer=optimizer,
    options=Options(ema_rate=0.1),
  )
  plain, donating = jax.jit(step), jax.jit(step, donate_argnums=0)
  data = one_token()
  states = [state_of([1.0, 1.0], optimizer, [3.0, 4.0]) for _ in range(2)]
  for _ in range(3):
    before = states[1]
    states = [
      plain(states[0], None, None, *data)[0],
      donating(states[1], None, None, *data)[0],
    ]
    assert before.params['w'].is_deleted()
    places = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(states[1])]
    assert len(set(places)) == len(places)
  assert_close(states[1], states[0], 1e-7)


def test_a_step_of_sd_lowers_its_loss():
  loss_fn, data = problem('sd')
  teacher_params = model(seed=1)[1]
  optimizer = optax.adam(1e-2)
  params = model()[1]
  state = TrainState(
    step=jnp.int32(0), params=params, opt_state=optimizer.init(params)
  )
  step = jax.jit(
    functools.partial(update_step, loss_fn=loss_fn, optimizer=optimizer)
  )
  losses = []
  for _ in range(10):
    state, metrics = step(state, teacher_params, None, *data)
    losses.append(float(metrics['loss']))
  assert losses[-1] < 0.7 * losses[0]
