"""Which correct answers a rollout is shown, and the teacher's contexts."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from chats import FAMILIES, family_tokenizer

from sdjax.data.context import QUESTION, encode_context, opens_thinking
from sdjax.data.prompts import encode_prompts
from sdjax.feedback import demonstrations, rewards, strategies
from sdjax.feedback.demonstrations import Templates
from sdjax.feedback.grading import Graded, grade
from sdjax.feedback.strategies import Demonstrations, External, Strategy
from sdjax.models.cache import KV
from sdjax.models.tokenizer import strip_thinking, word_tokenizer
from sdjax.objectives.advantages import GRPO
from sdjax.objectives.diversity_reward import Bonus, NoDiversityReward
from sdjax.steps import sd
from sdjax.tasks.base import Question, Verdict
from sdjax.types import Rollout


def graded(rows, concepts=None):
  """`rows`: for each question, answers; correct ones start with `+`."""
  verdicts = [
    [
      Verdict(
        correct=a.startswith('+'),
        reward=float(a.startswith('+')),
        strategy=tuple((concepts or {}).get(a, ())),
      )
      for a in row
    ]
    for row in rows
  ]
  questions = [Question(7 + q, 'train', 'q', None) for q in range(len(rows))]
  shape = len(rows), len(rows[0])
  return Graded(
    questions=questions,
    answers=rows,
    verdicts=verdicts,
    length=np.ones(shape, int),
    finished=np.ones(shape, bool),
  )


def choose(
  answers, own, strategy='uniform', count=1, seed=0, solutions=None, **options
):
  parsed: Any = Strategy.parse(strategy)
  return strategies.choose(
    answers,
    [a.startswith('+') for a in answers],
    own,
    dataclasses.replace(parsed, **options),
    count,
    np.random.default_rng(seed),
    solutions,
  )


def test_never_shows_a_rollout_to_itself_nor_a_wrong_answer():
  answers = ['+a', 'b', '+c', 'd']
  for seed in range(20):
    assert choose(answers, 0, seed=seed) == ('+c',)
    assert choose(answers, 1, seed=seed)[0] in ('+a', '+c')


def test_a_lone_success_has_no_demonstration():
  assert choose(['+a', 'b', 'c'], 0) == ()
  assert choose(['+a', 'b', 'c'], 1) == ('+a',)


def test_a_peer_with_the_same_text_may_be_shown():
  assert choose(['+a', '+a'], 0) == ('+a',)


def test_a_peer_with_the_same_text_may_be_left_out():
  answers = ['+a', '+a', '+b', 'x', '+a']

  def drawn(own, count=1):
    return {
      choose(answers, own, count=count, seed=s, exclude_same_text=True)
      for s in range(40)
    }

  assert drawn(0) == drawn(1) == drawn(4) == drawn(0, 2) == {('+b',)}
  assert drawn(2) == {('+a',)}
  assert drawn(3) == {('+a',), ('+b',)}
  assert choose(['+a', '+a'], 0, exclude_same_text=True) == ()
  # Without the option two of the three peers of rollout 0 have its text's
  # twin, so 2/3 of the draws do.
  own = [choose(answers, 0, seed=s) for s in range(900)].count(('+a',))
  assert 540 < own < 660


def test_uniform_counts_rollouts_not_texts():
  answers = ['x', '+a', '+a', '+a', '+b']
  picks = [choose(answers, 0, seed=s)[0] for s in range(400)]
  assert 0.68 < picks.count('+a') / 400 < 0.82


def test_several_are_distinct_and_as_many_as_there_are():
  answers = ['x', '+a', '+a', '+b', '+c']
  assert sorted(choose(answers, 0, count=3)) == ['+a', '+b', '+c']
  assert sorted(choose(answers, 4, count=3)) == ['+a', '+b']


def test_first_and_most_different():
  answers = ['+a b c', '+a b d', '+a x y', '+a b c']
  assert choose(answers, 0, 'first') == ('+a b d',)
  for seed in range(10):
    assert choose(answers, 0, 'most_different', seed=seed) == ('+a x y',)
  # Equally different peers are drawn at random.
  peers = ['+p', '+q', '+r']
  tied = {choose(peers, 0, 'most_different', 1, s) for s in range(9)}
  assert tied == {('+q',), ('+r',)}


def test_balanced_counts_solutions_not_rollouts():
  answers = ['x', *['+a'] * 6, '+a again', '+b']
  solutions = ['', *['A'] * 7, 'B']
  first = [
    choose(answers, 0, 'balanced', seed=s, solutions=solutions)[0]
    for s in range(400)
  ]
  assert 0.43 < first.count('+b') / 400 < 0.57
  for seed in range(20):
    # Two are of two solutions; a third repeats one of them in other words.
    two = choose(answers, 0, 'balanced', 2, seed, solutions=solutions)
    assert '+b' in two
    assert len(two) == 2
    three = choose(answers, 0, 'balanced', 3, seed, solutions=solutions)
    assert sorted(three) == ['+a', '+a again', '+b']
    assert '+b' in three[:2]
  assert choose(answers, 8, 'balanced', 1, 0, solutions=solutions) != ('+b',)
  mine = choose(
    answers, 8, 'balanced', 2, 0, solutions=solutions, exclude_self=False
  )
  assert '+b' in mine


def test_unknown_strategy_is_named():
  with pytest.raises(ValueError, match="'best' is not one of uniform"):
    choose(['+a'], 0, 'best')


TOKENIZER = word_tokenizer(['+a', '+b', '+c', 'b', 'd', 'q', '='])


def gather(batch, **changes):
  options: dict[str, Any] = {
    'tokenizer': TOKENIZER,
    'templates': Templates('{demonstration} = {question}'),
    'seed': 0,
  } | changes
  names = {field.name for field in dataclasses.fields(Demonstrations)}
  shown: dict[str, Any] = {'max_context': 6} | {
    k: options.pop(k) for k in names & {*options}
  }
  return demonstrations.gather(batch, 3, Demonstrations(**shown), **options)


def test_contexts_are_shared_and_assigned():
  batch = graded([['+a', '+b', 'd', 'd'], ['b', 'b', 'b', 'b']])
  out = gather(batch)
  evidence = out.evidence
  # Rollout 0 can only see +b, rollout 1 only +a.
  assert out.shown[0][0] == ('+b',) and out.shown[0][1] == ('+a',)
  assert evidence.context_ids.shape == (2, 2, 6)
  for g in range(4):
    e = evidence.context_index[0, g, 0]
    length = evidence.context_length[0, e]
    text = TOKENIZER.decode(evidence.context_ids[0, e, 6 - length :])
    assert text == f'{out.shown[0][g][0]} = q'
  # The all-wrong question is masked, and its rows are still well formed.
  assert evidence.context_mask[0].all()
  assert not evidence.context_mask[1].any()
  assert (evidence.context_length[1] == 1).all()
  assert out.metrics['demonstrated'] == 0.5
  assert out.metrics['success_groups'] == 0.5
  assert out.metrics['distinct_demonstrations'] == 2


@pytest.mark.parametrize(
  ('rows', 'changes', 'share'),
  [
    # Both of +a are shown the other; +b is shown +a; d is not counted.
    ([['+a', '+a', '+b', 'd']], {'strategy': 'first'}, 2 / 3),
    (
      [['+a', '+a', '+b', 'd']],
      {'strategy': 'uniform(exclude_same_text=True)'},
      0,
    ),
    # Counted over the correct ones of all questions, shown or not.
    ([['+a', '+a', 'd'], ['+b', 'd', 'd']], {}, 2 / 3),
    # Among several, and in a file; a wrong answer for contrast is not shown
    # as right.
    ([['+a', '+a', '+b']], {'count': 2}, 2 / 3),
    ([['+a', '+b', 'd']], {'given': lambda question: ['+b']}, 1 / 2),
    ([['d', 'd']], {'contrast': 1}, 0),
    ([['+a', '+a', 'd']], {'contrast': 1, 'strategy': 'first'}, 1),
    # Of a wrong rollout nothing is counted, nor of what is shown as wrong.
    ([['+a', 'd']], {'given': lambda question: ['d']}, 0),
    (
      [['+x</think>a', 'x</think>a']],
      {'contrast': 1, 'opened': True},
      0,
    ),
    # What was thought is no part of the text.
    ([['+x</think>+a', '+y</think>+a']], {'opened': True}, 1),
  ],
)
def test_the_share_that_is_shown_its_own_text(rows, changes, share):
  out = gather(graded(rows), **changes)
  assert out.metrics['shown_own_text'] == pytest.approx(share)


def test_evidence_from_texts_alone():
  """As `gather` makes it of graded rollouts of the same texts."""
  rows = [['+a', 'd', '+b', 'd'], ['b', '+c', 'd', 'b']]
  made = demonstrations.demonstrate(
    TOKENIZER,
    ['q', 'd'],
    rows,
    np.array([[1, 0, 1, 0], [0, 1, 0, 0]]),
    '{demonstration} = {question}',
    max_context=6,
    strategy='first',
  )
  assert made.context_ids.shape == (2, 2, 6)
  assert made.correct is not None and made.correct.tolist() == [
    [True, False, True, False],
    [False, True, False, False],
  ]
  # The first right answer that is not one's own; a lone one has none.
  assert made.context_mask[..., 0].tolist() == [
    [True, True, True, True],
    [True, False, True, True],
  ]
  shown = [
    [
      TOKENIZER.decode(
        made.context_ids[q, made.context_index[q, g, 0]], True
      ).strip()
      for g in range(4)
      if made.context_mask[q, g, 0]
    ]
    for q in range(2)
  ]
  assert shown == [
    ['+b = q', '+a = q', '+a = q', '+a = q'],
    ['+c = d'] * 3,
  ]


def test_evidence_from_texts_takes_the_options_of_a_run():
  rows = [['+a', '+a', '+b', '+c', 'd', 'd']] * 3
  right = [[x != 'd' for x in row] for row in rows]

  def drawn(**options):
    made = demonstrations.demonstrate(
      TOKENIZER,
      ['q'] * 3,
      rows,
      right,
      '{demonstration} = {question}',
      max_context=6,
      **options,
    )
    ids = made.context_ids[np.arange(3)[:, None, None], made.context_index]
    return ids * made.context_mask[..., None]

  def same(a, b):
    return a.shape == b.shape and bool((a == b).all())

  base = drawn()
  assert same(base, drawn())
  for options in (
    {'seed': 1},
    {'step': 1},
    {'count': 2},
    {'strategy': 'first'},
    {'strategy': 'uniform(exclude_self=False)'},
    {'strategy': 'uniform(exclude_same_text=True)'},
  ):
    assert not same(base, drawn(**options)), options


@pytest.mark.parametrize(
  ('changes', 'says'),
  [
    ({'correct': [[True]]}, r'correct has shape \(1, 1\); it must be \(1, 2\)'),
    ({'answers': [['+a', 'd']] * 2}, '1 questions came with 2 lists'),
    ({'template': '{question}'}, '{demonstration} exactly once'),
    ({'strategy': 'best'}, "'best' is not one of uniform"),
  ],
)
def test_texts_that_do_not_fit_are_named(changes, says):
  given: dict[str, Any] = {
    'questions': ['q'],
    'answers': [['+a', 'd']],
    'correct': [[True, False]],
    'template': '{demonstration} = {question}',
    'max_context': 6,
  }
  with pytest.raises(ValueError, match=says):
    demonstrations.demonstrate(TOKENIZER, **(given | changes))


def test_a_text_is_read_without_the_thinking_its_context_began():
  tokenizer = family_tokenizer('r1')  # whose template opens a thinking block
  made = demonstrations.demonstrate(
    tokenizer,
    ['fig ?'],
    [['so</think>+plum', 'so + it']],
    [[True, True]],
    SHOWN,
    max_context=120,
  )
  # The second is nothing but thinking: the first has nothing to be shown.
  assert made.context_mask[0, :, 0].tolist() == [False, True]
  text = tokenizer.decode(made.context_ids[0, made.context_index[0, 1, 0]])
  assert 'One answer: +plum Now' in text


def test_nothing_correct_anywhere():
  out = gather(graded([['b', 'd'], ['b', 'b']]))
  assert out.metrics['shown_own_text'] == 0
  assert out.evidence.context_ids.shape == (2, 1, 6)
  assert not out.evidence.context_mask.any()


def test_the_draw_depends_on_seed_step_and_question_only():
  batch = graded([['+a', '+b', '+c', 'd']] * 3)
  one, two = gather(batch), gather(batch)
  assert one.shown == two.shown
  alone = Graded(
    questions=batch.questions[1:2],
    answers=batch.answers[1:2],
    verdicts=batch.verdicts[1:2],
    length=batch.length[1:2],
    finished=batch.finished[1:2],
  )
  assert gather(alone).shown[0] == one.shown[1]
  assert any(gather(batch, seed=s).shown != one.shown for s in range(1, 5))


def test_a_long_demonstration_is_cut_and_counted():
  tokenizer = word_tokenizer(['+a', 'b', 'd', 'q', '='])
  batch = graded([['+a b b b b b', 'd']])
  out = gather(batch, tokenizer=tokenizer, max_context=5)
  assert out.metrics['cut_demonstrations'] == 1
  assert tokenizer.decode(out.evidence.context_ids[0, 0]) == '+a b b = q'


def test_answers_are_drawn_by_how_often_they_are_there():
  """15 A and 1 B show B once in 16 times; two are drawn one by one."""
  rng = np.random.default_rng(0)
  answers = ['A'] * 15 + ['B']
  draws = [strategies.draw_distinct(answers, 1, rng) for _ in range(4000)]
  # Binomial: 250 +- 15.
  assert 190 < draws.count(('B',)) < 310
  assert strategies.draw_distinct(answers, 3, rng) in (
    ('A', 'B'),
    ('B', 'A'),
  )
  assert strategies.draw_distinct([], 2, rng) == ()
  # P(AB) = 1/2 * 2/3, P(BA) = 1/3 * 3/4, P(CA) = 1/6 * 3/5, and so on.
  answers = ['A', 'B', 'A', 'C', 'A', 'B']
  expected = {
    ('A', 'B'): 1 / 3,
    ('A', 'C'): 1 / 6,
    ('B', 'A'): 1 / 4,
    ('B', 'C'): 1 / 12,
    ('C', 'A'): 1 / 10,
    ('C', 'B'): 1 / 15,
  }
  assert sum(expected.values()) == pytest.approx(1)
  draws = [strategies.draw_distinct(answers, 2, rng) for _ in range(6000)]
  for pair, share in expected.items():
    error = 4 * (share * (1 - share) / 6000) ** 0.5
    assert draws.count(pair) / 6000 == pytest.approx(share, abs=error)


def test_what_rollouts_are_shown_of_a_file_follows_its_frequencies():
  batch = graded([['b'] * 8] * 4)
  shown = [
    text
    for step in range(60)
    for row in demonstrations.assign(
      batch,
      step,
      Demonstrations(strategy=External('a file')),
      seed=0,
      given=lambda question: ['A'] * 15 + ['B'],
    )
    for (cell,) in row
    for text in [cell.demonstration]
  ]
  # 1920 draws: 120 +- 11 are B.
  assert len(shown) == 1920 and 76 < shown.count('B') < 164


@pytest.mark.parametrize(
  ('answer', 'opened', 'said'),
  [
    ('  plum.\n', False, '  plum.\n'),
    ('<think>\nhm\n\nso\n</think>\n\nplum.', False, 'plum.'),
    ('a <think>b\n</think> c <think>d</think> e', False, 'a  c  e'),
    # The context opened the block.
    ('hm\n</think>\n\nplum.', True, 'plum.'),
    ('<think>hm</think> plum', True, 'plum'),
    ('</think>plum', True, 'plum'),
    ('so it is plum, or', True, ''),
    ('', True, ''),
    # Nobody said that it did, but it must have.
    ('hm</think>plum', False, 'plum'),
    ('<think>a<think>b</think>c</think>plum', False, 'plum'),
    # Cut off.
    ('plum <think>or mango, let me', False, 'plum'),
    ('hm</think>plum<think>or', True, 'plum'),
    ('<think>', False, ''),
  ],
)
def test_thinking_is_stripped(answer, opened, said):
  assert strip_thinking(answer, opened) == said


class Bracketed:
  """A task whose right answers hold a +, wherever they hold it."""

  def __init__(self):
    self.seen = []

  def verify(self, question, answer):
    self.seen.append(answer)
    return Verdict(correct='+' in answer, reward=float('+' in answer))


def rollout_of(tokenizer, texts, width=60):
  """One question's rollouts, every character a token, and the end token."""
  ids_QGT = np.zeros((1, len(texts), width), np.int32)
  length_QG = np.zeros((1, len(texts)), np.int32)
  for g, text in enumerate(texts):
    parts = (tokenizer.tokenize(piece) for piece in text)
    ids = [
      i for part in parts for i in tokenizer.convert_tokens_to_ids(part)
    ] + [tokenizer.eos_token_id]
    ids_QGT[0, g, : len(ids)] = ids
    length_QG[0, g] = len(ids)
  nothing = np.zeros(ids_QGT.shape, np.float32)
  return Rollout(
    ids=ids_QGT,
    length=length_QG,
    behavior_logp=nothing,
    entropy=nothing,
    finished=length_QG > 0,
  )


