# pyright: reportIncompatibleVariableOverride=false
"""Which answers a rollout's teachers are shown: strategies and options."""

import collections
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from sdjax.options import ConfigError, Count, Option, Section, Size
from sdjax.tasks.base import FIELDS, Question, Task

Given = Callable[[Question], Sequence[str]]
"""Gives the answers to a question that no rollout gave."""


class Candidates(NamedTuple):
  """What one rollout may be shown.

  Attributes:
    texts: distinct, in random order (`Strategy.draws`), or in the group's.
    own: the rollout's text.
    solution: of each text, what it solves the question by.
  """

  texts: list[str]
  own: str
  solution: Mapping[str, str]


class Strategy(Option):
  """How demonstrations are chosen.

  Attributes:
    shows: whether an answer is shown at all; else feedback alone.
    from_peers: whether they are the question's other correct rollouts.
    draws: whether the candidates come in random order.
    always_there: whether each question has an answer whatever its rollouts.
    exclude_self: a correct rollout is never its own demonstration.
    exclude_same_text: nor is a peer with the same text, which is what most
      correct rollouts are shown where a question has few right texts
      (`train/shown_own_text`).
  """

  shows: ClassVar[bool] = True
  from_peers: ClassVar[bool] = True
  draws: ClassVar[bool] = True
  always_there: ClassVar[bool] = False
  exclude_self: bool = True
  exclude_same_text: bool = False

  def arrange(
    self, candidates: Candidates, rng: np.random.Generator
  ) -> list[str]:
    """Returns the texts, those to be shown first in front."""
    del rng
    return candidates.texts

  def given(self, task: Task) -> tuple[Given | None, tuple[str, ...]]:
    """Returns who gives answers in the peers' place, and notes about it."""
    del task
    return None, ()


@dataclass(frozen=True)
class _Peers(Strategy):
  """A strategy that chooses among the other correct rollouts."""

  exclude_self: bool = True
  exclude_same_text: bool = False

  def __post_init__(self):
    """Refuses what could never hold."""
    super().__post_init__()
    if self.exclude_same_text and not self.exclude_self:
      raise ConfigError(
        f'{self.name}(exclude_self=False) does nothing with '
        "exclude_same_text=True: a rollout's own text is never shown to it."
      )

  def words(self) -> str:
    """Says where they come from, for a person."""
    others = 'other ' if self.exclude_self else ''
    text = self.said.replace('correct', f'{others}correct')
    if self.exclude_same_text:
      text += " whose text is not the rollout's own"
    return text


@dataclass(frozen=True)
class Uniform(_Peers, name='uniform'):
  """Each correct peer is equally likely."""

  said = 'drawn uniformly from the correct rollouts'


@dataclass(frozen=True)
class First(_Peers, name='first'):
  """The first correct peers in the group."""

  draws: ClassVar[bool] = False
  said = 'the first of the correct rollouts'


@dataclass(frozen=True)
class MostDifferent(_Peers, name='most_different'):
  """Those that share the smallest part of their words; ties at random."""

  said = 'the correct rollouts least like it'

  def arrange(self, candidates, rng):
    """Returns the texts by the Jaccard index of their words, rising."""
    del rng
    words = set(candidates.own.split())

    def overlap(text: str) -> float:
      other = set(text.split())
      return len(words & other) / max(len(words | other), 1)

    return sorted(candidates.texts, key=overlap)


@dataclass(frozen=True)
class Balanced(_Peers, name='balanced'):
  """Each solution among the correct peers is equally likely.

  However many peers found it; all are shown before one is shown twice.
  """

  said = 'drawn uniformly from the solutions that rollouts found'

  def arrange(self, candidates, rng):
    """Returns the texts, a solution after another."""
    of = candidates.solution
    turn, rounds = {}, collections.Counter()
    for text in candidates.texts:
      turn[text] = rounds[of[text]]
      rounds[of[text]] += 1
    # Which solution comes first must not follow how many peers found it.
    order = sorted(rounds)
    lot = dict(zip(order, rng.permutation(len(order)), strict=True))
    return sorted(candidates.texts, key=lambda x: (turn[x], lot[of[x]]))


@dataclass(frozen=True)
class Reference(Strategy, name='reference'):
  """The task's own answer, whether or not a peer is correct."""

  always_there: ClassVar[bool] = True
  from_peers: ClassVar[bool] = False
  exclude_self: ClassVar[bool] = False
  said = "the task's own"

  def given(self, task):
    """Returns the task's answers."""
    return lambda question: [x for x in [task.example(question)] if x], ()


@dataclass(frozen=True)
class External(Strategy, name='external'):
  """Answers from a file.

  Attributes:
    file: JSONL with `question_id` and `answer`; lines that say `"correct":
      false` are left out, so the `samples_final.jsonl` of `eval.save_samples`
      will do.
    draw: by `frequency`, each line being equally likely, so that what the
      author says often is shown often; or `distinct`, each text being equally
      likely however many lines hold it.
  """

  file: str
  draw: Literal['frequency', 'distinct'] = 'frequency'
  from_peers: ClassVar[bool] = False
  exclude_self: ClassVar[bool] = False

  def given(self, task):
    """Reads the file, and holds it against the task's questions."""
    from sdjax.feedback.demonstration_file import read_external

    external = read_external(self.file, task, self.draw)
    return external.of, external.notes()

  def words(self) -> str:
    """Says where they come from, for a person."""
    often = self.draw == 'frequency'
    how = ' by frequency' if often else ', each text equally likely'
    return f'drawn from a file{how}'


