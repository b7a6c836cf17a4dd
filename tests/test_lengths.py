# pyright: reportArgumentType=false
"""Questions that are too long: found before a run, skipped, or cut."""

import dataclasses
import types

import pytest

from sdjax.config import schema as c
from sdjax.config.convert import replace
from sdjax.data.prompts import PromptIterator, encode_prompts
from sdjax.feedback.strategies import Demonstrations
from sdjax.models.tokenizer import word_tokenizer
from sdjax.tasks.base import Question
from sdjax.training import lengths

WORDS = [f'w{i}' for i in range(30)]
TOKENIZER = word_tokenizer([*WORDS, '=', '?'])


def text(length):
  """A question of so many tokens, all different but the last."""
  return ' '.join([*WORDS[: length - 1], '?'])


def questions(sizes, split='train'):
  return [Question(100 + i, split, text(n), None) for i, n in enumerate(sizes)]


class Task:
  name = 'words'
  splits: tuple[str, ...] = ('train', 'test')
  student_template = '{question}'
  teacher_template = '{demonstration} = = {question}'
  feedback_template = both_template = ''

  def __init__(self, train=(), test=()):
    self.sets = {
      'train': questions(train),
      'test': questions(test, 'test'),
    }

  def questions(self, split):
    return self.sets[split]


RL = c.Config(
  method=c.PolicyGradient(),
  rollout=c.Rollout(2, 2, max_context=6, context_buckets=(4, 6)),
  eval=c.Eval(sets=('test',), num_questions=3, max_context=5),
)
SD = dataclasses.replace(
  RL, method=c.SelfDistillation(demonstrations=Demonstrations(max_context=7))
)


def train(config, sizes, how='error'):
  config = replace(config, data__over_length=how)
  return lengths.training_questions(config, Task(sizes), TOKENIZER)


def test_what_fits_is_left_alone():
  found, fits, notes = train(RL, [6, 2, 6])
  assert [q.text for q in found] == [text(6), text(2), text(6)]
  assert fits is None and notes == ()
  # The template's two tokens leave the teacher 5 of 7.
  assert train(SD, [5, 2])[2] == ()


def test_count_longest_and_which_are_said():
  with pytest.raises(
    c.ConfigError,
    match=r'^2 of 4 questions of train are too long: the longest, question '
    r'102, has 9 tokens where rollout.max_context=6. Raise rollout.max_context '
    r"\(and context_buckets\), or set data.over_length to 'skip' or 'trun",
  ):
    train(RL, [3, 7, 9, 6])
  # For the teacher it is its two other tokens that are too many.
  with pytest.raises(
    c.ConfigError,
    match=r'^1 of 2 .* question 101, has 8 tokens where '
    r'method.demonstrations.max_context=7. Raise method.demonstrations.max_c',
  ):
    train(SD, [5, 6])


def test_what_the_teacher_of_a_mixture_is_shown_counts_too():
  mix = c.Mix(sd=SD.method)
  with pytest.raises(c.ConfigError, match='method.sd.demonstrations.max_cont'):
    train(dataclasses.replace(RL, method=mix), [6, 6])
  feedback = replace(
    SD,
    method__demonstrations=Demonstrations(
      strategy='none',
      feedback='always',
      feedback_template='{feedback} = {question}',
      max_context=7,
    ),
  )
  assert train(feedback, [6])[2] == ()  # one token more, not two


def test_of_many_questions_some_are_checked(monkeypatch):
  monkeypatch.setattr(lengths, 'CHECKED', 3)
  # The first, the one in the middle and the last.
  _, _, notes = train(RL, [6, 9, 6, 9, 6])
  assert notes == (
    'none of 3 questions of train (of 5) whose lengths were checked is too '
    'long.',
  )
  with pytest.raises(c.ConfigError, match=r'^1 of 3 questions of train \(of 5'):
    train(RL, [6, 6, 9, 6, 6])


