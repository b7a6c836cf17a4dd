"""Rewards made of verdicts, computed by hand."""

import numpy as np
import pytest

from sdjax.feedback import rewards
from sdjax.feedback.grading import Graded
from sdjax.objectives.advantages import GRPO, ROSA, PassAtK
from sdjax.objectives.diversity_reward import Bonus, NoDiversityReward, Scale
from sdjax.tasks.base import Question, Verdict


def graded(groups, length=None, finished=None, reward=None):
  """Graded rollouts, each `(solution, concepts)`; a wrong one is ''."""
  verdicts = [
    [
      Verdict(
        correct=bool(solution),
        reward=float(bool(solution)) if reward is None else reward[q][g],
        solution=solution,
        strategy=tuple(concepts),
      )
      for g, (solution, concepts) in enumerate(row)
    ]
    for q, row in enumerate(groups)
  ]
  shape = (len(groups), len(groups[0]))
  return Graded(
    questions=[Question(q, 'train', '?', None) for q in range(shape[0])],
    answers=[['x'] * shape[1]] * shape[0],
    verdicts=verdicts,
    length=np.full(shape, 1) if length is None else np.array(length),
    finished=np.ones(shape, bool) if finished is None else np.array(finished),
  )


# Right twice by `1`, once by `2`, and wrong with a concept of its own.
GROUP = [('1', 'a'), ('1', 'ab'), ('2', 'c'), ('', 'd')]


def made(groups, advantage=None, diversity=None, **options):
  gathered = rewards.gather(
    groups,
    0,
    advantage or GRPO(),
    diversity or NoDiversityReward(),
    **options,
  )
  return gathered.evidence.reward, gathered


def test_plain_rewards_are_the_verifiers():
  reward, gathered = made(graded([GROUP, [('', '')] * 4]))
  np.testing.assert_array_equal(reward, [[1, 1, 1, 0], [0] * 4])
  assert reward.dtype == np.float32
  assert gathered.evidence.correct.tolist() == [[1, 1, 1, 0], [0] * 4]
  assert gathered.evidence.set_reward is None
  assert gathered.useful.tolist() == [True, False]
  assert gathered.metrics == {'flat_groups': 0.5}
  assert gathered.shown == [[(), (), (), ()]] * 2


def test_diversity_is_added_to_right_answers():
  # Others that share no concept: 0 and 1 share `a`.
  reward, gathered = made(graded([GROUP]), diversity=Bonus(0.5))
  want = [1 + 0.5 * 2 / 3, 1 + 0.5 * 2 / 3, 1 + 0.5, 0]
  np.testing.assert_allclose(reward, [want], rtol=1e-6)
  np.testing.assert_allclose(
    gathered.metrics['diversity_reward'], (2 / 3 + 2 / 3 + 1) / 4, rtol=1e-6
  )
  reward, _ = made(graded([GROUP]), diversity=Bonus(0.5, of='all'))
  np.testing.assert_allclose(reward, [[*want[:3], 0.5]], rtol=1e-6)


def test_darling_multiplies_by_what_is_rare():
  """R * Norm(Div): what no other rollout does keeps its whole reward."""
  # By solution: 0 and 1 are alike, a wrong one is like none. Shares 2/3, 2/3
  # and 1; the largest among them is 1.
  reward, _ = made(graded([GROUP]), diversity=Scale(1.0, 'solution'))
  np.testing.assert_allclose(reward, [[2 / 3, 2 / 3, 1, 0]], rtol=1e-6)
  reward, _ = made(graded([GROUP]), diversity=Scale(0.25, 'solution'))
  half = 0.75 + 0.25 * 2 / 3
  np.testing.assert_allclose(reward, [[half, half, 1, 0]], rtol=1e-6)


