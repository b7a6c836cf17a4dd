"""Reward functions: what they may do to their process but not to ours."""

import contextlib
import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest

from sdjax.feedback import reward_worker
from sdjax.feedback.reward_function import (
  RewardError,
  RewardPool,
  load_function,
)
from sdjax.tasks.base import Question
from sdjax.tasks.concept_graph.graph import Graph

FUNCTIONS = """
import os, random, re, signal, sys, time
import beside

class Graded:
  reward = 2.5

def score(question, answer):
  if answer == 'hang in C':  # holds the interpreter's lock
    re.match('(a+)+$', 'a' * 60 + 'b')
  if answer == 'hang with a child':
    import subprocess
    child = subprocess.Popen(['sleep', '600'])
    with open(question.payload, 'w') as file:
      file.write(str(child.pid))
    child.wait()
  if answer == 'crash':
    os._exit(3)
  if answer == 'segfault':
    os.kill(os.getpid(), signal.SIGSEGV)
  if answer == 'raise':
    raise KeyError('no such key')
  if answer == 'exit':
    sys.exit()
  if answer == 'interrupt us':
    os.kill(os.getppid(), signal.SIGINT)
    time.sleep(0.3)
    return 99
  if answer.startswith('return '):
    return eval(answer.removeprefix('return '))
  return len(answer) + beside.WEIGHT * question.question_id

def count(question, answer):
  with open(question.payload, 'a') as file:
    file.write(answer + ';')
  time.sleep(0.03 / (1 + len(answer)))
  # What differs from one process, or one history, to another.
  return hash(answer) % 1000 + random.random()

def typo(question, answer):
  return anwser

number = 3
"""


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  folder = tmp_path_factory.mktemp('functions')
  # A name that a library has, and one that only exists beside it.
  (folder / 'numpy.py').write_text(FUNCTIONS)
  (folder / 'beside.py').write_text('WEIGHT = 10')
  return str(folder / 'numpy.py')


@pytest.fixture(scope='module')
def pool(file):
  with RewardPool(f'{file}:score', workers=2, timeout=0.5) as pool:
    yield pool


def question(i=0, payload=None):
  return Question(question_id=i, split='train', text=f'q{i}', payload=payload)


def quietly(pool, *args):
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    return pool.score(*args)


def is_alive(pid):
  status = Path(f'/proc/{pid}/status')
  with contextlib.suppress(OSError):
    return '\nState:\tZ' not in status.read_text()
  return False


def wait_until(condition, seconds=10.0):
  end = time.monotonic() + seconds
  while not condition() and time.monotonic() < end:
    time.sleep(0.02)
  assert condition()


def pids(pool):
  return [worker._process.pid for worker in pool._workers]


def test_rewards_by_hand(pool):
  reward, counts = pool.score(
    [question(0), question(3)], [['', 'ab'], ['abc', 'naïve 🍑 \ud800']]
  )
  np.testing.assert_array_equal(reward, [[0, 2], [33, 39]])
  assert reward.dtype == np.float32
  assert counts == {'reward_timeouts': 0, 'reward_errors': 0}


@pytest.mark.parametrize(
  'answer, expected',
  [
    ('return Graded()', 2.5),
    ('return True', 1.0),
    ('return __import__("decimal").Decimal("0.5")', None),
    ('return "3"', None),
    ('return None', None),
    ('return float("nan")', None),
    ('return -float("inf")', None),
    ('return 1e39', None),  # infinite in float32
    ('return 10**400', None),
    ('return [1.0]', None),
    ('raise', None),
    ('exit', None),
    ('crash', None),
    ('segfault', None),
  ],
)
def test_what_counts_as_a_reward(pool, answer, expected):
  reward, counts = quietly(pool, [question()], [['four', answer, 'four']])
  np.testing.assert_array_equal(reward, [[4, expected or 0, 4]])
  errors = int(expected is None)
  assert counts == {'reward_timeouts': 0, 'reward_errors': errors}


def test_numpy_numbers(file):
  score = load_function(f'{file}:score')
  as_number = reward_worker.as_number
  assert as_number(score(question(), 'return 2')) == 2
  for value in (np.float32(0.5), np.array([0.5]), np.float64(0.5)):
    assert as_number(value) == 0.5
  assert as_number(np.bool_(True)) == 1
  with pytest.raises(RewardError, match='ndarray'):
    as_number(np.zeros(2))


def test_a_hang_is_cut_off_and_the_pool_goes_on(pool):
  start = time.monotonic()
  reward, counts = quietly(
    pool, [question(1)], [['hang in C', 'x', 'hang in C', 'y', 'zz']]
  )
  assert 0.5 <= time.monotonic() - start < 5
  np.testing.assert_array_equal(reward, [[0, 11, 0, 11, 12]])
  assert counts == {'reward_timeouts': 2, 'reward_errors': 0}
  reward, counts = pool.score([question(1)], [['x', 'y']])
  np.testing.assert_array_equal(reward, [[11, 11]])
  assert counts == {'reward_timeouts': 0, 'reward_errors': 0}


