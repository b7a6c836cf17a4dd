"""Several laws become one target."""

import jax
import jax.numpy as jnp


def arithmetic_mixture(logp: jax.Array, mask: jax.Array) -> jax.Array:
  """Log (1/n) sum_k q_k over the laws that exist.

  Averaging the LOSSES of K teachers pools them geometrically, which sharpens:
  a token that one teacher excludes is excluded. The mixture keeps what any of
  them would say.

  Args:
    logp: [..., K, V], nats, laws; or [..., K, 1], probabilities of one token.
    mask: bool [..., K], the laws that exist.

  Returns:
    [..., V], nats; the uniform average of all K where none exists.

  Source: ours.
  """
  some = mask.any(axis=-1, keepdims=True)
  counted = mask | ~some
  kept = jnp.where(counted[..., None], logp, -jnp.inf)
  total = jax.nn.logsumexp(kept, axis=-2)
  return total - jnp.log(counted.sum(axis=-1))[..., None]


def geometric_mixture(
  logits: jax.Array, other_logits: jax.Array, weight: jax.Array
) -> jax.Array:
  """Logits of the law proportional to q^(1 - weight) o^weight.

  Args:
    logits: [..., V], of q.
    other_logits: [..., V], of o; leading axes broadcast.
    weight: [...], o's share, in [0, 1].

  Returns:
    [..., V], not normalised. At weight 0 or 1 it is one of the two, exactly.

  Source: the trust-region teacher of SDPO (arXiv 2601.20802) and the target
    of beta-OPSD (2607.28582), where o is the reference model.
  """
  weight = jnp.asarray(weight)[..., None]
  return (1 - weight) * logits + weight * other_logits
