"""What may be chosen is what there is: no name on one side only."""

import itertools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import chain
from sdjax.config.rules import ALLOWED
from sdjax.objectives.policy_gradient import POLICY_LOSSES

from sdjax import methods
from sdjax.config import method as named
from sdjax.config import schema as c
from sdjax.feedback import demonstrations, rewards
from sdjax.feedback.grading import Graded
from sdjax.models.transformer import REMAT
from sdjax.objectives import advantage, reduce, reference_kl
from sdjax.objectives.divergence import DIVERGENCES
from sdjax.objectives.support import SUPPORTS, on_support
from sdjax.steps import mix, sd, teacher
from sdjax.tasks.base import Question, Verdict
from sdjax.training import optim

SD, RL = c.SelfDistillation, c.PolicyGradient


@pytest.mark.parametrize(
  ('section', 'option', 'implemented'),
  [
    (SD, 'objective', [*DIVERGENCES, sd.SCORE_WEIGHTED]),
    (SD, 'support', [*SUPPORTS, 'sampled']),
    (SD, 'pooling', teacher.POOLINGS),
    (RL, 'advantage', advantage.CHOICES),
    (RL, 'policy_loss', POLICY_LOSSES),
    (RL, 'std', advantage.STDS),
    (c.Mix, 'rule', mix.RULES),
    (c.Loss, 'aggregation', reduce.AGGREGATIONS),
    (c.Loss, 'kl_estimator', [*reference_kl.KL_ESTIMATORS, 'full']),
    (c.Model, 'remat', REMAT),
    (c.Optimizer, 'schedule', optim.SCHEDULES),
  ],
)
def test_every_table_holds_the_choices(section, option, implemented):
  assert sorted(ALLOWED[section][option]) == sorted(implemented)


def test_every_method_has_a_step():
  assert c.METHODS.keys() == methods.METHODS.keys() | {'pretrain'}


def test_names_of_several_choices_are_those_of_the_steps():
  assert set(named.PLAIN_ADVANTAGES) == advantage.ADVANTAGES.keys()
  assert set(named.ADVANTAGE_RULES) == set(mix.ADVANTAGE_RULES)
  assert set(named.LOSS_RULES) == set(mix.LOSS_RULES)
  assert set(named.TOP_K_SUPPORTS) == set(SUPPORTS) - {'full'}


# A name that no branch knows is refused, or does what another name does.


def all_differ(found):
  for (a, x), (b, y) in itertools.combinations(found.items(), 2):
    same = np.array_equal(x, y) if hasattr(x, 'shape') else x == y
    assert not same, (a, b)


def test_aggregations():
  mask = jnp.array([[[True, False, False], [True, True, True]]])

  def weights(name):
    return reduce.token_weights(mask, jnp.ones((1, 2), bool), name, 4)

  all_differ({name: weights(name) for name in ALLOWED[c.Loss]['aggregation']})
  with pytest.raises(ValueError, match="aggregation='mean' is not one of"):
    weights('mean')


def test_advantages():
  reward = jnp.array([[0.0, 1.0, 1.0, 3.0]])
  sets = jnp.array([[[0, 0], [1, 0], [0, 1], [0, 1]]])

  def advantages(name):
    return advantage.advantage_of(name, reward, reward > 0, sets, pass_k=2)

  all_differ({name: advantages(name) for name in ALLOWED[RL]['advantage']})
  with pytest.raises(ValueError, match="advantage='ppo' is not one of"):
    advantages('ppo')


def test_supports():
  laws = [jax.nn.log_softmax(jnp.array(x)) for x in ([3.0, 2, 0], [0.0, 2, 3])]

  def restricted(name):
    return on_support(*laws, support=name, top_k=1, tail=True)[0]

  all_differ({name: restricted(name) for name in SUPPORTS})
  with pytest.raises(ValueError, match="support='top_k' is not one of"):
    restricted('top_k')


