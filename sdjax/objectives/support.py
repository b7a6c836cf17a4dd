"""Which events a divergence is taken over: all tokens, a few and a rest, one.

A distribution over the vocabulary becomes one over k chosen tokens, either
with all other tokens as one more event (`tail`) or with the k probabilities
scaled to sum to 1. With a tail no divergence grows: it is the same
distribution seen coarsely.
"""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Float

from sdjax.objectives.divergence import Divergence, sampled_reverse_kl
from sdjax.options import Option, Size
from sdjax.types import Array

LARGEST = -1e-7  # log of the largest mass the k tokens may have, so that the
# tail keeps some: as the SDPO code has it


class Support(Option):
  """Over which events student and teacher are compared."""

  def restrict(
    self,
    student_logp: Float[Array, '*#B V'],
    teacher_logp: Float[Array, '*#B V'],
  ) -> tuple[jax.Array, jax.Array]:
    """Returns both distributions, over the events of the support."""
    return student_logp, teacher_logp

  def compare(
    self,
    divergence: Divergence,
    student_logp: Float[Array, '*#B V'],
    teacher_logp: Float[Array, '*#B V'],
    taken_logp: Float[Array, '*#B'],
    teacher_taken_logp: Float[Array, '*#B'],
  ) -> Float[Array, '*B']:
    """The divergence of each token between the restricted distributions.

    In nats, from distributions over the vocabulary and from the
    log-probabilities of the taken token.
    """
    del taken_logp, teacher_taken_logp
    return divergence(*self.restrict(student_logp, teacher_logp))


@dataclass(frozen=True)
class FullVocabulary(Support, name='full'):
  """All tokens."""

  said = 'the full vocabulary'


@dataclass(frozen=True)
class TopK(Support, name='top_k'):
  """The likeliest tokens of the student or of the teacher.

  The choice of tokens is a constant; gradients flow through the student's
  chosen log-probabilities and through what normalised them.

  Source: SDPO, arXiv 2601.20802 A.3.

  Attributes:
    k: tokens; all of them where the vocabulary is not larger.
    of: whose likeliest.
    tail: the other tokens become one last event; else the chosen ones'
      probabilities are scaled to sum to 1.
  """

  k: Size = 100
  of: Literal['student', 'teacher'] = 'student'
  tail: bool = True

  def restrict(self, student_logp, teacher_logp):
    """Returns both, [..., k + 1] with a tail, [..., k] without one."""
    chooser = student_logp if self.of == 'student' else teacher_logp
    size = chooser.shape[-1]
    if self.k >= size:
      return student_logp, teacher_logp
    ids = jax.lax.top_k(jax.lax.stop_gradient(chooser), self.k)[1]
    shape = jnp.broadcast_shapes(
      student_logp.shape[:-1], teacher_logp.shape[:-1]
    )

    def chosen(logp):
      where = jnp.broadcast_to(ids, (*shape, self.k))
      wide = jnp.broadcast_to(logp, (*shape, size))
      kept = jnp.take_along_axis(wide, where, axis=-1)
      mass = jax.nn.logsumexp(kept, axis=-1, keepdims=True)
      if not self.tail:
        return kept - mass
      rest = jnp.log(-jnp.expm1(jnp.minimum(mass, LARGEST)))
      return jnp.concatenate([kept, rest], axis=-1)

    return chosen(student_logp), chosen(teacher_logp)

  def words(self) -> str:
    """Says what it is, for a person."""
    rest = 'the rest as one event' if self.tail else 'scaled to sum to 1'
    return f"the {self.of}'s {self.k} likeliest tokens, {rest}"


@dataclass(frozen=True)
class SampledToken(Support, name='sampled'):
  """The taken token alone, in the policy-gradient form of the reverse KL."""

  said = 'the sampled token'

  def compare(
    self, divergence, student_logp, teacher_logp, taken_logp, teacher_taken_logp
  ):
    """Returns [...]; its gradient, not its value, is that of the KL."""
    del divergence, student_logp, teacher_logp
    return sampled_reverse_kl(taken_logp, teacher_taken_logp)
