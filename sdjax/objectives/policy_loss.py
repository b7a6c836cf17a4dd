"""Policy losses of reinforcement learning, token by token.

With the ratio r = exp(logp - old_logp), where old_logp is that of the
behaviour policy, all of them have the gradient -A d(logp) at r = 1.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from sdjax.options import ConfigError, NonNegative, Option
from sdjax.types import Array

LARGEST_GAP = 20.0  # nats; a larger gap of log-probabilities is cut to this


def ratio(logp: jax.Array, old_logp: jax.Array) -> jax.Array:
  """exp(logp - old_logp), its exponent within 20 nats either way."""
  gap = logp - jax.lax.stop_gradient(old_logp)
  return jnp.exp(jnp.clip(gap, -LARGEST_GAP, LARGEST_GAP))


def truncated_ratio(
  logp: jax.Array, old_logp: jax.Array, largest: float
) -> jax.Array:
  """min(exp(logp - old_logp), largest), a constant: an importance weight.

  From the taken token's log-probability, in nats, under the distribution that
  is wanted and under the one it was drawn from.

  Source: SDPO, arXiv 2601.20802 (importance weights, cap 2).
  """
  return jax.lax.stop_gradient(jnp.minimum(ratio(logp, old_logp), largest))


"""How far from 1 a ratio may be on one side."""


class PolicyLoss(Option):
  """The loss of each token, from its ratio and its advantage.

  In `said`, `{low}` and `{high}` are the bounds of the clip.

  Attributes:
    uses_ratio: whether it looks at the behaviour policy.
    adapts: whether `width_of` gives each token a clip width before an update.
    low: lower clip width.
    high: upper clip width.
    dual: for a negative advantage the loss is at most this times -A, however
      large the ratio; above 1, or 0 for no such bound.
  """

  uses_ratio: ClassVar[bool] = True
  adapts: ClassVar[bool] = False
  low: float = 0.0
  high: float = 0.0
  dual: float = 0.0

  def __post_init__(self):
    """Checks the dual clip, too."""
    super().__post_init__()
    if 0 < self.dual <= 1:
      raise ConfigError(
        f'{self.name}(dual={self.dual}) must be above 1, or 0 for none.'
      )

  def __call__(
    self,
    logp: Float[Array, '*B T'],
    old_logp: Float[Array, '*B T'],
    advantage: Float[Array, '*B T'],
    mask: Bool[Array, '*B T'] | None = None,
    width: Float[Array, '*B T'] | None = None,
  ) -> Float[Array, '*B T']:
    """Returns the loss of each token.

    From its log-probability under the student and under the policy that
    sampled it, in nats; losses of whole sequences need the mask of the tokens
    that count, those that adapt each token's own clip width.
    """
    raise NotImplementedError

  def width_of(
    self,
    logp: Float[Array, '*B'],
    old_logp: Float[Array, '*B'],
    mask: Bool[Array, '*B'],
  ) -> Float[Array, '*B']:
    """The clip width of each token, where the loss adapts."""
    raise NotImplementedError

  def idle_on_policy(self) -> tuple[str, ...]:
    """Returns the changed options that do nothing while every ratio is 1."""
    return tuple(
      name
      for name, value in vars(self).items()
      if value not in (0, getattr(type(self), name))
    )

  def words(self) -> str:
    """Says what it is, for a person, with the bounds of its clip."""
    low, high = f'{1 - self.low:g}', f'{1 + self.high:g}'
    dual = f', at most {self.dual:g} |A|' if self.dual else ''
    return self.said.format(low=low, high=high) + dual


def _surrogate(r, advantage, low, high, dual):
  clipped = jnp.clip(r, 1 - low, 1 + high)
  gain = jnp.minimum(r * advantage, clipped * advantage)
  if dual:
    floor = jnp.where(advantage < 0, dual * advantage, -jnp.inf)
    gain = jnp.maximum(gain, floor)
  return -gain


@dataclass(frozen=True)
class Clip(PolicyLoss, name='clip'):
  """-min(r A, clip(r, 1 - low, 1 + high) A), token by token.

  Source: PPO (arXiv 1707.06347, eq. 7), as GRPO (2402.03300) uses it; two
  widths: DAPO (2503.14476); the dual clip: arXiv 1912.09729.
  """

  low: NonNegative = 0.2
  high: NonNegative = 0.2
  dual: NonNegative = 0.0
  said = '-min(r A, clip(r, {low}, {high}) A)'

  def __call__(self, logp, old_logp, advantage, mask=None, width=None):
    """Returns the loss of each token."""
    del mask, width
    r = ratio(logp, old_logp)
    return _surrogate(r, advantage, self.low, self.high, self.dual)


@dataclass(frozen=True)
class AdaptiveClip(PolicyLoss, name='adaptive_clip'):
  """`Clip` whose widths come from the spread of ratios among like tokens.

  Source: ACPO, arXiv 2606.22570; see `adaptive_clip`.
  """

  dual: NonNegative = 0.0
  adapts: ClassVar[bool] = True
  said = '-min(r A, clip(r, 1 - e, 1 + e) A)'

  def __call__(self, logp, old_logp, advantage, mask=None, width=None):
    """Returns the loss of each token; without widths, `Clip`'s are taken."""
    del mask
    width = 0.2 if width is None else width
    return _surrogate(ratio(logp, old_logp), advantage, width, width, self.dual)

  def width_of(self, logp, old_logp, mask):
    """Returns the width of each token."""
    return adaptive_clip(logp, old_logp, mask)

  def idle_on_policy(self) -> tuple[str, ...]:
    """Returns its name: all of it does nothing while every ratio is 1."""
    return (self.name,)


