# pyright: reportArgumentType=false
"""What evaluations compute, by hand, where other tests see it from afar."""

import inspect

import numpy as np
import pytest

from sdjax.evaluate import bootstrap, diversity, measures, score_file, vendi
from sdjax.evaluate import distribution as known
from sdjax.evaluate import text as text_lib
from sdjax.evaluate.rollout_file import Answers
from sdjax.evaluate.samples import Samples
from sdjax.report import tables

# Four answers of a known distribution: two right ones through `a`, and `b`
# besides.
ANSWERS = [0.5, 0.25, 0.125, 0.125]
RIGHT = [True, True, False, False]


def test_pass_at_k_of_a_distribution():
  assert known.pass_at_k(ANSWERS, RIGHT, 1) == 0.75
  assert known.pass_at_k(ANSWERS, RIGHT, 2) == 1 - 0.25**2
  assert known.pass_at_k(ANSWERS, [False] * 4, 3) == 0
  assert known.pass_at_k([0.5, 0.5 + 1e-7], [True, True], 2) == 1


def test_distinct_items_of_a_distribution():
  items = [['a'], ['a', 'b', 'b'], [], ['b']]
  # `a` has .75, `b` has .375.
  assert known.expected_distinct(ANSWERS, items, 1) == 0.75 + 0.375
  want = (1 - 0.25**2) + (1 - 0.625**2)
  assert known.expected_distinct(ANSWERS, items, 2) == pytest.approx(want)
  assert known.expected_distinct([1.0], [[]], 2) == 0


def test_effective_number_of_a_distribution():
  # Shares 2/3 and 1/3 of the right ones.
  want = np.exp(np.log(3) - 2 / 3 * np.log(2))
  assert known.effective_number(ANSWERS, RIGHT) == pytest.approx(want)
  assert known.effective_number([0.5, 0.5], [True, True]) == pytest.approx(2)
  assert known.effective_number([1.0, 0.0], [True, True]) == 1
  assert known.effective_number([1.0, 0.0], [False, True]) == 0


@pytest.mark.parametrize(
  'p, right, k, message',
  [
    ([0.5, 0.6], [True, True], 1, 'sum to 1, not to 1.1'),
    ([1.5, -0.5], [True, True], 1, 'must be probabilities'),
    ([1 - 3e-6, 0.0], [True, True], 1, 'must be probabilities'),
    ([0.5, 0.5], [True], 1, r'distribution has shape \(2,\)'),
    ([[0.5], [0.5]], [True, True], 1, r'distribution has shape \(2, 1\)'),
    ([0.5, 0.5], [True, True], 0, '0 draws'),
  ],
)
def test_what_is_no_distribution_is_refused(p, right, k, message):
  with pytest.raises(ValueError, match=message):
    known.pass_at_k(p, right, k)


VALUES = np.array(
  [[0.0, 1.0, np.nan], [1.0, 3.0, 4.0], [2.0, np.nan, np.nan], [5.0, 1.0, 2.0]]
)


def test_intervals_of_columns_are_those_of_one(monkeypatch):
  want = bootstrap.bootstrap_interval(VALUES[:, 0])
  got = bootstrap.mean_intervals(VALUES)
  assert got.shape == (3, 2)
  np.testing.assert_allclose(got[0], want)
  # A question without a value is drawn, and left out of the mean.
  draws = np.random.default_rng(0).integers(4, size=(1000, 4))
  drawn = np.ma.masked_invalid(VALUES[:, 1][draws]).mean(axis=1)
  means = drawn.filled(np.nan)
  np.testing.assert_allclose(got[1], np.nanquantile(means, [0.025, 0.975]))
  # However few draws are held at once.
  for block in (1, 4, 13, 10**9):
    monkeypatch.setattr(bootstrap, 'BLOCK', block)
    np.testing.assert_allclose(bootstrap.mean_intervals(VALUES), got)


