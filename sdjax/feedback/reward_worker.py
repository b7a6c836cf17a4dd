"""The process in which a user's reward function runs.

`sdjax.feedback.reward_function` starts this file as a script, so it needs the
standard library only: importing sdjax would import JAX, which takes seconds, a
hundred times the start of the rest, and whenever a worker is killed another
starts.
"""

import contextlib
import importlib
import importlib.util
import math
import numbers
import os
import pickle
import random
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

LARGEST = 3.4028234e38  # float32


class RewardError(RuntimeError):
  """A reward function that cannot be used."""


def load_function(function: str) -> Callable[..., Any]:
  """Imports a user's `(question, answer) -> reward`.

  From `path/to/file.py:name` or `package.module:name`; a file may import what
  lies beside it. The question is a `sdjax.tasks.base.Question`, the answer a
  text and the reward a finite number, or anything with one as `.reward`, such
  as a `Verdict`.

  Raises:
    RewardError: there is no such file, module or name, or it is not
      callable. What the module itself raises when imported is not caught.
  """
  # Not above: a worker that has just been started can import nothing of ours.
  from sdjax.tasks.user_code import load

  signature = '(question, answer) -> float'
  return load(function, 'reward function', signature, RewardError)


def as_number(reward: Any) -> float:
  """Reads a number, an array of one, or anything with one as `.reward`.

  Raises:
    RewardError: it is something else, not finite, or too large for a float32.
  """
  value = getattr(reward, 'reward', reward)
  if hasattr(value, 'item') and getattr(value, 'size', 1) == 1:
    value = value.item()
  if not isinstance(value, numbers.Real):
    raise RewardError(
      f'the reward function returned {value!r:.200}, a '
      f'{type(value).__name__}; return a number, or a Verdict.'
    )
  value = float(value)
  if not math.isfinite(value) or abs(value) > LARGEST:
    raise RewardError(
      f'the reward function returned {value}; return a finite number.'
    )
  return value


def describe(error: BaseException) -> str:
  """Returns an exception with the end of its traceback."""
  if isinstance(error, RewardError):
    return str(error)
  lines = traceback.format_exception(error)
  return ''.join(lines[-4:]).strip()[-2000:]


def _why_not_loaded(function: str, error: BaseException) -> str:
  if isinstance(error, RewardError):
    return str(error)
  from sdjax.tasks.user_code import failure

  return f'reward function {function!r} cannot be imported: {failure(error)}.'


def import_sdjax_lightly(folder: str) -> None:
  """Makes modules of sdjax importable without the package's own imports.

  A question's class lies in `sdjax.tasks`, which needs no JAX. The package's
  own names are there as well, with all that they need, from the moment that
  somebody asks for one.
  """
  spec = importlib.util.spec_from_file_location(
    'sdjax',
    os.path.join(folder, '__init__.py'),
    submodule_search_locations=[folder],
  )
  assert spec is not None and spec.loader is not None
  loader, module = spec.loader, importlib.util.module_from_spec(spec)

  def load(name: str) -> Any:
    if name.startswith('__'):
      raise AttributeError(name)
    if importlib.util.find_spec(f'sdjax.{name}') is not None:
      return importlib.import_module(f'sdjax.{name}')
    del module.__dict__['__getattr__']
    loader.exec_module(module)
    return getattr(module, name)

  module.__dict__['__getattr__'] = load
  sys.modules['sdjax'] = module


def serve(connection: Connection) -> None:
  """Scores answers until the pool is gone.

  Sends (`ready`, None) or (`broken`, why) once, then for each answer
  (`started`, None) and after it (`reward`, number) or (`error`, why).

  Raises:
    EOFError, OSError: the pool is gone.
  """
  setup = connection.recv()
  sys.path[:] = setup['path']
  import_sdjax_lightly(setup['package'])
  try:
    score = load_function(setup['function'])
  except BaseException as error:
    connection.send(('broken', _why_not_loaded(setup['function'], error)))
    return
  connection.send(('ready', None))
  # The pool kills a worker that is late. Should the pool be gone, the system
  # does: no code of ours runs while a library computes in C.
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  while True:
    message = connection.recv_bytes()
    try:
      question, answer = pickle.loads(message)
      connection.send(('started', None))
      signal.setitimer(signal.ITIMER_REAL, setup['limit'])
      # A function that draws draws the same for the same answer.
      drawn = f'{question.question_id} {answer}'
      random.seed(drawn.encode('utf-8', 'surrogatepass'))
      reply = ('reward', as_number(score(question, answer)))
    # SystemExit included: it must not end the worker.
    except BaseException as error:
      reply = ('error', describe(error))
    signal.setitimer(signal.ITIMER_REAL, 0)
    connection.send(reply)


if __name__ == '__main__':
  handle = int(sys.argv[1])
  # What the user's function starts must not keep the connection open.
  os.set_inheritable(handle, False)
  with contextlib.suppress(EOFError, OSError), Connection(handle) as pool:
    serve(pool)
