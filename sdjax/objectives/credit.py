"""What a token's successors cost, as a cost of the token."""

import jax
import jax.numpy as jnp


def future_sum(value: jax.Array, mask: jax.Array, discount: float) -> jax.Array:
  """sum_{s > t} discount^(s - t) value_s over the tokens that count.

  Args:
    value: [..., T].
    mask: bool [..., T].
    discount: in [0, 1].

  Returns:
    [..., T]; 0 for the last token.
  """
  steps = jnp.moveaxis(jnp.where(mask, value, 0), -1, 0)

  def back(later, now):
    later = discount * later
    return later + now, later

  _, out = jax.lax.scan(back, jnp.zeros_like(steps[0]), steps, reverse=True)
  return jnp.moveaxis(out, 0, -1)
