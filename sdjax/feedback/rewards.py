"""What reinforcement learning gathers from graded rollouts: rewards.

Mirror image of `sdjax.feedback.demonstrations`.
"""

import jax.numpy as jnp
import numpy as np

from sdjax.feedback.grading import Graded
from sdjax.objectives.advantages import (
  Advantage,
  different_share,
  disjoint_share,
)
from sdjax.objectives.diversity_reward import DiversityReward
from sdjax.types import Gathered, Rewards


def gather(
  graded: Graded,
  step: int,
  advantage: Advantage,
  diversity: DiversityReward,
  *,
  overlong_share: float = 0.0,
  max_new_tokens: int = 0,
) -> Gathered:
  """Makes each rollout's reward.

  And where the advantage needs them those that are 1 for a right rollout that
  takes the s-th strategy. A question is useful if any of its rollouts has an
  advantage, penalties for length aside: over the last `overlong_share` of
  `max_new_tokens` a rollout loses 0 to 1, linearly; one that was cut off loses
  1.
  """
  del step  # nothing is drawn
  reward_QG = graded.reward
  metrics = {}
  set_reward = None
  if advantage.needs_sets:
    members_QGS = _members(graded) & graded.correct[..., None]
    set_reward = members_QGS.astype(np.float32)
  if diversity.by:
    if diversity.by == 'concepts':
      share_QG = np.asarray(disjoint_share(jnp.asarray(_members(graded))))
    else:
      share_QG = np.asarray(different_share(jnp.asarray(_same(graded))))
    if diversity.of == 'correct':
      share_QG = share_QG * graded.correct
    metrics['diversity_reward'] = float(share_QG.mean())
    reward_QG = diversity(reward_QG, share_QG)
  rewards = Rewards(
    reward=jnp.asarray(reward_QG),
    correct=jnp.asarray(graded.correct),
    set_reward=None if set_reward is None else jnp.asarray(set_reward),
  )
  useful_Q = np.asarray(advantage(rewards) != 0).any(axis=1)
  if overlong_share:
    over = graded.length / max_new_tokens - (1 - overlong_share)
    loss_QG = np.clip(over / overlong_share, 0, 1)
    loss_QG = np.where(graded.finished, loss_QG, 1.0)
    metrics['overlong_penalty'] = float(loss_QG.mean())
    reward_QG = reward_QG - loss_QG
  metrics['flat_groups'] = float((np.ptp(reward_QG, axis=1) == 0).mean())
  return Gathered(
    evidence=Rewards(
      reward=reward_QG.astype(np.float32),
      correct=graded.correct,
      set_reward=set_reward,
    ),
    shown=[[() for _ in row] for row in graded.answers],
    useful=useful_Q,
    metrics=metrics,
  )


def _same(graded: Graded) -> np.ndarray:
  """Bool [Q, G, G]: which rollouts give the same solution."""
  rows = []
  for row in graded.verdicts:
    solutions = np.array([v.solution for v in row], object)
    right = np.array([v.correct for v in row])
    rows.append((solutions[:, None] == solutions) & right[:, None] & right)
  return np.array(rows, bool)


def _members(graded: Graded) -> np.ndarray:
  """Bool [Q, G, S]: which concepts of its group's each rollout names."""
  groups = [[set(v.strategies) for v in row] for row in graded.verdicts]
  named = [sorted(set().union(*row)) for row in groups]
  # In steps of 16, so that another number of concepts compiles nothing.
  width = -(-max(1, *map(len, named)) // 16) * 16
  members_QGS = np.zeros((len(groups), len(groups[0]), width), bool)
  for q, row in enumerate(groups):
    for g, concepts in enumerate(row):
      members_QGS[q, g, : len(named[q])] = [s in concepts for s in named[q]]
  return members_QGS
