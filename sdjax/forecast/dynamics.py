"""The distributions that training is forecast to lead to, from the base's.

They are over a finite set of answers to one question, the correct ones first:
pi0 is the base policy, and pi0(.|c) the one shown correct answer c. One step
is Prop. 2 with the demonstrations a run begins with: correct answers by their
probability under pi0.

Iterated. The proposition takes demonstrations from a FIXED distribution; a
run draws them from its student. A student that was pulled towards one answer
gives that answer more often, which pulls again: this feedback, and not the
one step, is what makes variety collapse. At each step, with student s and
teacher tau, both pi0 at first,

  demonstrations  c ~ s over the correct answers
  target          argmin_p E_c[KL(p || tau exp(i(.; c)))] + beta KL(p || pi0),
                  or beta KL(pi0 || p), see `sdjax.forecast.closed_forms`
  student         log s   <- (1 - STRIDE) log s + STRIDE log target
  teacher         log tau <- (1 - rate) log tau + rate log s

with i(y; c) = log pi0(y|c) - log pi0(y) held constant: the way in which the
model uses a demonstration is taken to survive training. Rate 0 is a teacher
that stays fixed. The fixed points do not depend on the stride, but at stride 1
a pull AWAY from what is shown would jump to and fro.

What it leaves out: weights shared by all questions, the noise of finite
groups (which lets RL lose answers too), what normalising advantages by group
does to the weight of RL's KL (`closed_forms.group_gain`), and the student's
lag. A rate therefore acts sooner here than in a run.

Whole answers may be a thousand nats apart, so probabilities stay logarithms as
long as they are compared with each other.

Source: arXiv 2606.26091, Props. 1 and 2, Remark 1; the iteration: ours.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Float64

from sdjax.forecast import closed_forms

STRIDE = 0.1
"""Share of the way to the target that the student goes in a step."""

GROUPS = 256
"""Groups drawn to average over, with several demonstrations a rollout."""


@dataclasses.dataclass(frozen=True)
class AnswerDistribution:
  """The base policy over a question's answers, C correct ones first, in nats.

  Both are normalised over the set; `logp_given` for each correct answer c that
  is the demonstration.
  """

  logp: Float64[np.ndarray, 'Y']
  logp_given: Float64[np.ndarray, 'Y C']

  @property
  def num_correct(self) -> int:
    """C, the correct answers."""
    return self.logp_given.shape[1]

  @property
  def pcmi(self) -> Float64[np.ndarray, 'Y C']:
    """i(y; c), nats."""
    return closed_forms.pcmi(self.logp_given, self.logp)


@dataclasses.dataclass(frozen=True)
class Distilling:
  """How a run of self-distillation teaches.

  With the weight and direction (of `closed_forms.ANCHORS`) of the KL to the
  base policy; K demonstrations a rollout, drawn from G rollouts; and the
  pooling of the K teachers, `loss` or `mixture`.
  """

  beta: float = 0.0
  count: int = 1
  num_samples: int = 8
  pooling: str = 'loss'
  anchor: str = 'reverse_kl'


def restrict(
  logp: Float[np.ndarray, 'Y'], logp_given: Float[np.ndarray, 'Y C']
) -> AnswerDistribution:
  """Renormalises log-probabilities of some answers over these answers."""
  return AnswerDistribution(
    logp - np.logaddexp.reduce(logp),
    logp_given - np.logaddexp.reduce(logp_given, axis=0),
  )


def rl_distribution(
  answers: AnswerDistribution, beta: float, anchor: str = 'reverse_kl'
) -> Float64[np.ndarray, 'Y']:
  """Where RL with reward 1 for a correct answer leads (Prop. 1).

  At beta 0 every policy on the correct answers is optimal; taken is the limit
  of small beta, the base policy over them. The base policy itself without a
  correct answer.
  """
  size = answers.num_correct
  if not size:
    return np.exp(answers.logp)
  correct = np.arange(len(answers.logp)) < size
  if beta > 0:
    return closed_forms.kl_rl_optimum(
      answers.logp, correct.astype(float), beta, anchor
    )
  return closed_forms.softmax(np.where(correct, answers.logp, -np.inf))


def sd_distribution(
  answers: AnswerDistribution, run: Distilling
) -> Float64[np.ndarray, 'Y']:
  """Where self-distillation leads with the base's demonstrations (Prop. 2).

  The base policy itself without a correct answer.
  """
  tilt = _tilt(answers, answers.logp, run)
  return closed_forms.sdsd_optimum(answers.logp, tilt, run.beta, run.anchor)


def iterated_sd_distribution(
  answers: AnswerDistribution, run: Distilling, steps: int, rate: float = 0.0
) -> Float64[np.ndarray, 'Y']:
  """Where self-distillation leads when it shows the student's own answers.

  `steps` iterations of the module's text; `rate` is the share of the student
  that enters the teacher a step, in 0..1; 0: the teacher stays the base
  policy. The base policy itself without a correct answer. Raises ValueError
  for a rate outside 0..1 or less than one step.
  """
  if not 0 <= rate <= 1 or steps < 1:
    raise ValueError(
      f'rate={rate} must be in 0..1 and steps={steps} at least 1.'
    )
  base = student = teacher = answers.logp
  if not answers.num_correct:
    return np.exp(base)
  for _ in range(steps):
    tilt = _tilt(answers, student, run) + teacher - base
    target = closed_forms.log_sdsd_optimum(base, tilt, run.beta, run.anchor)
    student = closed_forms.log_softmax((1 - STRIDE) * student + STRIDE * target)
    teacher = closed_forms.log_softmax((1 - rate) * teacher + rate * student)
  return np.exp(student)


def self_pcmi(answers: AnswerDistribution) -> float:
  """How much more a solution gains from itself than from another one.

  Nats, the mean over correct answers y of i(y; y) less the mean of i(y; c)
  over the other correct c; NaN with fewer than two. The larger, the more
  literally a demonstration is copied.
  """
  size = answers.num_correct
  if size < 2:
    return float('nan')
  shown = answers.pcmi[:size]
  own = np.trace(shown)
  return float(own / size - (shown.sum() - own) / (size * (size - 1)))


def favourite_gap(answers: AnswerDistribution) -> float:
  """How much more the likeliest correct answer is pulled up than the others.

  Nats, E_c[i(y1; c) - i(y2; c)] of Remark 1, y1 being the correct answer
  that pi0 favours, y2 the mean of the other correct ones, c drawn by pi0.
  Above 0 one step makes pi0's favourite stronger still. NaN with fewer than
  two correct answers.
  """
  size = answers.num_correct
  if size < 2:
    return float('nan')
  base = answers.logp[:size]
  gain = answers.pcmi[:size] @ closed_forms.softmax(base)
  first = int(base.argmax())
  return float(gain[first] - np.delete(gain, first).mean())


def _tilt(
  answers: AnswerDistribution, student: np.ndarray, run: Distilling
) -> np.ndarray:
  """[Y], what the demonstrations of a student, in nats, add to log pi0."""
  size = answers.num_correct
  if not size:
    return np.zeros_like(student)
  share = closed_forms.softmax(student[:size])
  if run.count == 1:
    return answers.pcmi @ share
  right = float(np.exp(student[:size]).sum())
  weight_SC = _shown_together(share, min(right, 1.0), run)
  if run.pooling == 'loss':
    return answers.pcmi @ weight_SC.mean(axis=0)
  # The mixture of one group's teachers, then the mean over groups.
  most_Y1 = answers.pcmi.max(axis=1, keepdims=True)
  mixed_YS = np.exp(answers.pcmi - most_Y1) @ weight_SC.T
  # The logarithm stays finite where a probability has underflowed.
  log_YS = np.log(np.maximum(mixed_YS, np.finfo(np.float64).tiny)) + most_Y1
  return log_YS.mean(axis=1)


def _shown_together(
  share_C: np.ndarray, right: float, run: Distilling
) -> np.ndarray:
  """[S, C], the weight of each correct answer in S groups' demonstrations.

  A rollout is shown the first K distinct ones among its correct peers. The
  draws are the same at every call, so that an iteration can settle.
  """
  rng = np.random.default_rng(0)
  peers = max(run.num_samples - 1, 1)
  right_SP = rng.random((GROUPS, peers)) < right
  uniform_SP = rng.random((GROUPS, peers))
  drawn_SP = np.searchsorted(np.cumsum(share_C)[:-1], uniform_SP)
  taught_S = right_SP.any(axis=1)
  if taught_S.any():  # a group without a correct peer teaches nothing
    right_SP, drawn_SP = right_SP[taught_S], drawn_SP[taught_S]
  else:
    right_SP[:, 0] = True
  hit_SPC = right_SP[..., None] & (
    drawn_SP[..., None] == np.arange(len(share_C))
  )
  first_SC = np.where(hit_SPC.any(axis=1), hit_SPC.argmax(axis=1), peers)
  rank_SC = first_SC.argsort(axis=1, kind='stable').argsort(axis=1)
  shown_SC = (rank_SC < run.count) & (first_SC < peers)
  return shown_SC / shown_SC.sum(axis=1, keepdims=True)
