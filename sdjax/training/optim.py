"""The update rule: global-norm clip, AdamW, schedule; float32 inside.

Weights may be stored in bfloat16. A bfloat16 number has 8 significant bits,
so an update below 1/512 of a weight would be rounded away; with the learning
rates of post-training that is nearly all of them. The optimizer therefore
keeps what rounding took from each such weight (`kept_remainder`) and adds it
to the next update: the pair (weight, remainder) is a float32 master weight,
for 4 bytes a weight more. Float32 weights need no remainder and get none.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sdjax.config import schema as config

SCHEDULES = ('constant', 'cosine')
FINAL_SHARE = 0.1  # of the learning rate, where a cosine schedule ends


def learning_rate(
  optimizer: config.Optimizer, num_steps: int
) -> optax.Schedule:
  """The learning rate of each of the `num_steps` updates of a run.

  Returns:
    Function of the number of updates already made (0 for the first) to the
    float32 rate. The warm-up climbs in equal steps from 0, which no update
    uses, to the full rate, which update `warmup_steps` is the first to use;
    a cosine then falls to a tenth, which the last update uses.

  Raises:
    ValueError: for an unknown schedule or a warm-up that never ends.
  """
  warmup = optimizer.warmup_steps
  if optimizer.schedule not in SCHEDULES:
    raise ValueError(
      f'optimizer.schedule={optimizer.schedule!r} is not one of {SCHEDULES}.'
    )
  if warmup >= num_steps:
    raise ValueError(
      f'optimizer.warmup_steps={warmup} must be at least 0 and less than the '
      f'{num_steps} steps of the run.'
    )

  def rate(count):
    step = jnp.asarray(count, jnp.float32)
    value = optimizer.learning_rate * jnp.minimum((step + 1) / (warmup + 1), 1)
    if optimizer.schedule == 'cosine':
      progress = (step - warmup) / max(num_steps - 1 - warmup, 1)
      wave = (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1))) / 2
      value *= FINAL_SHARE + (1 - FINAL_SHARE) * wave
    return value

  return rate


class RemainderState(NamedTuple):
  """What rounding took from the weights; None for float32 weights."""

  remainder: Any


def kept_remainder() -> optax.GradientTransformation:
  """Makes updates that `optax.apply_updates` applies without loss over time.

  Goes last in a chain; float32 weights' updates stay as they are. With p the
  stored weight, r the remainder and u the update: p' = round(p + (r + u)),
  r' = (r + u) - (p' - p); p' - p is returned.

  Source: ours (error feedback, as in Kahan summation).
  """

  def init(params):
    return RemainderState(
      jax.tree.map(
        lambda p: (
          None if p.dtype == jnp.float32 else jnp.zeros(p.shape, jnp.float32)
        ),
        params,
      )
    )

  def update(updates, state, params=None):
    if params is None:
      raise ValueError('kept_remainder needs params: optimizer.update(g, s, p)')

    def add(remainder, update, param):
      if remainder is None:
        return update, None
      wide, pending = param.astype(jnp.float32), remainder + update
      # Not a cast there and back: XLA may drop such a pair (it is allowed
      # excess precision) and the remainder would always be 0.
      kind = jnp.finfo(param.dtype)
      rounded = jax.lax.reduce_precision(wide + pending, kind.nexp, kind.nmant)
      moved = rounded - wide
      return moved, pending - moved

    pairs = jax.tree.map(
      add, state.remainder, updates, params, is_leaf=lambda x: x is None
    )
    outer = jax.tree.structure(params)
    updates, remainder = zip(*outer.flatten_up_to(pairs), strict=True)
    return outer.unflatten(updates), RemainderState(outer.unflatten(remainder))

  return optax.GradientTransformation(init, update)


def in_float32(
  inner: optax.GradientTransformation,
) -> optax.GradientTransformation:
  """Runs a transformation on float32 views of gradients and weights.

  Without it AdamW's second moment starts in the weights' dtype (`mu_dtype`
  covers the first only) and changes to the gradients' at the first update.
  """

  def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

  def init(params):
    return inner.init(wide(params))

  def update(updates, state, params=None):
    params = None if params is None else wide(params)
    return inner.update(wide(updates), state, params)

  return optax.GradientTransformation(init, update)


def decayed(params: Any) -> Any:
  """Marks the weights that decay: every matrix, and no norm scale."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: getattr(path[-1], 'key', None) != 'scale', params
  )


def make_optimizer(
  optimizer: config.Optimizer, num_steps: int
) -> optax.GradientTransformation:
  """Builds the update rule of a run of so many updates.

  Clip, AdamW (moments in float32 whatever the weights are, norm scales not
  decayed) and, for weights below float32, `kept_remainder`.

  Raises:
    ValueError: as `learning_rate`.

  Source: arXiv 1711.05101 (AdamW).
  """
  adamw = optax.adamw(
    learning_rate(optimizer, num_steps),
    b1=optimizer.b1,
    b2=optimizer.b2,
    eps=optimizer.eps,
    weight_decay=optimizer.weight_decay,
    mask=decayed,
  )
  clip = []
  if optimizer.clip_norm > 0:
    clip.append(optax.clip_by_global_norm(optimizer.clip_norm))
  return optax.chain(in_float32(optax.chain(*clip, adamw)), kept_remainder())
