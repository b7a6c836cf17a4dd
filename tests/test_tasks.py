"""Tasks of one's own: a class, a function, a function named in the config."""

import subprocess
import sys

import numpy as np
import pytest

from sdjax.config import schema as c
from sdjax.config.convert import (
  from_config_dict,
  to_config_dict,
  to_dict,
  to_json,
)
from sdjax.feedback.grading import grade, records, strategies
from sdjax.models.tokenizer import word_tokenizer
from sdjax.tasks import (
  ConceptGraph,
  SimpleTask,
  Task,
  TaskOptions,
  Verdict,
  as_verdict,
  make_task,
)
from sdjax.types import Rollout

TOKENIZER = word_tokenizer(('2', '4', '6', '8', 'so'))


class Doubles(Task):
  splits = ('train', 'test')

  def questions(self, split):
    numbers = range(3) if split == 'train' else range(3, 5)
    return ((f'{n} + {n} =', 2 * n) for n in numbers)

  def verify(self, question, answer):
    return answer.split()[-1:] == [str(question.payload)]


def doubles() -> Task:
  return Doubles()


def rollout(*rows):
  """One that says the rows of answers."""
  ids = [[TOKENIZER.encode(text) for text in row] for row in rows]
  width = max(len(x) for row in ids for x in row)
  padded = [[x + [0] * (width - len(x)) for x in row] for row in ids]
  length = np.array([[len(x) for x in row] for row in ids])
  shape = np.zeros((*length.shape, width), np.float32)
  finished = np.ones(length.shape, bool)
  return Rollout(np.array(padded, np.int32), length, shape, shape, finished)


def test_a_class_with_two_methods_is_a_task():
  task = doubles()
  questions = task.questions('train')
  assert [q.text for q in questions] == ['0 + 0 =', '1 + 1 =', '2 + 2 =']
  assert [q.question_id for q in questions] == [0, 1, 2]
  assert [q.payload for q in questions[1:]] == [2, 4]
  last = task.questions('test')[-1]
  assert (last.question_id, last.split) == (10_000_001, 'test')
  assert task.questions('train') is questions  # read once
  with pytest.raises(ValueError, match="'dev' in task Doubles.*train, test"):
    task.questions('dev')
  graded = grade(
    task, TOKENIZER, questions[1:], rollout(['2', 'so 2'], ['4', '2 8'])
  )
  assert graded.correct.tolist() == [[True, True], [True, False]]
  assert graded.reward.tolist() == [[1, 1], [1, 0]]
  assert [x['correct'] for x in records(graded)] == [True, True, True, False]
  assert task.verify(last, '8') == Verdict(True) == Verdict(True, 1.0)
  assert task.example(last) == ''
  with pytest.raises(c.ConfigError, match='Doubles has no documents'):
    task.corpus(c.Pretraining())


def test_a_function_and_a_list_are_a_task():
  task = SimpleTask(
    ['a', 'b'],
    lambda question, answer: len(answer) / 4,
    name='half',
    student_template='say {question}',
  )
  assert (task.name, task.splits) == ('half', ('train',))
  assert task.student_template == 'say {question}'
  assert '{demonstration}' in task.teacher_template
  graded = grade(
    task, TOKENIZER, task.questions('train'), rollout(['2'], ['so'])
  )
  assert graded.reward.tolist() == [[0.25], [0.5]]
  assert graded.correct.tolist() == [[False], [True]]
  with pytest.raises(TypeError, match="no 'splits'"):
    SimpleTask([], lambda question, answer: True, splits='train')


@pytest.mark.parametrize(
  ('said', 'verdict'),
  [
    (True, Verdict(True, 1.0)),
    (np.bool_(False), Verdict(False, 0.0)),
    (2, Verdict(True, 2.0)),
    (np.float32(0.25), Verdict(False, 0.25)),
    (Verdict(False, reason='late'), Verdict(False, 0.0, reason='late')),
  ],
)
def test_what_a_verifier_may_say(said, verdict):
  assert as_verdict(said) == verdict
  assert type(as_verdict(said).correct) is bool


@pytest.mark.parametrize('said', [None, 'yes', float('nan'), [1.0, 2.0]])
def test_what_it_may_not(said):
  with pytest.raises(TypeError, match='return a Verdict, True or False'):
    as_verdict(said)


