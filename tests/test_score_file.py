import json
import math

import numpy as np
import pytest

from sdjax.evaluate import __main__ as evaluate
from sdjax.evaluate.rollout_file import RolloutError, read_answers
from sdjax.evaluate.score_file import score_file


def line(question_id, answer, correct, **more):
  return {
    'question_id': question_id,
    'answer': answer,
    'correct': correct,
    **more,
  }


NAMES = {
  *('pass', 'pass_gain', 'pass_slope', 'maj', 'best_of', 'concepts'),
  *('distinct_solutions', 'distinct_paths', 'effective_solutions'),
  *('solution_entropy', 'strategies_correct', 'concepts_correct'),
  *('distinct_1', 'distinct_2', 'distinct_3', 'self_bleu', 'vendi'),
  *('embedding_diversity', 'copy_overlap', 'num_questions', 'num_answers'),
}


def listed(flat):
  """The means of the measures listed here; another may come on top."""
  return {k: v for k, v in flat.items() if k.partition('@')[0] in NAMES}


def write(path, lines):
  path.write_text('\n'.join(json.dumps(one) for one in lines) + '\n')
  return path


# Question 1: two right by two solutions, one of them twice; 'q': one of two.
LINES = [
  line(1, 'a b', True, solution='p', strategy='s', demonstration='a b'),
  line('q', 'x', True, solution='p', strategy='s', demonstration='y'),
  line(1, 'a b', True, solution='p', strategy='s', demonstration='b c'),
  line(1, 'c d', True, solution='r', strategy=['s', 't']),
  line('q', '', False, solution='w', strategy='u', extra=[1]),
  line(1, '', False, solution='w', strategy='u', demonstration=None),
]


def test_by_hand(tmp_path):
  flat = score_file(write(tmp_path / 'a.jsonl', LINES))
  uneven = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
  expected = {
    'pass@1': (3 / 4 + 1 / 2) / 2,
    'pass@2': 1.0,
    'pass_gain': 3 / 8,
    'pass_slope': 3 / 8,
    'maj@1': 5 / 8,
    # Question 1: of pr, pr, pp, rw, pw, pw three pairs tie with w.
    'maj@2': (4.5 / 6 + 0.5) / 2,
    'distinct_solutions': 1.5,
    'distinct_paths': 1.5,
    'effective_solutions': (math.exp(uneven) + 1) / 2,
    'solution_entropy': uneven / 2,
    'strategies_correct': 1.5,
    'concepts_correct': 1.5,
    'concepts': (3 + 2) / 2,  # The wrong answers' too.
    'distinct_1': (4 / 6 + 1) / 2,
    'distinct_2': (2 / 3 + 0) / 2,
    'distinct_3': 0.0,
    'self_bleu': (200 / 4 + 0) / 2,
    'copy_overlap': ((1 + 1 / 2) / 2 + 0) / 2,
    'num_questions': 2,
    'num_answers': 6,
  }
  # Question 1: shares 1/2, 1/4, 1/4, nothing in common: entropy 1.5 bits.
  expected['vendi'] = (2**1.5 + 2) / 2
  found = {k: v for k, v in flat.items() if not k.endswith(('/low', '/high'))}
  assert listed(found) == pytest.approx(expected)
  assert not [name for name in found if '/' in name]
  for name in set(expected) - {'num_questions', 'num_answers'}:
    assert flat[f'{name}/low'] <= flat[name] + 1e-12
    assert flat[name] <= flat[f'{name}/high'] + 1e-12
  assert flat['pass@1/low'] == 0.5 and flat['pass@1/high'] == 0.75


def test_absent_fields_leave_their_measures_out(tmp_path):
  lines = [line(0, 'a b c', True), line(0, 'c', False), line(1, '', False)]
  flat = score_file(write(tmp_path / 'a.jsonl', lines))
  # Question 1 has one answer, so k ends at 1: neither gain nor slope is left.
  assert [name for name in listed(flat) if '/' not in name] == [
    'pass@1',
    'distinct_1',
    'distinct_2',
    'distinct_3',
    'self_bleu',
    'vendi',
    'num_questions',
    'num_answers',
  ]
  assert flat['self_bleu/num_questions'] == 1
  assert 'pass@1/num_questions' not in flat


