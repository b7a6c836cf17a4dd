"""Where the rewards of training come from: see `sdjax.config.Reward`."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from annotated_types import Gt

from sdjax.feedback.grading import Graded
from sdjax.options import ConfigError, Section, Size, refuse

Source = Callable[[Graded], tuple[Graded, dict[str, float]]]
"""Gives graded answers their rewards, and metrics worth logging."""


@dataclass(frozen=True)
class Reward(Section):
  """Where the rewards of training come from.

  Evaluations go by the task's verifier in any case.

  Attributes:
    name: the task's `verifier`, a `function` of yours, or a reward `model`.
    function: `path/to/file.py:name` or `package.module:name`, called as
      `name(question, answer)` in worker processes; it gives a number. An
      answer it fails on or is too slow for gets 0, and is counted.
    workers: processes that run it.
    timeout: seconds an answer may take before its process is killed.
    model: a Hugging Face folder with a sequence classifier of one label.
    max_tokens: longest question and answer the model is given, in tokens.
    judge: who says which answers are correct, and so may be demonstrations:
      the `verifier`, or the `reward`, by the threshold.
    threshold: an answer is correct if its reward is at least this.
  """

  name: Literal['verifier', 'function', 'model'] = 'verifier'
  function: str = ''
  workers: Size = 2
  timeout: Annotated[float, Gt(0)] = 10.0
  model: str = ''
  max_tokens: Size = 4096
  judge: Literal['verifier', 'reward'] = 'verifier'
  threshold: float = 0.5

  def __post_init__(self):
    """Refuses options of another source, and a source without its name."""
    super().__post_init__()
    of = {
      'function': ('function', 'workers', 'timeout'),
      'model': ('model', 'max_tokens'),
    }
    for source, names in of.items():
      if self.name != source:
        refuse(self, names, f'when name={self.name!r}; it acts for {source!r}.')
    if self.name == 'verifier':
      refuse(self, ('judge',), "when name='verifier'.")
    elif not getattr(self, self.name):
      raise ConfigError(f'name={self.name!r} needs reward.{self.name}.')
    if self.judge == 'verifier':
      refuse(self, ('threshold',), "when judge='verifier'.")


def make_source(options: Reward, mesh: Any = None) -> Source:
  """Makes what rewards a batch of answers.

  It holds worker processes, or a model on the devices of a mesh.

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

  An answer is correct from the threshold on; None: as the verifier has it.
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
