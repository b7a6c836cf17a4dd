"""Which settings of the concept-graph task make sense."""

from sdjax.options import ConfigError
from sdjax.tasks.concept_graph.graph import PARTS
from sdjax.tasks.concept_graph.section import ConceptGraph
from sdjax.tasks.concept_graph.vocabulary import CONCEPTS

RENDERINGS = ('text', 'compact')
HARDER_CUTS = ('easy', 'random')
REFERENCE_ROUTES = ('any', 'easy')
MAX_SIZE = 10_000_000
"""Graphs a split can hold; question ids of a split start at a multiple."""

_LENGTHS = ('short', 'long', 'larger', 'larger_15', 'harder')
_MIN_LENGTH = 4
_ENDS = 4


def _integer(config: ConceptGraph, field: str, low: int, high: int) -> None:
  value = getattr(config, field)
  if isinstance(value, bool) or not isinstance(value, int):
    raise ConfigError(
      f'task.{field} is {value!r}; it must be a whole number in {low}..{high}'
    )
  if not low <= value <= high:
    raise ConfigError(
      f'task.{field} is {value}; allowed: {low}..{high}. '
      f'Set --config.task.{field} inside that range'
    )


def _choice(config: ConceptGraph, field: str, allowed: tuple[str, ...]) -> None:
  value = getattr(config, field)
  if value not in allowed:
    raise ConfigError(
      f'task.{field} is {value!r}; allowed: {", ".join(allowed)}'
    )


def longest_inner(config: ConceptGraph) -> int:
  """Returns how many names the longest chain of any split holds."""
  return max(getattr(config, field) for field in _LENGTHS) - 2


def validate(config: ConceptGraph) -> None:
  """Checks every setting of the task.

  Args:
    config: the settings.

  Raises:
    ConfigError: a value is not allowed or two contradict each other; it
      names the value, what is allowed and what to change.
  """
  _choice(config, 'name', ('concept_graph',))
  _choice(config, 'rendering', RENDERINGS)
  _choice(config, 'harder_cut', HARDER_CUTS)
  _choice(config, 'part', PARTS)
  _choice(config, 'reference_route', REFERENCE_ROUTES)
  most_names = len(next(iter(CONCEPTS.values())))
  _integer(config, 'num_concepts', _ENDS, len(CONCEPTS))
  _integer(config, 'names_per_concept', _MIN_LENGTH - 2, most_names)
  for field in _LENGTHS:
    # An inner edge to cut needs two inner nodes, so four nodes in all.
    _integer(config, field, _MIN_LENGTH, most_names + 2)
  if config.short > config.long:
    raise ConfigError(
      f'task.short is {config.short} and task.long is {config.long}; the easy '
      'target must not be the longer one: lower task.short or raise task.long'
    )
  if config.names_per_concept < longest_inner(config):
    field = max(_LENGTHS, key=lambda name: getattr(config, name))
    raise ConfigError(
      f'task.names_per_concept is {config.names_per_concept}, but task.{field} '
      f'= {getattr(config, field)} needs {longest_inner(config)} distinct '
      f'names in a chain; allowed: {longest_inner(config)}..{most_names}. '
      f'Raise task.names_per_concept or lower task.{field}'
    )
  _integer(config, 'subchains', 1, 100)
  _integer(config, 'train_size', 1, MAX_SIZE)
  _integer(config, 'eval_size', 1, MAX_SIZE)
  _integer(config, 'data_seed', 0, 2**63 - 1)
  for field, kind in (('shuffle_ends', bool), ('cache_dir', str)):
    value = getattr(config, field)
    if not isinstance(value, kind):
      raise ConfigError(
        f'task.{field} is {value!r}; it must be a {kind.__name__}'
      )
