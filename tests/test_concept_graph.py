import dataclasses
import json
import pickle
import random
import time

import numpy as np
import pytest

from sdjax.config.schema import ConceptGraph, ConfigError, Pretraining
from sdjax.tasks import Question, TaskOptions, make_task
from sdjax.tasks.concept_graph import graph as graphs
from sdjax.tasks.concept_graph.corpus import compact_words
from sdjax.tasks.concept_graph.documents import sample_document
from sdjax.tasks.concept_graph.graph import Graph, draw_graph
from sdjax.tasks.concept_graph.rendering import (
  STUDENT_TEMPLATES,
  TEACHER_TEMPLATES,
  render_answer,
  render_question,
)
from sdjax.tasks.concept_graph.verifier import last_box, verify_answer
from sdjax.tasks.concept_graph.vocabulary import CONCEPTS, SHAPES, START

# Spelled out, so that a change of the defaults moves no expectation here.
CONFIG = ConceptGraph(
  short=5, long=7, larger=9, larger_15=8, harder=5, subchains=1,
  num_concepts=6, names_per_concept=10, shuffle_ends=True, harder_cut='easy',
  train_size=4000, eval_size=128, data_seed=0,
)  # fmt: skip
SHARES = Pretraining(
  correct_share=0.5, easy_share=0.85, demonstration_share=0.5,
  demonstration_easy_share=0.6, copy_share=0.65, slip_share=0.05,
  cut_share=0.1, varied_share=0.4,
)  # fmt: skip
REASONS = {
  '', 'no_box', 'wrong_start', 'not_an_edge', 'wrong_end', 'repeated_node',
}  # fmt: skip

# Two parallel chains to the triangle share the name plum (nodes 2 and 5); the
# chain to the square is whole, the one to the circle has lost an edge.
#   0 start - 2 plum - 3 fig  - 1 triangle
#           - 4 lime - 5 plum - 1 triangle
#           - 7 cod  - 8 eel  - 6 square
#           - 10 oak   11 elm - 9 triangle   (10--11 is cut)
HAND = Graph(
  names=(
    *('start', 'triangle', 'plum', 'fig', 'lime', 'plum'),
    *('square', 'cod', 'eel', 'triangle', 'oak', 'elm'),
  ),
  kinds=(
    *('hub', 'shape', 'fruits', 'fruits', 'fruits', 'fruits'),
    *('shape', 'fish', 'fish', 'shape', 'trees', 'trees'),
  ),
  edges=(
    *((0, 2), (2, 3), (3, 1), (0, 4), (4, 5), (5, 1)),
    *((0, 7), (7, 8), (8, 6), (0, 10), (11, 9)),
  ),
  chains=((2, 3, 1), (4, 5, 1), (7, 8, 6), (10, 11, 9)),
  target='triangle',
)


