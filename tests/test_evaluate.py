# pyright: reportArgumentType=false
"""The evaluator on a table for a model: batches change nothing."""

import jax
import numpy as np
import pytest
from models import bags

from sdjax.config import schema as c
from sdjax.config.check import validate
from sdjax.models.load import LanguageModel
from sdjax.models.sharding import make_mesh
from sdjax.models.tokenizer import word_tokenizer
from sdjax.models.transformer import TransformerConfig
from sdjax.tasks.base import Question, Verdict
from sdjax.training.evaluator import Evaluator, full_batches

TOKENIZER = word_tokenizer(['a', 'b', 'c', 'd', '?'])


class Letters:
  """An answer is right if it names the letter it is asked for."""

  name = 'letters'
  splits = ('test',)
  student_template = '{question}'

  def questions(self, split):
    return [Question(i, split, f'{"abcd"[i % 4]} ?', None) for i in range(6)]

  def verify(self, question, answer):
    right = question.text[0] in answer.split()
    return Verdict(right, float(right), solution=answer if right else '')


def evaluator(num_questions, batch_questions, devices=1):
  config = c.Config(
    eval=c.Eval(
      sets=('test',),
      during=(),
      num_questions=num_questions,
      num_samples=4,
      batch_questions=batch_questions,
      max_context=3,
      max_new_tokens=3,
    )
  )
  validate(config)
  apply_fn, params = bags(len(TOKENIZER))
  model = LanguageModel(
    config=TransformerConfig.__new__(TransformerConfig),
    apply_fn=apply_fn,
    params=params,
    tokenizer=TOKENIZER,
    eos_ids=(TOKENIZER.eos_token_id,),
  )
  mesh = make_mesh(c.Mesh(), jax.devices()[:devices])
  return Evaluator(config, model, Letters(), mesh), params


@pytest.mark.parametrize(
  ('number', 'size', 'want'),
  [
    (4, 2, [[0, 1], [2, 3]]),
    (5, 3, [[0, 1, 2], [3, 4, 0]]),
    (2, 5, [[0, 1, 0, 1, 0]]),
    (1, 1, [[0]]),
  ],
)
def test_the_last_batch_is_filled_up_with_the_first(number, size, want):
  assert full_batches(number, size) == want


@pytest.mark.parametrize('batch', [2, 4, 5, 8])
def test_what_is_sampled_does_not_depend_on_batches(batch):
  whole, params = evaluator(5, 5)
  parts, _ = evaluator(5, batch)
  graded, stats = whole.sample(params, 'test')
  again, its_stats = parts.sample(params, 'test')
  assert [q.question_id for q in again.questions] == [0, 1, 2, 3, 4]
  assert again.answers == graded.answers
  assert len({a for row in graded.answers for a in row}) > 5
  np.testing.assert_array_equal(again.length, graded.length)
  np.testing.assert_array_equal(again.finished, graded.finished)
  for name, values in stats.items():
    assert values.shape == (5, 4)
    np.testing.assert_allclose(its_stats[name], values, rtol=1e-6)
  numbers = [one(params, ['test'])[0] for one in (whole, parts)]
  assert numbers[0] == pytest.approx(numbers[1])


def test_no_question_counts_twice():
  """Of 3 questions the first is always right: 1/3 of them, not 2/4."""
  one, params = evaluator(3, 2)
  one.task.verify = lambda question, answer: Verdict(
    question.question_id == 0, 0.0, solution='x'
  )
  flat, questions = one(params, ['test'])
  assert flat['test/pass@1'] == pytest.approx(1 / 3)
  assert questions['test']['num_correct'] == [4, 0, 0]
