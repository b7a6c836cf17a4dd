"""Tasks: where questions come from and what counts as a right answer."""

from collections.abc import Callable
from typing import Any

from sdjax.options import ConfigError
from sdjax.tasks import concept_graph
from sdjax.tasks.base import Question, Task, Verdict

__all__ = ['TASKS', 'Question', 'Task', 'Verdict', 'make_task']

TASKS: dict[str, Callable[[Any], Task]] = {
  'concept_graph': concept_graph.make,
}
"""Task name to a function from its config to the task."""


def make_task(config: Any) -> Task:
  """Makes the task a config selects.

  Args:
    config: the `task` section of a run's config; `config.name` selects.

  Returns:
    The task.

  Raises:
    ConfigError: there is no such task, or a value is not allowed.
  """
  if config.name not in TASKS:
    raise ConfigError(
      f'task.name is {config.name!r}; allowed: {", ".join(sorted(TASKS))}'
    )
  return TASKS[config.name](config)