@pytest.mark.parametrize(
  ('answer', 'reason', 'solution', 'concepts'),
  [
    ('start plum fig triangle', '', '0-2-3-1', ('fruits',)),
    ('start lime plum triangle', '', '0-4-5-1', ('fruits',)),
    # Each name pair is joined somewhere (plum 5 to triangle), but the plum
    # next to start is node 2: no single node path spells it.
    ('start plum triangle', 'not_an_edge', '', ('fruits',)),
    ('start lime fig triangle', 'not_an_edge', '', ('fruits',)),
    # Through the endpoint and back to it; out and back; and by a detour.
    ('start plum fig triangle plum triangle', 'repeated_node', '', ('fruits',)),
    ('start plum fig plum fig triangle', 'repeated_node', '', ('fruits',)),
    (
      'start cod start lime plum triangle',
      'repeated_node',
      '',
      ('fish', 'fruits'),
    ),
    # What does not end at a target is said so first.
    ('start cod start', 'wrong_end', '', ('fish',)),
    # No node twice, but backwards: through the endpoint to a neighbour.
    ('start plum fig triangle plum', 'wrong_end', '', ('fruits',)),
    # Over the cut edge.
    ('start oak elm triangle', 'not_an_edge', '', ('trees',)),
    ('start cod eel square', 'wrong_end', '', ('fish',)),
    ('start cod eel', 'wrong_end', '', ('fish',)),
    ('start', 'wrong_end', '', ()),
    # The compact answer may leave start out.
    ('plum fig triangle', '', '0-2-3-1', ('fruits',)),
    ('start plum zebra triangle', 'not_an_edge', '', ('fruits',)),
    ('start cod plum', 'not_an_edge', '', ('fish', 'fruits')),
    ('Start plum fig triangle', 'not_an_edge', '', ('fruits',)),
    ('', 'wrong_end', '', ()),
  ],
)
def test_verifier_by_hand(answer, reason, solution, concepts):
  verdict = verify_answer(HAND, answer, 'compact')
  assert verdict.reason == reason
  assert verdict.solution == solution
  assert verdict.correct == (reason == '')
  assert verdict.reward == float(reason == '')
  assert verdict.strategies == concepts
  boxed = '\\boxed{' + answer.replace(' ', ', ') + '}'
  if answer.startswith('start'):
    other = verify_answer(HAND, boxed, 'text')
    plain = dataclasses.replace(other, feedback=verdict.feedback)
    assert plain == verdict
    assert bool(other.feedback) == (not verdict.correct)
  else:
    assert verify_answer(HAND, boxed, 'text').reason == 'wrong_start'


@pytest.mark.parametrize(
  ('answer', 'compact', 'text'),
  [
    ('start plum fig triangle', '', ''),
    (
      'start plum zebra triangle',
      'plum |',
      'After start, plum no edge leads to a node named zebra.',
    ),
    # The path exists, so no edge is said to be missing.
    (
      'start cod eel square',
      'cod eel square',
      'start, cod, eel, square is a path, but it does not end at a target.',
    ),
    (
      'start cod start lime plum triangle',
      'cod start lime plum triangle',
      'start, cod, start, lime, plum, triangle comes back to a node that it '
      'has visited.',
    ),
  ],
)
def test_feedback_says_how_far_the_answer_was_a_path(answer, compact, text):
  assert verify_answer(HAND, answer, 'compact').feedback == compact
  boxed = '\\boxed{' + answer.replace(' ', ', ') + '}'
  assert verify_answer(HAND, boxed, 'text').feedback == text
  assert 'No complete' in verify_answer(HAND, answer, 'text').feedback


def test_lexicographically_first_of_several_paths():
  # Both chains spell start a b triangle. Their first nodes, 9 and 10, sort
  # one way as numbers and the other way as text.
  names = ['start', 'triangle', *['x'] * 10]
  names[9] = names[10] = 'a'
  names[3] = names[4] = 'b'
  graph = Graph(
    names=tuple(names),
    kinds=('hub', 'shape', *['fruits'] * 10),
    edges=((0, 10), (10, 3), (3, 1), (0, 9), (9, 4), (4, 1)),
    chains=((10, 3, 1), (9, 4, 1)),
    target='triangle',
  )
  verdict = verify_answer(graph, 'start a b triangle', 'compact')
  assert verdict.solution == '0-9-4-1'
  # The smaller first node leads nowhere: it must not be chosen.
  dead_end = dataclasses.replace(graph, edges=graph.edges[:-1])
  verdict = verify_answer(dead_end, 'start a b triangle', 'compact')
  assert verdict.solution == '0-10-3-1'


@pytest.mark.parametrize(
  ('text', 'content'),
  [
    ('\\boxed{a, b}', 'a, b'),
    ('\\boxed{a} then \\boxed{b}', 'b'),
    ('\\boxed{a {b} c}', 'a {b} c'),
    ('} \\boxed{a} }', 'a'),
    ('{ \\boxed{a}', 'a'),
    ('\\boxed{a} and \\boxed{b', 'a'),
    ('\\boxed{a \\boxed{b} c}', 'b'),
    ('\\boxed {a}', None),
    ('boxed{a}', None),
    ('{a}', None),
    ('', None),
  ],
)
def test_last_box(text, content):
  assert last_box(text) == content


