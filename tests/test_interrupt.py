"""Signals: what is held is finished, and a second one does not wait."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from sdjax.training.interrupt import Interrupted, interrupts


def raised(number):
  os.kill(os.getpid(), number)
  time.sleep(0.01)  # the handler runs before the next line of Python


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_acts_at_once_or_after_what_is_held(number, code):
  before = [signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)]
  done = []
  with pytest.raises(Interrupted, match=f'^{number.name}: ended') as error:
    with interrupts():
      raised(number)
      done.append('after')
  assert error.value.exit_code == code and not done
  with pytest.raises(Interrupted) as error:
    with interrupts() as ended, ended.held():
      with ended.held():
        raised(number)
        done.append('inner')
      done.append('outer')
    done.append('after')
  assert error.value.exit_code == code and done == ['inner', 'outer']
  assert not error.value.at_once
  assert before == [
    signal.getsignal(x) for x in (signal.SIGINT, signal.SIGTERM)
  ]
  # A notebook stops its cell at it, as ever.
  assert issubclass(Interrupted, KeyboardInterrupt)


def test_a_second_signal_does_not_wait():
  done = []
  with pytest.raises(Interrupted) as error:
    with interrupts() as ended, ended.held():
      raised(signal.SIGINT)
      done.append(1)
      raised(signal.SIGINT)
      done.append(2)
  assert done == [1] and error.value.at_once


def test_after_it_was_heard_saving_is_not_disturbed():
  with interrupts() as ended:
    with pytest.raises(Interrupted):
      raised(signal.SIGTERM)
    with ended.held():
      pass


def test_an_error_is_not_hidden():
  with pytest.raises(ZeroDivisionError):
    with interrupts() as ended, ended.held():
      raised(signal.SIGINT)
      raise ZeroDivisionError


def test_what_somebody_else_chose_stays():
  heard = []
  before = signal.signal(signal.SIGTERM, lambda *_: heard.append('theirs'))
  try:
    with interrupts():
      raised(signal.SIGTERM)
  finally:
    signal.signal(signal.SIGTERM, before)
  assert heard == ['theirs']


def test_who_listens_already_goes_on_listening():
  with pytest.raises(Interrupted):
    with interrupts() as outer:
      with interrupts() as inner:
        assert inner is outer
      raised(signal.SIGTERM)


def test_other_threads_may_train_too():
  seen = []

  def run():
    before = signal.getsignal(signal.SIGTERM)
    with interrupts() as ended, ended.held():
      seen.append(signal.getsignal(signal.SIGTERM) is before)

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert seen == [True]


# A main thread that is in C for a minute, where no Python handler runs.
BUSY = """
import hashlib, sys
from sdjax.training.interrupt import interrupts
with interrupts(exits=True) as ended, ended.held():
  print('begun', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 10**8)
"""


def test_a_second_signal_ends_a_busy_process_at_once():
  process = subprocess.Popen(
    [sys.executable, '-c', BUSY],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout and process.stderr
  assert process.stdout.readline() == 'begun\n'
  process.send_signal(signal.SIGTERM)
  assert process.stderr.readline() == '\n'
  said = process.stderr.readline()
  assert said.startswith('SIGTERM: what was begun is finished and saved first')
  began = time.monotonic()
  process.send_signal(signal.SIGINT)
  assert process.wait() == 130
  assert time.monotonic() - began < 5
