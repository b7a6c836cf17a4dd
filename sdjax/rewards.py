"""What reinforcement learning gathers from graded rollouts: rewards.

Mirror image of `sdjax.demonstrations`.
"""

import jax.numpy as jnp
import numpy as np

from sdjax.grading import Graded
from sdjax.objectives.advantage import disjoint_share
from sdjax.types import Evidence, Gathered


def gather(
  graded: Graded,
  step: int,
  *,
  diversity_weight: float = 0.0,
  diversity_for: str = 'correct',
) -> Gathered:
  """Makes each rollout's reward.

  Args:
    graded: a batch of graded rollouts.
    step: unused; nothing is drawn.
    diversity_weight: weight of the share of the group's other rollouts whose
      concepts are disjoint from a rollout's own.
    diversity_for: `correct` rollouts earn it, or `all`.

  Returns:
    The rewards; no demonstrations.

  Source: arXiv 2606.26091 sec. 4.1; the paper gives neither the weight nor
  whether wrong rollouts earn the term.
  """
  del step
  reward_QG = graded.reward
  metrics = {}
  if diversity_weight:
    share_QG = np.asarray(disjoint_share(jnp.asarray(_members(graded))))
    if diversity_for == 'correct':
      share_QG = share_QG * graded.correct
    reward_QG = reward_QG + diversity_weight * share_QG
    metrics['diversity_reward'] = float(share_QG.mean())
  metrics['flat_groups'] = float((np.ptp(reward_QG, axis=1) == 0).mean())
  return Gathered(
    evidence=Evidence(reward=reward_QG.astype(np.float32)),
    shown=[[() for _ in row] for row in graded.answers],
    metrics=metrics,
  )


def _members(graded: Graded) -> np.ndarray:
  """Bool [Q, G, S]: which concepts of its group's each rollout names."""
  groups = [[set(v.concepts) for v in row] for row in graded.verdicts]
  named = [sorted(set().union(*row)) for row in groups]
  # In steps of 16, so that another number of concepts compiles nothing.
  width = -(-max(1, *map(len, named)) // 16) * 16
  members_QGS = np.zeros((len(groups), len(groups[0]), width), bool)
  for q, row in enumerate(groups):
    for g, concepts in enumerate(row):
      members_QGS[q, g, : len(named[q])] = [s in concepts for s in named[q]]
  return members_QGS
