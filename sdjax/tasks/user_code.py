"""Functions of users, named by where they are.

The standard library only, and no model: worker processes import it.
"""

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORM = "give 'path/to/file.py:name' or 'package.module:name'"


def load(
  function: str, what: str, signature: str, error: type[Exception]
) -> Callable[..., Any]:
  """Imports a user's function.

  Args:
    function: `path/to/file.py:name` or `package.module:name`. A file may import
      what lies beside it.
    what: what it is to be, for the errors: `reward function`.
    signature: how it is called and what it gives, for the errors.
    error: what is raised; what its module raises when imported is not caught.
  """
  told = f'{what} {function!r}'
  place, _, name = function.rpartition(':')
  if not place or not name:
    raise error(f'{told} has no colon; {FORM}.')
  if place.endswith('.py') or '/' in place or os.sep in place:
    module = _import_file(Path(place).expanduser(), told, error)
  else:
    try:
      module = importlib.import_module(place)
    except ModuleNotFoundError as absent:
      # One that the user's module itself asks for is the user's to see.
      if absent.name is None or not f'{place}.'.startswith(f'{absent.name}.'):
        raise
      raise error(
        f'{told}: there is no module {absent.name!r} on the Python path; '
        f'{FORM}.'
      ) from None
  if not hasattr(module, name):
    there = sorted(
      x for x, y in vars(module).items() if callable(y) and x[0] != '_'
    )
    raise error(
      f'{told}: {place} defines no {name!r}; callable there: '
      f'{", ".join(there) or "nothing"}.'
    )
  found = getattr(module, name)
  if not callable(found):
    raise error(
      f'{told}: {name} is a {type(found).__name__} and cannot be called; name '
      f'a function {signature}.'
    )
  return found


def _import_file(path: Path, told: str, error: type[Exception]) -> Any:
  if path.suffix != '.py':
    raise error(f'{told}: {str(path)!r} does not end in .py; {FORM}.')
  if not path.is_file():
    raise error(
      f'{told}: there is no file {str(path)!r} (looked in {Path.cwd()}); '
      f'{FORM}.'
    )
  # Last, so that a file beside it hides no library.
  folder = str(path.resolve().parent)
  if folder not in sys.path:
    sys.path.append(folder)
  # A name of its own: the user's file may be called as a library is.
  name = f'sdjax_user_{path.stem}'
  spec = importlib.util.spec_from_file_location(name, path)
  assert spec is not None and spec.loader is not None  # it ends in .py
  module = sys.modules[name] = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def failure(error: BaseException) -> str:
  """Says what a user's code raised, and where."""
  why = f'{type(error).__name__}: {error}'
  frames = traceback.extract_tb(error.__traceback__)
  if not isinstance(error, SyntaxError):  # which says itself where
    why += f' ({frames[-1].filename}, line {frames[-1].lineno})'
  return why
