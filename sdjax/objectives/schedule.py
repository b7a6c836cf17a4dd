"""Weights that move over the steps of a run."""

from dataclasses import dataclass

from sdjax.options import ConfigError, Count, Option


class Schedule(Option):
  """What a weight is multiplied by."""

  def factor(self, step: int) -> float:
    """Returns the factor after so many steps, from 0; in 0..1."""
    raise NotImplementedError


@dataclass(frozen=True)
class Constant(Schedule, name='constant'):
  """1 at every step."""

  def factor(self, step: int) -> float:
    """Returns 1."""
    del step
    return 1.0


@dataclass(frozen=True)
class Trapezoid(Schedule, name='trapezoid'):
  """0, then up, 1, and down to 0 again.

  Plain Python: a schedule of optax would run JAX on the host in every step.

  Attributes:
    delay: steps at 0.
    rise: steps of linear rise.
    hold: steps at 1, before a fall.
    fall: steps of linear fall to 0; 0: it stays at 1.
  """

  delay: Count = 0
  rise: Count = 0
  hold: Count = 0
  fall: Count = 0

  def __post_init__(self):
    """Refuses a hold that ends in nothing."""
    super().__post_init__()
    if self.hold and not self.fall:
      raise ConfigError(
        f'trapezoid(hold={self.hold}) does nothing when fall=0: the weight '
        'stays at 1 anyway.'
      )

  def factor(self, step: int) -> float:
    """Returns the factor after so many steps."""
    if step < self.delay:
      return 0.0
    step -= self.delay
    if step < self.rise:
      return (step + 1) / (self.rise + 1)
    step -= self.rise
    if not self.fall or step < self.hold:
      return 1.0
    return max(0.0, 1 - (step - self.hold) / self.fall)