def test_a_column_without_a_value_has_no_interval():
  values = np.stack([np.arange(3.0), np.full(3, np.nan)], axis=1)
  got = bootstrap.mean_intervals(values)
  assert np.isfinite(got[0]).all() and np.isnan(got[1]).all()
  with pytest.raises(ValueError, match=r'must be \[Q, M\]'):
    bootstrap.mean_intervals(np.arange(3.0))
  with pytest.raises(ValueError, match='holds no question'):
    bootstrap.bootstrap_interval(np.float64(3))


def test_intervals_by_default():
  one, many = bootstrap.bootstrap_interval, bootstrap.mean_intervals
  for function in (one, many):
    options = inspect.signature(function).parameters
    got = [options[name].default for name in ('seed', 'num', 'level')]
    assert got == [0, 1000, 0.95]
  assert one([2.0, 3.0], num=1) == one([2.0, 3.0], num=1)
  # Both ends leave out the same share: of 1000 means of one question, none.
  assert one([4.0], level=0.5) == (4, 4)


def test_vendi_of_weighted_answers():
  # Two unlike answers, 3 to 1: exp of the entropy of the shares.
  want = np.exp(np.log(4) - 0.75 * np.log(3))
  assert vendi.vendi_score(np.eye(2), [0.75, 0.25]) == pytest.approx(want)
  assert vendi.vendi_score(np.ones((3, 3))) == pytest.approx(1)
  # Eigenvalues (1 + s) / 2 and (1 - s) / 2.
  s = 0.6
  want = np.exp(-0.8 * np.log(0.8) - 0.2 * np.log(0.2))
  assert vendi.vendi_score([[1, s], [s, 1]]) == pytest.approx(want)
  scores = vendi.vendi_scores(
    [['a b'] * 3 + ['c d'], ['a'], ['x x', 'x  x'], []]
  )
  want = np.exp(np.log(4) - 0.75 * np.log(3))
  np.testing.assert_allclose(scores, [want, 1, 1, np.nan])


def test_ngram_kernel_by_hand():
  # 1-grams: a b against a c, cosine 1/2; 2-grams: none alike.
  got = vendi.ngram_kernel(['a b', 'a c', 'a  b'])
  np.testing.assert_allclose(got, [[1, 0.25, 1], [0.25, 1, 0.25], [1, 0.25, 1]])
  # Counts 2, 1 against 1, 1: 3 / sqrt(10).
  got = vendi.ngram_kernel(['a a b', 'a b'], order=1)
  np.testing.assert_allclose(got[0, 1], 3 / np.sqrt(10))
  got = vendi.ngram_kernel(['a a b', 'a b'], order=2)
  np.testing.assert_allclose(got[0, 1], (3 / np.sqrt(10) + 1 / np.sqrt(2)) / 2)
  assert vendi.ngram_kernel([]).shape == (0, 0)


@pytest.mark.parametrize(
  'kernel, weights, message',
  [
    (np.zeros((0, 0)), None, 'must be'),
    (np.ones((1, 2)), None, 'must be'),
    (np.float64(1), None, 'must be'),
    (np.array([[1, 0.5], [0.4, 1]]), None, 'not symmetric'),
    (np.array([[1, 0.0], [0.0, 1.1]]), None, 'diagonal'),
    (np.eye(2), [0.5, 0.6], 'sum 1.1'),
    (np.eye(2), [0.5, 0.4], 'sum 0.9'),
    (np.eye(2), [1.0], 'have shape'),
  ],
)
def test_what_is_no_kernel_is_refused(kernel, weights, message):
  with pytest.raises(ValueError, match=message):
    vendi.vendi_score(kernel, weights)


def test_embedding_diversity_by_hand():
  # Cosines of the pairs: 0, -1, 0.
  got = vendi.embedding_diversity([[2.0, 0], [0, 1.0], [-3.0, 0]])
  assert got == pytest.approx((1 + 2 + 1) / 3)
  assert vendi.embedding_diversity([[1.0, 0], [4.0, 0]]) == pytest.approx(0)
  assert np.isnan(vendi.embedding_diversity([[1.0, 0]]))
  for bad in ([1.0, 2.0], [[0.0, 0], [1, 1]], [[np.inf, 0], [1, 1]]):
    with pytest.raises(ValueError):
      vendi.embedding_diversity(bad)