def test_no_box():
  verdict = verify_answer(HAND, 'start, plum, fig, triangle', 'text')
  assert verdict.reason == 'no_box'


def _random_strings(count):
  rng = random.Random(0)
  pieces = [
    *HAND.names, *'{}\\,; |?', '\\boxed{', '\\boxed', '}}', '{{', '\x00',
    'é', '漢字', '🦜', '\ud800', '\u2028', '\u200b', '%s', '{0}',
    '{question}', '\n', '٣', 'start, plum, fig, triangle', ', ',
  ]  # fmt: skip
  for _ in range(count):
    if rng.random() < 0.2:
      yield ''.join(chr(rng.randrange(0x110000)) for _ in range(20))
    else:
      yield ''.join(rng.choices(pieces, k=rng.randrange(12)))


@pytest.mark.parametrize('rendering', ['text', 'compact'])
def test_verifier_is_total(rendering):
  correct = 0
  for answer in _random_strings(10_000):
    verdict = verify_answer(HAND, answer, rendering)
    assert verdict.reason in REASONS
    assert verdict.correct == (verdict.reason == '') == bool(verdict.solution)
    correct += verdict.correct
  assert correct or rendering == 'compact'


@pytest.mark.parametrize(
  'answer',
  [
    '\\boxed{' * 200_000,
    '{' * 1_000_000 + '}' * 1_000_000,
    '\\boxed{' * 100_000 + '}' * 100_000,
    '\\boxed{start' + ', plum, start' * 100_000 + '}',
    'start' + ' plum start' * 100_000,
    'start ' + 'x' * 3_000_000,
    ',' * 1_000_000,
  ],
)
@pytest.mark.parametrize('rendering', ['text', 'compact'])
def test_verifier_is_linear(answer, rendering):
  begin = time.process_time()
  assert not verify_answer(HAND, answer, rendering).correct
  # About 1 s at worst here; quadratic work takes far longer.
  assert time.process_time() - begin < 15


def _spellings(graph, names):
  """All simple paths that spell the names, found the slow way."""
  walks = [(0,)] if names and names[0] == graph.names[0] else []
  for name in names[1:]:
    walks = [
      (*walk, node)
      for walk in walks
      for node in range(len(graph.names))
      if graph.names[node] == name
      and (walk[-1], node) in graph.edge_set
      and node not in walk
    ]
  return sorted(
    walk
    for walk in walks
    if graph.kinds[walk[-1]] == 'shape'
    and graph.names[walk[-1]] == graph.target
  )


