import dataclasses
import json

import numpy as np
import pytest

from sdjax.evaluate import diversity, measures
from sdjax.evaluate.bootstrap import bootstrap_interval
from sdjax.evaluate.samples import Samples
from sdjax.evaluate.table import Setting

# Two questions, three samples each. Question 0: two right answers by two
# paths through one concept, one wrong. Question 1: all wrong.
SAMPLES = [
  Samples(
    correct=[True, True, False],
    strategies=[('fruit',), ('fruit',), ('fish', 'tools')],
    solutions=['0-1', '0-2', ''],
    entropies=[1.0, 2.0, 3.0],
    lengths=[2, 4, 4],
    reasons=['', '', 'wrong_end'],
    flags={'finished': [True, True, True]},
  ),
  Samples(
    correct=[False, False, False],
    strategies=[('birds',), (), ('birds',)],
    solutions=['', '', ''],
    entropies=[0.0, 0.0, 6.0],
    lengths=[1, 1, 12],
    reasons=['no_box', 'no_box', 'wrong_end'],
    flags={'finished': [True, False, False]},
  ),
]


def mean(name, questions):
  """A measure of some questions, by the table."""
  setting = Setting(ks=[1])
  return measures.MEASURES[name].columns(questions, setting)[name].mean


def test_concept_diversity_by_hand():
  # {fruit, fish, tools} and {birds}
  assert mean('concepts', SAMPLES) == 2.0
  # {fruit} and nothing, which counts 0 and is not left out
  assert mean('concepts_correct', SAMPLES) == 0.5


def test_a_concept_counts_once_however_often_it_is_named():
  rows = [[('a', 'b')] * 5, [('a',), ('b',), ('a', 'b'), ('c',), ()]]
  questions = [Samples([True] * 5, strategies=row) for row in rows]
  assert [measures.concepts(samples) for samples in questions] == [2, 3]


def test_questions_may_differ_in_their_numbers_of_answers():
  rows = [[('a',)], [('a',), ('b',)], []]
  questions = [Samples([True] * len(row), strategies=row) for row in rows]
  assert [measures.concepts(samples) for samples in questions] == [1, 2, 0]


def test_distinct_solutions_by_hand():
  assert mean('distinct_paths', SAMPLES) == 1.0
  # A wrong sample's identity is not read.
  one = Samples([True, True, False], solutions=['0-1', '0-1', '0-9'])
  assert mean('distinct_paths', [one]) == 1.0


@pytest.mark.parametrize('name', ['', None])
def test_a_correct_sample_needs_an_identity(name):
  one = Samples([True, True], solutions=['0-1', name])
  with pytest.raises(ValueError, match='question 0: sample 1 is correct'):
    mean('distinct_paths', [one])
  with pytest.raises(ValueError, match='question 1: sample 1 is correct'):
    diversity.summarize([SAMPLES[0], one])


def test_token_entropy_weighs_tokens_not_samples():
  # 12 nats over 24 tokens; the mean over samples would be 0.542.
  entropies = [samples.entropies for samples in SAMPLES]
  lengths = [samples.lengths for samples in SAMPLES]
  assert diversity.token_entropy(entropies, lengths) == pytest.approx(0.5)
  assert mean('token_entropy', SAMPLES) == pytest.approx(0.5)
  only_first = Samples([True], entropies=[1.0], lengths=[2])
  assert mean('token_entropy', [only_first]) == pytest.approx(0.5)
  assert diversity.token_entropy([[0.0]], [[0]]) == 0.0
  nothing = Samples([True], entropies=[0.0], lengths=[0])
  assert mean('token_entropy', [nothing]) == 0.0


def test_summarize_by_hand():
  flat, per_question = diversity.summarize(SAMPLES)
  expected = {
    'pass@1': 1 / 3,  # (2/3 + 0) / 2
    'pass@2': 0.5,  # every pair of question 0 holds a right one
    'pass_gain': 1 / 6,
    'pass_slope': 1 / 6,  # through two points, a doubling apart
    'concepts': 2.0,
    'concepts_correct': 0.5,
    'strategies_correct': 0.5,
    'distinct_paths': 1.0,
    'distinct_solutions': 1.0,
    'effective_solutions': 1.0,  # (2 + 0) / 2
    'solution_entropy': np.log(2) / 2,
    'token_entropy': 0.5,
    'length': 4.0,
    'finished': 4 / 6,
    'reason/no_box': 2 / 6,
    'reason/wrong_end': 2 / 6,
  }
  assert flat == pytest.approx(expected)
  assert per_question == {
    'num_samples': 3,
    'num_correct': [2, 0],
    'concepts': [3, 1],
    'concepts_correct': [1, 0],
    'distinct_paths': [2, 0],
    'token_entropy': [0.6, round(6 / 14, 6)],
    'num_tokens': [10, 14],
  }


