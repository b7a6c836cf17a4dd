import math
import random

import numpy as np
import pytest

from sdjax.evaluate import measures, ngrams
from sdjax.evaluate.samples import Samples
from sdjax.evaluate.self_bleu import mteval_words, self_bleu
from sdjax.evaluate.table import Setting
from sdjax.evaluate.text import copy_share, distinct_n
from sdjax.evaluate.vendi import (
  embedding_diversities,
  embedding_diversity,
  ngram_kernel,
  vendi_score,
  vendi_scores,
)

ROWS = [
  ['a b c', 'a b d'],
  ['', 'a'],
  ['x'],
  ['a b c d e', 'a b c d e', 'a b c d e'],
  [],
  ['', ''],
]


def random_rows(seed, words):
  """Questions with 0 to 9 answers of 0 to 12 words, some identical."""
  rng = random.Random(seed)
  rows = []
  for _ in range(30):
    row = [
      ' '.join(rng.choices(words, k=rng.randrange(13)))
      for _ in range(rng.randrange(9))
    ]
    rows.append(row + row[:1])
  return rows


def test_distinct_n_by_hand():
  expected = [
    [4 / 6, 3 / 4, 2 / 2],
    [1, 0, 0],
    [1, 0, 0],
    [5 / 15, 4 / 12, 3 / 9],
    [0, 0, 0],
    [0, 0, 0],
  ]
  np.testing.assert_allclose(distinct_n(ROWS), expected, atol=1e-15)


def test_distinct_n_equals_counting_with_sets():
  rows = random_rows(0, 'abcdefg')
  for n in (1, 2, 3):
    expected = []
    for row in rows:
      grams = [
        tuple(words[i : i + n])
        for words in map(str.split, row)
        for i in range(len(words) - n + 1)
      ]
      expected.append(len(set(grams)) / len(grams) if grams else 0.0)
    np.testing.assert_allclose(distinct_n(rows)[:, n - 1], expected)


def test_self_bleu_by_hand():
  # Each against the other: precisions 2/3, 1/2, and 0/1 smoothed to 1/2; the
  # length 3 leaves out 4-grams.
  first = 100 * (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)
  result = self_bleu(ROWS)
  # '' has none; 'a' matches nothing in ''.
  expected = [first, 0.0, np.nan, 100.0, np.nan, 0.0]
  np.testing.assert_allclose(result, expected, rtol=1e-12)
  # 'a b' against 'a b c d': all precisions 1, too short: exp(1 - 4/2).
  # The other: 2/4, 1/3, 0/2 to 1/4, 0/1 to 1/4.
  short = 100 * math.exp(-1)
  long = 100 * (1 / 2 * 1 / 3 * 1 / 4 * 1 / 4) ** (1 / 4)
  assert self_bleu([['a b', 'a b c d']]) == pytest.approx((short + long) / 2)


PIECES = (
  'the The cat sat, on mat. 3.14 1,000 x-y 5-6 don\'t "no" a&b &amp; &lt;b&gt; '
  "f(x)=2 -\n , . <skipped> é 2. .5 $5 % end\n \\frac{1}{2} [0] ~ it's; a/b"
).split(' ')


@pytest.mark.parametrize('words', ['abcdef', PIECES])
def test_self_bleu_agrees_with_sacrebleu(words):
  sacrebleu = pytest.importorskip('sacrebleu')
  rows = random_rows(1, words)
  expected = [
    np.mean(
      [
        sacrebleu.sentence_bleu(row[i], row[:i] + row[i + 1 :]).score
        for i in range(len(row))
      ]
    )
    if len(row) > 1
    else np.nan
    for row in rows
  ]
  np.testing.assert_allclose(
    self_bleu(rows), np.asarray(expected), rtol=0, atol=1e-9
  )


def test_words_of_mteval_by_hand():
  assert mteval_words("don't  stop") == ["don't", 'stop']
  assert mteval_words('Yes, 3.14 (5-6).') == (
    'Yes , 3.14 ( 5 - 6 ) .'.split(' ')
  )


def test_vendi_score_by_hand():
  assert vendi_score(np.eye(3)) == pytest.approx(3.0)
  assert vendi_score(np.ones((4, 4))) == pytest.approx(1.0)
  # Eigenvalues of K/2 are (1 +- 1/2) / 2.
  expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
  assert vendi_score([[1, 0.5], [0.5, 1]]) == pytest.approx(expected)
  assert vendi_score([[1.0]]) == 1.0


def test_vendi_by_words_by_hand():
  # Half the words in common, no pair of words.
  np.testing.assert_allclose(
    ngram_kernel(['a b', 'b c', 'a b']),
    [[1, 0.25, 1], [0.25, 1, 0.25], [1, 0.25, 1]],
  )
  values = vendi_scores([*ROWS, ['a', 'b', 'c'], ['p q'] * 64])
  expected = [np.nan] * 8
  # Cosines 2/3 (a b of three words) and 1/2 (ab of two pairs): mean 7/12.
  spread = [(1 + 7 / 12) / 2, (1 - 7 / 12) / 2]
  expected[0] = math.exp(-sum(x * math.log(x) for x in spread))
  expected[1] = 2.0
  expected[2] = expected[3] = expected[5] = expected[7] = 1.0
  expected[6] = 3.0
  np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_identical_answers_can_be_given_once_with_their_share():
  kernel = ngram_kernel(['a b c', 'a b c', 'a b c', 'b c d'])
  assert vendi_score(kernel[2:, 2:], [0.75, 0.25]) == pytest.approx(
    vendi_score(kernel), abs=1e-12
  )


