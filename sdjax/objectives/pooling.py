"""Several teachers become one target."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from sdjax.options import Option
from sdjax.types import Array


class Pooling(Option):
  """How the K teachers of a rollout, one a demonstration, are joined.

  Attributes:
    mixes: whether they become one distribution, which needs at least two.
    weighs_answers: whether each counts by how it likes the answer so far.
  """

  mixes: ClassVar[bool] = True
  weighs_answers: ClassVar[bool] = False

  def __call__(
    self,
    logp: Float[Array, '*B K V'],
    mask: Bool[Array, '*B K'],
    log_weight: Float[Array, '*B K'] | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Joins the next-token distributions that exist by the mask.

    `log_weight`, in nats, is how much each counts, up to a constant; None:
    alike. Returns log-probabilities [..., K or 1, V] and bool [..., K or 1],
    which exist.
    """
    pooled = arithmetic_mixture(logp, mask, log_weight)
    return pooled[..., None, :], mask.any(axis=-1, keepdims=True)


@dataclass(frozen=True)
class MeanLoss(Pooling, name='loss'):
  """The losses under the K teachers are averaged (the paper's K = 3).

  For the reverse KL that pools them geometrically, which sharpens: a token
  that one teacher excludes is excluded.
  """

  mixes: ClassVar[bool] = False
  said = 'the losses averaged'

  def __call__(self, logp, mask, log_weight=None):
    """Returns what it was given."""
    del log_weight
    return logp, mask


@dataclass(frozen=True)
class Mixture(Pooling, name='mixture'):
  """The arithmetic mean of their next-token distributions (ours).

  It keeps what any of them would say.
  """

  said = 'the teachers mixed token by token'


@dataclass(frozen=True)
class SequenceMixture(Pooling, name='sequence_mixture'):
  """The next-token distribution of their mixture over whole answers (ours).

  The mixture (1/K) sum_k q_k(y) of distributions over answers has the
  next-token distribution sum_k w_k q_k(. | y_<t), w_k proportional to
  q_k(y_<t): a teacher that would not have begun the answer so does not say
  how it goes on. With equal weights at every token, a prefix that follows one
  demonstration is pulled over to another in the middle.
  """

  weighs_answers: ClassVar[bool] = True
  said = 'the mixture of the distributions of whole answers'


def arithmetic_mixture(
  logp: Float[Array, '*B K V'],
  mask: Bool[Array, '*B K'],
  log_weight: Float[Array, '*B K'] | None = None,
) -> Float[Array, '*B V']:
  """Log sum_k w_k q_k over the distributions that exist, sum_k w_k = 1.

  In nats; V may be 1, for the probabilities of one token. `log_weight` is
  log w_k up to a constant; None: all alike. Where none exists, the average of
  all K.

  Source: ours.
  """
  some = mask.any(axis=-1, keepdims=True)
  counted = jnp.logical_or(mask, ~some)
  if log_weight is None:
    log_weight = jnp.zeros(mask.shape, logp.dtype)
  log_weight = jnp.where(counted, log_weight, -jnp.inf)
  total = jax.nn.logsumexp(logp + log_weight[..., None], axis=-2)
  return total - jax.nn.logsumexp(log_weight, axis=-1)[..., None]


def mean_over_teachers(
  value: Float[Array, '*B K'], mask: Bool[Array, '*B K']
) -> Float[Array, '*B']:
  """Mean over the last axis of what exists; 0 where nothing does."""
  count = jnp.maximum(mask.sum(axis=-1), 1)
  return jnp.where(mask, value, 0).sum(axis=-1) / count


def sequence_log_weight(logp: Float[Array, '*B T K']) -> Float[Array, '*B T K']:
  """How much each of K teachers counts at each token of `SequenceMixture`.

  In nats, log w_k up to a constant: what the taken tokens before it sum to.
  """
  return jnp.cumsum(logp, axis=-2) - logp
