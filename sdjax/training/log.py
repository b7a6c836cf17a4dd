"""What a run writes while it runs: JSON lines, JSON files, a progress line."""

import collections
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TextIO

CLOCK = 'time/'
"""Metrics that depend on the clock start so; all others are reproducible."""

QUIET = 60.0
"""Seconds a log may stand still while an evaluation goes on."""


class JsonLines:
  """A file of JSON records, one a line, that a resumed run can cut back.

  A checkpoint stores `offset()`; a run that resumes from it calls
  `truncate(offset)`, so that whatever was written after the checkpoint,
  a half-written line included, is written again instead of twice. Opening
  drops a half-written last line. One process writes at a time.
  """

  def __init__(self, path: str | os.PathLike[str]):
    """Opens the file for appending, making it and its folder if need be.

    Args:
      path: the file.
    """
    self.path = Path(path)
    self.path.parent.mkdir(parents=True, exist_ok=True)
    # Unbuffered: a record is in the file, for a reader, when `append` returns.
    self._file = open(self.path, 'a+b', buffering=0)
    self._file.truncate(_end_of_last_line(self._file))

  def append(self, record: Mapping[str, Any]) -> None:
    """Writes one record as one line.

    Args:
      record: JSON-serialisable; keys keep their order.

    Raises:
      ValueError: for a NaN or an infinity, which JSON does not have.
      TypeError: for a value that JSON does not have.
    """
    line = json.dumps(dict(record), allow_nan=False, ensure_ascii=False)
    data = memoryview(line.encode() + b'\n')
    while data:
      data = data[self._file.write(data) :]

  def offset(self) -> int:
    """Returns the file's size in bytes once all of it is on the disk."""
    os.fsync(self._file.fileno())
    return self._file.seek(0, os.SEEK_END)

  def truncate(self, offset: int) -> None:
    """Cuts the file back to a size that `offset` gave.

    Args:
      offset: bytes to keep.

    Raises:
      ValueError: when the file is shorter than that, or that is not the end
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

  def __enter__(self):
    """Returns itself, to be closed at the end of the block."""
    return self

  def __exit__(self, *_):
    """Closes the file."""
    self.close()


class MetricsLog(JsonLines):
  """JSON lines of metrics: `{"step": 3, "train/loss": 0.1, ...}`."""

  def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Appends the metrics of one step.

    A metric that is not finite stops the run, before anything is written:
    training on after a NaN loss only hides it. Under `time/` it becomes null.

    Args:
      step: updates made so far.
      values: scalars (Python, NumPy or JAX) named `stage/name`.

    Returns:
      The record as written.

    Raises:
      FloatingPointError: naming the step and every metric that is not finite.
      ValueError: for a name that is not of the form `stage/name`.
    """
    record: dict[str, Any] = {'step': int(step)}
    broken = []
    for name, value in values.items():
      stage, _, rest = name.partition('/')
      if not stage or not rest:
        raise ValueError(
          f'metric {name!r} is not of the form stage/name; e.g. train/loss.'
        )
      number = float(value)
      if math.isfinite(number):
        record[name] = number
      elif name.startswith(CLOCK):
        record[name] = None
      else:
        broken.append(f'{name} is {number}')
    if broken:
      raise FloatingPointError(
        f'at step {step}: {", ".join(broken)}. Lower the learning rate, clip '
        'gradients or look at the rollouts of this step.'
      )
    self.append(record)
    return record


def write_json_atomic(
  path: str | os.PathLike[str], value: Any, indent: int | None = 1
) -> None:
  """Writes a JSON file so that a reader sees the old one or all of the new.

  Args:
    path: the file; its folder is made if need be.
    value: JSON-serialisable, NaN and infinities excluded.
    indent: spaces a level; None: all in one line, for long lists of numbers.

  Raises:
    ValueError: for a NaN or an infinity; the old file stays.
    TypeError: for a value that JSON does not have; the old file stays.
  """
  text = json.dumps(value, indent=indent, allow_nan=False, ensure_ascii=False)
  _write_atomic(Path(path), [text])


def write_json_lines_atomic(
  path: str | os.PathLike[str], records: Iterable[Mapping[str, Any]]
) -> None:
  """Writes JSON lines so that a reader sees the old file or all of the new.

  Args:
    path: the file; its folder is made if need be.
    records: JSON-serialisable, NaN and infinities excluded.

  Raises:
    ValueError: for a NaN or an infinity; the old file stays.
    TypeError: for a value that JSON does not have; the old file stays.
  """
  lines = (
    json.dumps(dict(record), allow_nan=False, ensure_ascii=False)
    for record in records
  )
  _write_atomic(Path(path), lines)


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


