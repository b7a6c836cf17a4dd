# pyright: reportIncompatibleVariableOverride=false
"""Rules that join a reward's and a teacher's word on each token.

A is the advantage of rewards; u = log q - log p is the teacher's log-ratio of
the taken token (the token's pointwise conditional mutual information with the
demonstration), 0 where a rollout has no teacher; w is the rule's weight times
its schedule. A rule shapes the ADVANTAGE of the policy loss, or adds the
teacher's LOSS to the policy loss. All results are constants of the update.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Gt
from jaxtyping import Bool, Float, Int

from sdjax.objectives.pooling import arithmetic_mixture, mean_over_teachers
from sdjax.objectives.reduce import token_weights
from sdjax.options import ConfigError, NonNegative, Option, Share
from sdjax.types import Array


class TeacherTokens(NamedTuple):
  """What K teachers, or one mixture of them, say of the taken tokens.

  Nats of the token and of each teacher's distribution, and which exist.
  """

  logp: Float[Array, 'Q G T K']
  entropy: Float[Array, 'Q G T K']
  found: Bool[Array, 'Q G T K']


class Inputs(NamedTuple):
  """What a rule is made of, before and beside the teacher.

  Attributes:
    advantage: A.
    weight: w.
    counted: tokens that may count.
    samples: rollouts that reinforcement learning counts.
    taught: rollouts that count and have a teacher.
    correct: the verifier's word.
    strategy: the same for correct rollouts of one strategy, -1 for wrong ones.
    base_logp: nats, under the behaviour policy.
    num_contrast: how many of the K teachers, the last ones, are shown a WRONG
      answer.
    aggregation: of the loss.
    tokens: gives the teachers' word; a rule that needs none never calls it.
  """

  advantage: Float[Array, 'Q G T']
  weight: Float[Array, 'Q 1 1']
  counted: Bool[Array, 'Q G T']
  samples: Bool[Array, 'Q G']
  taught: Bool[Array, 'Q G']
  correct: Bool[Array, 'Q G'] | None
  strategy: Int[Array, 'Q G'] | None
  base_logp: Float[Array, 'Q G T']
  num_contrast: int
  aggregation: str
  tokens: Callable[[], TeacherTokens]

  def log_ratio(self) -> jax.Array:
    """U of each token, the mean over its teachers."""
    logp, _, found = self.tokens()
    return mean_over_teachers(logp - self.base_logp[..., None], found)


class Mixed(NamedTuple):
  """What a rule makes of them: also which rollouts count, and two factors.

  Those of each token's policy loss and of its distillation loss; a rule on
  the advantage has no factor of the latter.
  """

  advantage: Float[Array, 'Q G T']
  samples: Bool[Array, 'Q G']
  rl_weight: Float[Array, 'Q G T'] | None = None
  sd_weight: Float[Array, 'Q G T'] | None = None


class Rule(Option):
  """How rewards and a teacher are joined.

  Attributes:
    weight: w, before its schedule.
    on_loss: whether the teacher's loss is added; else the advantage changes.
    scheduled: whether w acts at all.
    needs_strategy: whether it asks which strategy a rollout takes.
    needs_contrast: whether it asks for teachers shown wrong answers.
  """

  weight: float
  on_loss: ClassVar[bool] = False
  scheduled: ClassVar[bool] = True
  needs_strategy: ClassVar[bool] = False
  needs_contrast: ClassVar[bool] = False

  def __call__(self, x: Inputs) -> Mixed:
    """Returns the advantage and the weights of each token."""
    raise NotImplementedError

  def useful(
    self, rewarded: Array, taught: Array, wrong: Array, contrasted: Array
  ) -> Array:
    """Which questions teach something, bool [Q].

    Of them a rollout is `rewarded` (bool [Q]) with an advantage; of the
    rollouts (bool [Q, G]) each is `taught` by a right answer, `wrong` itself,
    or `contrasted`: shown right and wrong answers.
    """
    del wrong, contrasted
    return rewarded | taught.any(axis=1)


@dataclass(frozen=True)
class Advantages(Rule, name='advantage'):
  """In place of A: w A + (1 - w) u.

  At w = 1 it is the reward's advantage, at 0 the gradient of the sampled
  reverse KL to the teacher.

  Source: SDPO, arXiv 2601.20802, eq. 3.
  """

  weight: Share = 0.5
  said = 'w A + (1 - w) u'

  def __call__(self, x):
    """Returns the mixed advantage."""
    mixed = x.weight * x.advantage + (1 - x.weight) * self._log_ratio(x)
    return Mixed(mixed, x.samples)

  def _log_ratio(self, x: Inputs) -> jax.Array:
    return x.log_ratio()


@dataclass(frozen=True)
class Debiased(Advantages, name='debiased'):
  """w A + (1 - w) u', u' without its liking for one strategy over another.

  The sum of u over a rollout's tokens is its PCMI with what the teacher was
  shown, and that is what tilts the optimum among correct answers. Its mean
  over the group's correct rollouts of one strategy is the tilt of that
  strategy; here every strategy gets the mean of them all. Within a strategy,
  and for wrong rollouts, nothing changes. What is added to a rollout is
  spread over its tokens in proportion to |u|: it is taken away where it came
  in, at the token that decides.

  Source: ours, after the ratio in Remark 1 of arXiv 2606.26091.
  """

  needs_strategy: ClassVar[bool] = True
  said = "w A + (1 - w) (u - its strategy's own liking)"

  def _log_ratio(self, x):
    if x.strategy is None:
      raise ValueError(
        "rule='debiased' needs evidence.strategy, int32 [Q, G]: which strategy "
        'each correct rollout takes, -1 for the others.'
      )
    strategy_QG = jnp.where(x.taught, x.strategy, -1)
    return debiased(x.log_ratio(), x.counted, strategy_QG)


def debiased(
  log_ratio: Float[Array, 'Q G T'],
  mask: Bool[Array, 'Q G T'],
  strategy: Int[Array, 'Q G'],
) -> Float[Array, 'Q G T']:
  """The log-ratio of `Debiased`; u in a group with at most one strategy.

  A strategy of -1 is that of rollouts that are wrong or have no teacher.
  """
  u_QGT = jnp.where(mask, log_ratio, 0)
  some_QG = strategy >= 0
  alike_QGG = (strategy[:, :, None] == strategy[:, None, :]) & (
    some_QG[:, :, None] & some_QG[:, None, :]
  )
  count_QG = alike_QGG.sum(axis=-1)
  tilt_QG = jnp.einsum('qgh,qh->qg', alike_QGG, u_QGT.sum(-1)) / jnp.maximum(
    count_QG, 1
  )
  # Each strategy once, however many rollouts it has.
  once_QG = jnp.where(some_QG, 1 / jnp.maximum(count_QG, 1), 0)
  mean_Q1 = jnp.sum(once_QG * tilt_QG, axis=-1, keepdims=True) / jnp.maximum(
    jnp.sum(once_QG, axis=-1, keepdims=True), 1
  )
  change_QG = jnp.where(some_QG, mean_Q1 - tilt_QG, 0)
  size_QGT = jnp.abs(u_QGT)
  total_QG1 = size_QGT.sum(axis=-1, keepdims=True)
  share_QGT = size_QGT / jnp.where(total_QG1 > 0, total_QG1, 1)
  return log_ratio + change_QG[..., None] * share_QGT


@dataclass(frozen=True)
class RLSD(Rule, name='rlsd'):
  """A [(1 - w) + w clip(exp(sign(A) u), 1 - clip, 1 + clip)].

  The verifier gives the direction, the teacher only the size. u is the ratio
  to the weights that sampled, as in SDPG's code, where RLCSD's takes the
  weights of each update: at the first update of a step they are the same.
  With w = 0 it is the reward's advantage.

  Source: RLSD, arXiv 2604.03128.
  """

  weight: Share = 0.5
  clip: NonNegative = 0.2
  said = 'A ((1 - w) + w clip(exp(sign(A) u)))'

  def __call__(self, x):
    """Returns an advantage with the sign of A."""
    factor = jnp.exp(jnp.clip(jnp.sign(x.advantage) * x.log_ratio(), -20, 20))
    factor = jnp.clip(factor, 1 - self.clip, 1 + self.clip)
    scale = (1 - x.weight) + x.weight * factor
    return Mixed(x.advantage * scale, x.samples)

  def useful(self, rewarded, taught, wrong, contrasted):
    """Returns those with an advantage."""
    del taught, wrong, contrasted
    return rewarded


@dataclass(frozen=True)
class AntiSD(Rule, name='antisd'):
  """A - w (softplus(u) - log 2) / 2: away from what the teacher likes.

  Source: AntiSD, arXiv 2605.11609.

  Attributes:
    entropy_floor: w is 0 while the median entropy of the teacher is below
      this many nats. The paper takes 0.93 times the median of its first
      steps; here it is a number, so that a step depends on nothing but its
      arguments.
  """

  weight: NonNegative = 0.5
  entropy_floor: NonNegative = 0.0

  def __call__(self, x):
    """Returns the advantage."""
    tokens = x.tokens()
    seen = tokens.found & x.counted[..., None]
    level = jnp.nanmedian(jnp.where(seen, tokens.entropy, jnp.nan))
    on = jnp.where(level >= self.entropy_floor, 1.0, 0.0)
    bonus = (jax.nn.softplus(x.log_ratio()) - jnp.log(2.0)) / 2
    return Mixed(x.advantage - x.weight * on * bonus, x.samples)

  def words(self) -> str:
    """Says what it is, for a person."""
    text = 'A - w (softplus(u) - log 2) / 2'
    if self.entropy_floor:
      text += f', w = 0 below {self.entropy_floor:g} nats of the teacher'
    return text


@dataclass(frozen=True)
class RLCSD(Rule, name='rlcsd'):
  """Adds a bounded contrast of teachers where it is decided.

  With e = log q(shown a right answer) - log mean q(shown a wrong one), the
  bonus is clip(w * tanh(e / temperature), -clip, clip). Where it exceeds the
  threshold the advantage becomes A + bonus, but never changes its sign; where
  A is 0 it stays 0. Touched tokens and the others have a mean each, balanced
  over the whole step. Rollouts that lack a right or a wrong answer to be
  shown do not count, as in its code.

  Source: RLCSD, arXiv 2606.11709 and its code.

  Attributes:
    temperature: nats, scale of the contrast.
    clip: bound of the bonus.
    threshold: smaller bonuses are dropped.
    touched_weight: weight of the mean over touched tokens, beside 1 for that
      over the others.
  """

  weight: NonNegative = 0.5
  temperature: Annotated[float, Gt(0)] = 0.02
  clip: Annotated[float, Gt(0)] = 2.0
  threshold: NonNegative = 0.02
  touched_weight: NonNegative = 1.0
  needs_contrast: ClassVar[bool] = True
  said = (
    'A + w tanh(contrast / temperature), clipped, its sign kept, contrast = '
    'log q(right answer shown) - log q(wrong ones), rollouts without both do '
    'not count'
  )

  def __post_init__(self):
    """Refuses a threshold that no bonus reaches."""
    super().__post_init__()
    if self.threshold >= self.clip:
      raise ConfigError(
        f'rlcsd(threshold={self.threshold}) must be below clip={self.clip}, '
        'or nothing is added.'
      )

  def __call__(self, x):
    """Returns the advantage and the weights of both means."""
    contrast_QGT, both_QGT = self._contrast(x)
    samples = x.samples & both_QGT.any(axis=-1)
    new_QGT, touched_QGT = self.shaped(x.advantage, contrast_QGT, x.weight)
    mask = x.counted
    both = token_weights(mask, samples, x.aggregation)
    plain = token_weights(mask & ~touched_QGT, samples, x.aggregation)
    touched = token_weights(mask & touched_QGT, samples, x.aggregation)
    factor = _ratio(plain + self.touched_weight * touched, both)
    return Mixed(new_QGT, samples, rl_weight=factor)

  def _contrast(self, x: Inputs) -> tuple[jax.Array, jax.Array]:
    """The log-ratio of teachers shown right and wrong; which tokens have it."""
    logp, _, found = x.tokens()
    cut = logp.shape[-1] - x.num_contrast
    right, wrong = found[..., :cut], found[..., cut:]
    liked = mean_over_teachers(logp[..., :cut], right)
    mixed = arithmetic_mixture(logp[..., cut:, None], wrong)[..., 0]
    both = right.any(axis=-1) & wrong.any(axis=-1)
    return jnp.where(both, liked - mixed, 0), both

  def shaped(
    self, advantage: jax.Array, contrast: jax.Array, weight: jax.Array | float
  ) -> tuple[jax.Array, jax.Array]:
    """The new advantage, and which tokens the bonus touched.

    The contrast e is in nats, 0 where a side is missing.
    """
    bonus = weight * jnp.tanh(contrast / self.temperature)
    bonus = jnp.clip(bonus, -self.clip, self.clip)
    touched = jnp.abs(bonus) > self.threshold
    raised = advantage + jnp.where(touched, bonus, 0)
    kept = jnp.where(
      advantage > 0, jnp.maximum(raised, 0), jnp.minimum(raised, 0)
    )
    return jnp.where(advantage == 0, 0, kept), touched

  def useful(self, rewarded, taught, wrong, contrasted):
    """Returns those with an advantage and both kinds of answers."""
    del taught, wrong
    return rewarded & contrasted.any(axis=1)


@dataclass(frozen=True)
class Losses(Rule, name='loss'):
  """w L_rl + (1 - w) L_sd, each with its own mean.

  The means are balanced over the whole step: with mini-batches the share of
  each in one update varies.
  """

  weight: Share = 0.5
  on_loss: ClassVar[bool] = True
  said = 'w L_rl + (1 - w) L_sd'

  def __call__(self, x):
    """Returns the weights of either loss."""
    both = token_weights(x.counted, x.samples, x.aggregation)
    own = token_weights(x.counted, x.samples & x.taught, x.aggregation)
    sd_QGT = (1 - x.weight) * _taught(x) * _ratio(own, both)
    return Mixed(x.advantage, x.samples, x.weight * _ones(x), sd_QGT)


@dataclass(frozen=True)
class SDPG(Rule, name='sdpg'):
  """L_rl + w L_sd, with `positive_only` L_sd only of rollouts with A > 0.

  Source: SDPG, arXiv 2606.04036.
  """

  weight: NonNegative = 0.5
  positive_only: bool = False
  on_loss: ClassVar[bool] = True

  def __call__(self, x):
    """Returns the weights of either loss."""
    sd_QGT = x.weight * _taught(x)
    if self.positive_only:
      sd_QGT = sd_QGT * (x.advantage > 0)
    return Mixed(x.advantage, x.samples, _ones(x), sd_QGT)

  def useful(self, rewarded, taught, wrong, contrasted):
    """Returns those with an advantage, where only those are distilled."""
    if self.positive_only:
      return rewarded
    return super().useful(rewarded, taught, wrong, contrasted)

  def words(self) -> str:
    """Says what it is, for a person."""
    return f'L_rl + w L_sd{" where A > 0" if self.positive_only else ""}'


@dataclass(frozen=True)
class SRPO(Rule, name='srpo'):
  """L_sd for failed rollouts with a teacher, L_rl for others, in one mean.

  Source: SRPO, arXiv 2604.02288 sec. 3.1.

  Attributes:
    entropy_exponent: a token's distillation weighs exp(-this * teacher's
      entropy), scaled to mean 1 over those tokens.
  """

  entropy_exponent: NonNegative = 1.0
  weight: ClassVar[float] = 1.0
  on_loss: ClassVar[bool] = True
  scheduled: ClassVar[bool] = False
  said = 'L_sd for failed rollouts with a teacher, L_rl for all others'

  def __call__(self, x):
    """Returns the weights of either loss."""
    assert x.correct is not None, 'srpo needs evidence.correct'
    failed_QG = ~jnp.asarray(x.correct) & x.taught
    _, entropy, found = x.tokens()
    level_QGT = mean_over_teachers(entropy, found)
    calm_QGT = jnp.exp(-self.entropy_exponent * level_QGT)
    routed_QGT = x.counted & (failed_QG & x.samples)[..., None]
    total = jnp.where(routed_QGT, calm_QGT, 0).sum()
    mean = total / jnp.maximum(routed_QGT.sum(), 1)
    calm_QGT = calm_QGT / jnp.where(mean > 0, mean, 1)
    failed_QG1 = failed_QG[..., None]
    rl_QGT = jnp.where(failed_QG1, 0, _ones(x))
    sd_QGT = jnp.where(failed_QG1, calm_QGT, 0)
    return Mixed(x.advantage, x.samples, rl_QGT, sd_QGT)

  def useful(self, rewarded, taught, wrong, contrasted):
    """Returns those with an advantage, or with a failure to distil."""
    del contrasted
    return rewarded | (taught & wrong).any(axis=1)


def _ones(x: Inputs) -> jax.Array:
  return jnp.ones(x.counted.shape, jnp.float32)


def _taught(x: Inputs) -> jax.Array:
  return jnp.where(x.taught[..., None], _ones(x), 0)


def _ratio(own: jax.Array, both: jax.Array) -> jax.Array:
  """What turns the weights of one mean into those of another."""
  return own / jnp.where(both > 0, both, 1)
