"""No two choices of a family do the same, and all are ones a config allows."""

import itertools
import json
import typing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import chain

from sdjax import methods
from sdjax.config import schema as c
from sdjax.feedback import demonstrations, rewards
from sdjax.feedback.grading import Graded
from sdjax.feedback.strategies import Demonstrations, External, First, Strategy
from sdjax.models.transformer import REMAT
from sdjax.objectives import reduce
from sdjax.objectives.advantages import Advantage, PassAtK, RewardItself
from sdjax.objectives.anchor import Anchor
from sdjax.objectives.divergence import Divergence, ReverseKL
from sdjax.objectives.diversity_reward import Bonus, NoDiversityReward, Scale
from sdjax.objectives.policy_loss import PolicyLoss
from sdjax.objectives.pooling import Pooling
from sdjax.objectives.reference_kl import ReferenceKL
from sdjax.objectives.schedule import Schedule
from sdjax.objectives.support import Support, TopK
from sdjax.steps.teacher import (
  Target,
  Teacher,
  TeacherStates,
  teacher_distribution,
)
from sdjax.tasks.base import Question, Verdict
from sdjax.training import optim
from sdjax.types import Rewards


def allowed(section: Any, option: str) -> tuple[Any, ...]:
  return typing.get_args(typing.get_type_hints(section)[option])


@pytest.mark.parametrize(
  ('section', 'option', 'implemented'),
  [
    (c.Loss, 'aggregation', reduce.AGGREGATIONS),
    (c.Model, 'remat', REMAT),
    (c.Optimizer, 'schedule', optim.SCHEDULES),
  ],
)
def test_a_config_allows_what_there_is(section, option, implemented):
  assert sorted(allowed(section, option)) == sorted(implemented)


def test_every_method_has_a_step():
  assert c.METHODS.keys() == methods.METHODS.keys() | {'pretrain'}


# A choice that does what another one does was forgotten somewhere.


def all_differ(found):
  for (a, x), (b, y) in itertools.combinations(found.items(), 2):
    same = np.array_equal(x, y) if hasattr(x, 'shape') else x == y
    assert not same, (a, b)


def test_aggregations():
  mask = jnp.array([[[True, False, False], [True, True, True]]])

  def weights(name):
    return reduce.token_weights(mask, jnp.ones((1, 2), bool), name, 4)

  all_differ({name: weights(name) for name in reduce.AGGREGATIONS})
  with pytest.raises(ValueError, match="aggregation='mean' is not one of"):
    weights('mean')


P, Q = (jax.nn.log_softmax(jnp.array(x)) for x in ([3.0, 2, 0], [0.0, 2, 3]))
"""Nats, of a student and of its teacher."""


def test_divergences():
  kinds = [k for k in Divergence.choices.values() if k.compares]
  all_differ({kind: kind()(P, Q) for kind in kinds})


def test_supports():
  def compared(kind):
    support = TopK(1) if kind is TopK else kind()
    return support.compare(ReverseKL(), P, Q, P[1], Q[1])

  all_differ({k: compared(k) for k in Support.choices.values()})
  all_differ({of: TopK(1, of).restrict(P, Q)[0] for of in allowed(TopK, 'of')})


def test_poolings():
  apply_fn, params = chain([[0.9, 0.1], [0.2, 0.8]])
  states = TeacherStates(
    hidden=jnp.eye(2)[None, None, None],
    mask=jnp.ones((1, 1, 1, 2), bool),
    log_weight=jnp.array([[[[0.0, -1.0]]]]),
  )

  def pooled(kind):
    # Only the mixture of whole answers comes with weights.
    weighed = kind.weighs_answers
    one = states if weighed else TeacherStates(states.hidden, states.mask)
    target = Target(kind(), 1.0)
    return teacher_distribution(apply_fn, params, None, one, target, 1.0)[0]

  all_differ({kind: pooled(kind) for kind in Pooling.choices.values()})


