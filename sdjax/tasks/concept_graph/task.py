"""The concept-graph task as the library's pipelines see it."""

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from sdjax.tasks.base import Question, Verdict
from sdjax.tasks.concept_graph import store
from sdjax.tasks.concept_graph.graph import SPLITS, family
from sdjax.tasks.concept_graph.options import MAX_SIZE, validate
from sdjax.tasks.concept_graph.rendering import (
  BOTH_TEMPLATES,
  FEEDBACK_TEMPLATES,
  STUDENT_TEMPLATES,
  TEACHER_TEMPLATES,
  render_answer,
  render_question,
)
from sdjax.tasks.concept_graph.section import ConceptGraph
from sdjax.tasks.concept_graph.verifier import verify_answer

_REFERENCE = 1_000_003
"""Names the random stream of reference answers; no split has this number."""


class _Questions(Sequence[Question]):
  """A split's questions, each read from the data set when asked for."""

  def __init__(self, source: Any, split: str, config: ConceptGraph):
    self._source = source
    self._split = split
    self._rendering = config.rendering
    self._first_id = family(config, split) * MAX_SIZE

  def __len__(self) -> int:
    return len(self._source)

  @overload
  def __getitem__(self, index: int) -> Question: ...

  @overload
  def __getitem__(self, index: slice) -> Sequence[Question]: ...

  def __getitem__(self, index: int | slice) -> Question | Sequence[Question]:
    if isinstance(index, slice):
      return [self[i] for i in range(*index.indices(len(self)))]
    from sdjax.tasks.concept_graph.builder import from_example

    position = range(len(self))[index]
    example = self._source[position]
    if int(example['id']) != position:
      raise ValueError(
        f'row {position} of split {self._split} holds graph {example["id"]}: '
        'the data set is out of order'
      )
    graph = from_example(example)
    return Question(
      question_id=self._first_id + position,
      split=self._split,
      text=render_question(graph, self._rendering),
      payload=graph,
    )


class ConceptGraphTask:
  """Questions from seeded graphs, judged by walking the graph.

  Attributes:
    name: `concept_graph`.
    splits: names of the splits.
    config: the task's settings.
    student_template: what the student is asked.
    teacher_template: what the teacher is asked.
    feedback_template: likewise, when it is shown feedback.
    both_template: likewise, when it is shown both.
  """

  name = 'concept_graph'
  splits: tuple[str, ...] = SPLITS

  def __init__(self, config: ConceptGraph):
    validate(config)
    self.config = config
    self.student_template = (
      config.template or STUDENT_TEMPLATES[config.rendering]
    )
    self.teacher_template = TEACHER_TEMPLATES[config.rendering]
    self.feedback_template = FEEDBACK_TEMPLATES[config.rendering]
    self.both_template = BOTH_TEMPLATES[config.rendering]
    self._opened: dict[str, _Questions] = {}

  def __reduce__(self) -> Any:
    """Pickles the settings only: a verifier's worker opens no files."""
    return ConceptGraphTask, (self.config,)

  def questions(self, split: str) -> Sequence[Question]:
    """Returns the questions of a split, read one by one when indexed.

    The first call builds the data set where the cache does not hold it.

    Args:
      split: one of `splits`.

    Returns:
      The questions; the same position always holds the same question.

    Raises:
      ValueError: there is no such split, or a file of the data set was
        damaged.
      OSError: the cache folder cannot be written.
    """
    if split not in self.splits:
      raise ValueError(
        f'no split {split!r} in task {self.name}; allowed: '
        f'{", ".join(self.splits)}'
      )
    if split not in self._opened:
      source = store.open_source(self.config, split)
      self._opened[split] = _Questions(source, split, self.config)
    return self._opened[split]

  def example(self, question: Question) -> str:
    """Returns a correct answer to a question; empty where there is none.

    Args:
      question: from `questions`.

    Returns:
      The answer along a whole chain to a target, which of them being what
      `reference_route` says. It depends on the question and `data_seed` only.
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
    """Judges an answer; no string makes this raise.

    Args:
      question: from `questions`.
      answer: the completion, decoded, without special tokens.

    Returns:
      The verdict; see `verify_answer`.
    """
    return verify_answer(question.payload, answer, self.config.rendering)


def make(config: ConceptGraph) -> ConceptGraphTask:
  """Makes the task.

  Args:
    config: its settings.

  Returns:
    The task; nothing is built or read before `questions` is called.

  Raises:
    ConfigError: a setting is not allowed.
  """
  return ConceptGraphTask(config)
