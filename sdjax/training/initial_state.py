"""The state of a run that has not begun."""

from typing import Any

import jax
import jax.numpy as jnp

from sdjax import rng
from sdjax.config import schema as config_lib
from sdjax.models.lora import init_adapter
from sdjax.models.sharding import replicated, state_sharding
from sdjax.types import Params, TrainState


def copy(params: Params, dtype: Any = None) -> Params:
  """Copies weights, so that donating the original leaves the copy alone."""
  return jax.tree.map(lambda x: jnp.array(x, dtype=dtype, copy=True), params)


def adapter(config: config_lib.Config, params: Params) -> Params:
  """Draws the adapter that a config asks for."""
  assert config.model
  options = config.model.lora
  key = rng.stream(config.seed, 'adapter')
  return init_adapter(params, options.rank, options.targets, key)


def initial_state(
  params: Params, optimizer: Any, mesh: Any, with_ema: bool
) -> TrainState:
  """Places the state of a run that has not begun.

  Args:
    params: weights, or an adapter; they become the state's own.
    optimizer: gives the shape of its state.
    mesh: devices.
    with_ema: whether the teacher is an average of the student.

  Returns:
    The state, sharded, no two of its leaves sharing a buffer.
  """
  params = jax.device_put(params, state_sharding(params, mesh))
  shapes = jax.eval_shape(optimizer.init, params)
  init = jax.jit(optimizer.init, out_shardings=state_sharding(shapes, mesh))
  return TrainState(
    step=jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh)),
    params=params,
    # Copied: jit may return one buffer for equal outputs.
    opt_state=copy(init(params)),
    teacher_params=copy(params, jnp.float32) if with_ema else None,
  )
