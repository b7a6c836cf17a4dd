"""What a small model is pretrained on: documents, and habits to look for."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Document(NamedTuple):
  """One pretraining document, without templates.

  Attributes:
    question: the rendered question.
    demonstration: a correct answer shown with it, or None.
    answer: what the author wrote.
  """

  question: str
  demonstration: str | None
  answer: str


class Probe(NamedTuple):
  """A way to ask questions that shows a habit of the model.

  Attributes:
    split: whose questions are asked.
    stream: name of the random stream of the samples.
    ask: from a question, its text and a demonstration, or None, as the model
      is shown them.
    found: from a question, an answer and whether the verifier takes it,
      what is to be seen: name of the metric to yes or no.
  """

  split: str
  stream: str
  ask: Callable[[Any], tuple[str, str | None]]
  found: Callable[[Any, str, bool], dict[str, bool]]


class Corpus(NamedTuple):
  """What pretraining needs of a task.

  Attributes:
    words: the vocabulary, each a token.
    draw: a document, from a `numpy.random.Generator` and the step's number.
    probes: habits that are measured with every evaluation. What several call
      by one name is averaged over them.
  """

  words: tuple[str, ...]
  draw: Callable[[Any, int], Document]
  probes: tuple[Probe, ...] = ()