def test_texts_are_embedded_once():
  asked = []

  def embed(texts):
    asked.append(texts)
    return [[1.0, 0.0] if text == 'x' else [0.0, 1.0] for text in texts]

  rows = [['x', 'y'], ['lone'], ['x', 'x', 'y'], []]
  got = vendi.embedding_diversities(rows, embed)
  np.testing.assert_allclose(got, [1, np.nan, 2 / 3, np.nan])
  assert asked == [['x', 'y']]
  assert np.isnan(vendi.embedding_diversities([['x']], embed)).all()
  assert len(asked) == 1
  with pytest.raises(ValueError, match='for 2 texts'):
    vendi.embedding_diversities([['x', 'y']], lambda texts: [[1.0, 0.0]])


def test_shares_of_flags_and_reasons():
  flat, questions = diversity.summarize(
    [
      Samples(
        correct=[True, False, False],
        strategies=[()] * 3,
        solutions=['1', '', ''],
        entropies=[0.0, 0, 1],
        lengths=[1, 1, 1],
        reasons=['x', '', 'late'],
        flags={'finished': [True, False, True]},
      ),
      Samples(
        correct=[False, False],
        strategies=[()] * 2,
        solutions=['1', ''],
        entropies=[7.0, 7],
        lengths=[0, 0],
        reasons=['late', 'late'],
        flags={'finished': [True, True]},
      ),
    ]
  )
  assert flat['finished'] == 4 / 5
  assert flat['reason/late'] == 3 / 5
  assert flat['reason/unnamed'] == 1 / 5
  assert 'reason/x' not in flat
  assert flat['length'] == 3 / 5
  assert flat['pass@2'] == pytest.approx((1 - 1 / 3) / 2)
  assert questions['num_samples'] == [3, 2]
  assert questions['token_entropy'] == [round(1 / 3, 6), 0.0]
  assert questions['num_tokens'] == [3, 0]


def answers(rows, **fields):
  """Answers of Q rows of verdicts, in words of their own."""
  blank = {
    'solution': None,
    'strategies': None,
    'demonstrations': None,
    'score': None,
  }
  return Answers(
    question_ids=list(range(len(rows))),
    answer=[[f'w{g}' for g, _ in enumerate(row)] for row in rows],
    correct=rows,
    steps=[],
    **{**blank, **fields},
  )


def test_the_numbers_of_a_file_by_hand():
  rows = [[True, False, False, False], [True, True], [False]]
  flat = score_file.score(answers(rows), ks=[2, 1, 2])
  assert flat['pass@1'] == pytest.approx((1 / 4 + 1 + 0) / 3)
  # Of the two questions that have two answers.
  assert flat['pass@2'] == pytest.approx((1 / 2 + 1) / 2)
  assert flat['pass@2/num_questions'] == 2
  assert 'pass@1/num_questions' not in flat
  assert flat['pass_gain'] == pytest.approx((1 / 4 + 0) / 2)
  assert flat['pass_slope'] == pytest.approx((1 / 4 + 0) / 2)
  assert (flat['num_questions'], flat['num_answers']) == (3, 7)
  assert flat['distinct_1'] == 1
  alone = score_file.score(answers(rows), ks=[1])
  assert 'pass_gain' not in alone and 'pass_slope' not in alone
  # A single k above 1 has a gain, and no slope.
  alone = score_file.score(answers(rows), ks=[2])
  assert 'pass_gain' in alone and 'pass_slope' not in alone


def test_k_goes_as_far_as_most_questions():
  four, two = [True] * 4, [True] * 2
  for rows, last in (
    ([four, four, two], 4),
    ([four, two, two], 2),
    ([four, two], 2),
    ([four], 4),
  ):
    flat = score_file.score(answers(rows))
    ks = [int(k[5:]) for k in flat if k.startswith('pass@') and '/' not in k]
    assert max(ks) == last
  for ks, message in (([5], '1..4'), ([0], '1..4'), ([], 'no k')):
    with pytest.raises(ValueError, match=message):
      score_file.score(answers([two, four]), ks=ks)