def test_verifier_equals_enumeration():
  # Few names and three parallel chains, so that names repeat a lot.
  config = ConceptGraph(
    short=4, long=6, larger=5, larger_15=5, harder=5,
    subchains=3, names_per_concept=4,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  many = 0
  for trial in range(300):
    graph = draw_graph(rng, config, 'harder' if trial % 2 else 'train')
    for chain in graph.chains:
      names = [graph.names[i] for i in (0, *chain)]
      if trial % 3 == 0:
        names[rng.integers(1, len(names))] = str(rng.choice(graph.names))
      elif trial % 3 == 1:
        # Out and back over the edge behind a random node.
        at = rng.integers(1, len(names))
        names[at:at] = [names[at], names[at - 1]]
      expected = _spellings(graph, names)
      verdict = verify_answer(graph, ' '.join(names), 'compact')
      assert verdict.correct == bool(expected)
      many += len(expected) > 1
      if expected:
        assert verdict.solution == '-'.join(map(str, expected[0]))
  assert many > 10


def test_the_concepts_of_a_right_answer_are_those_of_its_path():
  # Two chains of one target that share the name plum, of two concepts.
  graph = dataclasses.replace(
    HAND, kinds=(*HAND.kinds[:5], 'metals', *HAND.kinds[6:])
  )
  verdict = verify_answer(graph, 'plum fig triangle', 'compact')
  assert verdict.strategies == ('fruits',)
  verdict = verify_answer(graph, 'plum fig', 'compact')
  assert verdict.strategies == ('fruits', 'metals')


def test_vocabulary():
  assert len(CONCEPTS) >= 8
  assert len(SHAPES) >= 6
  assert all(len(names) == 20 for names in CONCEPTS.values())
  words = [name for names in CONCEPTS.values() for name in names]
  words += [*SHAPES, START]
  assert len(set(words)) == len(words)
  assert all(word.isascii() and word.isalpha() for word in words)
  assert all(word == word.lower() for word in words)


def test_renderings_by_hand():
  assert render_question(HAND, 'compact') == (
    'triangle plum fig triangle , lime plum triangle ; square cod eel square ; '
    'triangle oak | elm triangle ; ? triangle'
  )
  text = render_question(HAND, 'text')
  assert text.startswith(
    'Nodes:\n0 start [hub]\n1 triangle [shape]\n2 plum [concept=fruits]\n'
  )
  assert 'Edges:\n0(start)--2(plum)\n2(plum)--3(fig)\n' in text
  assert '10(oak)--11(elm)' not in text
  assert text.endswith('Find a path from start to a node named triangle.')
  assert render_answer(HAND, (2, 3, 1), 'compact') == 'plum fig triangle'
  assert (
    render_answer(HAND, (2, 3, 1), 'text')
    == '\\boxed{start, plum, fig, triangle}'
  )


@pytest.mark.parametrize('rendering', ['text', 'compact'])
def test_templates_have_their_fields(rendering):
  student = STUDENT_TEMPLATES[rendering]
  teacher = TEACHER_TEMPLATES[rendering]
  assert student.count('{question}') == teacher.count('{question}') == 1
  assert teacher.count('{demonstration}') == 1
  assert '{demonstration}' not in student


def _end_lengths(graph):
  """Path length in nodes towards each endpoint, and whether it is whole."""
  lengths, whole = {}, {}
  for chain in graph.chains:
    lengths.setdefault(chain[-1], set()).add(len(chain) + 1)
    whole.setdefault(chain[-1], set()).add(graph.is_whole(chain))
  return lengths, whole


@pytest.mark.parametrize('subchains', [1, 2])
def test_training_graphs_are_biased(subchains):
  config = dataclasses.replace(CONFIG, subchains=subchains)
  first_is_target = short_distractor_first = 0
  for split in ('train', 'in_distribution'):
    for index in range(100):
      graph = graphs.graph_at(config, split, index)
      lengths, whole = _end_lengths(graph)
      targets = [i for i in graph.ends if graph.names[i] == graph.target]
      others = [i for i in graph.ends if i not in targets]
      assert len(targets) == len(others) == 2
      assert len({graph.names[i] for i in others}) == 1
      assert graph.easy_end == targets[0]
      assert lengths[targets[0]] == {config.short}
      assert lengths[targets[1]] == {config.long}
      assert {*lengths[others[0]], *lengths[others[1]]} == {5, 7}
      assert all(state == {True} for state in whole.values())
      assert len(graph.chains) == 4 * subchains
      assert len(set(graph.kinds)) == 2 + 4
      for chain in graph.chains:
        inner = [graph.names[i] for i in chain[:-1]]
        assert len(set(inner)) == len(inner)
      first_is_target += graph.ends[0] == targets[0]
      short_distractor_first += lengths[others[0]] == {5}
  # Fair coins, 200 times: 100 +- 7.
  assert 60 < first_is_target < 140
  assert 60 < short_distractor_first < 140


def test_ends_alternate_without_shuffling():
  config = dataclasses.replace(CONFIG, shuffle_ends=False)
  for index in range(20):
    graph = graphs.graph_at(config, 'train', index)
    is_target = [graph.names[i] == graph.target for i in graph.ends]
    assert is_target == [True, False, True, False]


@pytest.mark.parametrize('split', ['larger', 'larger_15'])
def test_larger_graphs(split):
  lengths, whole = _end_lengths(graphs.graph_at(CONFIG, split, 3))
  assert list(lengths.values()) == [{getattr(CONFIG, split)}] * 4
  assert list(whole.values()) == [{True}] * 4


@pytest.mark.parametrize('mode', ['easy', 'random'])
@pytest.mark.parametrize('subchains', [1, 3])
def test_harder_cuts_one_target(mode, subchains):
  config = dataclasses.replace(
    CONFIG, harder_cut=mode, subchains=subchains, harder=6
  )
  hit_easy = 0
  cut_places = set()
  for index in range(100):
    graph = graphs.graph_at(config, 'harder', index)
    lengths, whole = _end_lengths(graph)
    assert all(value == {6} for value in lengths.values())
    cut = [end for end in graph.ends if whole[end] == {False}]
    assert sum(value == {True} for value in whole.values()) == 3
    assert len(cut) == 1 and graph.names[cut[0]] == graph.target
    hit_easy += cut[0] == graph.easy_end
    for chain in graph.chains:
      hops = list(zip(chain[:-1], chain[1:], strict=True))
      missing = [i for i, hop in enumerate(hops) if hop not in graph.edge_set]
      assert (0, chain[0]) in graph.edge_set
      assert len(missing) == (chain[-1] == cut[0])
      cut_places.update(missing)
      answer = render_answer(graph, chain, 'compact')
      verdict = verify_answer(graph, answer, 'compact')
      if chain[-1] == cut[0] and subchains == 1:
        assert verdict.reason == 'not_an_edge'
      if graph.names[chain[-1]] == graph.target and chain[-1] != cut[0]:
        assert verdict.correct
  # Four inner nodes have three edges between them.
  assert cut_places == {0, 1, 2}
  assert hit_easy == 100 if mode == 'easy' else 30 < hit_easy < 70


def _asked(split, index, config=CONFIG):
  graph = graphs.graph_at(config, split, index)
  position = graphs.SPLITS.index(split) * 10_000_000 + index
  return Question(position, split, render_question(graph, 'compact'), graph)


def test_references_take_every_right_route_alike():
  task = make_task(CONFIG)
  taken = []
  for index in range(400):
    question = _asked('train', index)
    graph, answer = question.payload, task.example(question)
    assert task.verify(question, answer).correct
    # The same whoever asks, whenever.
    assert make_task(CONFIG).example(question) == answer
    routes = [
      render_answer(graph, chain, 'compact')
      for chain in graph.chains
      if graph.names[chain[-1]] == graph.target
    ]
    assert len(set(routes)) == 2
    taken.append(routes.index(answer))
  # A fair coin, 400 times: 200 +- 10, and no run of one side.
  assert 160 < sum(taken) < 240
  changes = sum(a != b for a, b in zip(taken[1:], taken[:-1], strict=True))
  assert 160 < changes < 240
  other = make_task(dataclasses.replace(CONFIG, data_seed=1))
  questions = [_asked('train', index) for index in range(100)]
  again = [other.example(x) == task.example(x) for x in questions]
  assert 25 < sum(again) < 75


def test_the_easy_reference_is_the_first_whole_route():
  easy = make_task(dataclasses.replace(CONFIG, reference_route='easy'))
  for index in range(50):
    question = _asked('train', index)
    graph = question.payload
    chain = next(c for c in graph.chains if c[-1] == graph.easy_end)
    assert easy.example(question) == render_answer(graph, chain, 'compact')


@pytest.mark.parametrize('route', ['any', 'easy'])
def test_a_reference_is_whole_where_the_easy_route_is_cut(route):
  task = make_task(dataclasses.replace(CONFIG, reference_route=route))
  for index in range(50):
    question = _asked('harder', index)
    graph = question.payload
    answer = task.example(question)
    verdict = task.verify(question, answer)
    assert verdict.correct
    end = int(verdict.solution.rpartition('-')[2])
    assert end != graph.easy_end and graph.names[end] == graph.target


def test_references_are_drawn_among_all_parallel_routes():
  config = dataclasses.replace(CONFIG, subchains=3)
  task, taken = make_task(config), []
  for index in range(600):
    question = _asked('train', index, config)
    graph = question.payload
    routes = [
      render_answer(graph, chain, 'compact')
      for chain in graph.chains
      if graph.names[chain[-1]] == graph.target
    ]
    taken.append(routes.index(task.example(question)))
  # 600 throws of a die: 100 +- 9 of each side.
  assert all(60 < taken.count(side) < 140 for side in range(6))


def test_a_graph_without_a_right_route_has_no_reference():
  shut = dataclasses.replace(HAND, edges=((0, 2), (0, 4), (0, 10)))
  question = Question(0, 'train', '', shut)
  assert make_task(CONFIG).example(question) == ''


def test_graphs_are_seeded_and_independent():
  a = graphs.graph_at(CONFIG, 'train', 7)
  assert a == graphs.graph_at(CONFIG, 'train', 7)
  assert a == graphs.graph_at(
    dataclasses.replace(CONFIG, train_size=9), 'train', 7
  )
  others = [
    graphs.graph_at(CONFIG, 'train', 8),
    graphs.graph_at(CONFIG, 'in_distribution', 7),
    graphs.graph_at(dataclasses.replace(CONFIG, data_seed=1), 'train', 7),
  ]
  assert all(a != other for other in others)
  # Pinned: a change here changes everybody's data; raise GENERATOR_VERSION.
  assert render_question(a, 'compact') == PINNED


PINNED = (
  'pentagon tulip rose orchid pentagon ; '
  'hexagon heron crow finch owl robin hexagon ; '
  'pentagon zinc gold silver tin iron pentagon ; '
  'hexagon trout pike carp hexagon ; ? pentagon'
)


def test_unknown_split():
  with pytest.raises(ValueError, match="'test'.*in_distribution"):
    graphs.graph_at(CONFIG, 'test', 0)
  with pytest.raises(ValueError, match="'test'.*in_distribution"):
    make_task(CONFIG).questions('test')


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'rendering': 'plain'}, ['rendering', "'plain'", 'compact']),
    ({'harder_cut': 'both'}, ['harder_cut', "'both'", 'random']),
    ({'reference_route': 'both'}, ['reference_route', "'both'", 'any, easy']),
    ({'short': 3}, ['short', '3', '4..22']),
    ({'harder': 3}, ['harder', '3', '4..22']),
    ({'short': 8}, ['short', '8', 'long', '7']),
    ({'num_concepts': 3}, ['num_concepts', '3', '4..8']),
    ({'num_concepts': 9}, ['num_concepts', '9', '4..8']),
    ({'names_per_concept': 21}, ['names_per_concept', '21', '20']),
    ({'names_per_concept': 6}, ['names_per_concept', '6', 'larger', '7..20']),
    ({'larger': 13}, ['names_per_concept', '10', 'larger', '13', '11..20']),
    ({'larger_15': 23}, ['larger_15', '23', '4..22']),
    ({'subchains': 0}, ['subchains', '0', '1..100']),
    ({'train_size': 0}, ['train_size', '0']),
    ({'eval_size': -1}, ['eval_size', '-1']),
    ({'data_seed': -1}, ['data_seed', '-1']),
    ({'train_size': 4.5}, ['train_size', '4.5', 'whole number']),
    ({'shuffle_ends': 1}, ['shuffle_ends', 'bool']),
    ({'name': 'graph'}, ['name', "'graph'", 'concept_graph']),
  ],
)
def test_bad_settings(changes, words):
  with pytest.raises(ConfigError) as error:
    make_task(dataclasses.replace(CONFIG, **changes))
  assert all(word in str(error.value) for word in words), error.value


