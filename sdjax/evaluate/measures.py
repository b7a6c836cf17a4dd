"""The one table of measures: what is counted in graded answers.

A measure is a function of ONE question's graded answers, `Samples`:

  @measure(needs=('texts',))
  def longest(samples: Samples) -> float:
    '''Letters of the longest answer.'''
    return max(map(len, samples.texts))

is all that a new one takes: its name and description are the function's, and
the evaluations of a run, `sdjax.evaluate`, the report's tables and pictures
and the alarms all read the table. It returns None where a question has no
value, which then does not count in the mean.

Where many questions are much faster counted at once, or where a measure has
several numbers (pass@1, pass@2, ...), the function is marked `bulk`: it takes
a list of questions and returns float [Q], NaN where none, or several by name.
"""

import collections
import itertools
import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from sdjax.evaluate import pass_at_k as curves
from sdjax.evaluate import selection, text, vendi
from sdjax.evaluate import self_bleu as bleu
from sdjax.evaluate.samples import Samples
from sdjax.evaluate.table import (
  MEASURES,
  Column,
  Questions,
  Setting,
  Values,
  measure,
)


def measure_all(
  questions: Questions, setting: Setting, slow: bool = True
) -> dict[str, Column]:
  """Measures some questions by all that applies to them.

  Returns the columns by name, aliases included; without the slow measures if
  so asked.
  """
  columns: dict[str, Column] = {}
  for one in MEASURES.values():
    if slow or not one.slow:
      columns |= one.columns(questions, setting)
  return columns


@measure('pass@k', bulk=True)
def pass_at_k(questions: Questions, setting: Setting) -> Values:
  """Chance that one of k samples of a question is correct, unbiased."""
  return _pass_curve(questions, setting.ks)


@measure(bulk=True, heading='gain')
def pass_gain(questions: Questions, setting: Setting) -> Values:
  """Pass@k at the largest k minus pass@1: what more samples buy."""
  if setting.ks[-1] == 1:
    return {}
  first, last = _pass_curve(questions, [1, setting.ks[-1]]).values()
  return last - first


@measure(bulk=True)
def pass_slope(questions: Questions, setting: Setting) -> Values:
  """Rise of pass@k each time k doubles, by least squares."""
  if len(setting.ks) < 2:
    return {}
  curve = list(_pass_curve(questions, setting.ks).values())
  return curves.pass_slope(np.stack(curve, axis=-1), setting.ks)


@measure('maj@k', bulk=True, needs=('votes',))
def maj_at_k(questions: Questions, setting: Setting) -> Values:
  """Chance that a vote of k answers by solution elects a correct one."""
  fields = 'votes', 'correct'
  return _curve('maj', selection.maj_at_k, questions, setting.ks, *fields)


@measure('best_of@k', bulk=True, needs=('scores',))
def best_of_k(questions: Questions, setting: Setting) -> Values:
  """Chance that of k answers the one with the highest score is correct.

  Answers that tie share it equally.
  """
  fields = 'scores', 'correct'
  return _curve('best_of', selection.best_of_k, questions, setting.ks, *fields)


# Counting distinct solutions, one that came up once in 64 samples weighs as
# much as one that came up 63 times. The entropy of their shares, and its
# exponential, Hill's number of order 1 (Hill 1973), weigh them by how often
# they come up. It is too small on average, the more so the fewer the answers:
# compare only equally many.
@measure(needs=('solutions',), alarm=True)
def effective_solutions(samples: Samples) -> float:
  """Exp of the entropy of the correct solutions, 0 without any."""
  return math.exp(solution_entropy(samples)) if samples.num_correct else 0.0


@measure(needs=('solutions',))
def solution_entropy(samples: Samples) -> float:
  """Entropy of the shares of the correct solutions, nats, 0 if at most one."""
  counts = _correct_solutions(samples)
  share = np.fromiter(counts.values(), np.float64) / max(counts.total(), 1)
  # Adding 0 makes the entropy of a single solution 0.0 and not -0.0.
  return float(-np.sum(share * np.log(share))) + 0.0


@measure(
  needs=('strategies',),
  aliases=('strategies_correct',),
  heading='concepts, correct',
  axis='concepts,\ncorrect samples',
  alarm=True,
)
def concepts_correct(samples: Samples) -> int:
  """Distinct concepts named in the correct samples, 0 without any."""
  # A question without a correct answer is not left out: a model that answers
  # nothing is not diverse.
  used = itertools.compress(samples.strategies, samples.correct)
  return len(set().union(*used))


@measure(
  needs=('solutions',),
  aliases=('distinct_solutions',),
  heading='distinct paths',
  axis='distinct\ncorrect paths',
)
def distinct_paths(samples: Samples) -> int:
  """Different correct solutions among the samples, 0 without any."""
  return len(_correct_solutions(samples))


# The paper's measure of diversity: arXiv 2606.26091 sec. 4.1.
@measure(
  needs=('strategies',),
  heading='concepts, all',
  axis='concepts,\nall samples',
)
def concepts(samples: Samples) -> int:
  """Distinct concepts named in all samples of a question, right or wrong."""
  return len(set().union(*samples.strategies))


