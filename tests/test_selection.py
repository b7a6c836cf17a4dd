import itertools
import random

import numpy as np
import pytest

from sdjax.evaluate.pass_at_k import pass_at_k
from sdjax.evaluate.selection import best_of_k, maj_at_k


def elected(keys, correct, subset, credit):
  votes = {}
  for i in subset:
    votes[keys[i]] = votes.get(keys[i], 0) + 1
  best = [key for key, n in votes.items() if n == max(votes.values())]
  return sum(credit[key] for key in best) / len(best)


def enumerated(keys, correct, k):
  keys = [key or None for key in keys]
  credit = {
    key: np.mean([c for o, c in zip(keys, correct, strict=True) if o == key])
    for key in keys
  }
  subsets = itertools.combinations(range(len(keys)), k)
  return np.mean([elected(keys, correct, s, credit) for s in subsets])


@pytest.mark.parametrize(
  ('keys', 'k', 'expected'),
  [
    ('aab', 1, 2 / 3),  # a is right
    ('aab', 2, 2 / 3),  # aa elects a; two pairs ab tie: 1/3 + 2/3 * 1/2
    ('aab', 3, 1.0),
    ('abb', 3, 0.0),
    ('abc', 3, 1 / 3),  # three tie
    ('aabb', 4, 0.5),
    ('aaabb', 3, 0.7),  # aaa 1, aab 6, of 10 triples
  ],
)
def test_majority_by_hand(keys, k, expected):
  right = [key == 'a' for key in keys]
  assert maj_at_k([keys], [right], k) == pytest.approx(expected, abs=1e-12)


def test_majority_equals_the_enumeration_of_all_subsets():
  rng = random.Random(0)
  for n in range(1, 11):
    rows, rights = [], []
    for letters in ('ab', 'abc', 'abcdef', 'abcdefghijkl'):
      row = [rng.choice([*letters, '']) for _ in range(n)]
      good = rng.sample(letters, len(letters) // 2)
      rows.append(row)
      # Keys need not decide what is right.
      rights.append([key in good or rng.random() < 0.1 for key in row])
    for k in range(1, n + 1):
      expected = [
        enumerated(row, right, k)
        for row, right in zip(rows, rights, strict=True)
      ]
      np.testing.assert_allclose(
        maj_at_k(rows, rights, k), expected, rtol=0, atol=1e-12
      )


def test_majority_of_one_is_pass_at_one():
  keys = [['a', 'b', 'b', ''], ['a', 'a'], [None]]
  right = [[True, False, False, True], [True, True], [False]]
  np.testing.assert_allclose(maj_at_k(keys, right, 1), [0.5, 1.0, 0.0])


def test_majority_of_rows_of_differing_length_is_that_of_each_alone():
  rows = [list('aabbc'), list('aab'), list('abcabcabca')]
  rights = [[key == 'a' for key in row] for row in rows]
  alone = [
    maj_at_k([row], [right], 3)[0]
    for row, right in zip(rows, rights, strict=True)
  ]
  np.testing.assert_allclose(maj_at_k(rows, rights, 3), alone, atol=1e-15)


def test_majority_of_many_answers_stays_finite():
  keys = ['a'] * 1500 + ['b'] * 500
  right = [key == 'a' for key in keys]
  assert maj_at_k([keys], [right], 2000) == pytest.approx(1.0)
  # Pairs: aa with 1500*1499/(2000*1999), and half of the mixed ones.
  aa, bb = 1500 * 1499, 500 * 499
  both = 2000 * 1999
  assert maj_at_k([keys], [right], 2) == pytest.approx(
    (aa + (both - aa - bb) / 2) / both, abs=1e-12
  )


def test_majority_of_most_of_many_answers_stays_finite():
  # As many of either key, and no tie among an odd number: one half.
  keys = ['a', 'b'] * 500
  right = [key == 'a' for key in keys]
  assert maj_at_k([keys], [right], 751) == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize('k', [0, 3])
def test_impossible_k_is_an_error(k):
  with pytest.raises(ValueError, match=f'k is {k}'):
    maj_at_k([['a', 'b']], [[True, False]], k)
  with pytest.raises(ValueError, match=f'k is {k}'):
    best_of_k([[1.0, 2.0]], [[1.0, 2.0]], k)


def test_best_of_k_equals_the_enumeration_of_all_subsets():
  rng = random.Random(1)
  for n in range(1, 9):
    reward = [rng.randrange(4) for _ in range(n)]
    value = [rng.random() for _ in range(n)]
    for k in range(1, n + 1):
      means = []
      for subset in itertools.combinations(range(n), k):
        top = max(reward[i] for i in subset)
        means.append(np.mean([value[i] for i in subset if reward[i] == top]))
      assert best_of_k([reward], [value], k) == pytest.approx(
        np.mean(means), abs=1e-12
      )


def test_best_of_k_by_hand():
  # Pairs: the tie of 2 and 2 counts half, then right, then wrong.
  reward, right = [2.0, 2.0, 1.0], [True, False, True]
  assert best_of_k([reward], [right], 1) == pytest.approx(2 / 3)
  assert best_of_k([reward], [right], 2) == pytest.approx(0.5)
  assert best_of_k([reward], [right], 3) == pytest.approx(0.5)


def test_best_of_k_of_rows_of_differing_length_is_that_of_each_alone():
  rng = random.Random(2)
  rows = [[rng.randrange(3) for _ in range(n)] for n in (3, 8, 5)]
  rights = [[rng.random() < 0.5 for _ in row] for row in rows]
  alone = [
    best_of_k([row], [right], 3)[0]
    for row, right in zip(rows, rights, strict=True)
  ]
  np.testing.assert_allclose(best_of_k(rows, rights, 3), alone, atol=1e-15)


def test_best_of_k_by_a_perfect_reward_is_pass_at_k():
  right = [[True, False, False, True], [False, False, True]]
  np.testing.assert_allclose(
    best_of_k(right, right, 2), pass_at_k([4, 3], [2, 1], 2), atol=1e-15
  )
  # A reward that says nothing chooses at random.
  assert best_of_k([[0.0] * 4], right[:1], 3) == pytest.approx(0.5)


def test_a_reward_that_is_no_number_is_an_error():
  with pytest.raises(ValueError, match='finite'):
    best_of_k([[np.nan, 1.0]], [[0.0, 1.0]], 1)
