"""Which correct answers a rollout is shown, and the teacher's contexts."""

import json

import numpy as np
import pytest

from sdjax import demonstrations, rewards
from sdjax.data.tokenizer import word_tokenizer
from sdjax.grading import Graded
from sdjax.tasks.base import Question, Verdict


def graded(rows, concepts=None):
  """`rows`: for each question, answers; correct ones start with `+`."""
  verdicts = [
    [
      Verdict(
        correct=a.startswith('+'),
        reward=float(a.startswith('+')),
        concepts=tuple((concepts or {}).get(a, ())),
      )
      for a in row
    ]
    for row in rows
  ]
  questions = [Question(7 + q, 'train', 'q', None) for q in range(len(rows))]
  return Graded(questions=questions, answers=rows, verdicts=verdicts)


def choose(answers, own, strategy='uniform', count=1, seed=0):
  return demonstrations.choose(
    answers,
    [a.startswith('+') for a in answers],
    own,
    strategy=strategy,
    count=count,
    rng=np.random.default_rng(seed),
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


def test_unknown_strategy_is_named():
  with pytest.raises(ValueError, match="'best' is not one of uniform"):
    choose(['+a'], 0, 'best')


TOKENIZER = word_tokenizer(['+a', '+b', '+c', 'b', 'd', 'q', '='])


def gather(batch, **changes):
  options = {
    'tokenizer': TOKENIZER,
    'template': '{demonstration} = {question}',
    'max_context': 6,
    'strategy': 'uniform',
    'count': 1,
    'seed': 0,
  }
  return demonstrations.gather(batch, 3, **(options | changes))


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


def test_nothing_correct_anywhere():
  out = gather(graded([['b', 'd'], ['b', 'b']]))
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
  )
  assert gather(alone).shown[0] == one.shown[1]
  assert any(gather(batch, seed=s).shown != one.shown for s in range(1, 5))


def test_a_long_demonstration_is_cut_and_counted():
  tokenizer = word_tokenizer(['+a', 'b', 'd', 'q', '='])
  batch = graded([['+a b b b b b', 'd']])
  out = gather(batch, tokenizer=tokenizer, max_context=5)
  assert out.metrics['cut_demonstrations'] == 1
  assert tokenizer.decode(out.evidence.context_ids[0, 0]) == '+a b b = q'


def test_external_demonstrations(tmp_path):
  file = tmp_path / 'shown.jsonl'
  lines = [
    {'question_id': 7, 'answer': '+a'},
    {'question_id': 7, 'answer': '+b'},
    {'question_id': 8, 'answer': '+c'},
  ]
  file.write_text('\n'.join(map(json.dumps, lines)) + '\n')
  external = demonstrations.read_external(str(file))
  assert external == {7: ['+a', '+b'], 8: ['+c']}
  batch = graded([['b', 'd'], ['b', 'd']])
  out = gather(batch, strategy='external', external=external)
  assert out.evidence.context_mask.all()
  assert out.shown[1] == [('+c',), ('+c',)]


def test_broken_external_file_names_the_line(tmp_path):
  file = tmp_path / 'shown.jsonl'
  file.write_text('{"question_id": 1, "answer": "a"}\n{"question_id": 2}\n')
  with pytest.raises(ValueError, match='line 2: expected'):
    demonstrations.read_external(str(file))
  with pytest.raises(ValueError, match='cannot be read'):
    demonstrations.read_external(str(tmp_path / 'none.jsonl'))


def test_context_buckets():
  assert demonstrations.context_buckets(1) == [1]
  assert demonstrations.context_buckets(5) == [1, 2, 4, 8]


def test_diversity_reward_by_hand():
  concepts = {'+a': ['x'], '+b': ['y'], 'd': ['z'], 'b': []}
  batch = graded([['+a', '+a', '+b', 'd'], ['b', 'b', 'b', 'b']], concepts)
  plain = rewards.gather(batch, 0)
  assert plain.evidence.reward.tolist() == [[1, 1, 1, 0], [0, 0, 0, 0]]
  assert plain.metrics['flat_groups'] == 0.5
  shaped = rewards.gather(batch, 0, diversity_weight=0.3)
  # +a: disjoint from +b and d of its three peers; +b: from all three.
  np.testing.assert_allclose(
    shaped.evidence.reward, [[1.2, 1.2, 1.3, 0], [0, 0, 0, 0]], rtol=1e-6
  )
  everyone = rewards.gather(
    batch, 0, diversity_weight=0.3, diversity_for='all'
  )
  np.testing.assert_allclose(
    everyone.evidence.reward, [[1.2, 1.2, 1.3, 0.3], [0.3] * 4], rtol=1e-6
  )