QUESTIONS = [Question(7, 'train', 'fig ?', None)]


def judge(task: Any, tokenizer, rollout):
  return grade(task, tokenizer, QUESTIONS, rollout)


SHOWN = 'Q: {question} One answer: {demonstration} Now yours.'


@pytest.mark.parametrize(
  ('name', 'answers'),
  [
    # Opened by the template: without an end it is all thinking, right or not.
    ('r1', ['so + it', 'so</think>+plum', 'no', 'or</think>+fig']),
    ('qwen3', ['<think>+ or', '<think>+</think>+plum', 'no', '+fig']),
  ],
)
def test_verifiers_see_the_thinking_and_teachers_do_not(name, answers):
  tokenizer, task = family_tokenizer(name), Bracketed()
  batch = judge(task, tokenizer, rollout_of(tokenizer, answers))
  assert set(task.seen) == set(answers)
  assert batch.answers == [answers]
  assert batch.correct.tolist() == [[True, True, False, True]]
  out = gather(
    batch,
    tokenizer=tokenizer,
    templates=Templates(SHOWN),
    max_context=120,
    strategy='first',
    opened=opens_thinking(tokenizer, QUESTION, False),
  )
  assert out.shown == [[('+plum',), ('+fig',), ('+plum',), ('+plum',)]]
  assert out.metrics['success_groups'] == out.metrics['demonstrated'] == 1
  for e in range(2):
    text = tokenizer.decode(out.evidence.context_ids[0, e])
    assert 'One answer: +' in text and text.endswith(FAMILIES[name].prompt)


