import dataclasses
import json

import numpy as np
import pytest

from sdjax.evaluate import diversity
from sdjax.evaluate.bootstrap import bootstrap_interval

# Two questions, three samples each. Question 0: two right answers by two
# paths through one concept, one wrong. Question 1: all wrong.
SAMPLES = diversity.SampleSet(
  correct=np.array([[True, True, False], [False, False, False]]),
  concepts=[
    [('fruit',), ('fruit',), ('fish', 'tools')],
    [('birds',), (), ('birds',)],
  ],
  solutions=[['0-1', '0-2', ''], ['', '', '']],
  entropy_sum=np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]]),
  length=np.array([[2, 4, 4], [1, 1, 12]]),
  reason=[['', '', 'wrong_end'], ['no_box', 'no_box', 'wrong_end']],
  flags={'finished': np.array([[True, True, True], [True, False, False]])},
)


def test_concept_diversity_by_hand():
  # {fruit, fish, tools} and {birds}
  assert diversity.concept_diversity(SAMPLES.concepts) == 2.0
  # {fruit} and nothing, which counts 0 and is not left out
  assert diversity.concept_diversity(SAMPLES.concepts, SAMPLES.correct) == 0.5


def test_a_concept_counts_once_however_often_it_is_named():
  concepts = [[('a', 'b')] * 5, [('a',), ('b',), ('a', 'b'), ('c',), ()]]
  assert diversity.distinct_counts(concepts).tolist() == [2, 3]


def test_rows_may_differ_in_length_without_a_mask():
  concepts = [[('a',)], [('a',), ('b',)], []]
  assert diversity.distinct_counts(concepts).tolist() == [1, 2, 0]


def test_distinct_solutions_by_hand():
  assert diversity.distinct_solutions(SAMPLES.solutions, SAMPLES.correct) == 1.0
  # A wrong sample's identity is not read.
  solutions = [['0-1', '0-1', '0-9']]
  assert diversity.distinct_solutions(solutions, [[True, True, False]]) == 1.0


def test_a_correct_sample_needs_an_identity():
  with pytest.raises(ValueError, match='sample 1 of question 0'):
    diversity.distinct_solutions([['0-1', '']], [[True, True]])


def test_token_entropy_weighs_tokens_not_samples():
  # 12 nats over 24 tokens; the mean over samples would be 0.542.
  assert diversity.token_entropy(
    SAMPLES.entropy_sum, SAMPLES.length
  ) == pytest.approx(0.5)
  only_first = np.array([[True, False, False], [False, False, False]])
  assert diversity.token_entropy(
    SAMPLES.entropy_sum, SAMPLES.length, only_first
  ) == pytest.approx(0.5)
  assert diversity.token_entropy([[0.0]], [[0]]) == 0.0


def test_summarize_by_hand():
  flat, per_question = diversity.summarize(SAMPLES)
  expected = {
    'pass@1': 1 / 3,  # (2/3 + 0) / 2
    'pass@2': 0.5,  # every pair of question 0 holds a right one
    'pass_gain': 1 / 6,
    'pass_slope': 1 / 6,  # through two points, a doubling apart
    'concepts': 2.0,
    'concepts_correct': 0.5,
    'distinct_paths': 1.0,
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
  flat, _ = diversity.summarize(
    diversity.SampleSet(
      correct=np.array([[True] * 4, [False] * 4]),
      concepts=[[()] * 4] * 2,
      solutions=[['0-1', '0-1', '0-2', '0-1'], ['0-3'] * 4],
      entropy_sum=np.ones((2, 4)),
      length=np.ones((2, 4), int),
    )
  )
  entropy = np.log(4) - 0.75 * np.log(3)
  assert flat['solution_entropy'] == pytest.approx(entropy / 2)
  assert flat['effective_solutions'] == pytest.approx(np.exp(entropy) / 2)
  assert flat['distinct_paths'] == 1.0
  # pass@k is 1 and 0 whatever k: no slope.
  assert flat['pass_slope'] == 0.0


def test_summary_is_plain_json():
  for part in diversity.summarize(SAMPLES):
    assert json.loads(json.dumps(part, allow_nan=False)) == part


def _padded(samples):
  """The same samples in a wider array, with rubbish where none exists."""
  q, g = samples.correct.shape
  wide = np.zeros((q + 1, g + 2), bool)
  wide[:q, :g] = True

  def pad(array, value):
    out = np.full(wide.shape, value)
    out[:q, :g] = array
    return out

  def rows(values, value):
    full = [[*row, value, value] for row in values]
    return [*full, [value] * (g + 2)]

  return diversity.SampleSet(
    correct=pad(samples.correct, True),
    concepts=rows(samples.concepts, ('ghost',)),
    solutions=rows(samples.solutions, 'ghost'),
    entropy_sum=pad(samples.entropy_sum, np.nan),
    length=pad(samples.length, 99),
    reason=rows(samples.reason, 'ghost'),
    flags={name: pad(flag, True) for name, flag in samples.flags.items()},
    mask=wide,
  )


def test_samples_and_questions_that_do_not_exist_change_nothing():
  assert diversity.summarize(_padded(SAMPLES)) == diversity.summarize(SAMPLES)


def test_differing_sample_numbers_end_k_at_the_smallest():
  mask = np.array([[True, False, False], [True, True, True]])
  flat, per_question = diversity.summarize(
    dataclasses.replace(SAMPLES, mask=mask)
  )
  assert [k for k in flat if k.startswith('pass@')] == ['pass@1']
  assert flat['pass@1'] == 0.5  # 1 of 1, 0 of 3
  assert per_question['num_samples'] == [1, 3]


def test_all_right_all_wrong_and_a_single_sample():
  one = diversity.SampleSet(
    correct=np.array([[True]]),
    concepts=[[('a',)]],
    solutions=[['0-1']],
    entropy_sum=np.array([[0.5]]),
    length=np.array([[1]]),
  )
  flat, _ = diversity.summarize(one)
  assert flat == {
    'pass@1': 1.0,
    'pass_gain': 0.0,
    'concepts': 1.0,
    'concepts_correct': 1.0,
    'distinct_paths': 1.0,
    'effective_solutions': 1.0,
    'solution_entropy': 0.0,
    'token_entropy': 0.5,
    'length': 1.0,
  }
  wrong, _ = diversity.summarize(
    dataclasses.replace(one, correct=np.array([[False]]))
  )
  assert wrong['pass@1'] == wrong['concepts_correct'] == 0.0
  assert wrong['distinct_paths'] == 0.0 and wrong['concepts'] == 1.0


def test_no_sample_at_all_is_an_error():
  with pytest.raises(ValueError, match='no question of the set has a sample'):
    diversity.summarize(
      dataclasses.replace(SAMPLES, mask=np.zeros((2, 3), bool))
    )
  with pytest.raises(ValueError, match='no question'):
    diversity.concept_diversity([])


def test_shapes_that_disagree_are_errors():
  with pytest.raises(ValueError, match='length has shape'):
    dataclasses.replace(SAMPLES, length=np.ones((2, 2), int))
  with pytest.raises(ValueError, match='solutions has 1 rows'):
    dataclasses.replace(SAMPLES, solutions=[['', '', '']])
  with pytest.raises(ValueError, match='finished has shape'):
    dataclasses.replace(SAMPLES, flags={'finished': np.ones(2, bool)})
  with pytest.raises(ValueError, match="the str 'fruit'"):
    diversity.distinct_counts([['fruit']])


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
