"""Tasks: where questions come from and what counts as a right answer."""

from sdjax.tasks.base import Question, Task, Verdict, as_verdict
from sdjax.tasks.concept_graph.options import ConceptGraph
from sdjax.tasks.options import TaskOptions
from sdjax.tasks.simple import SimpleTask

__all__ = [
  'ConceptGraph',
  'Question',
  'SimpleTask',
  'Task',
  'TaskOptions',
  'Verdict',
  'as_verdict',
  'make_task',
]


def make_task(options: TaskOptions) -> Task:
  """Makes the task that the section `task` of a run's config selects.

  Raises ConfigError if a value is not allowed, or a user's own cannot be made.
  """
  return options.make()
