"""The concept-graph task: find a path in a star of chains of words.

Source: arXiv 2606.26091 sec. 4.1 and App. B.4; the generator's free choices
are ours and are said where they are made.
"""

from sdjax.tasks.concept_graph.graph import SPLITS, Graph, draw_graph
from sdjax.tasks.concept_graph.options import validate
from sdjax.tasks.concept_graph.rendering import render_answer, render_question
from sdjax.tasks.concept_graph.task import ConceptGraphTask, make
from sdjax.tasks.concept_graph.verifier import verify_answer
from sdjax.tasks.concept_graph.vocabulary import compact_words

__all__ = [
  'SPLITS',
  'ConceptGraphTask',
  'Graph',
  'compact_words',
  'draw_graph',
  'make',
  'render_answer',
  'render_question',
  'validate',
  'verify_answer',
]