def test_too_long_questions_are_passed_over_in_the_same_order():
  sizes = [6, 9, 2, 3, 8, 6, 4]
  found, fits, notes = train(RL, sizes, 'skip')
  assert notes[0].endswith("max_context=6; data.over_length='skip'.")
  plain = PromptIterator(found, 2, 5)
  skips = PromptIterator(found, 2, 5, fits)
  order = [q.question_id for _ in range(14) for q in next(plain)]
  want = [i for i in order if i not in (101, 104)]
  got, states = [], []
  for _ in range(9):
    states.append(skips.get_state())
    got.append([q.question_id for q in next(skips)])
  assert sum(got, []) == want[:18]
  # Any batch may end within a draw of the other order.
  for number, state in enumerate(states):
    again = PromptIterator(found, 2, 5, fits)
    again.set_state(state)
    assert [q.question_id for q in next(again)] == got[number]


def test_old_positions_are_understood():
  source = questions([2, 2, 2])
  iterator = PromptIterator(source, 2, 0)
  next(iterator)
  state = iterator.get_state()
  assert state.pop('waiting') == []
  want = next(iterator)
  again = PromptIterator(source, 2, 0)
  again.set_state(state)
  assert next(again) == want


def test_too_few_questions_are_left():
  with pytest.raises(c.ConfigError, match='1 of 3 .* at least 2 are needed'):
    train(RL, [6, 7, 9], 'skip')


def test_questions_are_cut_from_their_beginning():
  found, fits, notes = train(SD, [9, 3, 5, 6], 'truncate_question')
  assert fits is None and notes[0].startswith('2 of 4 ')
  # Five tokens are left for the question, which keeps its last ones.
  assert [q.text for q in found] == [
    'w4 w5 w6 w7 ?',
    text(3),
    text(5),
    'w1 w2 w3 w4 ?',
  ]
  assert [q.question_id for q in found[1:3]] == [101, 102]
  ids = encode_prompts(
    TOKENIZER, [q.text for q in found], [q.question_id for q in found], (4, 6)
  )
  assert ids.length.tolist() == [5, 3, 5, 5]


def test_a_template_that_leaves_no_room():
  config = replace(SD, method__demonstrations__max_context=1)
  found, _, _ = train(config, [3, 3], 'truncate_question')
  with pytest.raises(c.ConfigError, match='template alone has 2 tokens'):
    found[0]


def evaluate(sizes, how):
  config = replace(RL, data__over_length=how)
  return lengths.evaluation_questions(
    config, Task(test=sizes), 'test', TOKENIZER
  )


def test_evaluation_questions():
  found, notes = evaluate([5, 2, 3, 9], 'error')  # the fourth is not asked
  assert [q.question_id for q in found] == [100, 101, 102] and notes == ()
  with pytest.raises(
    c.ConfigError,
    match='^1 of 3 questions of test are too long: the longest, question 101,'
    ' has 6 tokens where eval.max_context=5. Raise eval.max_context, or',
  ):
    evaluate([5, 6, 3], 'error')
  found, notes = evaluate([5, 6, 3, 9, 2, 2], 'skip')
  assert [q.question_id for q in found] == [100, 102, 104]
  assert notes[0].startswith('2 of 5 questions of test are too long')
  with pytest.raises(c.ConfigError, match='2 of 3 questions of test fit'):
    evaluate([5, 6, 3], 'skip')
  found, _ = evaluate([5, 7, 3], 'truncate_question')
  assert [q.text for q in found] == [text(5), 'w2 w3 w4 w5 ?', text(3)]


def test_many_are_measured_in_parts(monkeypatch):
  monkeypatch.setattr(lengths, '_AT_ONCE', 2)
  found = lengths.measure(
    questions([2, 9, 3, 2, 9, 4]),
    range(6),
    lengths.Fit([lengths.Room('x', 5, '{question}')], TOKENIZER, False),
    3,
  )
  assert found.fitting == [0, 2, 3] and found.total == 4


def test_chats_count_what_their_template_adds():
  tokenizer = types.SimpleNamespace(
    chat_template='x',
    get_chat_template=lambda: 'x',
    apply_chat_template=lambda turns, **_: f'= = {turns[0]["content"]} =',
  )

  class Chat:
    def __getattr__(self, name):
      return getattr(tokenizer, name, None) or getattr(TOKENIZER, name)

    def __call__(self, *args, **kwargs):
      return TOKENIZER(*args, **kwargs)

  room = lengths.Room('x', 5, '{question}')
  fit = lengths.Fit([room], Chat(), False)
  assert fit.excess([text(2), text(3)]) == [None, (6, room)]