def test_darling_divides_by_the_groups_largest():
  # Concepts: 0 and 1 share one, 1 and 2 another, 3 is alike 0: shares
  # 1/3, 1/3, 2/3, 2/3; over the largest 1/2, 1/2, 1, 1.
  group = [('1', 'ax'), ('2', 'ab'), ('3', 'b'), ('4', 'x')]
  reward, _ = made(graded([group]), diversity=Scale())
  np.testing.assert_allclose(reward, [[0.5, 0.5, 1, 1]], rtol=1e-6)
  # Where all are alike there is nothing to divide by, and nothing is lost.
  reward, _ = made(graded([[('1', 'a')] * 4]), diversity=Scale())
  np.testing.assert_array_equal(reward, [[1] * 4])


def test_a_negative_reward_is_not_made_smaller_by_sameness():
  reward, _ = made(
    graded([GROUP], reward=[[1, 0.5, 2, -1]]),
    diversity=Scale(1.0, 'solution'),
  )
  np.testing.assert_allclose(reward, [[2 / 3, 1 / 3, 2, -1]], rtol=1e-6)


def test_the_overlong_penalty_is_a_slope():
  """0 up to 1 - share of the longest, then linear, 1 at the end (DAPO)."""
  group = [('1', '')] * 6
  reward, gathered = made(
    graded([group], length=[[1, 6, 7, 8, 9, 10]]),
    overlong_share=0.4,
    max_new_tokens=10,
  )
  want = [0, 0, 0.25, 0.5, 0.75, 1]
  np.testing.assert_allclose(reward, [1 - np.array(want)], atol=1e-6)
  np.testing.assert_allclose(
    gathered.metrics['overlong_penalty'], np.mean(want), rtol=1e-6
  )
  # It makes groups differ, but teaches nothing of the question.
  assert gathered.useful.tolist() == [False]
  assert gathered.metrics['flat_groups'] == 0


def test_a_rollout_that_was_cut_off_loses_all():
  reward, _ = made(
    graded([GROUP], length=[[1, 8, 10, 10]], finished=[[1, 1, 1, 0]]),
    overlong_share=0.4,
    max_new_tokens=10,
  )
  np.testing.assert_allclose(reward, [[1, 0.5, 0, -1]], atol=1e-6)
  reward, gathered = made(graded([GROUP], finished=[[1, 1, 1, 0]]))
  np.testing.assert_array_equal(reward, [[1, 1, 1, 0]])
  assert 'overlong_penalty' not in gathered.metrics


def test_rosa_is_given_the_concepts_of_right_answers():
  _, gathered = made(graded([GROUP, [('', 'a')] * 4]), advantage=ROSA())
  sets = gathered.evidence.set_reward
  assert sets.shape == (2, 4, 16) and sets.dtype == np.float32
  # In the order of their names; `d` is of a wrong answer.
  want = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
  np.testing.assert_array_equal(sets[0, :, :4], want)
  assert not sets[:, :, 4:].any() and not sets[1].any()
  # Only `b` and `c` are covered by one rollout alone.
  assert gathered.useful.tolist() == [True, False]


def test_seventeen_concepts_need_a_wider_table():
  names = 'abcdefghijklmnopq'
  group = [('1', names), ('2', names[:1])]
  _, gathered = made(graded([group]), advantage=ROSA())
  sets = gathered.evidence.set_reward
  assert sets.shape == (1, 2, 32)
  assert sets.sum(-1).tolist() == [[17, 1]]
  _, gathered = made(graded([[('1', names[:16]), ('2', '')]]), advantage=ROSA())
  assert gathered.evidence.set_reward.shape == (1, 2, 16)


@pytest.mark.parametrize('k, useful', [(1, True), (2, True), (3, False)])
def test_pass_at_k_asks_whether_subsets_differ(k, useful):
  # Two of four are right: every three hold one of them.
  group = [('1', ''), ('2', ''), ('', ''), ('', '')]
  _, gathered = made(graded([group]), advantage=PassAtK(k))
  assert gathered.useful.tolist() == [useful]
