"""One process at a time in a folder."""

import errno
import fcntl
import os
from pathlib import Path
from typing import TextIO


class InUseError(ValueError):
  """A folder that another process is at work in."""


_locks: dict[Path, tuple[TextIO, int]] = {}
"""The locks of this process: the open file, and how many hold it."""


def lock(path: Path) -> None:
  """Locks a file for this process: two in one folder would mix their logs.

  For the process, not for the caller: a notebook whose run was interrupted may
  go on with it. The file is opened once, because a lock of POSIX ends when ANY
  descriptor of its file is closed.

  Raises:
    InUseError: another process holds it.
  """
  if path in _locks:
    file, holders = _locks[path]
    _locks[path] = file, holders + 1
    return
  file = open(path, 'a+', encoding='utf-8')
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    # Other errors: a file system without locks.
    if error.errno in (errno.EACCES, errno.EAGAIN):
      file.seek(0)
      owner = file.read().strip()
      file.close()
      raise InUseError(
        f'--workdir={path.parent} is in use: process {owner} is running in '
        'it. Wait for it, end it, or choose another folder.'
      ) from None
  file.truncate(0)
  file.write(f'{os.getpid()}\n')
  file.flush()
  _locks[path] = file, 1


def unlock(path: Path) -> None:
  """Gives up what `lock` took; the last holder's call frees the file."""
  file, holders = _locks.pop(path)
  if holders > 1:
    _locks[path] = file, holders - 1
  else:
    file.close()