@dataclass(frozen=True)
class GSPO(PolicyLoss, name='gspo'):
  """The clipped loss of the sequence's ratio exp(mean_t log r_t).

  Every token has that ratio as the value of its own, and moves it by its own
  log-probability (GSPO-token): with `sequence_mean` and one advantage a
  sequence that is GSPO (arXiv 2507.18071, eq. 5 and 14), and tokens with
  advantages of their own keep them.
  """

  low: NonNegative = 0.2
  high: NonNegative = 0.2
  dual: NonNegative = 0.0
  said = (
    '-min(s A, clip(s, {low}, {high}) A), s the geometric mean of the '
    "sequence's ratios"
  )

  def __call__(self, logp, old_logp, advantage, mask=None, width=None):
    """Returns the loss of each token."""
    del width
    assert mask is not None, 'a sequence needs to know which tokens are its own'
    gap = jnp.where(mask, logp - jax.lax.stop_gradient(old_logp), 0)
    count = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
    mean_gap = gap.sum(axis=-1, keepdims=True) / count
    s = jnp.exp(jnp.clip(mean_gap, -LARGEST_GAP, LARGEST_GAP))
    r = jax.lax.stop_gradient(s) * jnp.exp(logp - jax.lax.stop_gradient(logp))
    return _surrogate(r, advantage, self.low, self.high, self.dual)


@dataclass(frozen=True)
class CISPO(PolicyLoss, name='cispo'):
  """-sg(clip(r, 1 - low, 1 + high)) A log p: no token loses its gradient.

  Source: CISPO (arXiv 2506.13585); dropped tokens: ACPO's variant of it.

  Attributes:
    low: lower clip width; 1 for no lower clip.
    high: upper clip width.
    drop_low: tokens with a negative advantage and a ratio below 1 - this,
      which `clip` would leave without a gradient, have no loss, and still
      count in the mean; 0: none are dropped.
    drop_high: the same for a positive advantage and a ratio above 1 + this.
  """

  low: NonNegative = 0.2
  high: NonNegative = 0.2
  drop_low: NonNegative = 0.0
  drop_high: NonNegative = 0.0
  said = '-sg(clip(r, {low}, {high})) A log p'

  def __call__(self, logp, old_logp, advantage, mask=None, width=None):
    """Returns the loss of each token."""
    del mask, width
    weight = jnp.clip(ratio(logp, old_logp), 1 - self.low, 1 + self.high)
    each = -jax.lax.stop_gradient(weight) * advantage * logp
    if not (self.drop_low or self.drop_high):
      return each
    low, high = self.drop_low or math.inf, self.drop_high or math.inf
    dropped = clipped_away(logp, old_logp, advantage, low, high)
    return jnp.where(dropped, 0, each)

  def words(self) -> str:
    """Says what it is and what it drops, for a person."""
    drops = [
      f'{side} with A {sign} 0'
      for dropped, side, sign in (
        (self.drop_low, f'below {1 - self.drop_low:g}', '<'),
        (self.drop_high, f'above {1 + self.drop_high:g}', '>'),
      )
      if dropped
    ]
    text = super().words()
    return text + (f', 0 where r is {" or ".join(drops)}' if drops else '')


@dataclass(frozen=True)
class Reinforce(PolicyLoss, name='reinforce'):
  """-A log p: right for one update on fresh rollouts, and no ratio at all.

  Source: R. J. Williams, 1992.
  """

  uses_ratio: ClassVar[bool] = False
  said = '-A log p'

  def __call__(self, logp, old_logp, advantage, mask=None, width=None):
    """Returns the loss of each token."""
    del old_logp, mask, width
    return -advantage * logp


def clipped_away(
  logp: Float[Array, '*#B'],
  old_logp: Float[Array, '*#B'],
  advantage: Float[Array, '*#B'],
  low: float,
  high: float,
) -> Bool[Array, '*B']:
  """Marks the tokens that PPO's clip leaves without a gradient.

  Their ratio is above 1 + high and the advantage positive, or below 1 - low
  and the advantage negative; a width of inf is no clip.
  """
  r = ratio(logp, old_logp)
  above = (advantage > 0) & (r > 1 + high)
  return above | ((advantage < 0) & (r < 1 - low))


def adaptive_clip(
  logp: Float[Array, '*B'],
  old_logp: Float[Array, '*B'],
  mask: Bool[Array, '*B'],
  *,
  num_bins: int = 5,
  base: float = 0.2,
  scale: float = 3.0,
  smallest: float = 0.0,
  largest: float = 3.0,
) -> Float[Array, '*B']:
  """A clip width for each token, from the spread of ratios like its own.

  Tokens fall into `num_bins` equally wide bins of their current probability;
  a bin's width is clip(base + scale * sqrt(Var[r] + 1e-8), smallest, largest),
  with the variance over all tokens of the bin that count (`mask`).

  Source: ACPO, arXiv 2606.22570 and its code.
  """
  r = ratio(logp, old_logp)
  index = jnp.clip((jnp.exp(logp) * num_bins).astype(int), 0, num_bins - 1)
  member = (index[..., None] == jnp.arange(num_bins)) & mask[..., None]
  axes = tuple(range(mask.ndim))
  count = jnp.maximum(member.sum(axis=axes), 1)
  mean = jnp.where(member, r[..., None], 0).sum(axis=axes) / count
  square = jnp.where(member, jnp.square(r[..., None] - mean), 0)
  deviation = jnp.sqrt(square.sum(axis=axes) / count + 1e-8)
  width = jnp.clip(base + scale * deviation, smallest, largest)
  return jax.lax.stop_gradient(width[index])
