"""Demonstrations from a file, and whether they are for these questions."""

import json
from typing import Any

import pytest

from sdjax.config.schema import ConfigError
from sdjax.data.json_files import write_json_lines_atomic
from sdjax.feedback.demonstration_file import (
  NUM_VERIFIED,
  read_external,
  read_lines,
)
from sdjax.tasks.base import Question, Verdict


class Sums:
  """Question 10 + i asks for 2 i; every text that ends in it is right."""

  def __init__(self, count=4):
    self.count = count
    self.judged = []

  def questions(self, split):
    assert split == 'train'
    return [
      Question(10 + i, 'train', f'{i} + {i}', 2 * i) for i in range(self.count)
    ]

  def verify(self, question, answer):
    self.judged.append((question.question_id, answer))
    right = answer.split()[-1] == str(question.payload)
    return Verdict(right, reason='' if right else 'wrong_sum')


@pytest.fixture
def write(tmp_path):
  file = tmp_path / 'shown.jsonl'

  def write(*records):
    file.write_text('\n'.join(map(json.dumps, records)) + '\n')
    return str(file)

  return write


def read(path, task: Any = None, draw='frequency'):
  asked: Any = task or Sums()
  return read_external(path, asked, draw)


def line(i, answer, **more):
  return {'question_id': 10 + i, 'answer': answer, **more}


def test_right_answers_to_training_questions_are_kept(write):
  task = Sums()
  path = write(
    line(2, '4'),
    line(1, '2', correct=True),
    line(2, 'it is 4'),
    line(2, '4', correct=1),
    line(2, '5', correct=False),
    line(0, '7', correct=0),
    # A question of an evaluation, of which a file of samples has some.
    line(70, '140'),
  )
  external = read(path, task)
  assert external.answers == {11: ['2'], 12: ['4', 'it is 4', '4']}
  first, _, third, _ = task.questions('train')
  assert external.of(third) == ['4', 'it is 4', '4']
  assert list(external.of(first)) == []
  assert external.notes() == (
    f'{path} covers 2 of 4 training questions; to the others no demonstration '
    'is shown',
  )
  distinct = read(path, draw='distinct')
  assert distinct.answers == {11: ['2'], 12: ['4', 'it is 4']}


def test_nothing_is_said_of_a_file_that_covers_every_question(write):
  path = write(*(line(i, str(2 * i)) for i in range(4)))
  assert read(path).notes() == ()


def test_the_question_tells_a_file_of_another_seed(write):
  good = line(1, '2', question='1 + 1')
  task = Sums()
  assert read(write(good), task).answers == {11: ['2']}
  # The answer would be right, but it is another question's.
  path = write(good, line(1, '2', question='3 - 1'))
  with pytest.raises(
    ConfigError,
    match=r"shown.jsonl, line 2: answers '3 - 1', but training question 11 is "
    r"'1 \+ 1'.*another seed, task",
  ):
    read(path, task)
  assert not task.judged  # the text is enough
  # Of what is not shown nothing is asked.
  path = write(good, line(1, 'x', question='3 - 1', correct=False))
  assert read(path).answers == {11: ['2']}


def test_without_questions_the_answers_tell_a_file_of_another_seed(write):
  path = write(line(1, '2'), line(2, '9', correct=True))
  with pytest.raises(
    ConfigError,
    match=r"line 2: '9' is no right answer to training question 12, '2 \+ 2' "
    r'\(wrong_sum\).*"correct": false',
  ):
    read(path)
  assert read(write(line(1, '2'), line(2, '9', correct=False))).answers


def test_a_long_file_is_judged_in_part_from_its_first_line_to_its_last(write):
  count = 5 * NUM_VERIFIED
  task = Sums(count)
  records = [line(i, str(2 * i)) for i in range(count)]
  read(write(*records), task)
  ids = [question_id for question_id, _ in task.judged]
  assert len(ids) == len(set(ids)) == NUM_VERIFIED
  assert ids == sorted(ids) and (ids[0], ids[-1]) == (10, 9 + count)
  assert max(b - a for a, b in zip(ids, ids[1:], strict=False)) <= 6
  # A file of which every second answer is wrong does not pass.
  for record in records[::2]:
    record['answer'] = '-1'
  with pytest.raises(ConfigError, match="'-1' is no right answer"):
    read(write(*records), Sums(count))


def test_a_file_for_no_training_question_is_refused(write):
  for records in (
    [line(70, '140')],
    [line(1, '2', correct=False)],
  ):
    with pytest.raises(ConfigError, match='to none of the 4 training question'):
      read(write(*records))


def test_broken_file_names_the_line(write, tmp_path):
  with pytest.raises(ConfigError, match='line 2: expected'):
    read(write(line(0, '0'), {'question_id': 2}))
  with pytest.raises(ConfigError, match='cannot be read'):
    read(str(tmp_path / 'none.jsonl'))
  with pytest.raises(ConfigError, match='line 1: .*correct is null'):
    read(write(line(0, '0', correct=None)))
  with pytest.raises(ConfigError, match='line 1: .*question is not a string'):
    read(write(line(0, '0', question=4)))


def test_answers_may_hold_any_line_separator(tmp_path):
  file = tmp_path / 'shown.jsonl'
  text = 'a\u2028b\x85c\x0cd'  # Ends of lines to str.splitlines only.
  write_json_lines_atomic(file, [line(0, text)])
  assert [x.answer for x in read_lines(str(file))] == [text]


def test_answers_are_shown_without_their_thinking(write):
  answer = 'so\n</think>\n\n2'
  assert read(write(line(1, answer))).answers == {11: ['2']}
  with pytest.raises(ConfigError, match='line 1.*nothing but thinking'):
    read(write(line(1, '<think>so')))