class Progress:
  """A live line: step, tokens per second, reward, loss, time to go.

  On a terminal one line is rewritten; elsewhere (a log file) a plain line
  appears every so often. Rates are over the last `window` steps and leave
  out the first one, which is slower, as soon as there is a second.
  """

  def __init__(
    self,
    total: int,
    label: str = 'train',
    stream: TextIO | None = None,
    every: float = 10.0,
    window: int = 20,
    clock: Callable[[], float] = time.monotonic,
  ):
    """Starts the clock.

    Args:
      total: steps of the whole run.
      label: what is running.
      stream: where the line goes; None: standard error.
      every: seconds between plain lines when the stream is no terminal.
      window: steps that rates are taken over.
      clock: seconds, monotonic.
    """
    self._total = total
    self._label = label
    self._stream = sys.stderr if stream is None else stream
    self._live = self._stream.isatty()
    self._every = 0.1 if self._live else every
    self._clock = clock
    self._marks = collections.deque([(clock(), 0)], maxlen=window + 1)
    self._updates = 0
    self._printed = -math.inf
    self._spoke = clock()
    self._open = False

  def update(self, step: int, tokens: int = 0, **values: float) -> None:
    """Notes a finished step and shows it if it is time to.

    Args:
      step: updates made so far, in 1..total.
      tokens: tokens sampled in this step.
      **values: what else to show, in order, e.g. `reward=0.5, loss=0.1`.
    """
    now = self._clock()
    self._marks.append((now, tokens))
    self._updates += 1
    if self._updates == 2:
      self._marks.popleft()
    if now - self._printed < self._every and step < self._total:
      return
    self._printed = self._spoke = now
    self._show(self._line(step, values))

  def note(self, text: str) -> None:
    """Prints a line of its own, above the live one.

    Before the first step it also restarts the clock: what was done until now
    (an evaluation, compilation) says nothing of how long a step takes.

    Args:
      text: one line.
    """
    if not self._updates:
      self._marks[0] = (self._clock(), 0)
    self._spoke = self._clock()
    clear = '\r\x1b[K' if self._live and self._open else ''
    self._stream.write(f'{clear}{text}\n')
    self._stream.flush()
    self._open = False

  def evaluated(self, name: str, done: int, total: int) -> None:
    """Shows how far an evaluation is.

    On a terminal in the live line; elsewhere only while nothing else was
    printed for a minute.

    Args:
      name: the set.
      done: its questions that are answered.
      total: all of them.
    """
    now = self._clock()
    if self._live or now - self._spoke >= QUIET:
      self._spoke = now
      self._show(f'evaluating {name}: {done} of {total} questions')

  def leave_out(self, seconds: float) -> None:
    """Takes time that says nothing of a step, such as compilation, out.

    Args:
      seconds: how much of it passed since the last step.
    """
    for place, (when, tokens) in enumerate(self._marks):
      self._marks[place] = (when + seconds, tokens)

  def finish(self) -> None:
    """Ends the live line, so that what follows starts on a new one."""
    if self._live and self._open:
      self._stream.write('\n')
      self._stream.flush()
    self._open = False

  def _line(self, step: int, values: Mapping[str, float]) -> str:
    seconds = self._marks[-1][0] - self._marks[0][0]
    steps = len(self._marks) - 1
    tokens = sum(count for _, count in list(self._marks)[1:])
    parts = [f'{self._label} {step}/{self._total}']
    if tokens and seconds > 0:
      parts.append(f'{_short(tokens / seconds)} tokens/s')
    parts += [f'{name} {value:.4g}' for name, value in values.items()]
    if step < self._total:
      parts.append(f'ETA {_duration(seconds / steps * (self._total - step))}')
    return '  '.join(parts)

  def _show(self, line: str) -> None:
    if self._live:
      # A line wider than the terminal would wrap, and \r not undo it.
      width = shutil.get_terminal_size().columns - 1
      self._stream.write(f'\r{line[:width]}\x1b[K')
    else:
      self._stream.write(line + '\n')
    self._stream.flush()
    self._open = True


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


def _short(number: float) -> str:
  for limit, suffix in ((1e6, 'M'), (1e3, 'k')):
    if number >= limit:
      return f'{number / limit:.1f}{suffix}'
  return f'{number:.0f}'


def _duration(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}h{minutes:02d}m'
  return f'{minutes}m{rest:02d}s' if minutes else f'{rest}s'
