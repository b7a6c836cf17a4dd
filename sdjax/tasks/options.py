"""How a run's config names its task: `config.task` is one of these values."""

import ast
import dataclasses
import inspect
import re
from typing import Any

from sdjax.options import ConfigError, Option
from sdjax.tasks.base import Task
from sdjax.tasks.user_code import failure, load

_CALL = re.compile(r'([^()]+:[A-Za-z_]\w*)\s*(\(.*\))?', re.DOTALL)
_FORM = "'path/to/file.py:name(option=value)' or 'package.module:name(...)'"


class TaskOptions(Option):
  """A task with its settings; or a function of a user's that makes one."""

  def make(self) -> Task:
    """Makes the task; raises ConfigError if a setting is not allowed."""
    raise NotImplementedError

  @classmethod
  def parse(cls, text: str) -> Any:
    """Reads a task's options from text, strictly.

    The text is `name(option=value, ...)` for a task of the library's,
    `path/to/file.py:name(option=value, ...)` or
    `package.module:name(option=value, ...)` for one of a user's own. Raises
    ConfigError if it is none of these, or there is no such task.
    """
    if call := _CALL.fullmatch(text.strip()):
      return Factory(call[1], _literals(text, call[2] or '()'))
    try:
      return super().parse(text)
    except ConfigError as error:
      raise ConfigError(
        f'task={text!r}: {error} A task of your own is {_FORM}.'
      ) from None


def _literals(text: str, arguments: str) -> tuple[tuple[str, Any], ...]:
  """Reads `(name=value, ...)`."""
  try:
    node = ast.parse(f'f{arguments}', mode='eval').body
    if not isinstance(node, ast.Call) or node.args:
      raise ValueError('options have names')
    if any(keyword.arg is None for keyword in node.keywords):
      raise ValueError('options are written out')
    return tuple(
      (str(keyword.arg), ast.literal_eval(keyword.value))
      for keyword in node.keywords
    )
  except (SyntaxError, ValueError) as error:
    raise ConfigError(
      f'task={text!r} is not to be read ({error}); write {_FORM}, with values '
      'that are numbers, True, False, None, text in quotes, or lists of them.'
    ) from None


@dataclasses.dataclass(frozen=True)
class Factory(TaskOptions):
  """A user's function that makes a task.

  Attributes:
    function: where it is: `my_task.py:make` or `package.module:make`.
    options: what it is called with, name and value.
  """

  function: str
  options: tuple[tuple[str, Any], ...] = ()

  def __str__(self) -> str:
    """Returns the text that `parse` reads."""
    options = ', '.join(f'{name}={value!r}' for name, value in self.options)
    return f'{self.function}({options})'

  def make(self) -> Task:
    """Calls the function for the task that it makes.

    Raises ConfigError with the file and the function, and what is missing.
    """
    told, options = f'task {str(self)!r}', dict(self.options)
    try:
      function = load(self.function, 'task', '(...) -> Task', ConfigError)
    except ConfigError:
      raise
    except Exception as error:
      raise ConfigError(
        f'{told} cannot be imported: {failure(error)}.'
      ) from error
    try:
      inspect.signature(function).bind(**options)
    except TypeError as error:
      raise ConfigError(
        f'{told}: {error}; it takes {inspect.signature(function)}.'
      ) from error
    try:
      task = function(**options)
    except ConfigError:
      raise
    except Exception as error:
      raise ConfigError(f'{told} cannot be made: {failure(error)}.') from error
    if isinstance(task, Task):
      return task
    lacks = [x for x in ('questions', 'verify') if not hasattr(task, x)]
    raise ConfigError(
      f'{told} made a {type(task).__name__}'
      f'{" without " + " and ".join(lacks) if lacks else ""}; return a '
      'sdjax.tasks.Task, or a sdjax.tasks.SimpleTask(questions, verify).'
    )
