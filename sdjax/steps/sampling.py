"""The distribution a token is sampled from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
  """How logits become the sampling distribution, in this order.

  Attributes:
    temperature: divides the logits; 0 is greedy (log-probability 0).
    top_k: keep the k most likely tokens (ties at the edge all stay); 0: all.
    top_p: keep the smallest set of most likely tokens whose mass reaches
      this; 1: all.
    min_p: keep tokens with at least this share of the top probability.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0

  def check(self) -> 'Sampling':
    """Returns itself.

    Raises:
      ValueError: for a value out of range, naming it.
    """
    rules = {
      'temperature': (self.temperature >= 0, 'at least 0 (0 is greedy)'),
      'top_k': (self.top_k >= 0, 'at least 0 (0 keeps every token)'),
      'top_p': (0 < self.top_p <= 1, 'in (0, 1] (1 keeps every token)'),
      'min_p': (0 <= self.min_p < 1, 'in [0, 1) (0 keeps every token)'),
    }
    for name, (holds, allowed) in rules.items():
      if not holds:
        raise ValueError(f'{name}={getattr(self, name)} must be {allowed}.')
    return self


def sampling_logp(logits: jax.Array, sampling: Sampling) -> jax.Array:
  """Log-probabilities of the sampling distribution.

  Args:
    logits: [..., V].
    sampling: temperature and truncation.

  Returns:
    float32 [..., V], nats; -inf for tokens that cannot be drawn.
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