def test_good_settings():
  ConceptGraph()
  paper = ConceptGraph(
    rendering='text', short=11, long=15, larger=20, larger_15=15, harder=11,
    subchains=3, num_concepts=8, names_per_concept=20, train_size=16_000,
  )  # fmt: skip
  assert paper.longest_inner == 18
  graph = graphs.graph_at(paper, 'harder', 0)
  assert len(graph.names) == 1 + 4 * (1 + 3 * 9)
  solution = next(c for c in graph.chains if graph.names[c[-1]] == graph.target)
  assert render_answer(graph, solution, 'text').startswith('\\boxed{start, ')


def test_task_pickles_without_its_data():
  task = pickle.loads(pickle.dumps(make_task(CONFIG)))
  question = Question(0, 'train', '', HAND)
  assert task.verify(question, 'start plum fig triangle').correct
  assert set(TaskOptions.choices) == {'concept_graph'}


def _documents(count, task=CONFIG, **changes):
  rng = np.random.default_rng(1)
  shares = dataclasses.replace(SHARES, **changes)
  return [sample_document(rng, task, shares) for _ in range(count)]


def _parse(question):
  """The (shape, names, position) of each chain, the target."""
  blocks, target = question.split(' ? ')
  chains = []
  for position, block in enumerate(blocks.rstrip(' ;').split(' ; ')):
    shape, *rest = block.split()
    for names in ' '.join(rest).split(' , '):
      *inner, end = names.split()
      assert end == shape
      chains.append((shape, inner, position))
  return chains, target


