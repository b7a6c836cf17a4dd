"""Targets that are held near the reference model."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Float

from sdjax.options import Count, Option, Share
from sdjax.types import Array


class Anchor(Option):
  """With which distribution of the reference the teacher's is mixed.

  The target is proportional to q^share r^(1 - share), q being the teacher and
  r the reference.

  Attributes:
    reads: the reference is asked in the `teacher`'s context or in the
      `student`'s; empty: there is no anchor.
  """

  reads: ClassVar[str] = ''

  def share_at(self, step: int) -> float:
    """Returns the teacher's share after so many steps, in (0, 1]."""
    del step
    return 1.0


@dataclass(frozen=True)
class NoAnchor(Anchor, name='none'):
  """The target is the teacher's distribution itself."""


@dataclass(frozen=True)
class TrustRegion(Anchor, name='trust_region'):
  """The teacher with this share, both shown the demonstration.

  Source: SDPO, arXiv 2601.20802.
  """

  share: Share = 0.05
  reads: ClassVar[str] = 'teacher'

  def share_at(self, step: int) -> float:
    """Returns the share."""
    del step
    return self.share

  def words(self) -> str:
    """Says what it is, for a person."""
    return (
      f'to the power {self.share:g} times the reference to the power '
      f'{1 - self.share:g}'
    )


@dataclass(frozen=True)
class Tempered(Anchor, name='beta'):
  """q^(1/beta) r^(1 - 1/beta), r being asked without a demonstration.

  Source: beta-OPSD, arXiv 2607.28582.

  Attributes:
    beta: at the first step.
    steps: over which 1/beta rises linearly to 1; 0: it stays.
  """

  beta: Annotated[float, Gt(1)] = 2.0
  steps: Count = 0
  reads: ClassVar[str] = 'student'

  def share_at(self, step: int) -> float:
    """Returns 1/beta, risen so far."""
    first = 1 / self.beta
    if not self.steps:
      return first
    return first + (1 - first) * min(step / self.steps, 1)

  def words(self) -> str:
    """Says what it is, for a person."""
    text = f'anchored to the reference with beta = {self.beta:g}'
    if self.steps:
      text += f', which goes to 1 in {self.steps} steps'
    return text


def geometric_mixture(
  logits: Float[Array, '*B V'],
  other_logits: Float[Array, '*#B V'],
  weight: Float[Array, '*#B'] | float,
) -> Float[Array, '*B V']:
  """Logits of the distribution proportional to q^(1 - weight) o^weight.

  Not normalised; at weight 0 or 1 it is one of the two, exactly.
  """
  weight = jnp.asarray(weight)[..., None]
  return (1 - weight) * logits + weight * other_logits
