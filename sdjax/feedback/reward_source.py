"""Where the rewards of training come from: see `sdjax.config.Reward`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from sdjax.config.schema import Reward
from sdjax.feedback.grading import Graded

Source = Callable[[Graded], tuple[Graded, dict[str, float]]]
"""Gives graded answers their rewards, and metrics worth logging."""


def make_source(options: Reward, mesh: Any = None) -> Source:
  """Makes what rewards a batch of answers.

  Args:
    options: which source, and how it is run.
    mesh: devices, for a reward model.

  Returns:
    The source; it holds worker processes or a model.

  Raises:
    RewardError: the function cannot be loaded.
    CheckpointError: the model cannot.
  """
  if options.name == 'verifier':
    return lambda graded: (graded, {})
  if options.name == 'function':
    from sdjax.feedback.reward_function import RewardPool

    pool = RewardPool(
      options.function, workers=options.workers, timeout=options.timeout
    )

    def score(graded: Graded) -> tuple[np.ndarray, dict[str, float]]:
      reward_QG, counts = pool.score(graded.questions, graded.answers)
      return reward_QG, {k: float(v) for k, v in counts.items()}

  else:
    from sdjax.feedback.reward_model import RewardModel

    model = RewardModel(options.model, mesh, max_tokens=options.max_tokens)

    def score(graded: Graded) -> tuple[np.ndarray, dict[str, float]]:
      return model.score(graded.questions, graded.answers), {}

  def source(graded: Graded) -> tuple[Graded, dict[str, float]]:
    reward_QG, metrics = score(graded)
    by_reward = options.judge == 'reward'
    threshold = options.threshold if by_reward else None
    return rewarded(graded, reward_QG, threshold), metrics

  return source


def rewarded(
  graded: Graded, reward_QG: np.ndarray, threshold: float | None
) -> Graded:
  """Puts other rewards into a batch's verdicts.

  Args:
    graded: as the verifier has it.
    reward_QG: float [Q, G].
    threshold: from which reward on an answer is correct; None: as the
      verifier has it.

  Returns:
    The batch.
  """

  def change(verdict: Any, reward: float) -> Any:
    correct = verdict.correct if threshold is None else reward >= threshold
    return dataclasses.replace(verdict, reward=reward, correct=correct)

  return dataclasses.replace(
    graded,
    verdicts=[
      [change(v, float(r)) for v, r in zip(row, rewards, strict=True)]
      for row, rewards in zip(graded.verdicts, reward_QG, strict=True)
    ],
  )
