"""The distribution a token is sampled from."""

from dataclasses import dataclass
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float

from sdjax.options import Count, NonNegative, Section
from sdjax.types import Array


@dataclass(frozen=True)
class Sampling(Section):
  """How logits become the sampling distribution, in this order.

  Attributes:
    temperature: divides the logits; 0 is greedy (log-probability 0).
    top_k: keep the k most likely tokens (ties at the edge all stay); 0: all.
    top_p: keep the smallest set of most likely tokens whose mass reaches
      this; 1: all.
    min_p: keep tokens with at least this share of the top probability; 0:
      all.
  """

  temperature: NonNegative = 1.0
  top_k: Count = 0
  top_p: Annotated[float, Gt(0), Le(1)] = 1.0
  min_p: Annotated[float, Ge(0), Lt(1)] = 0.0

  @property
  def truncates(self) -> bool:
    """Whether some tokens are never sampled."""
    return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

  def plain(self) -> 'Sampling':
    """Returns the same temperature without truncation."""
    return Sampling(self.temperature)


def sampling_logp(
  logits: Float[Array, '*B V'], sampling: Sampling
) -> Float[Array, '*B V']:
  """Log-probabilities of the sampling distribution, float32, in nats.

  -inf for tokens that cannot be drawn.
  """
  logits = logits.astype(jnp.float32)
  if sampling.temperature == 0:
    best = jnp.argmax(logits, axis=-1, keepdims=True)
    chosen = jnp.arange(logits.shape[-1]) == best
    return jnp.where(chosen, 0.0, -jnp.inf)
  logits = logits / sampling.temperature
  if 0 < sampling.top_k < logits.shape[-1]:
    edge = jax.lax.top_k(logits, sampling.top_k)[0][..., -1:]
    logits = jnp.where(logits >= edge, logits, -jnp.inf)
  if sampling.top_p < 1:
    ranked = jnp.flip(jnp.sort(logits, axis=-1), axis=-1)
    mass = jnp.cumsum(jax.nn.softmax(ranked, axis=-1), axis=-1)
    # Keep a token when the mass BEFORE it is short of top_p: never none.
    before = mass - jax.nn.softmax(ranked, axis=-1)
    kept = jnp.where(before < sampling.top_p, ranked, jnp.inf)
    edge = jnp.min(kept, axis=-1, keepdims=True)
    logits = jnp.where(logits >= edge, logits, -jnp.inf)
  if sampling.min_p > 0:
    top = jnp.max(logits, axis=-1, keepdims=True)
    kept = logits >= top + jnp.log(sampling.min_p)
    logits = jnp.where(kept, logits, -jnp.inf)
  return jax.nn.log_softmax(logits, axis=-1)