@dataclass(frozen=True)
class NoDemonstration(Strategy, name='none'):
  """No answer is shown: feedback alone."""

  shows: ClassVar[bool] = False
  from_peers: ClassVar[bool] = False
  exclude_self: ClassVar[bool] = False
  said = 'none'


@dataclass(frozen=True)
class Demonstrations(Section):
  """What the teacher is shown that the student is not.

  Attributes:
    strategy: how answers are chosen.
    count: K, demonstrations a rollout, each its own teacher.
    contrast: wrong peers each rollout is shown as well, each in a context of
      its own, for the rule `rlcsd`.
    feedback: whether the teacher is shown what the verifier says of a failed
      rollout: `never`, `without_peer` (where there is no demonstration) or
      `always`.
    template: the teacher's question; `{question}` and `{demonstration}` are
      replaced, once each. Empty: the task's own.
    feedback_template: the same with `{question}` and `{feedback}`.
    both_template: the same with all three.
    max_context: widest teacher context in tokens; when a context is longer,
      feedback and demonstration are cut, never the question or the
      instruction.
  """

  strategy: Strategy = Uniform()
  count: Size = 1
  contrast: Count = 0
  feedback: Literal['never', 'without_peer', 'always'] = 'never'
  template: str = ''
  feedback_template: str = ''
  both_template: str = ''
  max_context: Size = 36

  def __post_init__(self):
    """Refuses options that do nothing under the others, or contradict them."""
    super().__post_init__()
    strategy, feedback = self.strategy, self.feedback
    if not strategy.shows and feedback == 'never':
      raise ConfigError(
        "demonstrations.strategy='none' shows the teacher nothing; set "
        'demonstrations.feedback.'
      )
    if strategy.always_there and feedback == 'without_peer':
      raise ConfigError(
        "demonstrations.feedback='without_peer' does nothing with strategy="
        f"{str(strategy)!r}: there is always an answer to show; use 'always'."
      )
    question, demonstration, told = FIELDS
    both = f'feedback={feedback!r} and strategy={str(strategy)!r}'
    for name, needed, acts, why in (
      ('', (question, demonstration), strategy.shows, "strategy='none'"),
      ('feedback_', (question, told), feedback != 'never', "feedback='never'"),
      ('both_', FIELDS, feedback == 'always' and strategy.shows, both),
    ):
      name += 'template'
      template = getattr(self, name)
      if template and not acts:
        raise ConfigError(f'demonstrations.{name} does nothing with {why}.')
      check_template(f'demonstrations.{name}', template, needed)
      for foreign in FIELDS:
        if foreign in template and foreign not in needed:
          raise ConfigError(
            f'demonstrations.{name}={template!r} must not hold {foreign}; '
            'both_template is for both.'
          )
    if not strategy.shows and self.count != 1:
      raise ConfigError(
        f"demonstrations.count={self.count} does nothing with strategy='none'."
      )

  def check(self, num_samples: int, at: str = 'demonstrations') -> None:
    """Raises a `ConfigError`, naming `at`, for groups that are too small."""
    strategy = self.strategy
    if strategy.from_peers and strategy.exclude_self and num_samples < 2:
      raise ConfigError(
        f'rollout.num_samples={num_samples} leaves no rollout a peer to learn '
        "from; use at least 2, or strategy='external(...)' or 'reference'."
      )
    most = num_samples - strategy.exclude_self if strategy.from_peers else None
    if strategy.always_there:
      most = 1
    if most is not None and self.count > most:
      raise ConfigError(
        f'{at}.count={self.count} is more than there can be: {most} '
        f'with strategy={str(strategy)!r} and rollout.num_samples='
        f'{num_samples}.'
      )


def check_template(name: str, template: str, needed: Sequence[str]) -> None:
  """Raises a `ConfigError` for a template that lacks a field or repeats it.

  Not for an empty one. `name` is the option's, dotted.
  """
  for field in needed if template else ():
    if template.count(field) != 1:
      raise ConfigError(f'{name}={template!r} must hold {field} exactly once.')


def choose(
  answers: Sequence[str],
  correct: Sequence[bool],
  own: int,
  strategy: Strategy,
  count: int,
  rng: np.random.Generator,
  solutions: Sequence[str] | None = None,
) -> tuple[str, ...]:
  """Chooses the correct peers that one rollout is shown.

  Of the group's answers, `own` is the rollout itself; `solutions` identify
  what each solves the question by, None: each text is a solution of its own.
  Returns at most `count` distinct texts, fewer where the correct peers that
  may be shown have fewer.
  """
  peers = [
    g
    for g, right in enumerate(correct)
    if right
    and not (strategy.exclude_self and g == own)
    and not (strategy.exclude_same_text and answers[g] == answers[own])
  ]
  if strategy.draws:
    peers = [peers[i] for i in rng.permutation(len(peers))]
  candidates = Candidates(
    texts=list(dict.fromkeys(answers[g] for g in peers)),
    own=answers[own],
    solution=dict(zip(answers, solutions or answers, strict=True)),
  )
  return tuple(strategy.arrange(candidates, rng)[:count])


def draw_distinct(
  answers: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[str, ...]:
  """Draws distinct texts, or all where there are fewer.

  Each is drawn, among those not yet drawn, in proportion to how often it is
  there.
  """
  # The texts of a random order of all answers, each at its first place.
  shuffled = (answers[int(i)] for i in rng.permutation(len(answers)))
  return tuple(dict.fromkeys(shuffled))[:count]
