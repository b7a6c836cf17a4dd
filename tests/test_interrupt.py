"""Signals: what is held is finished, and a second one does not wait."""

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from sdjax.training import interrupt
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


def test_while_it_is_handled_saving_is_not_disturbed():
  saved = []
  with interrupts() as ended:
    try:
      raised(signal.SIGTERM)
    except Interrupted:
      with ended.held():
        saved.append(True)
      ended.check()
  assert saved == [True]


@pytest.mark.parametrize('point', ['held', 'check'])
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
def test_one_that_was_lost_acts_at_the_next_point(point):
  class Careless:
    def __del__(self):
      raised(signal.SIGTERM)

  done = []
  with pytest.raises(Interrupted) as error:
    with interrupts() as ended:
      Careless()
      done.append(1)
      if point == 'held':
        with ended.held():
          done.append(2)
      else:
        done.append(2)
        interrupt.check()
      done.append(3)
  assert done == [1, 2] and error.value.exit_code == 143


def test_one_in_a_callback_of_the_garbage_collector_waits(capfd):
  def callback(phase, info):
    if phase == 'start':
      raised(signal.SIGTERM)

  done = []
  with pytest.raises(Interrupted), interrupts():
    gc.callbacks.append(callback)
    try:
      gc.collect()
    finally:
      gc.callbacks.remove(callback)
    done.append(1)
    interrupt.check()
    done.append(2)
  assert done == [1] and not capfd.readouterr().err


def test_another_thread_is_not_ended():
  seen = []

  def run():
    interrupt.check()
    seen.append(True)

  with pytest.raises(Interrupted), interrupts() as ended, ended.held():
    raised(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
  assert seen == [True]


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


@pytest.mark.slow
@pytest.mark.parametrize('delay', [0.0, 3.0, 6.0, 9.0])
def test_a_process_ends_while_a_device_computes(delay, tmp_path):
  main = [sys.executable, '-m', 'sdjax.main', f'--workdir={tmp_path / "run"}']
  # As a user starts it: the tests' quick compilations end too soon.
  env = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  process = subprocess.Popen(
    [
      *main,
      f'--config={Path(__file__).parents[1] / "configs/concept_graph.py"}:sd',
      '--config.eval.num_questions=128',
    ],
    stderr=subprocess.STDOUT,
    stdout=subprocess.PIPE,
    text=True,
    env=env,
  )
  assert process.stdout
  assert 'evaluating the model before training' in process.stdout.readline()
  time.sleep(delay)
  process.send_signal(signal.SIGTERM)
  rest = process.stdout.read()
  assert process.wait() == 143, rest
  # Where compilations were kept it may be training by then.
  assert rest.splitlines()[-1].startswith('SIGTERM: '), rest