def test_only_hangs_are_no_error(pool):
  reward, counts = quietly(pool, [question()], [['hang in C']])
  assert reward == 0
  assert counts == {'reward_timeouts': 1, 'reward_errors': 0}


def test_what_a_late_function_started_ends_with_it(pool, tmp_path):
  path = tmp_path / 'pid'
  quietly(pool, [question(0, str(path))], [['hang with a child']])
  child = int(path.read_text())
  wait_until(lambda: not is_alive(child))


def test_the_clock_is_the_answers_own(file):
  # Together they take longer than any of them may.
  with RewardPool(f'{file}:score', workers=1, timeout=0.9) as pool:
    answers = [f'return time.sleep(0.2) or {i}' for i in range(6)]
    reward, counts = pool.score([question()], [answers])
  np.testing.assert_array_equal(reward, [range(6)])
  assert not any(counts.values())


def test_duplicates_are_scored_once_and_workers_do_not_matter(file, tmp_path):
  answers = [[f'{i % 7}' * (i % 5) for i in range(40)]] * 2
  found = []
  for workers in (1, 3):
    paths = [str(tmp_path / f'{workers}-{q}') for q in range(2)]
    questions = [question(q, path) for q, path in enumerate(paths)]
    with RewardPool(f'{file}:count', workers=workers, timeout=9) as pool:
      found.append(pool.score(questions, answers)[0])
    for path in paths:
      scored = Path(path).read_text().split(';')[:-1]
      assert sorted(scored) == sorted(set(answers[0]))
  np.testing.assert_array_equal(*found)
  assert len(np.unique(found[0])) > 20
  same_question = [question(0, paths[0])] * 2
  with RewardPool(f'{file}:count', workers=2, timeout=9) as pool:
    reward, _ = pool.score(same_question, [['a', 'b'], ['b', 'a']])
  np.testing.assert_array_equal(reward[0], reward[1, ::-1])


def test_failures_count_each_answer_and_are_shown_once(file):
  with RewardPool(f'{file}:score', workers=2, timeout=9) as pool:
    with pytest.warns(RuntimeWarning, match='no such key') as seen:
      answers = ['fine', 'raise', 'crash', 'raise']
      reward, counts = pool.score([question()], [answers])
    assert len(seen) == 1 and '3 of 4' in str(seen[0].message)
    assert "KeyError('no such key')" in pool.first_failure
    assert 'numpy.py", line' in pool.first_failure
    assert counts == {'reward_timeouts': 0, 'reward_errors': 3}
    np.testing.assert_array_equal(reward, [[4, 0, 0, 0]])
    with warnings.catch_warnings():
      warnings.simplefilter('error')
      pool.score([question()], [['crash', 'fine']])
    assert 'no such key' in pool.first_failure


def test_nothing_but_errors_stops_the_run(file):
  with RewardPool(f'{file}:typo', workers=2, timeout=9) as pool:
    with pytest.raises(RewardError, match="name 'anwser' is not defined"):
      quietly(pool, [question()], [['a', 'b']])


def test_workers_are_light_and_leave_the_accelerator(pool):
  graph = Graph(('a', 'b'), ('hub', 'shape'), ((0, 1),), ((0, 1),), 'b')
  asked = question(1, graph)
  answers = [
    f'return str(question) == {str(asked)!r}',
    "return os.environ['JAX_PLATFORMS'] == 'cpu'",
    "return __import__('sdjax.options').options.nearest('a', []) == ''",
    "return 'jax' in sys.modules or 8",
    "return __import__('sdjax.tasks').tasks.Verdict(True, 6).reward",
  ]
  reward, counts = pool.score([asked], [answers])
  np.testing.assert_array_equal(reward, [[1, 1, 1, 8, 6]])


def test_sdjax_itself_is_there_for_a_function_that_asks(tmp_path):
  path = tmp_path / 'asks.py'
  path.write_text(
    'from sdjax import sd\ndef score(q, a): return callable(sd.loss)'
  )
  with RewardPool(f'{path}:score', workers=1, timeout=9) as pool:
    assert pool.score([question()], [['a']])[0] == 1


@pytest.mark.parametrize(
  'function, message',
  [
    ('no_colon', "'no_colon' has no colon"),
    (':score', 'has no colon'),
    ('{file}:', 'has no colon'),
    ('{folder}/absent.py:score', 'there is no file .*absent.py'),
    ('{folder}/data:score', 'does not end in .py'),
    ('{file}:scor', "defines no 'scor'; callable there: .*count, score, typo"),
    ('{file}:number', 'number is a int and cannot be called'),
    ('sdjax.absent:score', "no module 'sdjax.absent'"),
    ('absent.module:score', "no module 'absent'"),
    ('math:absent', "math defines no 'absent'"),
  ],
)
def test_a_function_that_cannot_be_found(file, function, message):
  function = function.format(file=file, folder=Path(file).parent)
  with pytest.raises(RewardError, match=message):
    load_function(function)


def test_load_by_module():
  import math

  assert load_function('math:hypot') is math.hypot


