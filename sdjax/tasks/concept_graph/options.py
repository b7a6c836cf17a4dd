"""The settings of the concept-graph task, and which of them make sense."""

import dataclasses
from typing import ClassVar

from sdjax.options import ConfigError
from sdjax.tasks.base import SPLIT_SIZE, Task
from sdjax.tasks.concept_graph.vocabulary import CONCEPTS
from sdjax.tasks.options import TaskOptions

_CHOICES = {
  'rendering': ('text', 'compact'),
  'harder_cut': ('easy', 'random'),
  'part': ('test', 'dev'),
  'reference_route': ('any', 'easy'),
}
_LENGTHS = ('short', 'long', 'larger', 'larger_15', 'harder')
_MIN_LENGTH = 4
_ENDS = 4


@dataclasses.dataclass(frozen=True)
class ConceptGraph(TaskOptions, name='concept_graph'):
  """The concept-graph task (arXiv 2606.26091 sec. 4.1; gaps filled by us).

  Path lengths count nodes, `start` and the endpoint included.

  Attributes:
    name: selects this task.
    rendering: `text` (node list, edge list, boxed answer: for chat models) or
      `compact` (a few dozen tokens: for the shipped model).
    short: path length of the easy target in training.
    long: path length of the other target in training.
    larger: length of every path in the split `larger`.
    larger_15: length of every path in the split `larger_15`.
    harder: length of every path in the split `harder`.
    subchains: parallel chains from `start` to each endpoint.
    num_concepts: concepts the four chains are drawn from.
    names_per_concept: names each concept has.
    template: what the student is asked; `{question}` is replaced, once.
      Empty: the rendering's own.
    shuffle_ends: whether targets and distractors come in random order; the
      target listed first is the easy one either way.
    harder_cut: which target's chains lose an edge in `harder`: `easy` or
      `random`.
    part: which graphs the evaluation splits hold: `dev`, for choosing
      settings by, or `test`, which no setting was chosen on, for reporting.
    reference_route: which right route is the task's own answer, as `opsd` and
      others show it: `any` (each whole chain to a target is equally likely,
      and a question always gets the same) or `easy` (the easy target's, the
      other's where that is cut; a student shown nothing else loses the other
      route, whatever the method).
    train_size: graphs in the split `train`.
    eval_size: graphs in each evaluation split.
    data_seed: seed of the graphs.
    cache_dir: where the built data set is kept; empty: `$SDJAX_CACHE`, else
      `~/.cache/sdjax`.
  """

  section: ClassVar[bool] = True

  # In `config.json` it stands beside the settings.
  name: str = 'concept_graph'  # pyright: ignore[reportIncompatibleVariableOverride]
  rendering: str = 'compact'
  template: str = ''
  short: int = 4
  long: int = 6
  larger: int = 8
  larger_15: int = 7
  harder: int = 5
  subchains: int = 1
  num_concepts: int = 6
  names_per_concept: int = 8
  shuffle_ends: bool = True
  harder_cut: str = 'easy'
  part: str = 'test'
  reference_route: str = 'any'
  train_size: int = 4000
  eval_size: int = 128
  data_seed: int = 0
  cache_dir: str = ''

  def __post_init__(self):
    """Checks every setting.

    Raises ConfigError if a value is not allowed or two contradict each other;
    it names the value, what is allowed and what to change.
    """
    for field, allowed in ({'name': (type(self).name,)} | _CHOICES).items():
      value = getattr(self, field)
      if value not in allowed:
        raise ConfigError(
          f'task.{field} is {value!r}; allowed: {", ".join(allowed)}'
        )
    for field in ('shuffle_ends', 'cache_dir', 'template'):
      kind = type(getattr(type(self), field))
      if type(getattr(self, field)) is not kind:
        raise ConfigError(
          f'task.{field} is {getattr(self, field)!r}; it must be a '
          f'{kind.__name__}'
        )
    if self.template and self.template.count('{question}') != 1:
      raise ConfigError(
        f'task.template={self.template!r} must hold {{question}} exactly once.'
      )
    most_names = len(next(iter(CONCEPTS.values())))
    self._check_range('num_concepts', _ENDS, len(CONCEPTS))
    self._check_range('names_per_concept', _MIN_LENGTH - 2, most_names)
    for field in _LENGTHS:
      # An inner edge to cut needs two inner nodes, so four nodes in all.
      self._check_range(field, _MIN_LENGTH, most_names + 2)
    self._check_range('subchains', 1, 100)
    self._check_range('train_size', 1, SPLIT_SIZE)
    self._check_range('eval_size', 1, SPLIT_SIZE)
    self._check_range('data_seed', 0, 2**63 - 1)
    if self.short > self.long:
      raise ConfigError(
        f'task.short is {self.short} and task.long is {self.long}; the easy '
        'target must not be the longer one: lower task.short or raise task.long'
      )
    if self.names_per_concept < self.longest_inner:
      field = max(_LENGTHS, key=lambda name: getattr(self, name))
      raise ConfigError(
        f'task.names_per_concept is {self.names_per_concept}, but task.{field} '
        f'= {getattr(self, field)} needs {self.longest_inner} distinct names '
        f'in a chain; allowed: {self.longest_inner}..{most_names}. '
        f'Raise task.names_per_concept or lower task.{field}'
      )

  def _check_range(self, field: str, low: int, high: int) -> None:
    value = getattr(self, field)
    if isinstance(value, bool) or not isinstance(value, int):
      raise ConfigError(
        f'task.{field} is {value!r}; it must be a whole number in {low}..{high}'
      )
    if not low <= value <= high:
      raise ConfigError(
        f'task.{field} is {value}; allowed: {low}..{high}. '
        f'Set --config.task.{field} inside that range'
      )

  @property
  def longest_inner(self) -> int:
    """How many names the longest chain of any split holds."""
    return max(getattr(self, field) for field in _LENGTHS) - 2

  def make(self) -> Task:
    """Makes the task; nothing is built or read before it is asked for."""
    from sdjax.tasks.concept_graph.task import ConceptGraphTask

    return ConceptGraphTask(self)
