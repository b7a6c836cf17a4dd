"""Counting what XLA compiles."""

from typing import Any

import jax


class Compilations:
  """Counts what XLA compiles in this process, by listening to JAX."""

  def __init__(self):
    """Starts to listen."""
    self.count = 0
    self.seconds = 0.0
    jax.monitoring.register_event_duration_secs_listener(self._hear)

  def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
    if event.endswith('backend_compile_duration'):
      self.count += 1
      self.seconds += duration_secs
