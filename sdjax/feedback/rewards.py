"""What reinforcement learning gathers from graded rollouts: rewards.

Mirror image of `sdjax.feedback.demonstrations`.
"""

import jax.numpy as jnp
import numpy as np

from sdjax.feedback.grading import Graded
from sdjax.objectives.advantage import (
  advantage_of,
  different_share,
  disjoint_share,
)
from sdjax.types import Evidence, Gathered


def gather(
  graded: Graded,
  step: int,
  *,
  advantage: str = 'grpo',
  pass_k: int = 1,
  diversity_weight: float = 0.0,
  diversity_how: str = 'add',
  diversity_by: str = 'concepts',
  diversity_for: str = 'correct',
  overlong_share: float = 0.0,
  max_new_tokens: int = 0,
) -> Gathered:
  """Makes each rollout's reward.

  Args:
    graded: a batch of graded rollouts.
    step: unused; nothing is drawn.
    advantage: what will be made of the rewards; a question is useful if any
      of its rollouts has one, penalties for length aside.
    pass_k: k of `pass_at_k`.
    diversity_weight: weight of a rollout's diversity, the share of the
      group's other rollouts that are unlike it.
    diversity_how: `add` weight times it to the reward, or `multiply` a
      positive reward by 1 - weight + weight times it, it being divided by the
      group's largest.
    diversity_by: rollouts are alike if they share one of their `concepts`, or
      if both are right with the same `solution`.
    diversity_for: `correct` rollouts earn what is added, or `all`.
    overlong_share: over this last share of `max_new_tokens` a rollout loses
      0 to 1, linearly; one that was cut off loses 1.
    max_new_tokens: T.

  Returns:
    The rewards; for `rosa` also those that are 1 for a right rollout that
    names the s-th concept. No demonstrations.

  Source: arXiv 2606.26091 sec. 4.1 (`add` by `concepts`; it gives neither the
    weight nor whether wrong rollouts earn the term); DARLING, 2509.02534
    (`multiply`; the paper learns what is alike, here the task says it); DAPO,
    2503.14476 (overlong); ROSA, 2606.03962.
  """
  del step
  reward_QG = graded.reward
  metrics = {}
  set_reward = None
  if advantage == 'rosa':
    set_reward = _members(graded) & graded.correct[..., None]
  if diversity_weight:
    if diversity_by == 'concepts':
      share_QG = np.asarray(disjoint_share(jnp.asarray(_members(graded))))
    else:
      share_QG = np.asarray(different_share(jnp.asarray(_same(graded))))
    if diversity_for == 'correct':
      share_QG = share_QG * graded.correct
    metrics['diversity_reward'] = float(share_QG.mean())
    if diversity_how == 'add':
      reward_QG = reward_QG + diversity_weight * share_QG
    else:
      most_Q1 = share_QG.max(axis=1, keepdims=True)
      scaled_QG = np.divide(
        share_QG, most_Q1, out=np.ones_like(share_QG), where=most_Q1 > 0
      )
      factor_QG = 1 - diversity_weight + diversity_weight * scaled_QG
      # A penalty is not to be had cheaper by being alike.
      reward_QG = np.where(reward_QG > 0, reward_QG * factor_QG, reward_QG)
  advantage_QG = advantage_of(
    advantage,
    jnp.asarray(reward_QG),
    jnp.asarray(graded.correct),
    None if set_reward is None else jnp.asarray(set_reward, jnp.float32),
    pass_k,
  )
  useful_Q = np.asarray(advantage_QG != 0).any(axis=1)
  if overlong_share:
    over = graded.length / max_new_tokens - (1 - overlong_share)
    loss_QG = np.clip(over / overlong_share, 0, 1)
    loss_QG = np.where(graded.finished, loss_QG, 1.0)
    metrics['overlong_penalty'] = float(loss_QG.mean())
    reward_QG = reward_QG - loss_QG
  metrics['flat_groups'] = float((np.ptp(reward_QG, axis=1) == 0).mean())
  return Gathered(
    evidence=Evidence(
      reward=reward_QG.astype(np.float32),
      correct=graded.correct,
      set_reward=None if set_reward is None else set_reward.astype(np.float32),
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
  groups = [[set(v.concepts) for v in row] for row in graded.verdicts]
  named = [sorted(set().union(*row)) for row in groups]
  # In steps of 16, so that another number of concepts compiles nothing.
  width = -(-max(1, *map(len, named)) // 16) * 16
  members_QGS = np.zeros((len(groups), len(groups[0]), width), bool)
  for q, row in enumerate(groups):
    for g, concepts in enumerate(row):
      members_QGS[q, g, : len(named[q])] = [s in concepts for s in named[q]]
  return members_QGS
