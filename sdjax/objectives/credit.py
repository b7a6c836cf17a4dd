"""What a token's successors cost, as a cost of the token."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from sdjax.types import Array


def future_sum(
  value: Float[Array, '*B T'], mask: Bool[Array, '*B T'], discount: float
) -> Float[Array, '*B T']:
  """sum_{s > t} discount^(s - t) value_s over the tokens that count."""
  steps = jnp.moveaxis(jnp.where(mask, value, 0), -1, 0)

  def back(later, now):
    later = discount * later
    return later + now, later

  _, out = jax.lax.scan(back, jnp.zeros_like(steps[0]), steps, reverse=True)
  return jnp.moveaxis(out, 0, -1)