def test_rare_solutions_count_less_in_the_effective_number():
  # Three of four answers by one path, one by another; the question without
  # a right answer counts 0.
  rows = [
    ([True] * 4, ['0-1', '0-1', '0-2', '0-1']),
    ([False] * 4, ['0-3'] * 4),
  ]
  flat, _ = diversity.summarize([Samples(c, solutions=s) for c, s in rows])
  entropy = np.log(4) - 0.75 * np.log(3)
  assert flat['solution_entropy'] == pytest.approx(entropy / 2)
  assert flat['effective_solutions'] == pytest.approx(np.exp(entropy) / 2)
  assert flat['distinct_paths'] == 1.0
  # pass@k is 1 and 0 whatever k: no slope.
  assert flat['pass_slope'] == 0.0


def test_summary_is_plain_json():
  for part in diversity.summarize(SAMPLES):
    assert json.loads(json.dumps(part, allow_nan=False)) == part


def test_questions_that_have_no_sample_change_nothing():
  nothing = dataclasses.replace(
    SAMPLES[0],
    **{
      field.name: []
      for field in dataclasses.fields(Samples)
      if field.name != 'flags'
    },
    flags={'finished': []},
  )
  padded = [nothing, *SAMPLES, nothing]
  assert diversity.summarize(padded) == diversity.summarize(SAMPLES)


def test_differing_sample_numbers_end_k_at_the_smallest():
  first = Samples(
    [True],
    strategies=[('fruit',)],
    solutions=['0-1'],
    entropies=[1.0],
    lengths=[2],
    reasons=[''],
    flags={'finished': [True]},
  )
  flat, per_question = diversity.summarize([first, SAMPLES[1]])
  assert [k for k in flat if k.startswith('pass@')] == ['pass@1']
  assert flat['pass@1'] == 0.5  # 1 of 1, 0 of 3
  assert per_question['num_samples'] == [1, 3]


def test_all_right_all_wrong_and_a_single_sample():
  one = Samples(
    [True],
    strategies=[('a',)],
    solutions=['0-1'],
    entropies=[0.5],
    lengths=[1],
  )
  flat, _ = diversity.summarize([one])
  assert flat == {
    'pass@1': 1.0,
    'pass_gain': 0.0,
    'concepts': 1.0,
    'concepts_correct': 1.0,
    'strategies_correct': 1.0,
    'distinct_paths': 1.0,
    'distinct_solutions': 1.0,
    'effective_solutions': 1.0,
    'solution_entropy': 0.0,
    'token_entropy': 0.5,
    'length': 1.0,
  }
  wrong, _ = diversity.summarize([dataclasses.replace(one, correct=[False])])
  assert wrong['pass@1'] == wrong['concepts_correct'] == 0.0
  assert wrong['distinct_paths'] == 0.0 and wrong['concepts'] == 1.0


@pytest.mark.parametrize('questions', [[], [Samples([])]])
def test_no_sample_at_all_is_an_error(questions):
  with pytest.raises(ValueError, match='no question of the set has a sample'):
    diversity.summarize(questions)


def test_fields_that_disagree_are_errors():
  with pytest.raises(ValueError, match='lengths has 2 entries, correct has 3'):
    dataclasses.replace(SAMPLES[0], lengths=[1, 1])
  with pytest.raises(ValueError, match='solutions has 2 entries'):
    dataclasses.replace(SAMPLES[0], solutions=['', ''])
  with pytest.raises(ValueError, match='finished has 2 entries'):
    dataclasses.replace(SAMPLES[0], flags={'finished': [True, True]})
  with pytest.raises(ValueError, match="the str 'fruit'"):
    Samples([True], strategies=['fruit'])


def test_bootstrap_interval_by_hand():
  # Two questions, values 0 and 1: a resample's mean is 0, 1/2 or 1 with
  # chances 1/4, 1/2, 1/4.
  low, high = bootstrap_interval([0.0, 1.0], num=2000)
  assert (low, high) == (0.0, 1.0)
  low, high = bootstrap_interval([0.0, 1.0], num=2000, level=0.4)
  assert (low, high) == (0.5, 0.5)


def test_bootstrap_interval_matches_the_normal_one():
  # Deviations of a mean of 400 values of deviation 1 are 0.05: the interval
  # is 0 -+ 1.96 * 0.05; 0.01 is four times the error of 2000 resamples' ends.
  values = np.repeat([-1.0, 1.0], 200)
  low, high = bootstrap_interval(values, num=2000)
  assert low == pytest.approx(-0.098, abs=0.01)
  assert high == pytest.approx(0.098, abs=0.01)


def test_bootstrap_is_seeded_and_takes_any_statistic():
  values = np.arange(10.0)
  interval = bootstrap_interval(values, seed=1)
  assert interval == bootstrap_interval(values, seed=1)
  assert interval != bootstrap_interval(values, seed=2)
  assert interval == pytest.approx(
    bootstrap_interval(values, lambda v: float(v.mean()), seed=1)
  )
  # Rows stay together: the ratio of the columns is 2 in every resample.
  pairs = np.stack([2 * values + 2, values + 1], axis=-1)
  ratio = bootstrap_interval(pairs, lambda v: v[:, 0].sum() / v[:, 1].sum())
  assert ratio == (2.0, 2.0)


@pytest.mark.parametrize(
  'options', [{'values': []}, {'level': 1.0}, {'level': 0.0}, {'num': 0}]
)
def test_bootstrap_refuses_what_has_no_interval(options):
  with pytest.raises(ValueError):
    bootstrap_interval(**{'values': [1.0], **options})