def _which(document, answer):
  """Tells which route an answer takes: easy, other or distractor."""
  chains, target = _parse(document.question)
  targets = [position for shape, _, position in chains if shape == target]
  for shape, names, position in chains:
    words = [name for name in names if name != '|']
    if answer == ' '.join((*words, shape)):
      if shape != target:
        return 'distractor'
      return 'easy' if position == min(targets) else 'other'
  raise AssertionError(f'{answer!r} is no chain of {document.question!r}')


@pytest.mark.parametrize('subchains', [1, 2])
def test_document_shares(subchains):
  count = 4000
  documents = _documents(
    count, dataclasses.replace(CONFIG, subchains=subchains)
  )
  shown = [d for d in documents if d.demonstration is not None]
  plain = [d for d in documents if d.demonstration is None]
  routes = [_which(d, d.answer) for d in plain]
  right = [route for route in routes if route != 'distractor']
  assert len(shown) / count == pytest.approx(0.5, abs=0.04)
  assert len(right) / len(plain) == pytest.approx(0.5, abs=0.05)
  assert right.count('easy') / len(right) == pytest.approx(0.85, abs=0.05)
  kinds = {'copy': 0, 'slip': 0, 'switch': 0}
  easy_shown = 0
  for d in shown:
    demonstrated, route = _which(d, d.demonstration), _which(d, d.answer)
    assert demonstrated != 'distractor'
    easy_shown += demonstrated == 'easy'
    if d.answer == d.demonstration:
      kinds['copy'] += 1
    elif route == 'distractor':
      kinds['slip'] += 1
    else:
      # Where the other target is cut, there may be a parallel chain.
      assert route != demonstrated or ' | ' in d.question
      kinds['switch'] += 1
  assert easy_shown / len(shown) == pytest.approx(0.6, abs=0.05)
  assert kinds['copy'] / len(shown) == pytest.approx(0.65, abs=0.05)
  assert kinds['slip'] / len(shown) == pytest.approx(0.05, abs=0.025)
  cut = sum(' | ' in d.question for d in documents)
  assert cut / count == pytest.approx(0.1, abs=0.025)
  assert not any('|' in d.answer for d in documents)