@pytest.mark.parametrize(
  'code, message',
  [
    ('def other(q, a): return 1', "defines no 'score'"),
    ('import absent_library', "No module named 'absent_library'"),
    ('def score(q, a) return 1', 'SyntaxError'),
    ('import os; os._exit(7)', 'cannot be imported: .*exit status 7'),
    ('raise SystemExit(1)', 'SystemExit'),
  ],
)
def test_a_module_that_cannot_be_imported(tmp_path, code, message):
  path = tmp_path / 'broken.py'
  path.write_text(code)
  with pytest.raises(RewardError, match=message):
    RewardPool(f'{path}:score', workers=2, timeout=1)


def test_impossible_arguments(file, pool):
  with pytest.raises(ValueError, match='workers=0'):
    RewardPool(f'{file}:score', workers=0, timeout=1)
  for timeout in (0, -1, float('nan'), float('inf')):
    with pytest.raises(ValueError, match='timeout='):
      RewardPool(f'{file}:score', workers=1, timeout=timeout)
  with pytest.raises(ValueError, match='2 questions came with 1 lists'):
    pool.score([question(0), question(1)], [['a']])
  with pytest.raises(ValueError, match=r'lists of \[1, 2\] answers'):
    pool.score([question(0), question(1)], [['a'], ['a', 'b']])
  with pytest.raises(RewardError, match='payload is a function'):
    pool.score([question(0, lambda: 0)], [['a']])
  assert pool.score([], [])[0].shape == (0, 0)


def test_an_idle_worker_that_died_is_replaced(file):
  with RewardPool(f'{file}:score', workers=2, timeout=9) as pool:
    for pid in pids(pool):
      os.kill(pid, signal.SIGKILL)
      wait_until(lambda pid=pid: not is_alive(pid))
    reward, counts = pool.score([question()], [['a', 'bb', 'ccc']])
  np.testing.assert_array_equal(reward, [[1, 2, 3]])
  assert not any(counts.values())


@pytest.fixture
def interruptible():
  # A process that a shell starts in the background ignores interrupts.
  handler = signal.signal(signal.SIGINT, signal.default_int_handler)
  yield
  signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize('end', ['close', 'forget', 'interrupt'])
@pytest.mark.usefixtures('interruptible')
def test_no_process_and_no_file_is_left(file, end):
  before = len(os.listdir('/proc/self/fd'))
  pool = RewardPool(f'{file}:score', workers=2, timeout=0.2)
  quietly(pool, [question()], [['hang in C', 'crash', 'fine']])
  ours = pids(pool)
  if end == 'interrupt':
    with pytest.raises(KeyboardInterrupt):
      pool._timeout = 60
      pool.score([question()], [['interrupt us', 'fine']])
    # The reward that was on its way then is not taken for one of these.
    answers = ['return time.sleep(0.6) or 1', 'bb', 'ccc']
    reward, _ = pool.score([question()], [answers])
    np.testing.assert_array_equal(reward, [[1, 2, 3]])
    ours += pids(pool)
  if end == 'forget':
    del pool
    gc.collect()
  else:
    pool.close()
    pool.close()
    with pytest.raises(ValueError, match='closed'):
      pool.score([question()], [['a']])
  # Reaped, not only dead: a zombie has an entry there.
  assert not [pid for pid in ours if Path(f'/proc/{pid}').exists()]
  assert len(os.listdir('/proc/self/fd')) == before


SCRIPT = """
import os, runpy, signal, sys
worker = runpy.run_path(sys.argv[3])
folder = os.path.dirname(os.path.dirname(sys.argv[3]))
worker['import_sdjax_lightly'](folder)  # saves seconds
from sdjax.feedback import reward_function
from sdjax.tasks.base import Question
reward_function.GRACE = 1.0
pool = reward_function.RewardPool(sys.argv[1], workers=2, timeout=0.5)
print(*[worker._process.pid for worker in pool._workers], flush=True)
if sys.argv[2] == 'kill at work':
  asked = [Question(0, '', '', None)]
  pool.score(asked, [[f'return time.sleep(0.2) or {i}' for i in range(4)]])
  signal.setitimer(signal.ITIMER_REAL, 0.3)
  signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), 9))
  pool.score(asked, [['hang in C', 'return 1']])
if sys.argv[2] == 'kill':
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize('end', ['exit', 'kill', 'kill at work'])
def test_the_workers_end_with_the_trainer(file, end):
  done = subprocess.run(
    [
      sys.executable,
      '-c',
      SCRIPT,
      f'{file}:score',
      end,
      reward_worker.__file__,
    ],
    capture_output=True,
    text=True,
    timeout=60,  # the workers have our end of the pipe
  )
  assert done.returncode == (0 if end == 'exit' else -signal.SIGKILL)
  workers = [int(x) for x in done.stdout.split()]
  assert len(workers) == 2, done.stderr
  wait_until(lambda: not any(map(is_alive, workers)))


def test_threads_take_turns(pool):
  found = {}

  def ask(i):
    found[i] = pool.score([question(i)], [['a', 'bb']])[0].tolist()

  threads = [
    threading.Thread(target=functools.partial(ask, i)) for i in range(4)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert found == {i: [[10 * i + 1, 10 * i + 2]] for i in range(4)}
