"""One update: gradient over micro-batches, optimizer, EMA teacher."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sdjax.objectives.reduce import token_weights
from sdjax.steps.student import Signal, counted_tokens
from sdjax.types import Params, Prompts, Rollout, TrainState

LossFn = Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
"""`loss_fn(params, teacher_params, ref_params, prompts, rollout, signal,
weight_QGT)`."""


@dataclass(frozen=True)
class Options:
  """How a step's rollouts become updates.

  Attributes:
    aggregation: see `token_weights`.
    horizon: the longest a completion may be; None: T.
    epochs: passes over the rollouts.
    mini_batches: updates in a pass, each from its share of the questions.
    micro_batches: parts of a mini-batch; they change nothing but memory.
    ema_rate: share of the new student in the average.
    ema_every: steps between two changes of the average; with rate 1 it is a
      snapshot.
  """

  aggregation: str = 'token_mean'
  horizon: int | None = None
  epochs: int = 1
  mini_batches: int = 1
  micro_batches: int = 1
  ema_rate: float = 0.0
  ema_every: int = 1


def split(batch: Any, count: int) -> Any:
  """Cuts a tree of arrays [Q, ...] into equal parts, [count, Q / count, ...].

  Every part takes every count-th question, so that each device of a sharded
  batch has an equal share of each part.
  """

  def cut(x):
    shape = (x.shape[0] // count, count, *x.shape[1:])
    return jnp.swapaxes(x.reshape(shape), 0, 1)

  return jax.tree.map(cut, batch)


def gradient(
  loss_fn: LossFn,
  params: Params,
  teacher_params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  options: Options = Options(),  # noqa: B008
) -> tuple[Params, dict[str, jax.Array]]:
  """Loss and gradient of a batch, in micro-batches.

  Returns the gradient in float32 or wider, and the metrics with `loss` among
  them. Both are the same for any number of parts, up to rounding. See
  `sdjax.steps.student`.

  Raises:
    ValueError: if the parts would be unequal.
  """
  weight_QGT = token_weights(
    counted_tokens(rollout, signal),
    signal.sample_mask,
    options.aggregation,
    options.horizon,
  )
  num_q, micro_batches = rollout.ids.shape[0], options.micro_batches
  if num_q % micro_batches:
    raise ValueError(
      f'micro_batches={micro_batches} does not divide the {num_q} questions '
      'of a step; choose a divisor.'
    )

  def value(params, batch):
    total, metrics = loss_fn(params, teacher_params, ref_params, *batch)
    return total, {'loss': total, **metrics}

  def wide(g):
    return g.astype(jnp.promote_types(g.dtype, jnp.float32))

  def part_gradient(batch):
    grads, metrics = jax.grad(value, has_aux=True)(params, batch)
    return jax.tree.map(wide, grads), metrics

  batch = (prompts, rollout, signal, weight_QGT)
  if micro_batches == 1:
    return part_gradient(batch)

  parts = split(batch, micro_batches)
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part_gradient, first)
  )

  def accumulate(total, part):
    return jax.tree.map(jnp.add, total, part_gradient(part)), None

  return jax.lax.scan(accumulate, zeros, parts)[0]


def ema(teacher: Params, student: Params, rate: float) -> Params:
  """(1 - rate) teacher + rate student.

  In float32: a bfloat16 average would lose small updates.
  """

  def mix(old, new):
    if rate == 1:  # a copy, to the last bit
      return new.astype(jnp.float32)
    old = old.astype(jnp.float32)
    return old + rate * (new.astype(jnp.float32) - old)

  return jax.tree.map(mix, teacher, student)


def update_step(
  state: TrainState,
  teacher_params: Params | None,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  *,
  loss_fn: LossFn,
  optimizer: optax.GradientTransformation,
  refresh_fn: Callable[..., Signal] | None = None,
  options: Options = Options(),  # noqa: B008
) -> tuple[TrainState, dict[str, Any]]:
  """Moves the student along its objective, and the EMA teacher after it.

  The rollouts and their targets stay what they are through all epochs and
  mini-batches; ratios to the policy that sampled are taken anew for each.
  `teacher_params` are those of a teacher that is not in the state (`frozen`),
  or None: the state's average, or, where there is none, the student's own
  weights as they are when the step begins. `refresh_fn(params, prompts,
  rollout, signal) -> Signal` is called with each mini-batch before its update;
  None: the signal stays. Metrics are scalars, means over the updates.

  Raises:
    ValueError: if the parts would be unequal.
  """
  num_q = rollout.ids.shape[0]
  if num_q % (options.mini_batches * options.micro_batches):
    raise ValueError(
      f'mini_batches={options.mini_batches} times micro_batches='
      f'{options.micro_batches} does not divide the {num_q} questions of a '
      'step; choose divisors.'
    )
  if teacher_params is None:
    teacher_params = (
      state.params if state.teacher_params is None else state.teacher_params
    )
  teacher_params = jax.lax.stop_gradient(teacher_params)

  def one_update(carry, batch):
    params, opt_state = carry
    prompts, rollout, signal = batch
    if refresh_fn is not None:
      signal = jax.lax.stop_gradient(
        refresh_fn(params, prompts, rollout, signal)
      )
    models = (params, teacher_params, ref_params)
    grads, metrics = gradient(
      loss_fn, *models, prompts, rollout, signal, options
    )
    metrics['grad_norm'] = optax.tree.norm(grads)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), metrics

  carry = (state.params, state.opt_state)
  batch = (prompts, rollout, signal)
  if options.epochs == options.mini_batches == 1:
    carry, metrics = one_update(carry, batch)
  else:
    parts = split(batch, options.mini_batches)

    def epoch(carry, _):
      return jax.lax.scan(one_update, carry, parts)

    carry, each = jax.lax.scan(epoch, carry, length=options.epochs)
    metrics = jax.tree.map(jnp.mean, each)
  params, opt_state = carry
  step = state.step + 1
  teacher = state.teacher_params
  if teacher is not None:
    teacher = jax.tree.map(
      lambda new, old: jnp.where(step % options.ema_every == 0, new, old),
      ema(teacher, params, options.ema_rate),
      teacher,
    )
  return TrainState(step, params, opt_state, teacher), metrics
