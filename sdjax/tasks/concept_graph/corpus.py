"""What a small model learns the task from, and the habits it takes on."""

import numpy as np

from sdjax.options import ConfigError
from sdjax.tasks.base import Question
from sdjax.tasks.concept_graph.author import Pretraining
from sdjax.tasks.concept_graph.documents import sample_document
from sdjax.tasks.concept_graph.graph import mended
from sdjax.tasks.concept_graph.options import ConceptGraph
from sdjax.tasks.concept_graph.rendering import render_answer, render_question
from sdjax.tasks.concept_graph.vocabulary import (
  CONCEPTS,
  PUNCTUATION,
  SHAPES,
  START,
)
from sdjax.tasks.corpus import Corpus, Document, Probe


def compact_words(config: ConceptGraph) -> tuple[str, ...]:
  """Lists every word a compact question, template or answer can hold.

  Distinct and in a fixed order: punctuation, `start`, shapes, names.
  """
  names = []
  for concept in list(CONCEPTS)[: config.num_concepts]:
    names += CONCEPTS[concept][: config.names_per_concept]
  return (*PUNCTUATION, START, *SHAPES, *names)


def target_routes(question: Question) -> list[str]:
  """The answers along the targets' chains, the easy target's first."""
  graph = question.payload
  return [
    render_answer(graph, chain, 'compact')
    for chain in graph.chains
    if graph.names[chain[-1]] == graph.target
  ]


def _shown(route: int, name: str) -> Probe:
  """What a right answer in the context does: is it copied, is it of use?"""

  def found(question: Question, answer: str, correct: bool) -> dict[str, bool]:
    return {
      'demonstration/correct': correct,
      f'demonstration/copied_{name}': answer == target_routes(question)[route],
    }

  return Probe(
    split='in_distribution',
    stream='demonstration',
    ask=lambda question: (question.text, target_routes(question)[route]),
    found=found,
  )


def _cut(name: str) -> Probe:
  """Whether the favourite route is walked, its missing edge shown or not.

  A model that does not see the cut walks it as often `with` as `without`.
  """

  def ask(question: Question) -> tuple[str, None]:
    graph = question.payload if name == 'with' else mended(question.payload)
    return render_question(graph, 'compact'), None

  def found(question: Question, answer: str, correct: bool) -> dict[str, bool]:
    del correct
    return {f'cut/{name}': answer == target_routes(question)[0]}

  return Probe(split='harder', stream='cut', ask=ask, found=found)


PROBES = (_shown(0, 'easy'), _shown(-1, 'other'), _cut('with'), _cut('without'))


def corpus(task: ConceptGraph, method: Pretraining) -> Corpus:
  """Makes documents by a careful author at first, then by the one given.

  Raises ConfigError if the rendering is not the compact one.
  """
  if task.rendering != 'compact':
    raise ConfigError(
      f'task.rendering={task.rendering!r}: documents exist for '
      "'compact' only; chat models bring their own pretraining."
    )
  careful = method.careful()

  def draw(rng: np.random.Generator, step: int) -> Document:
    author = careful if step < method.careful_steps else method
    return sample_document(rng, task, author)

  return Corpus(compact_words(task), draw, PROBES)
