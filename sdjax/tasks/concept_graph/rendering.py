r"""Two ways to write a graph: `text` for chat models, `compact` for small ones.

Compact, words split by spaces: for every endpoint in id order its shape, then
its chains outward from start, each ending in the shape, parallel chains apart
by `,`, a missing edge as `|`, and `;` at the end; then `?` and the target. Its
answer is the names of the path behind `start`, up to the shape. So choosing a
chain is to look up what followed the question's last word earlier on, which a
small model can learn; that is why the shape stands in front of its chains and
`start` is left out.

Text: numbered nodes with their kinds, then the edges, then the request. Its
answer is the names of the path, comma separated, inside `\boxed{}`.
"""

from collections.abc import Sequence

from sdjax.tasks.concept_graph.graph import HUB, SHAPE, Graph, hops

_REQUEST = (
  'Below is an undirected graph. Every node has a number, a name and a kind; '
  'different nodes may share a name.\n\n'
  '{question}\n\n'
  'A path begins at the hub and moves along one listed edge at a time. You '
  'may think first. Then give the NAMES (not the numbers) of all the nodes on '
  'your path, in order and separated by commas, inside \\boxed{}. On another '
  'graph, an answer could look like this: '
  '\\boxed{start, london, paris, rome, cone}'
)

_HINT = '\n\nHere is a correct answer to this very question:\n\n{demonstration}'

_FEEDBACK = (
  '\n\nAn earlier answer to this very question was wrong. This is what is '
  'wrong with it:\n\n{feedback}'
)

_AGAIN = '\n\nNow give a correct answer of your own, written in the same form.'

STUDENT_TEMPLATES = {'compact': '{question}', 'text': _REQUEST}
"""Rendering to what the student is asked."""

TEACHER_TEMPLATES = {
  'compact': '{demonstration} = {question}',
  'text': _REQUEST + _HINT + _AGAIN,
}
"""Rendering to what the teacher is asked."""

FEEDBACK_TEMPLATES = {
  'compact': '{feedback} = {question}',
  'text': _REQUEST + _FEEDBACK + _AGAIN,
}
"""Rendering to what a teacher is asked that is shown feedback."""

BOTH_TEMPLATES = {
  'compact': '{feedback} , {demonstration} = {question}',
  'text': _REQUEST + _HINT + _FEEDBACK + _AGAIN,
}
"""Rendering to what a teacher is asked that is shown both."""


def _compact(graph: Graph) -> str:
  words = []
  for end in graph.ends:
    words.append(graph.names[end])
    for chain in graph.chains:
      if chain[-1] != end:
        continue
      for hop in hops(chain):
        if hop not in graph.edge_set:
          words.append('|')
        words.append(graph.names[hop[1]])
      words.append(',')
    words[-1] = ';'
  return ' '.join((*words, '?', graph.target))


def _text(graph: Graph) -> str:
  lines = ['Nodes:']
  for node, (name, kind) in enumerate(
    zip(graph.names, graph.kinds, strict=True)
  ):
    label = kind if kind in (HUB, SHAPE) else f'concept={kind}'
    lines.append(f'{node} {name} [{label}]')
  lines += ['', 'Edges:']
  for a, b in graph.edges:
    lines.append(f'{a}({graph.names[a]})--{b}({graph.names[b]})')
  lines += [
    '',
    f'Find a path from {graph.names[0]} to a node named {graph.target}.',
  ]
  return '\n'.join(lines)


def render_question(graph: Graph, rendering: str) -> str:
  """Writes a graph and what is asked of it, without any template."""
  return _compact(graph) if rendering == 'compact' else _text(graph)


def render_answer(graph: Graph, chain: Sequence[int], rendering: str) -> str:
  """Writes the answer that walks a chain outward, over any gap in it."""
  if rendering == 'compact':
    return ' '.join(graph.names[node] for node in chain)
  names = [graph.names[node] for node in (0, *chain)]
  return '\\boxed{' + ', '.join(names) + '}'
