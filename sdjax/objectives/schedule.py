"""Weights that move over the steps of a run."""

from sdjax.config.schema import Schedule


def factor(schedule: Schedule, step: int) -> float:
  """What a weight is multiplied by at a step.

  Args:
    schedule: 0 for `delay` steps, up over `rise` steps, 1 for `hold`, down to
      0 over `fall`; without a fall it stays at 1.
    step: steps made so far, from 0.

  Returns:
    In 0..1.
  """
  if step < schedule.delay:
    return 0.0
  step -= schedule.delay
  if step < schedule.rise:
    return (step + 1) / (schedule.rise + 1)
  step -= schedule.rise
  if not schedule.fall or step < schedule.hold:
    return 1.0
  step -= schedule.hold
  return max(0.0, 1 - step / schedule.fall)


def anchored_share(beta: float, steps: int, step: int) -> float:
  """The teacher's share 1/beta at a step, rising to 1.

  Args:
    beta: at the first step, >= 1.
    steps: over which 1/beta rises linearly; 0: it stays.
    step: steps made so far, from 0.

  Returns:
    In (0, 1].
  """
  first = 1 / beta
  if not steps:
    return first
  return first + (1 - first) * min(step / steps, 1)
