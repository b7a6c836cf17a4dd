# pyright: reportIncompatibleVariableOverride=false
"""What a rollout earns for being unlike the others of its group."""

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Gt, Le

from sdjax.options import ConfigError, Option


class DiversityReward(Option):
  """How a rollout's diversity changes its reward.

  Its diversity is the share of the group's other rollouts that are unlike it:
  that share none of its `concepts` (the strategies it names), or that do not
  give the same right `solution`.

  Attributes:
    by: what makes two rollouts unlike; empty: there is no such reward.
    of: `correct`: only correct rollouts have a diversity; or `all`.
  """

  by: str = ''
  of: str = 'correct'

  def __call__(self, reward_QG: np.ndarray, share_QG: np.ndarray) -> np.ndarray:
    """Changes the rewards by each rollout's diversity, in 0..1."""
    del share_QG
    return reward_QG


UNLIKE = {'concepts': 'disjoint concepts', 'solution': 'another solution'}


@dataclass(frozen=True)
class NoDiversityReward(DiversityReward, name='none'):
  """The rewards stay."""


@dataclass(frozen=True)
class Bonus(DiversityReward, name='add'):
  """R + weight * diversity.

  Source: arXiv 2606.26091 sec. 4.1, by concepts; it gives neither the weight
  nor whether wrong rollouts earn the term.
  """

  weight: Annotated[float, Gt(0)] = 0.5
  by: Literal['concepts', 'solution'] = 'concepts'
  of: Literal['correct', 'all'] = 'correct'

  def __post_init__(self):
    """Refuses to reward all rollouts for what wrong ones lack."""
    super().__post_init__()
    if self.by == 'solution' and self.of == 'all':
      raise ConfigError(
        "add(of='all') does nothing with by='solution': a wrong rollout has no "
        'solution. Remove one of the two.'
      )

  def __call__(self, reward_QG, share_QG):
    """Returns the rewards with the bonus."""
    return reward_QG + self.weight * share_QG

  def words(self) -> str:
    """Says what is added, for a person."""
    return (
      f' + {self.weight:g} x the share of the group with {UNLIKE[self.by]} '
      f'({self.of} rollouts)'
    )


@dataclass(frozen=True)
class Scale(DiversityReward, name='multiply'):
  """R (1 - weight + weight * diversity / the group's largest), where R > 0.

  A wrong rollout has no reward to multiply, so only correct ones count.

  Source: DARLING, arXiv 2509.02534; it learns what is alike, here the task
  says it.
  """

  weight: Annotated[float, Gt(0), Le(1)] = 1.0
  by: Literal['concepts', 'solution'] = 'concepts'

  def __call__(self, reward_QG, share_QG):
    """Returns the scaled rewards."""
    most_Q1 = share_QG.max(axis=1, keepdims=True)
    scaled_QG = np.divide(
      share_QG, most_Q1, out=np.ones_like(share_QG), where=most_Q1 > 0
    )
    factor_QG = 1 - self.weight + self.weight * scaled_QG
    # A penalty is not to be had cheaper by being alike.
    return np.where(reward_QG > 0, reward_QG * factor_QG, reward_QG)

  def words(self) -> str:
    """Says what it is multiplied by, for a person."""
    return (
      f' x ({1 - self.weight:g} + {self.weight:g} x the share of the group '
      f'with {UNLIKE[self.by]} (correct rollouts), scaled to at most 1)'
    )
