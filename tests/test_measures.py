"""The table of measures, and what reads it."""

import json

import numpy as np
import pytest

from sdjax.evaluate import diversity, measures, score_file, table
from sdjax.evaluate.bootstrap import mean_intervals
from sdjax.evaluate.samples import Samples
from sdjax.evaluate.table import Setting
from sdjax.report import plots, tables
from sdjax.training import alarm, evaluator

KS = (1, 2, 4)


def embed(texts):
  return [[len(text) + 1.0, text.count('a')] for text in texts]


def random_questions(number=5):
  """Questions of 4 to 7 answers, of which everything is known."""
  rng = np.random.default_rng(0)

  def question():
    n = int(rng.integers(4, 8))
    correct = rng.random(n) < 0.5
    words = rng.choice(list('abcd'), (n, 6))
    return Samples(
      correct=correct.tolist(),
      texts=[' '.join(row[: rng.integers(1, 7)]) for row in words],
      solutions=[f's{i}' for i in rng.integers(0, 3, n)],
      votes=[f's{i}' for i in rng.integers(0, 3, n)],
      strategies=[tuple(row[:2]) for row in words],
      demonstrations=[('a b c',)] * n,
      scores=rng.integers(0, 3, n).tolist(),
      lengths=rng.integers(1, 9, n).tolist(),
      entropies=rng.random(n).tolist(),
      reasons=['' if right else f'r{g % 2}' for g, right in enumerate(correct)],
      flags={'finished': (rng.random(n) < 0.5).tolist()},
    )

  return [question() for _ in range(number)]


def test_a_question_has_the_same_values_alone_as_among_others():
  questions = random_questions()
  setting = Setting(KS, embed)
  together = measures.measure_all(questions, setting)
  alone = [measures.measure_all([one], setting) for one in questions]
  for name, column in together.items():
    # A reason that a question does not have has a share of 0.
    values = [one[name].values[0] if name in one else 0.0 for one in alone]
    np.testing.assert_allclose(column.values, values, err_msg=name)
  known = {one.measure.name for one in together.values()}
  assert known == set(measures.MEASURES)


def test_what_is_not_known_is_left_out():
  one = Samples([True, False, True, True])
  names = set(measures.measure_all([one], Setting(KS)))
  assert names == {'pass@1', 'pass@2', 'pass@4', 'pass_gain', 'pass_slope'}
  setting = Setting([1], embed)
  names = set(measures.measure_all([one], setting))
  assert names == {'pass@1'}
  # What is known of some questions only is not known.
  some = [one, Samples([True], solutions=['a'], lengths=[2])]
  assert set(measures.measure_all(some, setting)) == {'pass@1'}
  texts = measures.measure_all([Samples([True], ['a'])], Setting([1]))
  assert 'vendi' in texts and 'embedding_diversity' not in texts


def test_the_table_is_in_words():
  for name, one in measures.MEASURES.items():
    assert one.name == name and one.description.endswith('.'), name
  words = measures.MEASURES['token_entropy'].description
  assert words.startswith('Mean nats per token. It can fall while')
  names = [n for m in measures.MEASURES.values() for n in (m.name, *m.aliases)]
  assert len(set(names)) == len(names)


def test_a_new_measure_is_one_function(monkeypatch, tmp_path):
  every = dict(measures.MEASURES)
  monkeypatch.setattr(table, 'MEASURES', every)
  monkeypatch.setattr(measures, 'MEASURES', every)

  @table.measure(needs=('texts',), aliases=('alias',), heading='longest')
  def longest(samples):
    """Letters of the longest answer."""
    letters = max(map(len, samples.texts))
    return letters or None

  @table.measure('letters', needs=('texts',), per='num_samples')
  def all_letters(samples):
    """Letters an answer."""
    return sum(map(len, samples.texts))

  with pytest.raises(ValueError, match="a measure 'longest'"):
    table.measure('longest')(longest)
  rows = [['a', 'bcd'], [''], ['abcde']]
  questions = [Samples([True] * len(row), row) for row in rows]
  flat, per_question = diversity.summarize(questions)
  # The second question has no longest answer; letters weigh answers.
  assert flat['longest'] == flat['alias'] == (3 + 5) / 2
  assert flat['letters'] == 9 / 4
  assert per_question['longest'] == [3, None, 5]
  assert 'letters' not in per_question and 'num_tokens' not in per_question
  assert 'letters' in evaluator.metric_names(2) and 'vendi' not in flat

  path = tmp_path / 'a.jsonl'
  lines = [
    {'question_id': q, 'answer': answer, 'correct': True}
    for q, row in enumerate(rows)
    for answer in row
  ]
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  flat = score_file.score_file(path)
  assert flat['longest'] == flat['alias'] == (3 + 5) / 2
  assert (flat['longest/low'], flat['longest/high']) == (3, 5)
  assert flat['longest/num_questions'] == 2
  assert flat['letters'] == 9 / 4 and 'letters/num_questions' not in flat
  assert json.loads(json.dumps(flat, allow_nan=False)) == flat


def test_correct_words_by_hand():
  # a and b; the words of a wrong answer do not count.
  one = Samples([True, True, False], ['a b', ' b\n', 'c d'])
  assert measures.correct_words(one) == 2
  assert measures.correct_words(Samples([False], ['a'])) == 0
  flat, _ = diversity.summarize([one, Samples([False] * 3, ['a'] * 3)])
  assert flat['correct_words'] == 1.0


def test_an_interval_weighs_as_the_mean_does():
  # Of two questions a draw holds 0, 1 or 2 times the first: 1/4, 1/2, 1/4.
  values, weights = [[0.0], [1.0]], [[3.0], [1.0]]
  low, high = mean_intervals(values, level=0.4, weights=weights)[0]
  assert (low, high) == (0.25, 0.25)
  assert mean_intervals(values, level=0.4)[0].tolist() == [0.5, 0.5]


def test_what_the_report_and_the_alarms_read():
  assert alarm.VARIETY == ('effective_solutions', 'concepts_correct')
  assert tables.MEASURES == {
    'pass_gain': 'gain',
    'concepts_correct': 'concepts, correct',
    'distinct_paths': 'distinct paths',
    'concepts': 'concepts, all',
    'token_entropy': 'token entropy',
  }
  assert list(plots._DIVERSITY) == list(tables.MEASURES)[1:]
  assert [name for name, _ in tables.DEFINITIONS] == [
    'pass@k',
    *tables.MEASURES.values(),
    'intervals',
  ]
  assert (tables.digits('token_entropy'), tables.digits('pass@1')) == (3, 2)
  entry = {'concepts': [1, None, 2]}
  rows = tables._question_values(entry, 'concepts')
  assert rows is not None and rows.tolist() == [[1, 1], [0, 0], [2, 1]]
