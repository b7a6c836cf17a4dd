# pyright: reportIncompatibleVariableOverride=false
"""Which answers a rollout's teachers are shown: strategies and options."""

import collections
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from annotated_types import Ge

from sdjax.options import ConfigError, Option, check_fields
from sdjax.tasks.base import Question, Task

FIELDS = ('{question}', '{demonstration}', '{feedback}')
"""What a template may hold."""

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

  def words(self) -> str:
    """Says where they come from, for a person."""
    raise NotImplementedError


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
    text = self._words().replace('correct', f'{others}correct')
    if self.exclude_same_text:
      text += " whose text is not the rollout's own"
    return text

  def _words(self) -> str:
    raise NotImplementedError


@dataclass(frozen=True)
class Uniform(_Peers, name='uniform'):
  """Each correct peer is equally likely."""

  def _words(self) -> str:
    return 'drawn uniformly from the correct rollouts'


@dataclass(frozen=True)
class First(_Peers, name='first'):
  """The first correct peers in the group."""

  draws: ClassVar[bool] = False

  def _words(self) -> str:
    return 'the first of the correct rollouts'


@dataclass(frozen=True)
class MostDifferent(_Peers, name='most_different'):
  """Those that share the smallest part of their words; ties at random."""

  def arrange(self, candidates, rng):
    """Returns the texts by the Jaccard index of their words, rising."""
    del rng
    words = set(candidates.own.split())

    def overlap(text: str) -> float:
      other = set(text.split())
      return len(words & other) / max(len(words | other), 1)

    return sorted(candidates.texts, key=overlap)

  def _words(self) -> str:
    return 'the correct rollouts least like it'


@dataclass(frozen=True)
class Balanced(_Peers, name='balanced'):
  """Each solution among the correct peers is equally likely.

  However many peers found it; all are shown before one is shown twice.
  """

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
    return sorted(
      candidates.texts, key=lambda text: (turn[text], lot[of[text]])
    )

  def _words(self) -> str:
    return 'drawn uniformly from the solutions that rollouts found'


@dataclass(frozen=True)
class Reference(Strategy, name='reference'):
  """The task's own answer, whether or not a peer is correct."""

  from_peers: ClassVar[bool] = False
  always_there: ClassVar[bool] = True
  exclude_self: ClassVar[bool] = False
  exclude_same_text: ClassVar[bool] = False

  def given(self, task):
    """Returns the task's answers."""
    return lambda question: [x for x in [task.example(question)] if x], ()

  def words(self) -> str:
    """Says where they come from, for a person."""
    return "the task's own"


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
  exclude_same_text: ClassVar[bool] = False

  def given(self, task):
    """Reads the file, and holds it against the task's questions."""
    from sdjax.feedback.demonstration_file import read_external

    external = read_external(self.file, task, self.draw)
    return external.of, external.notes()

  def words(self) -> str:
    """Says where they come from, for a person."""
    how = {
      'frequency': ' by frequency',
      'distinct': ', each text equally likely',
    }[self.draw]
    return f'drawn from a file{how}'


@dataclass(frozen=True)
class NoDemonstration(Strategy, name='none'):
  """No answer is shown: feedback alone."""

  shows: ClassVar[bool] = False
  from_peers: ClassVar[bool] = False
  exclude_self: ClassVar[bool] = False
  exclude_same_text: ClassVar[bool] = False

  def words(self) -> str:
    """Says where they come from, for a person."""
    return 'none'


@dataclass(frozen=True)
class Demonstrations:
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
  count: Annotated[int, Ge(1)] = 1
  contrast: Annotated[int, Ge(0)] = 0
  feedback: Literal['never', 'without_peer', 'always'] = 'never'
  template: str = ''
  feedback_template: str = ''
  both_template: str = ''
  max_context: Annotated[int, Ge(1)] = 36

  def __post_init__(self):
    """Refuses options that do nothing under the others, or contradict them."""
    check_fields(self)
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
    for name, needed, acts, why in (
      (
        'template',
        ('{question}', '{demonstration}'),
        strategy.shows,
        "strategy='none'",
      ),
      (
        'feedback_template',
        ('{question}', '{feedback}'),
        feedback != 'never',
        "feedback='never'",
      ),
      (
        'both_template',
        FIELDS,
        feedback == 'always' and strategy.shows,
        f'feedback={feedback!r} and strategy={str(strategy)!r}',
      ),
    ):
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

  def check(self, num_samples: int) -> None:
    """Refuses groups that are too small.

    Args:
      num_samples: G.

    Raises:
      ConfigError: naming what there can be.
    """
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
        f'demonstrations.count={self.count} is more than there can be: {most} '
        f'with strategy={str(strategy)!r} and rollout.num_samples='
        f'{num_samples}.'
      )


def check_template(name: str, template: str, needed: Sequence[str]) -> None:
  """Refuses a template that lacks a field or repeats it; not an empty one.

  Args:
    name: the option, dotted.
    template: its value.
    needed: fields it must hold.

  Raises:
    ConfigError: naming the field.
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

  Args:
    answers: the group's G texts.
    correct: whether each is correct.
    own: which of them is the rollout itself.
    strategy: one that chooses among peers.
    count: K; fewer are returned when the correct peers have fewer distinct
      texts.
    rng: for the strategies that draw.
    solutions: G identities of what the answers solve the question by; None:
      each text is a solution of its own.

  Returns:
    At most K distinct texts; empty when no rollout that may be shown is
    correct.
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
  """Draws distinct texts by how often each is there.

  Args:
    answers: texts, which may repeat.
    count: K.
    rng: the source of randomness.

  Returns:
    K texts, or all where there are fewer: each was drawn, among those not yet
    drawn, in proportion to its number.
  """
  # The texts of a random order of all answers, each at its first place.
  shuffled = (answers[int(i)] for i in rng.permutation(len(answers)))
  return tuple(dict.fromkeys(shuffled))[:count]
