"""Ending a run by SIGINT (Ctrl-C) or SIGTERM without losing what it did.

`with interrupts() as ended:` takes both signals over, in the main thread and
where nobody else has. The first one raises `Interrupted`, a
`KeyboardInterrupt`, in the main thread: at once, or at the end of the block
`with ended.held():` that it comes in. In a notebook that is what Ctrl-C did
before, only later; a second Ctrl-C does not wait for the block's end. With
`interrupts(exits=True)`, as the command line has it, a second signal ends the
process at once, even while the main thread is in a compiler.

What a signal raises can be lost: Python drops the exceptions of a garbage
collector's callback, of `__del__` and of some callbacks from C, and after a
long compilation a callback of the collector (JAX has one) is often the first
Python code to run. So it is raised again by each `held` and `check` that
follows, until its handling begins.
"""

import contextlib
import gc
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

# What Python itself does with them; anything else is somebody's choice.
_DEFAULTS = (signal.SIG_DFL, signal.default_int_handler)

PATIENCE = 1.0
"""Seconds after a signal before a word is said about what is waited for."""


class Interrupted(KeyboardInterrupt):
  """A signal asked the process to end, and what it did is safe.

  Attributes:
    signal: which.
    at_once: it did not wait for the end of what was held.
  """

  def __init__(
    self,
    number: int,
    done: str = 'ended; the same command starts again.',
    at_once: bool = False,
  ):
    """Says how to go on.

    Args:
      number: of the signal.
      done: what was saved, and how to go on.
      at_once: see the attribute.
    """
    self.signal = signal.Signals(number)
    self.at_once = at_once
    super().__init__(f'{self.signal.name}: {done}')

  @property
  def exit_code(self) -> int:
    """What a shell reports of a process that the signal ended."""
    return 128 + self.signal


class Interrupts:
  """The signals of a process, while something is done that they may end."""

  def __init__(self, exits: bool):
    """Starts without a signal; `interrupts` makes it listen.

    Args:
      exits: a second signal ends the process at once, without Python's leave.
    """
    self.exits = exits
    self._first: int | None = None
    self._holding = 0
    self._raised = False

  @contextlib.contextmanager
  def held(self) -> Iterator[None]:
    """Lets what is done inside come to its end before a signal acts."""
    self._holding += 1
    try:
      yield
    finally:
      self._holding -= 1
    self.check()

  def check(self) -> None:
    """Acts on a signal that was heard and has not ended anything yet.

    Raises:
      Interrupted: there is one, nothing is held, and what is running is not
        the handling of another `Interrupted`.
    """
    handled = isinstance(sys.exc_info()[1], Interrupted)
    if self._first is not None and not self._holding and not handled:
      self._raise()

  def hear(self, number: int, frame: Any = None) -> None:
    """Acts on a signal; a handler of the module `signal`.

    Args:
      number: of the signal.
      frame: what was running.

    Raises:
      Interrupted: unless it is the first, and held, or where it would be lost.
    """
    again = self._first is not None
    self._first = number
    if again and self.exits:
      os._exit(128 + number)
    collecting = {getattr(call, '__code__', None) for call in gc.callbacks}
    if frame is not None and frame.f_code in collecting:
      return
    if again or not self._holding:
      self._raise()

  def _raise(self) -> None:
    assert self._first is not None
    self._raised = True
    raise Interrupted(self._first, at_once=self._holding > 0)

  def watch(self, pipe: int) -> None:
    """Acts on signals that the main thread is too busy to hear.

    Args:
      pipe: gets a byte for each signal, and ends when nobody listens.
    """
    heard: list[int] = []
    while data := os.read(pipe, 64):
      heard += filter(SIGNALS.__contains__, data)
      if len(heard) > 1:
        os._exit(128 + heard[-1])
      if select.select([pipe], [], [], PATIENCE)[0] or self._raised:
        continue
      print(
        f'\n{signal.Signals(heard[0]).name}: what was begun is finished and '
        'saved first; a second signal ends at once',
        file=sys.stderr,
        flush=True,
      )


_active: list[Interrupts] = []
"""Those that listen; signals are the process's, so there is one at most."""


def check() -> None:
  """Acts on a signal that was heard and lost; a point where ending is safe.

  Raises:
    Interrupted: as `Interrupts.check`, in the main thread.
  """
  if _active and threading.current_thread() is threading.main_thread():
    _active[0].check()


@contextlib.contextmanager
def interrupts(exits: bool = False) -> Iterator[Interrupts]:
  """Listens for signals; what was done on them before is put back at the end.

  Args:
    exits: see `Interrupts`.

  Yields:
    Those that listen already, or new ones. In another thread than the main
    one, or where both signals are in somebody else's hands, they hear nothing.
  """
  if _active:
    yield _active[0]
    return
  ended = Interrupts(exits)
  if threading.current_thread() is not threading.main_thread():
    yield ended
    return
  with contextlib.ExitStack() as stack:
    _active.append(ended)
    stack.callback(_active.clear)
    for number in SIGNALS:
      before = signal.getsignal(number)
      if before in _DEFAULTS:
        signal.signal(number, ended.hear)
        stack.callback(signal.signal, number, before)
    if exits:
      stack.enter_context(_watched(ended))
    yield ended


@contextlib.contextmanager
def _watched(ended: Interrupts) -> Iterator[None]:
  """Has Python write each signal into a pipe, which a thread reads."""
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
  thread = threading.Thread(target=ended.watch, args=[reader], daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(writer)
    thread.join()
    os.close(reader)