def test_strategies_are_alike_in_any_order_and_number():
  verdicts = {
    '2': Verdict(True, strategy='add', solution='x'),
    '4': Verdict(True, strategy=('add',), solution='y'),
    '6': Verdict(True, strategy=('guess', 'add')),
    '8': Verdict(True, strategy=('add', 'guess')),
    'so': Verdict(True, solution='z'),
  }
  task = SimpleTask(['a'], lambda question, answer: verdicts[answer])
  graded = grade(
    task, TOKENIZER, task.questions('train'), rollout(list(verdicts))
  )
  assert strategies(graded).tolist() == [[0, 0, 1, 1, 2]]
  named = [record['concepts'] for record in records(graded)]
  assert named == [['add'], ['add'], ['add', 'guess'], ['add', 'guess'], []]


MINE = """
from sdjax.tasks import SimpleTask, Verdict

def make(size=2, words=('a',)):
  if size == 5:
    raise KeyError('five')
  return SimpleTask(list(words) * size, lambda q, a: a == q.text)

def number(): return 3
"""


@pytest.fixture
def mine(tmp_path):
  (tmp_path / 'mine.py').write_text(MINE)
  return f'{tmp_path}/mine.py'


def with_task(task):
  return from_config_dict(to_dict(c.Config()) | {'task': task})


def test_a_users_own_function_makes_the_task(mine):
  config = with_task(f"{mine}:make(size=3, words=['x', 'y'])")
  task = make_task(config.task)
  assert [q.text for q in task.questions('train')] == ['x', 'y'] * 3
  # As it stands in `config.json`, from where a run goes on.
  assert to_json(config)['task'] == f"{mine}:make(size=3, words=['x', 'y'])"
  assert from_config_dict(to_json(config)) == config
  assert from_config_dict(to_config_dict(config)) == config
  assert with_task(f'{mine}:make') == with_task(f'{mine}:make()')
  assert len(make_task(with_task(f'{mine}:make').task).questions('train')) == 2


@pytest.mark.parametrize(
  ('call', 'says'),
  [
    ('make(size=n)', r'mine.py:make\(size=n\).*not to be read'),
    ('make(3)', 'options have names'),
    ('make(**{})', 'options are written out'),
    ('make(', 'not one of concept_graph|not a choice'),
    ('mke()', "mine.py defines no 'mke'; callable there: .*make"),
    ('make(sise=3)', r"argument 'sise'; it takes \(size=2"),
    ('make(size=5)', 'cannot be made: KeyError.*mine.py, line 6'),
    ('number()', 'made a int without questions and verify'),
  ],
)
def test_a_users_mistakes_are_named(mine, call, says):
  with pytest.raises(c.ConfigError, match=says):
    make_task(with_task(f'{mine}:{call}').task)


def test_a_file_that_is_not_there_and_one_that_breaks(tmp_path):
  (tmp_path / 'broken.py').write_text('\n1 / 0')
  for place, says in (
    (f'{tmp_path}/absent.py', "no file '.*absent.py'"),
    (f'{tmp_path}/broken.py', 'imported: ZeroDivision.*broken.py, line 2'),
    ('sdjax.absent', "no module 'sdjax.absent'"),
  ):
    with pytest.raises(c.ConfigError, match=says):
      make_task(with_task(f'{place}:make()').task)


def test_the_librarys_own_task_is_a_section_or_text():
  config = with_task("concept_graph(part='dev', data_seed=3)")
  assert config.task == ConceptGraph(part='dev', data_seed=3)
  assert to_dict(config)['task']['part'] == 'dev'
  assert with_task({'part': 'dev', 'data_seed': 3}) == config
  assert TaskOptions.parse(str(config.task)) == config.task
  with pytest.raises(c.ConfigError, match="'prt' .*did you mean 'part'"):
    with_task('concept_graph(prt=1)')
  with pytest.raises(c.ConfigError, match="'graph' is not one of.*file.py:na"):
    with_task('graph')


def test_on_the_command_line(mine):
  """A mistake ends with 2; a task in words and its section do not mix."""
  command = [sys.executable, '-m', 'sdjax.main', '--config.print=true']
  command.insert(3, '--config=configs/concept_graph.py:rl')

  def run(*options):
    done = subprocess.run(
      [*command, *options], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr

  code, out, _ = run(f"--config.task={mine}:make(words=['start'])")
  assert code == 0
  assert f'task = "{mine}:make(words=[\'start\'])"' in out
  assert out.endswith('start[the answer begins here]\n')
  code, _, err = run(f'--config.task={mine}:make(size=n)')
  assert code == 2 and err.startswith(f"error: task='{mine}:make(size=n)'")
  code, _, err = run('--config.task=concept_graph', '--config.task.part=dev')
  assert code == 2 and 'exclude each other' in err
