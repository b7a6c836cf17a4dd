"""No question of an evaluation is among the training questions."""

import dataclasses
import functools

import pytest

from sdjax.config.schema import ConceptGraph
from sdjax.tasks.concept_graph import graph as graphs
from sdjax.tasks.concept_graph.rendering import render_question

SHIPPED = ConceptGraph()
EVALUATED = [split for split in graphs.SPLITS if split != 'train']


def content(graph):
  """What a graph is and asks, however its nodes and edges are ordered."""
  named = [tuple(sorted((graph.names[a], graph.names[b])))
           for a, b in graph.edges]  # fmt: skip
  return frozenset(named), graph.target


@functools.cache
def drawn(split, data_seed):
  config = dataclasses.replace(SHIPPED, data_seed=data_seed)
  size = SHIPPED.train_size if split == 'train' else SHIPPED.eval_size
  return [graphs.graph_at(config, split, i) for i in range(size)]


@pytest.mark.parametrize('data_seed', [0, 1])
@pytest.mark.parametrize('split', EVALUATED)
def test_evaluations_ask_what_training_does_not(split, data_seed):
  """By their text, by what they mean, and with every cut mended."""
  train, asked = drawn('train', SHIPPED.data_seed), drawn(split, data_seed)
  assert (len(train), len(asked)) == (4000, 128)
  for reading in (lambda g: render_question(g, 'compact'), content, whole):
    learned, tested = {reading(g) for g in train}, {reading(g) for g in asked}
    assert len(tested) == 128
    assert len(learned) > 3990
    assert not learned & tested


def whole(graph):
  """The named chains, cut edges mended."""
  chains = [tuple(graph.names[i] for i in chain) for chain in graph.chains]
  return frozenset(chains), graph.target


@pytest.mark.parametrize('split', EVALUATED)
def test_fresh_questions_are_fresh(split):
  """Another data seed gives another set of the same kind."""
  sets = [{content(g) for g in drawn(split, seed)} for seed in (0, 1)]
  assert not sets[0] & sets[1]
