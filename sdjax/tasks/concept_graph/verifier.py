"""Judges an answer: is there a simple path in the graph that it spells?

Names repeat, so a sequence of names can stand for many walks. The set of
nodes that can be reached is carried from name to name, in work linear in the
answer; only where it leads to a target is a path without repetition looked
for among them, which is no longer than the graph has nodes.
"""

import functools
import operator
import re
from collections.abc import Iterable, Iterator, Sequence

from sdjax.tasks.base import Verdict
from sdjax.tasks.concept_graph.graph import HUB, SHAPE, Graph
from sdjax.tasks.concept_graph.vocabulary import START

NO_BOX = 'no_box'
WRONG_START = 'wrong_start'
NOT_AN_EDGE = 'not_an_edge'
WRONG_END = 'wrong_end'
REPEATED_NODE = 'repeated_node'

_BOX = '\\boxed'
_BRACE = re.compile('[{}]')


def last_box(text: str) -> str | None:
  r"""Returns what the last complete `\boxed{...}` holds, or None.

  Braces inside must balance. A box that never closes does not count; of nested
  boxes the inner one opens last and is taken.
  """
  opened: list[int] = []
  best: tuple[int, int] | None = None
  for match in _BRACE.finditer(text):
    at = match.start()
    if match.group() == '{':
      opened.append(at)
    elif opened:
      start = opened.pop()
      if text.endswith(_BOX, 0, start) and (best is None or start > best[0]):
        best = (start, at)
  return None if best is None else text[best[0] + 1 : best[1]]


def parse_answer(answer: str, rendering: str) -> list[str] | None:
  """Splits an answer into names, stripped but otherwise as written.

  Matching is exact. None where the text rendering's box is missing. A compact
  answer may leave out `start`, with which every path begins.
  """
  if rendering == 'compact':
    names = answer.split()
    return names if names[:1] == [START] else [START, *names]
  box = last_box(answer)
  return None if box is None else [name.strip() for name in box.split(',')]


def _nodes(bits: int) -> Iterator[int]:
  """The nodes of a set, rising."""
  while bits:
    lowest = bits & -bits
    yield lowest.bit_length() - 1
    bits ^= lowest


def _spread(graph: Graph, bits: int) -> int:
  """All neighbours of a set of nodes."""
  found = (graph.neighbours[node] for node in _nodes(bits))
  return functools.reduce(operator.or_, found, 0)


def _concepts(graph: Graph, nodes: Iterable[int]) -> tuple[str, ...]:
  """The concepts of some nodes, sorted."""
  kinds = {graph.kinds[node] for node in nodes}
  return tuple(sorted(kinds - {HUB, SHAPE}))


def _simple_path(graph: Graph, steps: Sequence[int]) -> list[int] | None:
  """The lexicographically first path that visits no node twice, or None.

  `steps` are for each place of the path the nodes that may stand there, as bit
  sets; the first holds one.
  """
  if len(steps) > len(graph.names):
    return None
  path, visited = [0], 1
  # For each node of the path, the neighbours that are still to be tried.
  open_sets = [_nodes(graph.neighbours[0] & steps[1])] if steps[1:] else []
  while open_sets and len(path) < len(steps):
    node = next((n for n in open_sets[-1] if not visited >> n & 1), None)
    if node is None:
      open_sets.pop()
      visited ^= 1 << path.pop()
    else:
      path.append(node)
      visited |= 1 << node
      if len(path) < len(steps):
        onward = graph.neighbours[node] & steps[len(path)]
        open_sets.append(_nodes(onward))
  return path if len(path) == len(steps) else None


def _wrong(
  reason: str,
  names: list[str],
  right: int,
  rendering: str,
  concepts: tuple[str, ...] = (),
) -> Verdict:
  """Rejects an answer of which the first `right` names are a path."""
  said = names[:right]
  if rendering == 'compact':
    # In the words a compact question is written in: a missing edge is `|`.
    missing = ['|'] if reason in (NO_BOX, WRONG_START, NOT_AN_EDGE) else []
    feedback = ' '.join([*said[1:], *missing])
  else:
    feedback = {
      NO_BOX: 'No complete \\boxed{} was found in the answer.',
      WRONG_START: f'The path does not begin at {START}.',
      NOT_AN_EDGE: (
        f'After {", ".join(said)} no edge leads to a node named '
        f'{names[right] if right < len(names) else ""}.'
      ),
      WRONG_END: (
        f'{", ".join(said)} is a path, but it does not end at a target.'
      ),
      REPEATED_NODE: (
        f'{", ".join(said)} comes back to a node that it has visited.'
      ),
    }[reason]
  return Verdict(False, strategy=concepts, feedback=feedback, reason=reason)


def verify_answer(graph: Graph, answer: str, rendering: str) -> Verdict:
  """Judges an answer; no string makes this raise.

  Right: some path from `start` along edges, in either direction, that visits no
  node twice, ends at an endpoint with the target's name and spells the answer.
  (A walk that leaves a chain and comes back says the same route at greater
  length: it is no other solution.)

  In the verdict, `reason` is the first of `no_box`, `wrong_start`,
  `not_an_edge` (also: no node has that name), `wrong_end` and `repeated_node`
  that applies. `solution` is the spelled node path, the lexicographically first
  of several, as `0-2-3-1`. `strategy` holds the concepts of its nodes; of a
  wrong answer, those of all nodes it names. `feedback` says how far the answer
  was a path; it does not tell a right one.

  Source: arXiv 2606.26091 App. B.4 (reward); that detours are wrong and the
  order of reasons are ours.
  """
  names = parse_answer(answer, rendering)
  if names is None:
    return _wrong(NO_BOX, [], 0, rendering)
  named = functools.reduce(
    operator.or_, (graph.named.get(name, 0) for name in names), 0
  )
  concepts = _concepts(graph, _nodes(named))
  if not names or names[0] != graph.names[0]:
    return _wrong(WRONG_START, names, 0, rendering, concepts)
  # reached[i]: nodes at which a walk that spells names[: i + 1] can stand.
  reached = [1]
  for name in names[1:]:
    step = _spread(graph, reached[-1]) & graph.named.get(name, 0)
    if not step:
      right = len(reached)
      return _wrong(NOT_AN_EDGE, names, right, rendering, concepts)
    reached.append(step)
  goal = 0
  for end in graph.ends:
    goal |= (graph.names[end] == graph.target) << end
  if not reached[-1] & goal:
    return _wrong(WRONG_END, names, len(names), rendering, concepts)
  # Backward: keep the nodes from which the goal is still spelled.
  reached[-1] &= goal
  for i in range(len(reached) - 2, -1, -1):
    reached[i] &= _spread(graph, reached[i + 1])
  path = _simple_path(graph, reached)
  if path is None:
    return _wrong(REPEATED_NODE, names, len(names), rendering, concepts)
  solution = '-'.join(map(str, path))
  concepts = _concepts(graph, path)
  return Verdict(True, solution=solution, strategy=concepts)
