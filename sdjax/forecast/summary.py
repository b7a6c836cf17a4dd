"""From the answers found and their scores to the numbers of a forecast."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64

from sdjax.config import schema as config_lib
from sdjax.evaluate import distribution
from sdjax.evaluate.bootstrap import mean_intervals
from sdjax.evaluate.pass_at_k import powers_of_two
from sdjax.forecast import dynamics
from sdjax.forecast.dynamics import AnswerDistribution, Distilling
from sdjax.tasks.base import Question, Verdict


@dataclasses.dataclass(frozen=True)
class Answers:
  """The Y distinct answers found to one question, the C correct ones first.

  Of a correct solution the tokens are those sampled most often.
  """

  question: Question
  ids: list[tuple[int, ...]]
  texts: list[str]
  verdicts: list[Verdict]
  num_correct: int


def collect(
  question: Question,
  ids: Sequence[tuple[int, ...]],
  texts: Sequence[str],
  verdicts: Sequence[Verdict],
) -> Answers:
  """Leaves of a question's n samples, without padding, the distinct answers.

  One answer for each solution found, those found most often first, then the
  wrong answers, told apart by their tokens.
  """
  count = Counter(ids)
  place = {sequence: g for g, sequence in enumerate(ids)}
  ranked = [place[sequence] for sequence, _ in count.most_common()]
  found = Counter(v.solution for v in verdicts if v.correct)
  likeliest: dict[str, int] = {}
  for g in ranked:
    if verdicts[g].correct:
      likeliest.setdefault(verdicts[g].solution, g)
  right = [likeliest[solution] for solution, _ in found.most_common()]
  kept = right + [g for g in ranked if not verdicts[g].correct]
  return Answers(
    question=question,
    ids=[ids[g] for g in kept],
    texts=[texts[g] for g in kept],
    verdicts=[verdicts[g] for g in kept],
    num_correct=len(right),
  )


def distributions(
  answers: AnswerDistribution, config: config_lib.Config
) -> dict[str, Float64[np.ndarray, 'Y']]:
  """The distribution over a question's answers that each method leads to.

  Probabilities by the names of `sdjax.forecast.run`.
  """
  method = config.method
  assert isinstance(method, config_lib.SelfDistillation)
  assert config.rollout and config.loss
  beta, anchor = config.loss.kl.coef, config.loss.kl.descends
  run = Distilling(
    beta=beta,
    count=method.demonstrations.count,
    num_samples=config.rollout.num_samples,
    pooling=method.pooling.name,
    anchor=anchor,
  )
  rate = {
    'average': method.teacher.rate / method.teacher.every,
    'current': 1.0,
    'initial': 0.0,
  }[method.teacher.weights]
  steps = config.train.num_steps
  return {
    'base': np.exp(answers.logp),
    'rl': dynamics.rl_distribution(answers, beta, anchor),
    'sd_once': dynamics.sd_distribution(answers, run),
    'sd_fixed': dynamics.iterated_sd_distribution(answers, run, steps),
    'sd': dynamics.iterated_sd_distribution(answers, run, steps, rate),
  }


def expect(
  probability: Float64[np.ndarray, 'Y'],
  verdicts: Sequence[Verdict],
  num_samples: int,
) -> dict[str, float]:
  """What a distribution over one question's answers lets expect of some draws.

  Of the Y answers no two correct ones may have one solution. Returns `pass@k`
  for k = 1, 2, 4 .. n, `pass_gain` (the last less the first),
  `effective_solutions`, and what n draws are expected to hold:
  `distinct_solutions`, `concepts_correct` and `concepts`.
  """
  correct = np.array([v.correct for v in verdicts])
  out = {
    f'pass@{k}': distribution.pass_at_k(probability, correct, k)
    for k in powers_of_two(num_samples)
  }
  curve = list(out.values())
  held = {
    'distinct_solutions': [[v.solution] if v.correct else [] for v in verdicts],
    'concepts_correct': [v.strategies if v.correct else () for v in verdicts],
    'concepts': [v.strategies for v in verdicts],
  }
  out['pass_gain'] = curve[-1] - curve[0]
  out['effective_solutions'] = distribution.effective_number(
    probability, correct
  )
  for name, items in held.items():
    out[name] = distribution.expected_distinct(probability, items, num_samples)
  return out


def summarize(
  answers: Sequence[Answers],
  scores: Sequence[dict[str, Any]],
  config: config_lib.Config,
) -> dict[str, float]:
  """Reduces one set, as `Forecaster.measure` has it, to its flat numbers.

  Means over questions, each with a 95% bootstrap interval over questions
  as `NAME/low` and `NAME/high`: `DISTRIBUTION/METRIC` as in
  `distributions` and `expect`, and

    mass          base probability of the answers found, 0..1
    solutions     different correct solutions found
    self_pcmi     nats, how literally a demonstration is copied
    favourite_gap nats, how much one step favours the favourite

  A name without a value in any question is left out (the last two need a
  question with two solutions).
  """
  rows = []
  for found, score in zip(answers, scores, strict=True):
    restricted = dynamics.restrict(**score)
    row = {
      'mass': float(np.exp(score['logp']).sum()),
      'solutions': float(found.num_correct),
      'self_pcmi': dynamics.self_pcmi(restricted),
      'favourite_gap': dynamics.favourite_gap(restricted),
    }
    for name, chance in distributions(restricted, config).items():
      measured = expect(chance, found.verdicts, config.eval.num_samples)
      row |= {f'{name}/{metric}': v for metric, v in measured.items()}
    rows.append(row)
  values_QM = np.array([list(row.values()) for row in rows])
  flat: dict[str, float] = {}
  for name, column, (low, high) in zip(
    rows[0], values_QM.T, mean_intervals(values_QM).tolist(), strict=True
  ):
    if np.isfinite(column).any():
      flat |= {
        name: float(np.nanmean(column)),
        f'{name}/low': low,
        f'{name}/high': high,
      }
  return flat