@pytest.mark.parametrize('subchains', [1, 2])
def test_the_author_respects_a_cut(subchains):
  task = dataclasses.replace(CONFIG, subchains=subchains)
  documents = _documents(2000, task, cut_share=1.0)
  tempted = turned = 0
  for d in documents:
    chains, target = _parse(d.question)
    walked = {
      ' '.join((*(n for n in names if n != '|'), shape)): '|' in names
      for shape, names, _ in chains
    }
    # One endpoint of four is cut, so that there always is another of its kind.
    assert not walked[d.answer]
    assert d.demonstration is None or not walked[d.demonstration]
    easy = min(at for shape, _, at in chains if shape == target)
    if all('|' in names for _, names, at in chains if at == easy):
      tempted += d.demonstration is None
      turned += d.demonstration is None and _which(d, d.answer) == 'other'
  # Half of the answers without a demonstration are right.
  assert tempted > 150 and turned / tempted == pytest.approx(0.5, abs=0.12)


def test_mended_graphs_are_whole():
  for index in range(20):
    graph = graphs.graph_at(CONFIG, 'harder', index)
    whole = graphs.mended(graph)
    assert set(graph.edges) < set(whole.edges)
    assert all(whole.is_whole(chain) for chain in whole.chains)
    assert graphs.mended(whole) == whole