def test_votes_and_scores_pick_answers():
  rows = [[True, False, False], [True, True, False]]
  flat = score_file.score(
    answers(
      rows,
      solution=[['a', 'b', 'b'], ['a', 'c', 'd']],
      score=[[0.1, 0.5, 0.2], [3, 1, 2]],
      strategies=[[('s',), ('t',), ()], [('s',), ('s', 'u'), ('v',)]],
      demonstrations=[[('w0',), (), ()], [('no',), (), ()]],
    ),
    ks=[1, 3],
  )
  # All three vote: b wins, then a tie of two right ones and a wrong one.
  assert flat['maj@3'] == pytest.approx((0 + 2 / 3) / 2)
  assert flat['best_of@3'] == pytest.approx((0 + 1) / 2)
  assert flat['best_of@1'] == pytest.approx(0.5)
  assert flat['distinct_solutions'] == (1 + 2) / 2
  assert flat['effective_solutions'] == pytest.approx((1 + 2) / 2)
  assert flat['solution_entropy'] == pytest.approx(np.log(2) / 2)
  assert flat['strategies_correct'] == (1 + 2) / 2
  assert flat['copy_overlap'] == 0.5
  # Wrong answers without a solution cannot vote.
  flat = score_file.score(
    answers(rows, solution=[['a', None, None], ['a', 'c', None]]), ks=[1]
  )
  assert 'maj@1' not in flat
  flat = score_file.score(answers([[True]], solution=[['a']]), ks=[1])
  assert flat['maj@1'] == 1


@pytest.mark.parametrize(
  'fields',
  [
    {'strategies': [[('s',)], [('s',)]]},  # one of two answers
    {'strategies': [[('s',), ('s',)]]},  # one of two questions
    {'solution': [['a', 'b']]},
    {'solution': [['a'], ['a']]},
  ],
)
def test_every_answer_needs_what_some_have(fields):
  rows = [[True, False], [True]]
  with pytest.raises(ValueError, match='zip|give one an answer'):
    score_file.score(answers(rows, **fields), ks=[1])


def test_numbers_for_a_terminal():
  flat = {
    **{'pass@1': 0.5, 'pass@1/low': 0.25, 'pass@1/high': 0.75},
    **{'pass@1/num_questions': 3, 'num_questions': 4, 'num_answers': 9},
  }
  lines = score_file.describe(flat).splitlines()
  assert lines == [
    'pass@1                  0.5000  [0.2500, 0.7500]  over 3 questions',
    'num_questions                4',
    'num_answers                  9',
  ]
  told = score_file.describe(flat | {'num_questions': 1})
  assert told.endswith('no interval over questions can be told.')


def test_values_of_questions():
  entry = {
    'num_samples': 4,
    'num_correct': [1, 4],
    'concepts': [3, 2],
    'token_entropy': [0.5, 0.25],
    'num_tokens': [10, 30],
  }
  want = {
    'pass@1': [[1 / 4, 1], [1, 1]],
    'pass@2': [[1 / 2, 1], [1, 1]],
    'pass_gain': [[3 / 4, 1], [0, 1]],
    'concepts': [[3, 1], [2, 1]],
    'token_entropy': [[5, 10], [7.5, 30]],
  }
  for metric, rows in want.items():
    got = tables._question_values(entry, metric)
    assert got is not None
    np.testing.assert_allclose(got, rows, err_msg=metric)
  assert tables._ratio(np.array([[5, 10], [7.5, 30]])) == 12.5 / 40
  assert tables._ratio(np.zeros((2, 2))) == 0
  assert tables._question_values(entry, 'distinct_paths') is None
  assert tables._question_values(entry, 'pass@8') is None
  assert tables._question_values(None, 'pass@1') is None


def test_copies_by_hand():
  assert text_lib.copy_share('a b c d', ['x b c y', 'd']) == 0.5
  assert text_lib.copy_share('a b', ['b a']) == 0.5
  assert text_lib.copy_share('a', ['b']) == 0
  both = Samples([True] * 2, ['a b', 'a'], demonstrations=[['a'], []])
  assert measures.copy_overlap(both) == 0.5
  alone = Samples([True], ['a'], demonstrations=[[]])
  assert measures.copy_overlap(alone) is None
