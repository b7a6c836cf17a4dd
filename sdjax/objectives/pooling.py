"""Several laws become one target."""

import jax
import jax.numpy as jnp


def arithmetic_mixture(
  logp: jax.Array, mask: jax.Array, log_weight: jax.Array | None = None
) -> jax.Array:
  """Log sum_k w_k q_k over the laws that exist, sum_k w_k = 1.

  Averaging the LOSSES of K teachers pools them geometrically, which sharpens:
  a token that one teacher excludes is excluded. The mixture keeps what any of
  them would say.

  Args:
    logp: [..., K, V], nats, laws; or [..., K, 1], probabilities of one token.
    mask: bool [..., K], the laws that exist.
    log_weight: [..., K], log w_k up to a constant; None: all alike.

  Returns:
    [..., V], nats; the average of all K where none exists.

  Source: ours.
  """
  some = mask.any(axis=-1, keepdims=True)
  counted = mask | ~some
  if log_weight is None:
    log_weight = jnp.zeros(mask.shape, logp.dtype)
  log_weight = jnp.where(counted, log_weight, -jnp.inf)
  total = jax.nn.logsumexp(logp + log_weight[..., None], axis=-2)
  return total - jax.nn.logsumexp(log_weight, axis=-1)[..., None]


def sequence_log_weight(logp: jax.Array) -> jax.Array:
  """How much each of K laws of whole answers counts at each of their tokens.

  The mixture (1/K) sum_k q_k(y) of laws of answers has the next-token law
  sum_k w_k q_k(. | y_<t), w_k proportional to q_k(y_<t): a law that would not
  have begun the answer so does not say how it goes on. With equal weights at
  every token, a prefix that follows one demonstration is pulled over to
  another in the middle.

  Args:
    logp: float32 [..., T, K], nats, of the taken tokens.

  Returns:
    float32 [..., T, K], log w_k up to a constant: the sum of `logp` over the
    tokens before.

  Source: ours.
  """
  return jnp.cumsum(logp, axis=-2) - logp


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
