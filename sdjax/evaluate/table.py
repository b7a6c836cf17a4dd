"""How the table of measures is kept and read; `measures` fills it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from sdjax.evaluate.samples import Samples

Embed = Callable[[list[str]], ArrayLike]
"""n texts to float [n, D]; cosines say how much alike they are."""

Questions = Sequence[Samples]
"""Q of them, each with at least one answer."""

Values = np.ndarray | dict[str, np.ndarray]
"""Float [Q], NaN where a question has no value, or several by name."""

Function = TypeVar('Function', bound=Callable[..., Any])


@dataclasses.dataclass(frozen=True)
class Setting:
  """What a measure may ask for besides the answers.

  That is the k of pass@k and the like, rising, and a sentence encoder.
  """

  ks: Sequence[int]
  embed: Embed | None = None


@dataclasses.dataclass(frozen=True)
class Measure:
  """A line of the table.

  Attributes:
    name: in `eval.json` and in the output of `sdjax.evaluate`; of a measure
      with several numbers what stands for their names.
    description: in words.
    function: of one question, or of several if `bulk`; see `measures`.
    needs: fields of `Samples` without which it is left out; those that need
      none follow from the verdicts alone.
    aliases: other names it is written under as well.
    per: the property of `Samples` by which the function's number is divided,
      and by which the questions are weighted in the mean; '': they weigh the
      same.
    slow: too slow for the evaluations during training.
    heading: of its column in the report; '': it has none.
    axis: its label in the picture of diversity; '': it is not drawn.
    digits: decimals worth showing.
    alarm: whether a fall raises an alarm.
  """

  name: str
  description: str
  function: Callable[..., Any]
  bulk: bool = False
  needs: tuple[str, ...] = ()
  aliases: tuple[str, ...] = ()
  per: Literal['', 'num_samples', 'num_tokens'] = ''
  slow: bool = False
  heading: str = ''
  axis: str = ''
  digits: int = 2
  alarm: bool = False

  def columns(
    self, questions: Questions, setting: Setting
  ) -> dict[str, 'Column']:
    """Measures some questions: by name, aliases included.

    Returns {} where the measure does not apply. Raises ValueError for answers
    that it cannot count, naming the question.
    """
    if not all(len(getattr(q, need)) for q in questions for need in self.needs):
      return {}
    if self.bulk:
      found = self.function(questions, setting)
    else:
      found = [self._of(q, samples) for q, samples in enumerate(questions)]
    parts = found if isinstance(found, dict) else {self.name: found}
    columns = {}
    for name, part in parts.items():
      total_Q = np.asarray(part, np.float64)  # None becomes NaN.
      weight_Q = np.isfinite(total_Q).astype(np.float64)
      if self.per:
        weight_Q *= [getattr(samples, self.per) for samples in questions]
      column = Column(
        self, np.where(np.isfinite(total_Q), total_Q, 0), weight_Q
      )
      columns |= dict.fromkeys((name, *self.aliases), column)
    return columns

  def _of(self, q: int, samples: Samples) -> float | None:
    try:
      return self.function(samples)
    except ValueError as error:
      raise ValueError(f'question {q}: {error}') from None


@dataclasses.dataclass(frozen=True)
class Column:
  """A measure of some questions.

  `totals` [Q] are value times weight, `weights` [Q] 1 or what the measure is
  per, 0 without a value.
  """

  measure: Measure
  totals: np.ndarray
  weights: np.ndarray

  @property
  def values(self) -> np.ndarray:
    """Float64 [Q], NaN where none; per nothing at all it is 0."""
    none_Q = np.full(len(self.totals), 0.0 if self.measure.per else np.nan)
    return np.divide(
      self.totals, self.weights, out=none_Q, where=self.weights > 0
    )

  @property
  def mean(self) -> float | None:
    """Over the questions that have a value; None: no question has one."""
    if weight := self.weights.sum():
      return float(self.totals.sum() / weight)
    return 0.0 if self.measure.per else None


MEASURES: dict[str, Measure] = {}
"""The table, by name, in the order in which it is written.

`measures` fills it: read it from there.
"""


def measure(name: str = '', **fields: Any) -> Callable[[Function], Function]:
  """Enters a function in the table, with further fields of `Measure`.

  Its name is the function's if none is given. Raises ValueError when the
  table has that name.
  """

  def enter(function: Function) -> Function:
    words = ' '.join((function.__doc__ or '').split())
    one = Measure(name or function.__name__, words, function, **fields)
    if one.name in MEASURES:
      raise ValueError(f'there is a measure {one.name!r}; give another name.')
    MEASURES[one.name] = one
    return function

  return enter
