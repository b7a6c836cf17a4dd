import math

import numpy as np
import pytest

from sdjax.evaluate import measures
from sdjax.evaluate.bootstrap import bootstrap_interval, mean_intervals
from sdjax.evaluate.pass_at_k import pass_slope
from sdjax.evaluate.samples import Samples


def test_variety_by_hand():
  questions = [
    Samples(right, solutions=names)
    for names, right in (
      (['p', 'p', 'q', 'q', 'z'], [True] * 4 + [False]),
      (['p', 'p', 'p', 'q'], [True] * 4),
      (['p'], [True]),
      (['', ''], [False] * 2),
      ([], []),
    )
  ]
  uneven = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
  assert [measures.distinct_paths(q) for q in questions] == [2, 2, 1, 0, 0]
  entropy = [measures.solution_entropy(q) for q in questions]
  np.testing.assert_allclose(entropy, [math.log(2), uneven, 0, 0, 0])
  effective = [measures.effective_solutions(q) for q in questions]
  np.testing.assert_allclose(effective, [2, math.exp(uneven), 1, 0, 0])
  assert not np.signbit(entropy).any()


def test_pass_slope_by_hand():
  assert pass_slope([0.1, 0.3], [1, 8]) == pytest.approx(0.2 / 3)
  # log2 k = 0, 1, 2 about 1: slope = (y2 - y0) / 2, whatever y1.
  np.testing.assert_allclose(
    pass_slope([[0.1, 0.2, 0.5], [0.4, 0.0, 0.4]], [1, 2, 4]), [0.2, 0.0]
  )


@pytest.mark.parametrize('ks', [[1], [2, 2], [1, 2, 4], [0, 1]])
def test_a_slope_needs_two_points(ks):
  with pytest.raises(ValueError, match='slope'):
    pass_slope([0.1, 0.2][: len(ks)], ks)


def test_intervals_are_those_of_one_measure_at_a_time():
  values = np.random.default_rng(0).normal(size=(40, 3))
  expected = [bootstrap_interval(values[:, m], seed=2) for m in range(3)]
  np.testing.assert_allclose(mean_intervals(values, seed=2), expected)


def test_blocks_of_resamples_change_nothing(monkeypatch):
  values = np.random.default_rng(0).normal(size=(17, 2))
  whole = mean_intervals(values)
  monkeypatch.setattr('sdjax.evaluate.bootstrap.BLOCK', 100)
  np.testing.assert_allclose(mean_intervals(values), whole, rtol=1e-13)


def test_questions_without_a_value_are_left_out_of_the_mean():
  nan = np.nan
  values = [[1.0, nan, nan], [1.0, 2.0, nan], [1.0, nan, nan]]
  np.testing.assert_allclose(
    mean_intervals(values), [[1, 1], [2, 2], [nan, nan]]
  )


@pytest.mark.parametrize(
  'options', [{'values': []}, {'level': 1.0}, {'num': 0}, {'values': [1.0]}]
)
def test_what_has_no_interval(options):
  with pytest.raises(ValueError):
    mean_intervals(**{'values': [[1.0]], **options})
