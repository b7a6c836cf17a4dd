"""JSON files and JSON lines that survive a kill in the middle of a line."""

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

_dumps = functools.partial(json.dumps, allow_nan=False, ensure_ascii=False)


class JsonLines:
  """A file of JSON records, one a line, that a resumed run can cut back.

  A checkpoint stores `offset()`; a run that resumes from it calls
  `truncate(offset)`, so that whatever was written after the checkpoint,
  a half-written line included, is written again instead of twice. Opening
  drops a half-written last line. One process writes at a time.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens the file for appending, making it and its folder if need be."""
    self.path = Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: a record is in the file, for a reader, when `append` returns.
    self._file = open(self.path, 'a+b', buffering=0)
    self._file.truncate(_end_of_last_line(self._file))

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes one record as one line; keys keep their order.

    Raises ValueError for a NaN or an infinity, TypeError for another value that
    JSON does not have.
    """
    data = memoryview(_dumps(dict(record)).encode() + b'\n')
    while data:
      data = data[self._file.write(data) :]

  def offset(self) -> int:
    """Returns the file's size in bytes once all of it is on the disk."""
    os.fsync(self._file.fileno())
    return self._file.seek(0, os.SEEK_END)

  def truncate(self, offset: int) -> None:
    """Cuts the file back to a size that `offset` gave.

    Raises ValueError when the file is shorter than that, or that is not the end
    of a line: the file is not the one the offset was taken of.
    """
    size = self._file.seek(0, os.SEEK_END)
    if not 0 <= offset <= size:
      raise ValueError(
        f'{self.path} holds {size} bytes, but {offset} are to be kept: lines '
        'that the checkpoint knows are lost. Restore the file or start in a '
        'fresh folder.'
      )
    if offset:
      self._file.seek(offset - 1)
      if self._file.read(1) != b'\n':
        raise ValueError(
          f'byte {offset} of {self.path} is not the end of a line: the file '
          'was changed since the checkpoint. Restore it or start in a fresh '
          'folder.'
        )
    self._file.truncate(offset)
    os.fsync(self._file.fileno())

  def close(self) -> None:
    """Closes the file; what was appended is in it already."""
    self._file.close()

  def __enter__(self) -> Self:
    """Returns the open file."""
    return self

  def __exit__(self, *_):
    """Closes the file."""
    self.close()


def parse(text: str) -> Any:
  """Reads JSON; NaN and infinities, which it does not have, are None."""
  return json.loads(text, parse_constant=lambda _: None)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
  """Yields the object on each line of a file.

  A last line that is half-written is skipped: the run may be writing it, or was
  killed while it did. Raises ValueError for any other line that is not a JSON
  object, by its number.
  """
  with open(path, encoding='utf-8', errors='replace') as file:
    for number, line in enumerate(file, 1):
      try:
        record = parse(line)
      except ValueError:
        if not line.endswith('\n'):
          return
        raise ValueError(f'line {number} is not JSON') from None
      if not isinstance(record, dict):
        raise ValueError(f'line {number} is not a JSON object')
      yield record


def write_json_atomic(
  path: str | os.PathLike[str], value: Any, indent: int | None = 1
) -> None:
  """Writes a JSON file so that a reader sees the old one or all of the new.

  Its folder is made if need be; `indent=None` puts all in one line, for long
  lists of numbers. Raises ValueError for a NaN or an infinity, TypeError for
  another value that JSON does not have; the old file stays.
  """
  _write_atomic(Path(path), [_dumps(value, indent=indent)])


def write_json_lines_atomic(
  path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]
) -> None:
  """Writes JSON lines as `write_json_atomic` writes one value."""
  _write_atomic(Path(path), (_dumps(dict(record)) for record in records))


def _write_atomic(path: Path, lines: Iterable[str]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  # In the same folder: a rename is atomic only within one file system.
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    with open(temporary, 'w', encoding='utf-8') as file:
      file.writelines(line + '\n' for line in lines)
      file.flush()
      os.fsync(file.fileno())
    os.replace(temporary, path)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(folder)  # The rename itself must survive a power cut too.
  finally:
    os.close(folder)


def _end_of_last_line(file) -> int:
  """Returns the bytes up to and including the last newline."""
  position = file.seek(0, os.SEEK_END)
  while position:
    start = max(0, position - 65536)
    file.seek(start)
    newline = file.read(position - start).rfind(b'\n')
    if newline >= 0:
      return start + newline + 1
    position = start
  return 0
