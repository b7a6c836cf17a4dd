"""Judges an answer: is there a path in the graph that it spells?

Names repeat, so a sequence of names can stand for many node paths. The set
of nodes that can be reached is carried from name to name; nothing is
enumerated, and the work is linear in the answer.
"""

import re

from sdjax.tasks.base import Verdict
from sdjax.tasks.concept_graph.graph import HUB, SHAPE, Graph
from sdjax.tasks.concept_graph.vocabulary import START

NO_BOX = 'no_box'
WRONG_START = 'wrong_start'
NOT_AN_EDGE = 'not_an_edge'
WRONG_END = 'wrong_end'

_BOX = '\\boxed'
_BRACE = re.compile('[{}]')


def last_box(text: str) -> str | None:
  r"""Returns what the last complete `\boxed{...}` holds.

  Braces inside must balance. A box that never closes does not count; of
  nested boxes the inner one opens last and is taken.

  Args:
    text: any string.

  Returns:
    The content, or None where there is no complete box.
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
  """Splits an answer into names.

  Args:
    answer: any string.
    rendering: `text` or `compact`.

  Returns:
    The names, stripped but otherwise as written (matching is exact), or None
    where the text rendering's box is missing. A compact answer may leave out
    `start`, with which every path begins.
  """
  if rendering == 'compact':
    names = answer.split()
    return names if names[:1] == [START] else [START, *names]
  box = last_box(answer)
  return None if box is None else [name.strip() for name in box.split(',')]


def _lowest(bits: int) -> int:
  return (bits & -bits).bit_length() - 1


def _spread(graph: Graph, bits: int) -> int:
  """Returns all neighbours of a set of nodes."""
  reached = 0
  while bits:
    node = _lowest(bits)
    reached |= graph.neighbours[node]
    bits &= bits - 1
  return reached


def _concepts(graph: Graph, names: list[str]) -> tuple[str, ...]:
  found = set()
  for name in set(names):
    bits = graph.named.get(name, 0)
    while bits:
      found.add(graph.kinds[_lowest(bits)])
      bits &= bits - 1
  return tuple(sorted(found - {HUB, SHAPE}))


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
    missing = [] if reason == WRONG_END else ['|']
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
    }[reason]
  return Verdict(False, 0.0, reason, concepts=concepts, feedback=feedback)


def verify_answer(graph: Graph, answer: str, rendering: str) -> Verdict:
  """Judges an answer.

  Right: some walk from `start` along edges, in either direction, ends at an
  endpoint with the target's name and spells the answer. As the paper asks of
  a hop only that it be an edge, a walk may come back to a node.

  Args:
    graph: the graph that was asked about.
    answer: any string; none makes this raise.
    rendering: `text` or `compact`.

  Returns:
    The verdict, reward 1 or 0. `reason` is the first of `no_box`,
    `wrong_start`, `not_an_edge` (also: no node has that name) and
    `wrong_end` that applies. `solution` is the spelled node path, the
    lexicographically first of several, as `0-2-3-1`. `feedback` says how far
    the answer was a path; it does not tell a right one.

  Source: arXiv 2606.26091 App. B.4 (reward); the order of reasons is ours.
  """
  names = parse_answer(answer, rendering)
  if names is None:
    return _wrong(NO_BOX, [], 0, rendering)
  concepts = _concepts(graph, names)
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
  # Backward: keep the nodes from which the goal is still spelled. Forward
  # again: the smallest node at each step gives the first such path.
  reached[-1] &= goal
  for i in range(len(reached) - 2, -1, -1):
    reached[i] &= _spread(graph, reached[i + 1])
  path = [0]
  for step in reached[1:]:
    path.append(_lowest(graph.neighbours[path[-1]] & step))
  solution = '-'.join(map(str, path))
  return Verdict(True, 1.0, solution=solution, concepts=concepts)