def test_vendi_agrees_with_the_package_of_its_authors():
  vendi = pytest.importorskip('vendi_score.vendi')
  rows = random_rows(2, 'abcdef')
  scores = vendi_scores(rows)
  for row, score in zip(rows, scores, strict=True):
    if not row:
      assert np.isnan(score)
      continue
    kernel = ngram_kernel(row)
    assert score == pytest.approx(vendi.score_K(kernel), abs=1e-9)
    assert vendi_score(kernel) == pytest.approx(score, abs=1e-9)


@pytest.mark.parametrize(
  ('kernel', 'weights', 'message'),
  [
    (np.ones((2, 3)), None, r'shape \(2, 3\)'),
    (2 * np.eye(2), None, 'diagonal'),
    ([[1, 0.5], [0.0, 1]], None, 'symmetric'),
    (np.eye(2), [0.5, 0.6], 'sum 1.1'),
  ],
)
def test_what_is_no_kernel_is_an_error(kernel, weights, message):
  with pytest.raises(ValueError, match=message):
    vendi_score(kernel, weights)


def test_embedding_diversity_by_hand():
  vectors = [[1, 0], [0, 2], [-3, 0]]  # 1 - cos: 1, 2, 1
  assert embedding_diversity(vectors) == pytest.approx(4 / 3)
  assert embedding_diversity([[1, 1], [2, 2]]) == pytest.approx(0, abs=1e-15)
  assert np.isnan(embedding_diversity([[1, 1]]))
  with pytest.raises(ValueError, match='zero'):
    embedding_diversity([[0, 0], [1, 1]])


def test_embedding_diversity_embeds_each_text_once():
  asked = []

  def embed(texts):
    asked.append(texts)
    return [[1.0, 0.0] if text == 'a' else [0.0, 1.0] for text in texts]

  rows = [['a', 'b', 'a'], ['x'], [], ['b', 'a'], ['b', 'b']]
  values = embedding_diversities(rows, embed)
  np.testing.assert_allclose(values, [2 / 3, np.nan, np.nan, 1, 0], atol=1e-15)
  # 'x' has nothing to be compared with.
  assert asked == [['a', 'b']]
  assert np.isnan(embedding_diversities([['a'], []], embed)).all()
  assert len(asked) == 1
  with pytest.raises(ValueError, match=r'shape \(1, 2\) for 2 texts'):
    embedding_diversities(rows, lambda texts: [[1.0, 0.0]])


@pytest.mark.parametrize(
  ('answer', 'demonstrations', 'expected'),
  [
    ('a b c d', ['x b c y'], 0.5),
    ('a b c d', ['x b c y', 'b c d'], 0.75),
    ('a b', ['a b'], 1.0),
    ('a b', ['ab'], 0.0),
    ('a b', [''], 0.0),
    ('', ['a'], 0.0),
    ('a a b a a a', ['a a a a'], 0.5),
  ],
)
def test_copy_share_by_hand(answer, demonstrations, expected):
  assert copy_share(answer, demonstrations) == expected


def test_copy_share_equals_trying_all_runs():
  rng = random.Random(3)
  for _ in range(100):
    a, d = (rng.choices('abc', k=rng.randint(1, 9)) for _ in range(2))
    shown = ' ' + ' '.join(d) + ' '
    longest = max(
      stop - start
      for start in range(len(a))
      for stop in range(start, len(a) + 1)
      if start == stop or f' {" ".join(a[start:stop])} ' in shown
    )
    assert copy_share(' '.join(a), [' '.join(d)]) == longest / len(a)


def test_copy_overlap_counts_answers_that_had_a_demonstration():
  both = Samples(
    [True] * 3, ['a b', 'c d', 'e'], demonstrations=[('a b',), ('c',), ()]
  )
  alone = Samples([True], ['a'], demonstrations=[()])
  assert measures.copy_overlap(both) == 0.75
  assert measures.copy_overlap(alone) is None
  setting = Setting(ks=[1])
  column = measures.MEASURES['copy_overlap'].columns([both, alone], setting)
  np.testing.assert_allclose(column['copy_overlap'].values, [0.75, np.nan])


def test_chunks_and_other_questions_change_nothing(monkeypatch):
  rows = random_rows(4, 'abcd')
  together = [f(rows) for f in (distinct_n, self_bleu, vendi_scores)]
  monkeypatch.setattr(ngrams, 'CHUNK', 7)
  apart = [f(rows) for f in (distinct_n, self_bleu, vendi_scores)]
  for one, other in zip(together, apart, strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-13)


def test_a_chunk_has_no_more_answers_than_it_may(monkeypatch):
  monkeypatch.setattr(ngrams, 'CHUNK', 4)
  rows = [['a'] * num for num in (3, 1, 2, 3, 5, 1, 1)]
  sizes = [len(tokens.length) for tokens in ngrams.chunks(rows)]
  # 3 + 1, 2, 3, a question that is too large by itself, 1 + 1.
  assert sizes == [4, 2, 3, 5, 2]


def test_there_are_no_0_grams():
  with pytest.raises(ValueError, match='order is 0'):
    distinct_n(ROWS, 0)


def test_no_question_and_a_str_for_a_row():
  assert distinct_n([]).shape == (0, 3)
  assert self_bleu([]).shape == vendi_scores([]).shape == (0,)
  for measure in (distinct_n, self_bleu, vendi_scores):
    with pytest.raises(ValueError, match="str 'abc'"):
      measure(['abc'])
