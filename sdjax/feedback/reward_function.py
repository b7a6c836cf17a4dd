"""Rewards from a user's own function, which may hang or crash.

The function runs in worker processes. One that is late is killed and replaced,
one that dies is replaced, and what goes wrong is counted: neither stops the
trainer. A function that fails on every answer does: it is a mistake.
"""

import contextlib
import dataclasses
import math
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.feedback import reward_worker
from sdjax.feedback.grading import group_size
from sdjax.feedback.reward_worker import RewardError, load_function
from sdjax.tasks.base import Question

__all__ = ['RewardError', 'RewardPool', 'load_function']

START_TIMEOUT = 120.0
"""Seconds a worker has to start, import the function and read a question."""

GRACE = 10.0
"""Seconds beyond its time after which a worker ends without being killed."""

COUNTS = {'late': 'reward_timeouts', 'failed': 'reward_errors'}
"""How an answer fails to the name of the count."""


@dataclasses.dataclass(frozen=True)
class _Failure:
  """Why an answer has no reward: `kind` is a key of `COUNTS`."""

  kind: str
  text: str


class _Worker:
  """A process that scores one answer at a time.

  Attributes:
    connection: to the process.
    ready: whether it has the function.
    job: index of the answer it has; None: it is idle.
    deadline: `time.monotonic` when it is late; infinite: it cannot be.
  """

  def __init__(self, setup: dict[str, Any], folder: str):
    """Starts the process in a folder; it is not waited for.

    The setup is what `reward_worker.serve` reads first.
    """
    self.connection, theirs = multiprocessing.connection.Pipe()
    try:
      self._process = subprocess.Popen(
        # -P: the folder of this package has a `types.py`.
        [sys.executable, '-P', reward_worker.__file__, str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=2,  # what the function prints is no part of our output
        pass_fds=[theirs.fileno()],
        # Ctrl-C is the trainer's to act on; and the function's own children
        # can be killed with it.
        start_new_session=True,
        cwd=folder,
        env=os.environ
        # No accelerator is taken, and sets have the same order everywhere.
        | {'JAX_PLATFORMS': 'cpu', 'PYTHONHASHSEED': '0'},
      )
    except BaseException:
      self.connection.close()
      raise
    finally:
      theirs.close()
    self.ready, self.job = False, None
    self.deadline = time.monotonic() + START_TIMEOUT
    with contextlib.suppress(OSError):  # it is dead: seen when we listen
      self.connection.send(setup)

  def give(self, job: int, message: bytes) -> None:
    """Hands an answer over; the clock starts when the worker says so."""
    self.job, self.deadline = job, time.monotonic() + START_TIMEOUT
    with contextlib.suppress(OSError):
      self.connection.send_bytes(message)

  def kill(self) -> str:
    """Ends the process and its children, and returns how it ended."""
    # Before the process is waited for: until then nothing else has its id.
    if self._process.returncode is None:
      with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(self._process.pid, signal.SIGKILL)
      self._process.kill()
    code = self._process.wait()
    self.connection.close()
    return f'exit status {code}' if code >= 0 else f'signal {-code}'


def _kill_all(workers: list[_Worker], owner: int) -> None:
  if os.getpid() != owner:  # a fork of the owner's: they are not its own
    return
  while workers:
    workers.pop().kill()


class RewardPool:
  """Worker processes that run a user's reward function.

  The rewards depend neither on the number of workers nor on who is done
  first, as long as the function depends on its arguments alone; Python's
  `random` is seeded for each answer.

  Attributes:
    function: the function's name, as given.
    first_failure: what the first answer that failed had to say; empty as
      long as none did.
  """

  def __init__(self, function: str, *, workers: int, timeout: float):
    """Starts the workers and waits until they have the function.

    It is imported in the workers only, as by `load_function`; there, JAX sees
    no device but the CPU. One answer may take `timeout` seconds; importing the
    function does not count.

    Raises:
      ValueError: for a number of workers or a time that cannot be.
      RewardError: as `load_function`, or importing the function fails.
    """
    if workers < 1:
      raise ValueError(f'workers={workers}; give at least 1.')
    if not 0 < timeout < math.inf:
      raise ValueError(f'timeout={timeout}; give seconds above 0.')
    self.function, self.first_failure = function, ''
    self._timeout = timeout
    self._folder = os.getcwd()
    self._setup = {
      'function': function,
      'package': str(Path(__file__).parents[1]),
      'path': [path or self._folder for path in sys.path],
      'limit': timeout + GRACE,
    }
    self._lock = threading.Lock()
    self._workers: list[_Worker] = []
    # Also called when the interpreter exits.
    self._end = weakref.finalize(self, _kill_all, self._workers, os.getpid())
    try:
      for _ in range(workers):
        self._workers.append(_Worker(self._setup, self._folder))
      while not all(worker.ready for worker in self._workers):
        self._listen({})
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> 'RewardPool':
    """Returns the pool."""
    return self

  def __exit__(self, *_: Any) -> None:
    """Closes the pool."""
    self.close()

  def close(self) -> None:
    """Ends all workers; the pool cannot be used afterwards."""
    self._end()

  def score(
    self, questions: Sequence[Question], answers: Sequence[Sequence[str]]
  ) -> tuple[np.ndarray, dict[str, int]]:
    """Scores the answers to a batch of questions.

    The same answer to the same question is scored once. Returns the rewards,
    float32 [Q, G], and how many of these Q * G answers have a reward of 0
    because the function was late (`reward_timeouts`), or because it raised,
    crashed or returned no finite number (`reward_errors`). The first time, a
    warning says what happened.

    Raises:
      ValueError: answers and questions do not fit, or the pool is closed.
      RewardError: each of the answers ended in an error, the function cannot
        be imported any more, or a question cannot be pickled.
    """
    if not self._end.alive:
      raise ValueError('this RewardPool is closed; make a new one.')
    num_samples = group_size(questions, answers)
    places: dict[tuple[int, str, str], int] = {}
    messages = []
    index_QG = np.zeros((len(answers), num_samples), int)
    for q, (question, row) in enumerate(zip(questions, answers, strict=True)):
      for g, answer in enumerate(row):
        key = (question.question_id, question.text, answer)
        if key not in places:
          places[key] = len(messages)
          messages.append(_pickled(question, answer))
        index_QG[q, g] = places[key]
    with self._lock:
      outcomes = self._run(messages)
    ended = [outcomes[i] for i in index_QG.flat]
    failures = [x for x in ended if isinstance(x, _Failure)]
    kinds = [failure.kind for failure in failures]
    counts = {name: kinds.count(kind) for kind, name in COUNTS.items()}
    if failures:
      self._report(failures[0], len(failures), index_QG.size)
    if counts[COUNTS['failed']] == index_QG.size > 0:
      raise RewardError(
        f'reward function {self.function!r} failed on all {index_QG.size} '
        f'answers of a batch; training would go on with zeros. Correct it. '
        f'The first failure:\n{failures[0].text}'
      )
    rewards = [0.0 if isinstance(x, _Failure) else x for x in ended]
    return np.array(rewards, np.float32).reshape(index_QG.shape), counts

  def _report(self, failure: _Failure, count: int, total: int) -> None:
    if self.first_failure:
      return
    self.first_failure = failure.text
    warnings.warn(
      f'reward function {self.function!r} failed on {count} of {total} '
      'answers of a batch; these have a reward of 0. From here on failures '
      f'are counted, not shown. The first one:\n{failure.text}',
      RuntimeWarning,
      stacklevel=3,
    )

  def _run(self, messages: Sequence[bytes]) -> list[float | _Failure]:
    """Returns the outcome of each message, in their order."""
    outcomes: dict[int, float | _Failure] = {}
    waiting = deque(enumerate(messages))
    try:
      while len(outcomes) < len(messages):
        for worker in list(self._workers):
          if not waiting or not worker.ready or worker.job is not None:
            continue
          # Nobody asked it anything: what it has to say is that it died.
          if worker.connection.poll():
            self._replace(worker)
          else:
            worker.give(*waiting.popleft())
        self._listen(outcomes)
    finally:
      # After an exception, or their rewards would be taken for the next ones.
      for worker in list(self._workers):
        if worker.job is not None:
          self._replace(worker)
    return [outcomes[i] for i in range(len(messages))]

  def _listen(self, outcomes: dict[int, float | _Failure]) -> None:
    """Waits until something happens and deals with all that did."""
    busy = {x.connection: x for x in self._workers if x.deadline < math.inf}
    left = min(x.deadline for x in busy.values()) - time.monotonic()
    heard = set(multiprocessing.connection.wait(busy, max(0.0, left)))
    for connection, worker in busy.items():
      if connection in heard:
        self._hear(worker, outcomes)
      elif worker.deadline <= time.monotonic():
        self._lose(worker, 'late', outcomes)

  def _hear(
    self, worker: _Worker, outcomes: dict[int, float | _Failure]
  ) -> None:
    """Acts on a worker's message, see `reward_worker.serve`."""
    try:
      kind, value = worker.connection.recv()
    # The end of the line, or what a dying process left on it.
    except Exception:
      self._lose(worker, 'failed', outcomes)
      return
    if kind == 'broken':
      self.close()
      raise RewardError(value)
    if kind == 'started':
      worker.deadline = time.monotonic() + self._timeout
      return
    if kind == 'ready':
      worker.ready = True
    elif worker.job is not None:
      ended = value if kind == 'reward' else _Failure('failed', value)
      outcomes[worker.job] = ended
      worker.job = None
    worker.deadline = math.inf

  def _lose(
    self, worker: _Worker, kind: str, outcomes: dict[int, float | _Failure]
  ) -> None:
    """Gives up a worker that died or is late, and the answer it has."""
    if not worker.ready:
      how = worker.kill()
      self.close()
      what = f'its process ended ({how})'
      if kind == 'late':
        what = f'{START_TIMEOUT:g} s were not enough'
      raise RewardError(
        f'reward function {self.function!r} cannot be imported: {what}.'
      )
    job, how = worker.job, self._replace(worker)
    what = f'it ended its process ({how})'
    if kind == 'late':
      what = f'it took longer than {self._timeout:g} s'
    if job is not None:
      outcomes[job] = _Failure(kind, what)

  def _replace(self, worker: _Worker) -> str:
    """Kills a worker, starts another, and returns how the first ended."""
    how = worker.kill()
    place = self._workers.index(worker)
    self._workers[place] = _Worker(self._setup, self._folder)
    return how


def _pickled(question: Question, answer: str) -> bytes:
  try:
    return pickle.dumps((question, answer))
  # Whatever the payload's class raises.
  except Exception as error:
    raise RewardError(
      f'question {question.question_id} cannot be sent to a worker, its '
      f'payload is a {type(question.payload).__name__} that cannot be pickled '
      f'({error}); a payload is plain data.'
    ) from error