def test_short_groups_count_as_far_as_they_go(tmp_path):
  # Right of 4, 4 and 1 answers: 1, 2 and 1.
  given = [(0, 1), (0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (1, 0), (1, 0)]
  lines = [
    line(q, f'a{i}', right, solution=f's{i}', score=-i)
    for i, (q, right) in enumerate([*given, (2, 1)])
  ]
  path = write(tmp_path / 'a.jsonl', lines)
  flat = score_file(path)
  assert flat['pass@1'] == pytest.approx((1 / 4 + 1 / 2 + 1) / 3)
  assert 'pass@1/num_questions' not in flat
  for k, of_0, of_1 in ((2, 1 / 2, 5 / 6), (4, 1, 1)):
    assert flat[f'pass@{k}'] == pytest.approx((of_0 + of_1) / 2)
    assert flat[f'pass@{k}/num_questions'] == 2
    assert flat[f'maj@{k}/num_questions'] == 2
    assert flat[f'best_of@{k}/num_questions'] == 2
  assert flat['maj@4'] == pytest.approx((1 / 4 + 1 / 2) / 2)
  assert flat['pass_gain'] == pytest.approx((3 / 4 + 1 / 2) / 2)
  assert flat['pass_gain/num_questions'] == 2
  assert flat['best_of@2'] == pytest.approx((3 / 6 + 5 / 6) / 2)
  assert score_file(path, ks=[3])['pass@3/num_questions'] == 2


def test_what_says_nothing_is_no_measure(tmp_path):
  lines = [line(0, 'a', c, concepts=[], reward=float(c)) for c in (0, 1)]
  flat = score_file(write(tmp_path / 'a.jsonl', lines))
  assert not {'strategies_correct', 'best_of@2'} & set(flat)
  lines[0]['reward'] = 0.5  # A judge who is not quite sure.
  flat = score_file(write(tmp_path / 'b.jsonl', lines))
  assert flat['best_of@2'] == 1.0
  strategies = [line(0, 'a', True, strategy=[], concepts=['k'])]
  flat = score_file(write(tmp_path / 's.jsonl', strategies))
  assert flat['strategies_correct'] == 1.0
  shown = [line(0, 'a', True, demonstration=text) for text in ('a', '')]
  flat = score_file(write(tmp_path / 'c.jsonl', shown))
  assert flat['copy_overlap'] == 1.0


def test_one_answer_no_correct_answer_and_all_the_same(tmp_path):
  flat = score_file(write(tmp_path / 'a.jsonl', [line(0, '', False)]))
  assert flat['pass@1'] == 0.0 and flat['vendi'] == 1.0
  assert 'self_bleu' not in flat
  wrong = [line(q, 'a b', False, solution='w') for q in (0, 1) * 8]
  flat = score_file(write(tmp_path / 'b.jsonl', wrong))
  assert flat['pass@8'] == flat['maj@8'] == flat['distinct_solutions'] == 0.0
  assert flat['effective_solutions'] == flat['solution_entropy'] == 0.0
  nameless = [line(q, 'a b', False, solution='') for q in (0, 1) * 8]
  flat = score_file(write(tmp_path / 'n.jsonl', nameless))
  assert flat['distinct_solutions'] == flat['effective_solutions'] == 0.0
  same = [line(q, 'a b c d', True, solution='p') for q in (0, 1) * 8]
  flat = score_file(write(tmp_path / 'c.jsonl', same))
  assert flat['self_bleu'] == pytest.approx(100.0)
  assert flat['vendi'] == flat['effective_solutions'] == flat['maj@8'] == 1.0
  json.dumps(flat, allow_nan=False)


def test_wrong_answers_without_a_key_cannot_vote(tmp_path):
  lines = [line(0, 'a', True, solution='p'), line(0, 'b', False, solution='')]
  flat = score_file(write(tmp_path / 'a.jsonl', lines))
  assert flat['distinct_solutions'] == 1.0
  assert not [name for name in flat if name.startswith('maj')]


def best_of(flat):
  return {k: v for k, v in flat.items() if 'best_of' in k and '/' not in k}


@pytest.mark.parametrize('field', ['score', 'reward'])
def test_best_of_k_by_hand(tmp_path, field):
  given = [(0, 2, 1), (0, 2, 0), (1, 0, 0), (0, 1, 1), (1, -1.5, 1)]
  lines = [line(q, 'a', bool(c), **{field: s}) for q, s, c in given]
  flat = score_file(write(tmp_path / 'a.jsonl', lines))
  # Question 0: the tie of a pair 1/2, then right, then wrong. Question 1
  # scores its wrong answer highest.
  expected = {'best_of@1': (2 / 3 + 1 / 2) / 2, 'best_of@2': (1 / 2 + 0) / 2}
  assert best_of(flat) == pytest.approx(expected)
  assert flat['best_of@2/low'] == 0.0 and flat['best_of@2/high'] == 0.5
  flat = score_file(tmp_path / 'a.jsonl', ks=[2])
  assert list(best_of(flat)) == ['best_of@2']
  with pytest.raises(ValueError, match='k is 4; it must lie in 1..3'):
    score_file(tmp_path / 'a.jsonl', ks=[4])


def test_embedding_diversity_by_hand(tmp_path):
  vectors = {'a': [1, 0], 'b': [0, 2], 'c': [-3, 0]}
  # Question 0: a b c, pairs 1, 2, 1. Question 1: a b a, pairs 1, 0, 1.
  # Question 2 has no pair; its answer is not even embedded.
  given = [(0, 'a'), (1, 'a'), (0, 'b'), (2, 'd'), (1, 'b'), (0, 'c'), (1, 'a')]
  path = write(tmp_path / 'a.jsonl', [line(q, a, True) for q, a in given])
  flat = score_file(path, embed=lambda texts: [vectors[t] for t in texts])
  assert flat['embedding_diversity'] == pytest.approx((4 / 3 + 2 / 3) / 2)
  assert flat['embedding_diversity/low'] == pytest.approx(2 / 3)
  assert flat['embedding_diversity/high'] == pytest.approx(4 / 3)
  assert 'embedding_diversity' not in score_file(path)


def test_a_score_goes_before_a_reward(tmp_path):
  lines = [
    line(0, 'a', True, score=2, reward=0),
    line(0, 'b', False, score=1, reward=1),
  ]
  flat = score_file(write(tmp_path / 'a.jsonl', lines))
  assert flat['best_of@2'] == 1.0
  del lines[0]['score']
  with pytest.raises(RolloutError, match='line 1: the answer has no score, th'):
    score_file(write(tmp_path / 'b.jsonl', lines))
  lines[1]['score'] = None  # null is none
  assert score_file(write(tmp_path / 'c.jsonl', lines))['best_of@2'] == 0.0
  del lines[1]['reward']
  with pytest.raises(RolloutError, match='line 2: the answer has no reward'):
    score_file(write(tmp_path / 'd.jsonl', lines))


def test_the_order_of_lines_changes_nothing(tmp_path):
  first = score_file(write(tmp_path / 'a.jsonl', LINES))
  # The questions keep their places, so the resamples are the same.
  moved = [LINES[i] for i in (3, 1, 5, 0, 4, 2)]
  assert score_file(write(tmp_path / 'b.jsonl', moved)) == pytest.approx(first)


def test_rollouts_of_a_run_by_step(tmp_path, capsys):
  lines = [
    line(
      7,
      'a b',
      g > 0,
      step=step,
      sample=g,
      concepts=['fruit', f'c{g}'] if step else [],
      solution='0-1' if g else '',
      demonstrations=['a b', 'c'] if step else [],
      reward=1.0,
    )
    for step in (0, 5)
    for g in range(3)
  ]
  path = write(tmp_path / 'rollouts.jsonl', lines)
  flat = score_file(path, step=5)
  assert flat['strategies_correct'] == 3.0  # fruit, c1, c2
  assert flat['copy_overlap'] == 1.0 and flat['num_answers'] == 3
  assert score_file(path)['num_answers'] == 6
  first = score_file(path, step=0)
  assert not {'strategies_correct', 'copy_overlap'} & set(first)
  with pytest.raises(RolloutError, match='step 9, but of 2 steps in 0..5'):
    score_file(path, step=9)
  flags = [f'--rollouts={path}', f'--out={tmp_path / "o.json"}']
  assert evaluate.main(flags) == 0
  assert '2 steps of training, 0 to 5' in capsys.readouterr().err
  assert evaluate.main([*flags, '--step=5']) == 0
  assert not capsys.readouterr().err
  del lines[0]['step']
  with pytest.raises(RolloutError, match='step 9, and no line has a step'):
    score_file(write(path, lines[:1]), step=9)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('{"question_id": 1', 'line 3: not JSON'),
    ('[1]', 'line 3: a list, not an object'),
    ('{"answer": "", "correct": true}', 'line 3: question_id is missing'),
    ('{"question_id": true, "answer": "", "correct": true}', 'id is true'),
    ('{"question_id": 1.5, "answer": "", "correct": true}', 'id is 1.5'),
    ('{"question_id": 1, "correct": true}', 'line 3: answer is missing'),
    ('{"question_id": 1, "answer": 3, "correct": true}', 'answer is 3'),
    ('{"question_id": 1, "answer": ""}', 'correct is missing'),
    ('{"question_id": 1, "answer": "", "correct": 2}', 'correct is 2; it'),
    ('{"question_id": 1, "answer": "", "correct": NaN}', 'correct is NaN'),
    ('{"question_id": 1, "answer": "", "correct": "1"}', 'correct is "1"'),
    (json.dumps(line(1, '', True, solution=[1])), r'solution is \[1\]'),
    (json.dumps(line(1, '', True, strategy=[[1]])), r'strategy is \[\[1\]\]'),
    (json.dumps(line(1, '', True, demonstration=4)), 'demonstration is 4'),
    (json.dumps(line(1, '', True, demonstrations='a')), 'list of strings'),
    (json.dumps(line(1, '', False, score='9')), 'score is "9"; it must be a'),
    (json.dumps(line(1, '', False, score=math.nan)), 'score is NaN'),
    (json.dumps(line(1, '', False, reward=10**400)), 'reward is 1000'),
    (json.dumps(line(1, '', False, reward=[1])), r'reward is \[1\]'),
    (json.dumps(line(1, '', True)), 'line 3: .*correct but has no solution'),
  ],
)
def test_bad_lines_are_named(tmp_path, text, message):
  good = json.dumps(line(1, 'a', True, solution='p'))
  path = tmp_path / 'bad.jsonl'
  path.write_text(f'{good}\n\n{text}\n{good}\n')
  with pytest.raises(RolloutError, match=message) as error:
    read_answers(path)
  assert 'bad.jsonl' in str(error.value)