def test_poolings():
  apply_fn, params = chain([[0.9, 0.1], [0.2, 0.8]])
  inputs = teacher.TeacherInputs(
    hidden=jnp.eye(2)[None, None, None],
    mask=jnp.ones((1, 1, 1, 2), bool),
    log_weight=jnp.array([[[[0.0, -1.0]]]]),
    anchor_hidden=None,
    anchor_weight=None,
  )

  def law(name):
    # Only the mixture of whole answers comes with weights.
    weighed = name == 'sequence_mixture'
    one = inputs if weighed else inputs._replace(log_weight=None)
    return teacher.teacher_law(apply_fn, params, None, one, 1.0, name, 1.0)[0]

  all_differ({name: law(name) for name in ALLOWED[SD]['pooling']})
  with pytest.raises(ValueError, match="pooling='mean' is not one of"):
    law('mean')


# Answers of one question; some are right, of two solutions.
SAID = ['a b', 'a c', 'b', 'c d', 'd']
RIGHT = [True, True, True, False, False]
SOLUTION = ['A', 'A', 'B', '', '']


def graded(right=RIGHT):
  verdicts = [
    Verdict(
      correct=ok,
      reward=float(ok),
      solution=solution,
      strategy=tuple(text.split()),
      feedback='' if ok else f'not {text}',
    )
    for text, ok, solution in zip(SAID, right, SOLUTION, strict=True)
  ]
  return Graded(
    questions=[Question(0, 'train', 'q', None)],
    answers=[SAID],
    verdicts=[verdicts],
    length=np.ones((1, len(SAID)), int),
    finished=np.ones((1, len(SAID)), bool),
  )


class Taught:
  """A task with an answer of its own."""

  def questions(self, split):
    del split
    return graded().questions

  def example(self, question):
    del question
    return 'its own'


def shown(strategy, folder, feedback='never', right=RIGHT):
  """What each rollout is shown over many steps."""
  file = folder / 'external.jsonl'
  line = {'question_id': 0, 'question': 'q', 'answer': 'from a file'}
  file.write_text(json.dumps(line))
  options = c.Demonstrations(strategy=strategy, file=str(file))
  task: Any = Taught()
  given, _ = methods._given(options, task)
  return [
    demonstrations.assign(
      graded(right),
      step,
      strategy=strategy,
      feedback=feedback,
      count=1,
      seed=0,
      given=given,
    )
    for step in range(50)
  ]


def test_strategies(tmp_path):
  names = ALLOWED[c.Demonstrations]['strategy']
  all_differ({name: shown(name, tmp_path) for name in names})
  with pytest.raises(ValueError, match="strategy='last' is not one of"):
    shown('last', tmp_path)


def test_feedbacks(tmp_path):
  """One is right, so that all others have a peer; or none is."""
  names = ALLOWED[c.Demonstrations]['feedback']
  one, none = [False, True, False, False, False], [False] * 5
  all_differ(
    {
      name: [shown('first', tmp_path, name, right) for right in (one, none)]
      for name in names
    }
  )


def test_teachers():
  found = {}
  for name in ALLOWED[SD]['teacher']:
    options = SD(teacher=name)
    found[name] = methods._teacher(options), methods._anchor(options)
    assert found[name][0].kind in ('current', 'frozen', 'ema')
  all_differ(found)


def test_diversity_rewards():
  keys = [k for k in ALLOWED[RL] if k.startswith('diversity_')]
  found = {}
  for values in itertools.product(*(ALLOWED[RL][key] for key in keys)):
    choice: dict[str, Any] = dict(zip(keys, values, strict=True))
    for_all = choice['diversity_for'] == 'all'
    if for_all and (
      choice['diversity_how'] == 'multiply'
      or choice['diversity_by'] == 'solution'
    ):
      continue  # Wrong rollouts earn nothing then: the config refuses it.
    gathered = rewards.gather(
      graded(),
      0,
      advantage='reinforce',
      diversity_weight=0.5,
      max_new_tokens=4,
      **choice,
    )
    found[values] = gathered.evidence.reward
  all_differ(found)