def test_nobody_is_shown_unfinished_thinking():
  tokenizer = family_tokenizer('r1')
  rollout = rollout_of(tokenizer, ['so + it', 'or + fig'])
  batch = judge(Bracketed(), tokenizer, rollout)
  options = {
    'tokenizer': tokenizer,
    'templates': Templates(SHOWN),
    'max_context': 120,
  }
  out = gather(batch, opened=True, **options)
  assert batch.correct.all() and not out.evidence.context_mask.any()
  assert gather(batch, opened=False, **options).evidence.context_mask.all()


@pytest.mark.parametrize('thinking', [False, True])
def test_teacher_and_student_score_the_very_tokens_that_were_sampled(thinking):
  tokenizer = family_tokenizer('qwen3')
  texts = ['+plum', '+mango']
  rollout = rollout_of(tokenizer, texts, width=9)
  # Encoding the answers anew would give other tokens.
  assert tokenizer.encode(texts[0]) != rollout.ids[0, 0, :5].tolist()
  batch = judge(Bracketed(), tokenizer, rollout)
  assert batch.answers == [texts]
  evidence = gather(
    batch,
    tokenizer=tokenizer,
    templates=Templates(SHOWN),
    max_context=80,
    thinking=thinking,
  ).evidence
  prompts = encode_prompts(tokenizer, ['fig ?'], [7], 80, thinking=thinking)
  given = []

  def apply_fn(params, ids, *, method, prefix=None, pad_QG=None):
    del params, method, pad_QG
    given.append((None if prefix is None else prefix.index, np.asarray(ids)))
    nothing = jnp.zeros((1, *ids.shape, 1, 1))
    return jnp.zeros((*ids.shape, 1)), KV(k=nothing, v=nothing)

  sd.signal_step(apply_fn, None, None, None, prompts, rollout, evidence)
  (_, context_ids), (index, completion_ids) = given
  # The last token is predicted and never an input.
  np.testing.assert_array_equal(completion_ids, rollout.ids[..., :-1])
  prompt = FAMILIES['qwen3'].prompt
  if thinking:
    prompt = FAMILIES['qwen3'].thinking_prompt
  for g, peer in enumerate(reversed(texts)):
    expected, _ = encode_context(
      tokenizer, SHOWN, 'fig ?', peer, 80, thinking=thinking
    )
    row = context_ids[0, index[0, g]]
    assert row[-len(expected) :].tolist() == expected
    tail = tokenizer.encode(prompt)
    assert expected[-len(tail) :] == prompts.ids[0, -len(tail) :].tolist()
    assert expected[-len(tail) :] == tail


def test_context_buckets():
  assert demonstrations.context_buckets(1) == [1]
  assert demonstrations.context_buckets(5) == [1, 2, 4, 8]


def test_diversity_reward_by_hand():
  concepts = {'+a': ['x'], '+b': ['y'], 'd': ['z'], 'b': []}
  batch = graded([['+a', '+a', '+b', 'd'], ['b', 'b', 'b', 'b']], concepts)
  plain = rewards.gather(batch, 0, GRPO(), NoDiversityReward())
  assert plain.evidence.reward.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
  assert plain.metrics['flat_groups'] == 0.5
  shaped = rewards.gather(batch, 0, GRPO(), Bonus(0.3))
  # +a: disjoint from +b and d of its three peers; +b: from all three.
  np.testing.assert_allclose(
    shaped.evidence.reward, [[1.2, 1.2, 1.3, 0], [0, 0, 0, 0]], rtol=1e-6
  )
  everyone = rewards.gather(batch, 0, GRPO(), Bonus(0.3, of='all'))
  np.testing.assert_allclose(
    everyone.evidence.reward, [[1.2, 1.2, 1.3, 0.3], [0.3] * 4], rtol=1e-6
  )
