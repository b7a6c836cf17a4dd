"""One update: gradient over micro-batches, optimizer, EMA teacher."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sdjax.objectives.reduce import token_weights
from sdjax.types import (
  Params,
  Prompts,
  Rollout,
  Signal,
  TrainState,
  length_mask,
)

LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
"""`loss_fn(params, teacher_params, prompts, rollout, signal, weight_QGT)`."""


def gradient(
  loss_fn: LossFn,
  params: Params,
  teacher_params: Params,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  *,
  aggregation: str = 'token_mean',
  micro_batches: int = 1,
) -> tuple[Params, dict[str, jax.Array]]:
  """Loss and gradient of a batch, in parts.

  Args:
    loss_fn: a method's loss, its options bound.
    params: the student's weights.
    teacher_params: the teacher's weights, constant.
    prompts: contexts of Q questions.
    rollout: their completions.
    signal: their targets.
    aggregation: see `token_weights`.
    micro_batches: parts; a divisor of Q.

  Returns:
    The gradient in float32, and the metrics with `loss` among them. Both are
    the same for any number of parts, up to rounding.

  Raises:
    ValueError: if the parts would be unequal.
  """
  mask_QGT = length_mask(rollout.length, rollout.ids.shape[-1])
  weight_QGT = token_weights(mask_QGT, signal.sample_mask, aggregation)
  num_q = rollout.ids.shape[0]
  if num_q % micro_batches:
    raise ValueError(
      f'micro_batches={micro_batches} does not divide the {num_q} questions '
      'of a step; choose a divisor.'
    )

  def value(params, batch):
    total, metrics = loss_fn(params, teacher_params, *batch)
    return total, {'loss': total, **metrics}

  def part_gradient(batch):
    grads, metrics = jax.grad(value, has_aux=True)(params, batch)
    return jax.tree.map(lambda g: g.astype(jnp.float32), grads), metrics

  batch = (prompts, rollout, signal, weight_QGT)
  if micro_batches == 1:
    return part_gradient(batch)

  def split(x):
    # Every part takes every micro_batches-th question, so that each device
    # of a sharded batch has an equal share of each part.
    shape = (num_q // micro_batches, micro_batches, *x.shape[1:])
    return jnp.swapaxes(x.reshape(shape), 0, 1)

  parts = jax.tree.map(split, batch)
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part_gradient, first)
  )

  def accumulate(total, part):
    return jax.tree.map(jnp.add, total, part_gradient(part)), None

  return jax.lax.scan(accumulate, zeros, parts)[0]


def ema(teacher: Params, student: Params, rate: float) -> Params:
  """(1 - rate) teacher + rate student, in float32.

  Args:
    teacher: the average so far.
    student: what enters it.
    rate: the student's share, in [0, 1].

  Returns:
    The new average, float32: a bfloat16 one would lose small updates.
  """

  def mix(old, new):
    old = old.astype(jnp.float32)
    return old + rate * (new.astype(jnp.float32) - old)

  return jax.tree.map(mix, teacher, student)


def update_step(
  state: TrainState,
  teacher_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  aggregation: str = 'token_mean',
  micro_batches: int = 1,
  ema_rate: float = 0.0,
) -> tuple[TrainState, dict[str, Any]]:
  """Moves the student along its objective, and the EMA teacher after it.

  Args:
    state: before the update.
    teacher_params: a teacher that is not in the state (`frozen`), or None:
      the state's average, or, where there is none, the student's own weights.
    prompts: contexts of Q questions.
    rollout: their completions.
    signal: their targets.
    loss_fn: a method's loss, its options bound.
    optimizer: what turns gradients into updates.
    aggregation: see `token_weights`.
    micro_batches: parts of the batch; a divisor of Q.
    ema_rate: share of the new student in the average.

  Returns:
    The state after the update, and scalar metrics.
  """
  if teacher_params is None:
    teacher_params = (
      state.params if state.teacher_params is None else state.teacher_params
    )
  grads, metrics = gradient(
    loss_fn,
    state.params,
    jax.lax.stop_gradient(teacher_params),
    prompts,
    rollout,
    signal,
    aggregation=aggregation,
    micro_batches=micro_batches,
  )
  metrics['grad_norm'] = optax.tree.norm(grads)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  teacher = state.teacher_params
  if teacher is not None:
    teacher = ema(teacher, params, ema_rate)
  state = TrainState(
    step=state.step + 1,
    params=params,
    opt_state=opt_state,
    teacher_params=teacher,
  )
  return state, metrics