def test_verdicts_may_be_numbers(tmp_path):
  lines = [line('q', 'a', verdict) for verdict in (1, 0, True, 1.0)]
  answers = read_answers(write(tmp_path / 'a.jsonl', lines))
  assert answers.correct == [[True, False, True, True]]


def test_text_that_is_not_utf8_is_named(tmp_path):
  (tmp_path / 'a.jsonl').write_bytes(b'{"answer": "\xff"}\n')
  with pytest.raises(RolloutError, match='line 1: not JSON'):
    read_answers(tmp_path / 'a.jsonl')


def test_command_line(tmp_path, capsys):
  path = write(tmp_path / 'a.jsonl', LINES)
  out = tmp_path / 'out' / 'scores.json'
  flags = [f'--rollouts={path}', f'--out={out}']
  assert evaluate.main([*flags, '--k=2']) == 0
  flat = json.loads(out.read_text())
  assert flat['pass@2'] == 1.0 and 'pass@1' not in flat
  assert flat['pass_gain'] == pytest.approx(3 / 8)
  assert 'pass@2' in capsys.readouterr().out

  assert evaluate.main([*flags, '--k=1,8']) == 2
  assert 'k is 8; it must lie in 1..4' in capsys.readouterr().err
  assert evaluate.main([f'--rollouts={tmp_path}/no', f'--out={out}']) == 2
  assert 'no' in capsys.readouterr().err
  with pytest.raises(SystemExit):
    evaluate.main([*flags, '--k=all'])
  assert "--k is 'all'" in capsys.readouterr().err


def test_pass_at_k_of_the_file_is_the_mean_over_its_questions(tmp_path):
  rng = np.random.default_rng(0)
  right = rng.random((5, 12)) < 0.3
  lines = [
    line(f'q{q}', 'a', bool(right[q, g])) for q in range(5) for g in range(12)
  ]
  flat = score_file(write(tmp_path / 'a.jsonl', lines))
  missed = [math.comb(12 - c, 8) / math.comb(12, 8) for c in right.sum(axis=1)]
  assert flat['pass@8'] == pytest.approx(1 - np.mean(missed))
  assert 'pass@16' not in flat