@measure(needs=('texts',))
def correct_words(samples: Samples) -> int:
  """Distinct words, between white space, of the correct answers."""
  answers = itertools.compress(samples.texts, samples.correct)
  return len({word for answer in answers for word in answer.split()})


@measure(bulk=True, needs=('texts',), slow=True)
def distinct_n(questions: Questions, setting: Setting) -> Values:
  """Unique n-grams over all n-grams of the answers, n = 1, 2, 3."""
  ratios_QN = text.distinct_n([q.texts for q in questions], 3)
  return {f'distinct_{n}': v for n, v in enumerate(ratios_QN.T, 1)}


@measure(bulk=True, needs=('texts',), slow=True)
def self_bleu(questions: Questions, setting: Setting) -> Values:
  """BLEU-4 against the other answers, 0..100; none for a single answer."""
  return bleu.self_bleu([q.texts for q in questions])


@measure('vendi', bulk=True, needs=('texts',), slow=True)
def vendi_score(questions: Questions, setting: Setting) -> Values:
  """Vendi score, in answers, of word 1- and 2-grams."""
  return vendi.vendi_scores([q.texts for q in questions])


@measure(bulk=True, needs=('texts',), slow=True)
def embedding_diversity(questions: Questions, setting: Setting) -> Values:
  """Mean of 1 - cos over the pairs of answers, by a sentence encoder."""
  if setting.embed is None:
    return {}
  texts = [q.texts for q in questions]
  return vendi.embedding_diversities(texts, setting.embed)


@measure(needs=('texts', 'demonstrations'), slow=True)
def copy_overlap(samples: Samples) -> float | None:
  """Share of an answer's words that is one run of words of a demonstration.

  The mean over the answers that had one.
  """
  pairs = zip(samples.texts, samples.demonstrations, strict=True)
  shares = [text.copy_share(answer, shown) for answer, shown in pairs if shown]
  return sum(shares) / len(shares) if shares else None


# arXiv 2606.26091 sec. 4.4: self-distillation has the LOWER entropy on concept
# graphs, but there it does not tell RL with a diversity reward from plain RL;
# on science questions it has the HIGHER entropy and the lower pass@16.
@measure(
  needs=('lengths', 'entropies'),
  per='num_tokens',
  heading='token entropy',
  axis='token entropy\n(nats)',
  digits=3,
)
def token_entropy(samples: Samples) -> float:
  """Mean nats per token.

  It can fall while variety stays and rise while variety falls: do not read it
  as diversity.
  """
  return sum(samples.entropies)


@measure(needs=('lengths',), per='num_samples')
def length(samples: Samples) -> float:
  """Tokens a sample."""
  return samples.num_tokens


@measure('FLAG', bulk=True, needs=('flags',), per='num_samples')
def flag_shares(questions: Questions, setting: Setting) -> Values:
  """Share of samples of each flag, such as `finished`."""
  return {
    name: np.asarray([sum(q.flags[name]) for q in questions])
    for name in questions[0].flags
  }


@measure('reason/NAME', bulk=True, needs=('reasons',), per='num_samples')
def reason_shares(questions: Questions, setting: Setting) -> Values:
  """Share of samples rejected for that reason."""
  wrong = [
    [why for why, right in zip(q.reasons, q.correct, strict=True) if not right]
    for q in questions
  ]
  return {
    f'reason/{name or "unnamed"}': np.asarray([w.count(name) for w in wrong])
    for name in sorted(set().union(*wrong))
  }


def _curve(
  name: str,
  function: Callable[..., np.ndarray],
  questions: Questions,
  ks: Sequence[int],
  *fields: str,
) -> dict[str, np.ndarray]:
  """A measure at each k, [Q]; NaN for questions with fewer answers."""
  rows = [[getattr(q, field) for q in questions] for field in fields]
  curve = {}
  for k in ks:
    curve[f'{name}@{k}'] = value_Q = np.full(len(questions), np.nan)
    enough = [q for q, one in enumerate(questions) if one.num_samples >= k]
    if enough:
      value_Q[enough] = function(*([row[q] for q in enough] for row in rows), k)
  return curve


def _pass_curve(
  questions: Questions, ks: Sequence[int]
) -> dict[str, np.ndarray]:
  fields = 'num_samples', 'num_correct'
  return _curve('pass', curves.pass_at_k, questions, ks, *fields)


def _correct_solutions(samples: Samples) -> collections.Counter[Hashable]:
  """How many correct answers have each solution."""
  pairs = zip(samples.solutions, samples.correct, strict=True)
  for g, (name, right) in enumerate(pairs):
    if right and (name is None or name == ''):
      raise ValueError(
        f'sample {g} is correct but its solution is empty; name what tells '
        'two correct answers apart.'
      )
  return collections.Counter(
    itertools.compress(samples.solutions, samples.correct)
  )
