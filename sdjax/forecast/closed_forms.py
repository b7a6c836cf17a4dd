"""Closed forms of what self-distillation and RL converge to.

For a problem small enough to list every answer y (or every next token of a
prefix) the best policy of each objective is known. With pi0 the base policy,
pi0(.|c) the base policy shown demonstration c, demonstrations drawn from a
FIXED distribution, and beta the weight of the KL to pi0:

  SDSD, losses averaged    pi0 exp(E_c[i(y; c)] / (1 + beta))
  SDSD, mixture teacher    pi0 exp(log E_c[exp i(y; c)] / (1 + beta))
  RL                       pi0 exp(R(y) / beta)

where i(y; c) = log pi0(y|c) - log pi0(y). RL keeps the ratio of two correct
answers; SDSD multiplies it by exp of the difference of their tilts.

Every array may have leading axes. Called with answers on the last axis they
are the sequence-level optima; called with the next tokens of every prefix,
[prefixes, V], they are the token-level ones (Prop. 5), which is what a loss
that holds its rollouts constant can reach. The two differ for answers longer
than one token: the token-level policy is normalised at each prefix.

Two KLs to the base policy occur. `reverse_kl`, KL(pi || pi0), is the one of
the propositions. `forward_kl`, KL(pi0 || pi), is what the k3 estimator
descends when it is differentiated as a loss on sampled tokens: there
grad k3 = (1 - pi0 / pi) grad log pi, whose mean under pi is
-sum_v pi0 grad log pi = grad KL(pi0 || pi).

Source: arXiv 2606.26091, Props. 1 to 5 and Remark 1; mixture teacher,
`forward_kl` anchor and `group_gain`: ours.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import ArrayLike
from scipy.special import wrightomega
from scipy.stats import binom

from sdjax.types import Array

ANCHORS = ('reverse_kl', 'forward_kl')


def pcmi(
  logp_given: ArrayLike, logp: ArrayLike
) -> Float64[np.ndarray, '*prefix Y C']:
  """Pointwise conditional mutual information of answers and demonstrations.

  i(y; c | x) = log pi0(y | x, c) - log pi0(y | x), nats: how much likelier
  the demonstration makes an answer. Raises ValueError for shapes that do not
  fit, or probabilities that do not sum to 1.

  Source: arXiv 2606.26091, eq. of Prop. 2.
  """
  logp = _distribution('logp', logp)
  given = _distribution('logp_given', logp_given, axis=-2)
  if given.shape[:-1] != logp.shape:
    raise ValueError(
      f'logp_given has shape {given.shape}; with answers of shape '
      f'{logp.shape} it must be [{", ".join(map(str, logp.shape))}, C].'
    )
  return given - logp[..., None]


def sdsd_optimum(
  logp0: ArrayLike,
  expected_pcmi: ArrayLike,
  beta: float = 0.0,
  anchor: str = 'reverse_kl',
) -> Float64[np.ndarray, '*prefix Y']:
  """The policy that self-distillation with averaged losses ends at.

  argmin_pi E_c[KL(pi || pi0(.|c))] + beta KL(pi || pi0), which is
  pi0 exp(E_c[i] / (1 + beta)) normalised: averaged losses pool the teachers
  geometrically. `logp0` [..., Y] is the base policy and `expected_pcmi`
  [..., Y] the mean of `pcmi` over the demonstrations, both in nats; `anchor` is
  the KL's direction, of `ANCHORS`.

  Returns probabilities. Raises ValueError for shapes that do not fit, a base
  policy that does not sum to 1, a negative beta or an unknown anchor.

  Source: arXiv 2606.26091, Props. 2, 4 and (for next tokens) 5;
  `forward_kl`: ours.
  """
  return np.exp(log_sdsd_optimum(logp0, expected_pcmi, beta, anchor))


def log_sdsd_optimum(
  logp0: ArrayLike,
  expected_pcmi: ArrayLike,
  beta: float = 0.0,
  anchor: str = 'reverse_kl',
) -> Float64[np.ndarray, '*prefix Y']:
  """Log of `sdsd_optimum`, finite also where the probability underflows."""
  logp0 = _distribution('logp0', logp0)
  tilt = _like('expected_pcmi', expected_pcmi, logp0)
  _check_anchor(anchor)
  if not 0 <= beta < math.inf:
    raise ValueError(f'beta={beta} must be at least 0 and finite.')
  if anchor == 'reverse_kl' or beta == 0:
    return log_softmax(logp0 + tilt / (1 + beta))
  # Stationarity, with pooled teacher q and u = beta pi0 / pi:
  # log u + u = log(beta pi0 / q) + nu, and nu normalises pi.
  log_q = log_softmax(logp0 + tilt)
  bias = np.log(beta) + logp0 - log_q

  def log_policy(nu):
    x = bias + nu
    u = wrightomega(x)  # which underflows where log u is x
    return np.log(beta) + logp0 - np.where(x < 1, x - u, np.log(np.fmax(u, 1)))

  low = np.max(log_q + beta * np.exp(logp0), axis=-1, keepdims=True)
  high = np.max(log_q - logp0, axis=-1, keepdims=True) + beta
  return _normalised(log_policy, low, high)


def mixture_optimum(
  logp0: ArrayLike,
  logp_given: ArrayLike,
  demo_prob: ArrayLike,
  beta: float = 0.0,
) -> Float64[np.ndarray, '*prefix Y']:
  """The policy that one teacher, the mean of all teachers, leads to.

  argmin_pi KL(pi || m) + beta KL(pi || pi0) with m = E_c[pi0(.|c)]; the
  mixture itself at beta 0. Like `sdsd_optimum`, but the tilt is the log of the
  mean of exp(PCMI) in place of the mean: what one demonstration makes likely
  stays likely. `logp_given` [..., Y, C] are nats under each demonstration,
  `demo_prob` [C] their probabilities. Raises ValueError as `sdsd_optimum`, and
  for demonstrations that do not fit.

  Source: ours.
  """
  tilts = pcmi(logp_given, logp0)
  weight = np.asarray(demo_prob, np.float64)
  if weight.shape != tilts.shape[-1:]:
    raise ValueError(
      f'demo_prob has shape {weight.shape}, but there are {tilts.shape[-1]} '
      'demonstrations.'
    )
  if (weight < 0).any() or abs(weight.sum() - 1) > 1e-4:
    raise ValueError(
      f'demo_prob must be probabilities that sum to 1; got {weight}.'
    )
  return sdsd_optimum(logp0, np.log(np.exp(tilts) @ weight), beta)


def kl_rl_optimum(
  logp0: ArrayLike,
  reward: ArrayLike,
  beta: float,
  anchor: str = 'reverse_kl',
) -> Float64[np.ndarray, '*prefix Y']:
  """The policy that reinforcement learning with a KL ends at.

  argmax_pi E_pi[R] - beta KL(pi || pi0), which is pi0 exp(R / beta)
  normalised. With the `forward_kl` anchor it is beta pi0 / (lambda - R).
  Either keeps the ratio of two answers of equal reward. `reward` [..., Y] is
  that of each answer; the rest as in `sdsd_optimum`, but that beta must be
  positive.

  Source: arXiv 2606.26091, Props. 1 and 3; `forward_kl`: ours.
  """
  logp0 = _distribution('logp0', logp0)
  reward = _like('reward', reward, logp0)
  _check_anchor(anchor)
  if not 0 < beta < math.inf:
    raise ValueError(
      f'beta={beta} must be positive and finite: without a KL every policy '
      'on the best answers is optimal.'
    )
  if anchor == 'reverse_kl':
    return softmax(logp0 + reward / beta)
  # gap = lambda - max R stays apart from R, or a small beta would drown; and
  # its logarithm is sought, or a base policy that hardly knows the best would.
  below = np.max(reward, axis=-1, keepdims=True) - reward
  with np.errstate(divide='ignore'):
    log_below = np.log(below)
  log_prior = np.log(beta) + logp0
  best = np.where(below == 0, log_prior, -np.inf)
  low = np.max(best, axis=-1, keepdims=True)
  return np.exp(
    _normalised(
      lambda log_gap: log_prior - np.logaddexp(log_gap, log_below),
      low,
      np.log(beta),
    )
  )


def sdsd_objective(
  logits: Array,
  logp_given: Array,
  demo_prob: Array,
  logp0: Array,
  beta: float = 0.0,
) -> Float[jax.Array, '']:
  """E_c[KL(pi || pi0(.|c))] + beta KL(pi || pi0), exactly, in nats.

  Differentiable in every array and fit for `jax.jit`, so only shapes are
  checked: `logits` [Y], unnormalised, of the policy; `logp_given` [Y, C],
  nats; `demo_prob` [C]; `logp0` [Y], nats. ValueError if they do not fit.

  Source: arXiv 2606.26091, Prop. 2.
  """
  shapes = [jnp.shape(x) for x in (logits, logp_given, demo_prob, logp0)]
  answers, demos = shapes[0], shapes[2]
  if (
    len(answers) != 1
    or len(demos) != 1
    or shapes[1:] != [(*answers, *demos), demos, answers]
  ):
    raise ValueError(
      'logits, logp_given, demo_prob, logp0 must have the shapes [Y], [Y, C], '
      f'[C], [Y]; got {shapes}.'
    )
  logp = jax.nn.log_softmax(logits)
  mean_teacher = jnp.asarray(logp_given) @ jnp.asarray(demo_prob)
  gap = logp - mean_teacher + beta * (logp - jnp.asarray(logp0))
  return jnp.sum(jnp.exp(logp) * gap)


def group_gain(correct_prob: float, num_samples: int) -> float:
  """How much more advantage a correct rollout has than a wrong one.

  With rewards 0 and 1 the group-normalised advantage acts, in expectation,
  like the plain reward times this gain; so RL with a KL ends where
  `kl_rl_optimum` does at reward times gain, the gain being that of the
  policy it ends at. For large groups it is 1 / sqrt(p (1 - p)): the closer
  to always or never correct, the weaker the KL is in comparison.

  Returns E[advantage | correct] - E[advantage | wrong] in groups of
  `num_samples` rollouts. Raises ValueError for a chance outside [0, 1] or an
  empty group.

  Source: ours, for `sdjax.objectives.advantages.GRPO`.
  """
  if not 0 <= correct_prob <= 1 or num_samples < 1:
    raise ValueError(
      f'correct_prob={correct_prob} must be in [0, 1] and '
      f'num_samples={num_samples} at least 1.'
    )
  others = np.arange(num_samples)  # that are correct, of num_samples - 1
  chance = binom.pmf(others, num_samples - 1, correct_prob)

  def advantage(reward):
    mean = (others + reward) / num_samples
    return (reward - mean) / (np.sqrt(mean * (1 - mean)) + 1e-4)

  return float(chance @ (advantage(1) - advantage(0)))


def _normalised(
  log_policy: Callable[[np.ndarray], np.ndarray], low: Any, high: Any
) -> np.ndarray:
  """Bisects for the number at which a falling `log_policy` sums to 1."""
  high = high + np.zeros_like(low)
  for _ in range(200):
    middle = (low + high) / 2
    heavy = np.exp(log_policy(middle)).sum(axis=-1, keepdims=True) > 1
    low, high = np.where(heavy, middle, low), np.where(heavy, high, middle)
  return log_policy((low + high) / 2)


def softmax(logits: np.ndarray) -> np.ndarray:
  """The distribution of some logits [..., Y], in their dtype."""
  shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return shifted / shifted.sum(axis=-1, keepdims=True)


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Log of `softmax`, finite where that underflows."""
  return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def _check_anchor(anchor: str) -> None:
  if anchor not in ANCHORS:
    raise ValueError(f'anchor={anchor!r} is not one of {ANCHORS}.')


def _distribution(name: str, logp: ArrayLike, axis: int = -1) -> np.ndarray:
  """Returns log-probabilities in float64, checked to sum to 1."""
  logp = np.asarray(logp, np.float64)
  if logp.ndim < -axis:
    raise ValueError(
      f'{name} has shape {logp.shape}; it needs {-axis} or more axes.'
    )
  if not np.isfinite(logp).all():
    raise ValueError(
      f'{name} must be finite: PCMI is undefined where an answer is '
      'impossible. Leave such answers out.'
    )
  total = np.exp(logp).sum(axis=axis)
  # Loose enough for a log-softmax in float32.
  if np.abs(total - 1).max() > 1e-4:
    raise ValueError(
      f'{name} must be normalised log-probabilities, but its probabilities '
      f'sum to {total.ravel()[np.abs(total - 1).argmax()]:.6g}.'
    )
  return logp


def _like(name: str, value: ArrayLike, logp0: np.ndarray) -> np.ndarray:
  value = np.asarray(value, np.float64)
  if value.shape != logp0.shape:
    raise ValueError(
      f'{name} has shape {value.shape}, but logp0 has {logp0.shape}.'
    )
  return value
