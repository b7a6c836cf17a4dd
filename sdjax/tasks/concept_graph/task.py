"""The concept-graph task as the library's pipelines see it."""

from typing import Any

import numpy as np

from sdjax.tasks.base import SPLIT_SIZE, Question, Questions, Task, Verdict
from sdjax.tasks.concept_graph import store
from sdjax.tasks.concept_graph.author import Pretraining
from sdjax.tasks.concept_graph.corpus import corpus
from sdjax.tasks.concept_graph.graph import SPLITS, family
from sdjax.tasks.concept_graph.options import ConceptGraph
from sdjax.tasks.concept_graph.rendering import (
  BOTH_TEMPLATES,
  FEEDBACK_TEMPLATES,
  STUDENT_TEMPLATES,
  TEACHER_TEMPLATES,
  render_answer,
  render_question,
)
from sdjax.tasks.concept_graph.verifier import verify_answer
from sdjax.tasks.corpus import Corpus

_REFERENCE = 1_000_003
"""Names the random stream of reference answers; no split has this number."""


class _Graphs:
  """A split's rendered graphs, each read from the data set when asked for."""

  def __init__(self, source: Any, split: str, rendering: str):
    self._source, self._split, self._rendering = source, split, rendering

  def __len__(self) -> int:
    return len(self._source)

  def __getitem__(self, place: int) -> tuple[str, Any]:
    from sdjax.tasks.concept_graph.builder import from_example

    example = self._source[place]
    if int(example['id']) != place:
      raise ValueError(
        f'row {place} of split {self._split} holds graph {example["id"]}: '
        'the data set is out of order'
      )
    graph = from_example(example)
    return render_question(graph, self._rendering), graph


class ConceptGraphTask(Task):
  """Questions from seeded graphs, judged by walking the graph."""

  name = 'concept_graph'
  splits: tuple[str, ...] = SPLITS

  def __init__(self, config: ConceptGraph):
    self.config = config
    rendering = config.rendering
    self.student_template = config.template or STUDENT_TEMPLATES[rendering]
    self.teacher_template = TEACHER_TEMPLATES[rendering]
    self.feedback_template = FEEDBACK_TEMPLATES[rendering]
    self.both_template = BOTH_TEMPLATES[rendering]

  def __reduce__(self) -> Any:
    """Pickles the settings only: a verifier's worker opens no files."""
    return ConceptGraphTask, (self.config,)

  def questions(self, split: str) -> Questions:
    """Returns the questions of a split, read one by one when indexed.

    The same position always holds the same question. The first call builds the
    data set where the cache does not hold it. Raises ValueError if there is no
    such split, or a file of the data set was damaged, and OSError if the cache
    folder cannot be written.
    """
    source = store.open_source(self.config, split)
    graphs = _Graphs(source, split, self.config.rendering)
    return Questions(graphs, split, family(self.config, split) * SPLIT_SIZE)

  def example(self, question: Question) -> str:
    """Returns a correct answer to a question; empty where there is none.

    It goes along a whole chain to a target, which of them being what
    `reference_route` says, and depends on the question and `data_seed` only.
    """
    graph = question.payload
    right = [
      chain
      for chain in graph.chains
      if graph.names[chain[-1]] == graph.target and graph.is_whole(chain)
    ]
    if not right:
      return ''
    chosen = 0  # The easy target is listed first.
    if self.config.reference_route == 'any':
      seed = (self.config.data_seed, _REFERENCE, question.question_id)
      chosen = np.random.default_rng(seed).integers(len(right))
    return render_answer(graph, right[chosen], self.config.rendering)

  def verify(self, question: Question, answer: str) -> Verdict:
    """Judges an answer by `verify_answer`; no string makes this raise."""
    return verify_answer(question.payload, answer, self.config.rendering)

  def corpus(self, method: Pretraining) -> Corpus:
    """Returns the documents that the shipped model learned from."""
    return corpus(self.config, method)
