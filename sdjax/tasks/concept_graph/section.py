"""The options of the concept-graph task."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class ConceptGraph:
  """The concept-graph task (arXiv 2606.26091 sec. 4.1; gaps filled by us).

  Path lengths count nodes, `start` and the endpoint included.

  Attributes:
    name: selects this task.
    rendering: `text` (node list, edge list, boxed answer: for chat models) or
      `compact` (a few dozen tokens: for the shipped model).
    short: path length of the easy target in training.
    long: path length of the other target in training.
    larger: length of every path in the split `larger`.
    larger_15: length of every path in the split `larger_15`.
    harder: length of every path in the split `harder`.
    subchains: parallel chains from `start` to each endpoint.
    num_concepts: concepts the four chains are drawn from.
    names_per_concept: names each concept has.
    template: what the student is asked; `{question}` is replaced, once.
      Empty: the rendering's own.
    shuffle_ends: whether targets and distractors come in random order; the
      target listed first is the easy one either way.
    harder_cut: which target's chains lose an edge in `harder`: `easy` or
      `random`.
    part: which graphs the evaluation splits hold: `dev`, for choosing
      settings by, or `test`, which no setting was chosen on, for reporting.
    reference_route: which right route is the task's own answer, as `opsd` and
      others show it: `any` (each whole chain to a target is equally likely,
      and a question always gets the same) or `easy` (the easy target's, the
      other's where that is cut; a student shown nothing else loses the other
      route, whatever the method).
    train_size: graphs in the split `train`.
    eval_size: graphs in each evaluation split.
    data_seed: seed of the graphs.
    cache_dir: where the built data set is kept; empty: `$SDJAX_CACHE`, else
      `~/.cache/sdjax`.
  """

  name: str = 'concept_graph'
  rendering: str = 'compact'
  template: str = ''
  short: int = 4
  long: int = 6
  larger: int = 8
  larger_15: int = 7
  harder: int = 5
  subchains: int = 1
  num_concepts: int = 6
  names_per_concept: int = 8
  shuffle_ends: bool = True
  harder_cut: str = 'easy'
  part: str = 'test'
  reference_route: str = 'any'
  train_size: int = 4000
  eval_size: int = 128
  data_seed: int = 0
  cache_dir: str = ''