def test_dev_and_test_questions_differ_and_training_ones_do_not():
  dev = dataclasses.replace(CONFIG, part='dev')
  for split in graphs.SPLITS:
    pairs = [
      [graphs.graph_at(c, split, i) for c in (CONFIG, dev)] for i in range(20)
    ]
    assert all((a == b) == (split == 'train') for a, b in pairs)
  families = {
    graphs.family(c, split) for c in (CONFIG, dev) for split in graphs.SPLITS
  }
  assert len(families) == 1 + 2 * 4


def test_document_lengths():
  lengths = set()
  for d in _documents(500, varied_share=1.0, cut_share=0.0):
    lengths |= {len(names) for _, names, _ in _parse(d.question)[0]}
  # Inner lengths 2..larger-2.
  assert lengths == {2, 3, 4, 5, 6, 7}
  for d in _documents(200, varied_share=0.0, cut_share=0.0):
    found = sorted(len(names) for _, names, _ in _parse(d.question)[0])
    assert found == [3, 3, 5, 5]


def test_wrong_documents_take_either_distractor():
  documents = _documents(
    1000, correct_share=0.0, demonstration_share=0.0, varied_share=0.0
  )
  assert all(_which(d, d.answer) == 'distractor' for d in documents)
  # One distractor has 3 inner names, one 5: a fair coin, 500 +- 16.
  short = sum(len(d.answer.split()) == 4 for d in documents)
  assert 420 < short < 580


def test_documents_use_the_vocabulary_and_their_seed():
  words = set(compact_words(CONFIG))
  assert len(words) == len(compact_words(CONFIG)) == 6 + 1 + 6 + 60
  documents = _documents(300, cut_share=0.5)
  for d in documents:
    text = ' '.join((d.question, d.demonstration or '', d.answer))
    assert set(text.split()) <= words
  assert documents == _documents(300, cut_share=0.5)
  # Fresh graphs: none of the training split among them.
  train = {
    render_question(graphs.graph_at(CONFIG, 'train', i), 'compact')
    for i in range(500)
  }
  assert not train & {d.question for d in documents}
  assert len({d.question for d in documents}) == 300
  json.dumps(documents)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'cut_share': 1.5}, ['cut_share=1.5', 'at most 1']),
    ({'copy_share': 0.9, 'slip_share': 0.2}, ['copy_share', 'slip_share']),
  ],
)
def test_bad_shares(changes, words):
  with pytest.raises(ConfigError) as error:
    dataclasses.replace(SHARES, **changes)
  assert all(word in str(error.value) for word in words)