def test_teachers():
  all_differ(
    {
      kind: (kind().weights, kind().rate, kind().every)
      for kind in Teacher.choices.values()
    }
  )


def test_anchors():
  kinds = Anchor.choices.values()
  all_differ({kind: (kind().reads, kind().share_at(0)) for kind in kinds})


def test_advantages():
  reward = jnp.array([[0.0, 1.0, 1.0, 3.0]])
  sets = jnp.array([[[0, 0], [1, 0], [0, 1], [0, 1]]])
  given = Rewards(reward, reward > 0, sets)
  all_differ(
    {
      kind: (PassAtK(2) if kind is PassAtK else kind())(given)
      for kind in Advantage.choices.values()
    }
  )


def test_policy_losses():
  logp = jnp.log(jnp.array([[0.9, 0.2, 0.6], [0.5, 0.1, 0.3]]))
  old = jnp.log(jnp.array([[0.5, 0.4, 0.5], [0.4, 0.3, 0.3]]))
  advantage = jnp.array([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]])
  mask = jnp.ones(logp.shape, bool)

  def each(kind):
    loss = kind()
    width = loss.width_of(logp, old, mask) if loss.adapts else None
    return loss(logp, old, advantage, mask, width)

  all_differ({kind: each(kind) for kind in PolicyLoss.choices.values()})


def test_reference_kls():
  logp, ref_logp = (
    jnp.log(jnp.array([0.5, 0.2])),
    jnp.log(jnp.array([0.1, 0.3])),
  )

  def traits(kind):
    kl = kind(0.5) if kind.name != 'none' else kind()
    value = ()
    if kl.coef and not kl.over_vocabulary:
      value = tuple(np.asarray(kl(logp, ref_logp)).tolist())
    return kl.coef, kl.over_vocabulary, kl.in_reward, value

  all_differ({kind: traits(kind) for kind in ReferenceKL.choices.values()})


def test_schedules():
  first, second = Schedule.choices.values()
  weights = [
    [kind.factor(step) for step in range(5)]
    for kind in (first(), second(rise=1, fall=2))
  ]
  assert weights == [[1.0] * 5, [0.5, 1.0, 0.5, 0.0, 0.0]]


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


def strategies(folder) -> dict[str, Strategy]:
  """One of each kind."""
  file = folder / 'external.jsonl'
  line = {'question_id': 0, 'question': 'q', 'answer': 'from a file'}
  file.write_text(json.dumps(line))
  return {
    name: kind(str(file)) if kind is External else kind()
    for name, kind in Strategy.choices.items()
  }


def shown(strategy: Strategy, feedback: Any = 'never', right=RIGHT):
  """What each rollout is shown over many steps."""
  if not strategy.shows and feedback == 'never':
    feedback = 'always'  # or a teacher would be shown nothing
  options = Demonstrations(strategy, feedback=feedback)
  task: Any = Taught()
  given, _ = strategy.given(task)
  return [
    demonstrations.assign(graded(right), step, options, seed=0, given=given)
    for step in range(50)
  ]


def test_strategies(tmp_path):
  all_differ({k: shown(v) for k, v in strategies(tmp_path).items()})


def test_feedbacks():
  """One is right, so that all others have a peer; or none is."""
  one, none = [False, True, False, False, False], [False] * 5
  all_differ(
    {
      name: [shown(First(), name, right) for right in (one, none)]
      for name in allowed(Demonstrations, 'feedback')
    }
  )


def test_diversity_rewards():
  options = [
    NoDiversityReward(),
    *(Bonus(0.5, by, 'correct') for by in allowed(Bonus, 'by')),
    Bonus(0.5, 'concepts', 'all'),
    *(Scale(0.5, by) for by in allowed(Scale, 'by')),
  ]
  all_differ(
    {
      diversity: rewards.gather(
        graded(), 0, RewardItself(), diversity, max_new_tokens=4
      ).evidence.reward
      for diversity in options
    }
  )
