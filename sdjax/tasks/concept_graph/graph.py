"""The star of concept chains: what a graph is, and how one is drawn.

Node 0 is `start`; each endpoint follows, then the nodes of its chains. A
chain is an ordered run of nodes from a neighbour of `start` to an endpoint.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from sdjax.tasks.concept_graph.options import ConceptGraph
from sdjax.tasks.concept_graph.vocabulary import CONCEPTS, SHAPES, START

SPLITS = ('train', 'in_distribution', 'larger', 'larger_15', 'harder')

HUB = 'hub'
SHAPE = 'shape'

_Item = TypeVar('_Item')


@dataclasses.dataclass(frozen=True)
class Graph:
  """An undirected graph of named nodes, and the shape that is asked for.

  Attributes:
    names: name of each node; names may repeat, ids do not.
    kinds: of each node: `hub`, `shape` or the name of its concept.
    edges: pairs of node ids, written as a chain runs outward from start.
    chains: node ids of each chain as it was laid out, endpoint last; a cut
      edge is missing from `edges` but not from here.
    target: name of the endpoints that count.
  """

  names: tuple[str, ...]
  kinds: tuple[str, ...]
  edges: tuple[tuple[int, int], ...]
  chains: tuple[tuple[int, ...], ...]
  target: str

  @functools.cached_property
  def edge_set(self) -> frozenset[tuple[int, int]]:
    """Both directions of every edge."""
    return frozenset(self.edges) | {(b, a) for a, b in self.edges}

  @functools.cached_property
  def neighbours(self) -> tuple[int, ...]:
    """The neighbours of each node, as a bit set over node ids."""
    bits = [0] * len(self.names)
    for a, b in self.edges:
      bits[a] |= 1 << b
      bits[b] |= 1 << a
    return tuple(bits)

  @functools.cached_property
  def named(self) -> dict[str, int]:
    """The nodes that bear a name, as a bit set over node ids."""
    bits: dict[str, int] = {}
    for node, name in enumerate(self.names):
      bits[name] = bits.get(name, 0) | 1 << node
    return bits

  @property
  def ends(self) -> tuple[int, ...]:
    """Node ids of the endpoints, rising."""
    return tuple(i for i, kind in enumerate(self.kinds) if kind == SHAPE)

  @property
  def easy_end(self) -> int:
    """The easy target: the endpoint with the target's name listed first."""
    return next(i for i in self.ends if self.names[i] == self.target)

  def is_whole(self, chain: Sequence[int]) -> bool:
    """Tells whether no edge of a chain was cut."""
    return self.edge_set.issuperset(hops(chain))


def hops(chain: Sequence[int]) -> list[tuple[int, int]]:
  """Returns the edges of a chain outward from start, cut ones included."""
  return list(zip((0, *chain[:-1]), chain, strict=True))


def mended(graph: Graph) -> Graph:
  """Returns the graph with every chain whole."""
  edges = [hop for chain in graph.chains for hop in hops(chain)]
  return dataclasses.replace(graph, edges=tuple(edges))


@dataclasses.dataclass(frozen=True)
class Ends:
  """Which of the four endpoints plays which part.

  The easy target is listed first of the two, the distractors are in random
  order.
  """

  easy: int
  other: int
  distractors: tuple[int, int]


def pick(
  rng: np.random.Generator, items: Sequence[_Item], count: int
) -> list[_Item]:
  """Draws distinct items in random order, from exactly `count` numbers.

  `Generator.permutation` does the same several times slower on short lists, and
  documents are drawn by the thousand.
  """
  pool = list(items)
  for i, u in enumerate(rng.random(count).tolist()):
    j = i + int(u * (len(pool) - i))
    pool[i], pool[j] = pool[j], pool[i]
  return pool[:count]


def draw_ends(rng: np.random.Generator, config: ConceptGraph) -> Ends:
  """Gives the endpoints their parts.

  Without `shuffle_ends`, targets and distractors alternate, target first.
  """
  order = pick(rng, range(4), 4)
  if not config.shuffle_ends:
    return Ends(0, 2, (1, 3) if order[0] < 2 else (3, 1))
  return Ends(min(order[:2]), max(order[:2]), (order[2], order[3]))


def build_graph(
  rng: np.random.Generator,
  config: ConceptGraph,
  ends: Ends,
  lengths: Sequence[int],
  cut_end: int | None,
) -> Graph:
  """Draws concepts, names and shapes, and lays out the nodes.

  `lengths` are those of the paths towards each endpoint, in nodes, both ends
  included. Each chain to `cut_end`, if any, loses one random edge between two
  inner nodes.
  """
  target, distractor = pick(rng, SHAPES, 2)
  concepts = pick(rng, list(CONCEPTS)[: config.num_concepts], 4)
  names, kinds = [START], [HUB]
  edges: list[tuple[int, int]] = []
  chains = []
  for position, concept in enumerate(concepts):
    end = len(names)
    names.append(target if position in (ends.easy, ends.other) else distractor)
    kinds.append(SHAPE)
    inner = lengths[position] - 2
    vocabulary = CONCEPTS[concept][: config.names_per_concept]
    for _ in range(config.subchains):
      # Distinct inside a chain; parallel chains may share names.
      first = len(names)
      names += pick(rng, vocabulary, inner)
      kinds += [concept] * inner
      chain = (*range(first, first + inner), end)
      walked = hops(chain)
      if position == cut_end:
        # The first hop leaves start, the last reaches the endpoint.
        del walked[1 + int(rng.random() * (inner - 1))]
      edges += walked
      chains.append(chain)
  return Graph(
    names=tuple(names),
    kinds=tuple(kinds),
    edges=tuple(edges),
    chains=tuple(chains),
    target=target,
  )


def training_lengths(config: ConceptGraph, ends: Ends) -> list[int]:
  """Returns the biased path lengths, in nodes, of a training graph.

  One distractor is short and one long, so that length alone does not give the
  target away (ours; the paper does not say).
  """
  lengths = [config.long] * 4
  lengths[ends.easy] = config.short
  lengths[ends.distractors[0]] = config.short
  return lengths


def draw_graph(
  rng: np.random.Generator, config: ConceptGraph, split: str
) -> Graph:
  """Draws one graph of a split; raises ValueError if there is no such split."""
  if split not in SPLITS:
    raise ValueError(f'no split {split!r}; allowed: {", ".join(SPLITS)}')
  ends = draw_ends(rng, config)
  if split in ('train', 'in_distribution'):
    return build_graph(rng, config, ends, training_lengths(config, ends), None)
  cut_end = None
  if split == 'harder':
    coin = rng.random()
    hit_other = config.harder_cut == 'random' and coin < 0.5
    cut_end = ends.other if hit_other else ends.easy
  return build_graph(rng, config, ends, [getattr(config, split)] * 4, cut_end)


def family(config: ConceptGraph, split: str) -> int:
  """Numbers the families of graphs, no two of which share a seed, from 0.

  A split other than `train` has a family for each `part`. Raises ValueError if
  there is no such split.
  """
  if split not in SPLITS:
    raise ValueError(f'no split {split!r}; allowed: {", ".join(SPLITS)}')
  number = SPLITS.index(split)
  return number + len(SPLITS) * (split != 'train' and config.part == 'test')


def graph_at(config: ConceptGraph, split: str, index: int) -> Graph:
  """Draws the graph at a position of a split, whatever the others are.

  `data_seed` is the root of all graphs. Raises ValueError if there is no such
  split.
  """
  seed = (config.data_seed, family(config, split), index)
  return draw_graph(np.random.default_rng(seed), config, split)
