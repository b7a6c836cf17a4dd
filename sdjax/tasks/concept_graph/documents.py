"""Documents a small model is pretrained on: the task by an imperfect author.

Every document is a question on a graph of its own, perhaps a demonstration,
and an answer, all in the compact rendering. The author often goes wrong
without a demonstration and favours the easy route; with one, the author
repeats it or takes the other target's route, and seldom slips. A chain that
is cut is not walked while another of its kind is whole.
"""

import functools
from collections.abc import Sequence

import numpy as np

from sdjax.tasks.concept_graph.author import Pretraining
from sdjax.tasks.concept_graph.graph import (
  Graph,
  build_graph,
  draw_ends,
  training_lengths,
)
from sdjax.tasks.concept_graph.options import ConceptGraph
from sdjax.tasks.concept_graph.rendering import render_answer, render_question
from sdjax.tasks.corpus import Document

Chain = tuple[int, ...]


def _choose(
  rng: np.random.Generator,
  graph: Graph,
  liked: Sequence[Chain],
  otherwise: Sequence[Chain] = (),
) -> Chain:
  """Draws a whole chain: of those liked, or else of the others.

  Where all of both are cut, one of those liked is walked all the same.
  """
  for chains in (liked, otherwise):
    if whole := [chain for chain in chains if graph.is_whole(chain)]:
      return whole[int(rng.random() * len(whole))]
  return liked[int(rng.random() * len(liked))]


def sample_document(
  rng: np.random.Generator, task: ConceptGraph, pretraining: Pretraining
) -> Document:
  """Draws one document on a fresh graph, in the compact rendering.

  The author respects a cut: where the route the author would take is cut, the
  answer is the other target's, and where a wrong one is, the other wrong one.
  So what is right is right, and habits show where there is a choice. The
  document depends on nothing but `rng` and the two settings.
  """
  varied, cut, cut_at, shown, shown_easy, kind, easy = rng.random(7).tolist()
  ends = draw_ends(rng, task)
  if varied < pretraining.varied_share:
    # Inner lengths 2..larger-2; a path has two nodes more.
    spread = task.larger - 3
    lengths = [4 + int(u * spread) for u in rng.random(4).tolist()]
  else:
    lengths = training_lengths(task, ends)
  cut_end = int(cut_at * 4) if cut < pretraining.cut_share else None
  graph = build_graph(rng, task, ends, lengths, cut_end)

  # Chains are grouped by endpoint, in endpoint order.
  per_end = [
    graph.chains[i * task.subchains : (i + 1) * task.subchains]
    for i in range(4)
  ]
  distractors = [chain for end in ends.distractors for chain in per_end[end]]
  routes = per_end[ends.easy], per_end[ends.other]
  demonstration = None
  if shown < pretraining.demonstration_share:
    if shown_easy >= pretraining.demonstration_easy_share:
      routes = routes[::-1]
    demonstration = _choose(rng, graph, *routes)
    if kind < pretraining.slip_share:
      answer = _choose(rng, graph, distractors)
    elif kind < pretraining.slip_share + pretraining.copy_share:
      answer = demonstration
    else:
      answer = _choose(rng, graph, *routes[::-1])
  elif kind < pretraining.correct_share:
    if easy >= pretraining.easy_share:
      routes = routes[::-1]
    answer = _choose(rng, graph, *routes)
  else:
    answer = _choose(rng, graph, distractors)
  write = functools.partial(render_answer, graph, rendering='compact')
  return Document(
    question=render_question(graph, 'compact'),
    demonstration=None if demonstration is None else write(demonstration),
    answer=write(answer),
  )
