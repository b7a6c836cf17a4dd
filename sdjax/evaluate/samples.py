"""What is known of one question's graded answers."""

import dataclasses
from collections.abc import Collection, Hashable, Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Samples:
  """One question's graded answers, n of them; what is not known is empty.

  Attributes:
    correct: n verdicts.
    texts: n answers.
    solutions: n identities (two correct answers with the same one are the
      same solution); not read where the answer is wrong.
    votes: n keys that a majority vote counts; None for an answer without.
    strategies: n collections of the strategies an answer takes, for instance
      the concepts it names, wrong answers included.
    demonstrations: n collections of texts that an answer was given.
    scores: n numbers of a judge, higher is better.
    lengths: n, counted tokens.
    entropies: n, nats, the sum over an answer's counted tokens of the entropy
      of the next-token distribution.
    reasons: n, why an answer was rejected, '' when correct.
    flags: by name n bool, whose share is reported under that name.

  Raises ValueError when a field has not one entry an answer, or the strategies
  of an answer are a str (its letters would be counted).
  """

  correct: Sequence[bool]
  texts: Sequence[str] = ()
  solutions: Sequence[Hashable] = ()
  votes: Sequence[Hashable] = ()
  strategies: Sequence[Collection[Hashable]] = ()
  demonstrations: Sequence[Sequence[str]] = ()
  scores: Sequence[float] = ()
  lengths: Sequence[int] = ()
  entropies: Sequence[float] = ()
  reasons: Sequence[str] = ()
  flags: Mapping[str, Sequence[bool]] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Checks that all fields speak of the same answers."""
    fields = dict(vars(self))
    fields |= fields.pop('flags')
    for name, value in fields.items():
      if len(value) not in (0, len(self.correct)):
        raise ValueError(
          f'{name} has {len(value)} entries, correct has '
          f'{len(self.correct)}; give one an answer, or none.'
        )
    for names in self.strategies:
      if isinstance(names, str):
        raise ValueError(
          f'the strategies of an answer are the str {names!r}; give a '
          f'collection of names, e.g. ({names!r},).'
        )

  @property
  def num_samples(self) -> int:
    """Answers."""
    return len(self.correct)

  @property
  def num_correct(self) -> int:
    """Correct answers."""
    return sum(map(bool, self.correct))

  @property
  def num_tokens(self) -> int:
    """Counted tokens of all answers."""
    return sum(self.lengths)
