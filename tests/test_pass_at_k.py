import itertools

import numpy as np
import pytest

from sdjax.evaluate.pass_at_k import pass_at_k, powers_of_two


@pytest.mark.parametrize(
  ('n', 'c', 'k', 'expected'),
  [
    (4, 1, 1, 0.25),
    (4, 1, 2, 0.5),  # 3 of the 6 pairs hold the correct one
    (5, 2, 2, 0.7),  # 3 of the 10 pairs are both wrong
    (5, 2, 3, 0.9),  # 1 of the 10 triples is all wrong
    (64, 32, 2, 1 - 496 / 2016),
    (3, 0, 3, 0.0),
    (3, 3, 1, 1.0),
    (3, 1, 3, 1.0),
    (1, 1, 1, 1.0),
  ],
)
def test_by_hand(n, c, k, expected):
  assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-14)


def test_equals_the_enumeration_of_all_subsets():
  for n in range(1, 11):
    for c in range(n + 1):
      for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        hits = sum(min(subset) < c for subset in subsets)
        # 10 factors, each rounded once.
        assert pass_at_k(n, c, k) == pytest.approx(
          hits / len(subsets), abs=1e-14
        )


def test_ends_are_exact_and_large_n_stays_finite():
  assert pass_at_k(64, 0, 64) == 0.0
  assert pass_at_k(64, 1, 64) == 1.0
  assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5, abs=1e-12)


def test_questions_with_differing_numbers_of_samples():
  np.testing.assert_allclose(
    pass_at_k([4, 2, 5], [1, 2, 2], 2), [0.5, 1.0, 0.7], atol=1e-14
  )
  np.testing.assert_allclose(pass_at_k(4, [0, 1, 4], 2), [0, 0.5, 1])
  assert pass_at_k(np.zeros(0, int), np.zeros(0, int), 1).shape == (0,)


def test_rises_with_k():
  curve = [pass_at_k(64, 3, k) for k in powers_of_two(64)]
  assert (np.diff(curve) > 0).all()


@pytest.mark.parametrize(
  ('n', 'c', 'k', 'message'),
  [
    (4, 1, 5, 'k is 5.*only 4'),
    ([8, 4], [1, 1], 5, 'k is 5.*only 4'),
    (4, 5, 2, 'num_correct is 5 where num_samples is 4'),
    (4, -1, 2, 'num_correct is -1'),
    (4, 1, 0, 'k is 0'),
    (4, 0.25, 2, 'num_correct.*float'),
  ],
)
def test_impossible_counts_are_errors(n, c, k, message):
  with pytest.raises(ValueError, match=message):
    pass_at_k(n, c, k)


def test_powers_of_two():
  assert powers_of_two(1) == (1,)
  assert powers_of_two(7) == (1, 2, 4)
  assert powers_of_two(64) == (1, 2, 4, 8, 16, 32, 64)
  with pytest.raises(ValueError, match='n is 0'):
    powers_of_two(0)
