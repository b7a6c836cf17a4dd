"""What a run writes while it runs: JSON lines, JSON files, a progress line."""

import collections
import math
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from sdjax.data.json_files import JsonLines

CLOCK = 'time/'
"""Metrics that depend on the clock start so; all others are reproducible."""

QUIET = 60.0
"""Seconds a log may stand still while an evaluation goes on."""


class MetricsLog(JsonLines):
  """JSON lines of metrics: `{"step": 3, "train/loss": 0.1, ...}`."""

  def write(self, step: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Appends a step's metrics, named `stage/name`, and returns the record.

    A metric that is not finite stops the run, before anything is written:
    training on after a NaN loss only hides it. Under `time/` it becomes null.

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


class Progress:
  """A live line: step, tokens per second, reward, loss, time to go.

  On a terminal one line is rewritten; elsewhere (a log file) a plain line
  appears every so often. Rates are over the last `window` steps and leave
  out the first one, which is slower, as soon as there is a second.

  The stream is standard error where there is none. `every` is the seconds
  between plain lines.

  (Not tqdm: it has no way to leave time out of its estimate, and rewrites its
  line in a log file too.)
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
    """Notes a finished step, of so many sampled tokens, and shows it if due."""
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
    """
    now = self._clock()
    if self._live or now - self._spoke >= QUIET:
      self._spoke = now
      self._show(f'evaluating {name}: {done} of {total} questions')

  def leave_out(self, seconds: float) -> None:
    """Takes seconds since the last step out that say nothing of it."""
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
