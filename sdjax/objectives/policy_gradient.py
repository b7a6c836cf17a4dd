"""Per-token losses of reinforcement learning.

Each takes log-probabilities of the taken tokens and their advantages. With
the ratio r = exp(logp - old_logp), where old_logp is that of the policy that
sampled, all of them have the gradient -A d(logp) at r = 1.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

LARGEST_GAP = 20.0  # nats; a larger gap of log-probabilities is cut to this


def ratio(logp: jax.Array, old_logp: jax.Array) -> jax.Array:
  """exp(logp - old_logp), its exponent within 20 nats either way."""
  gap = logp - jax.lax.stop_gradient(old_logp)
  return jnp.exp(jnp.clip(gap, -LARGEST_GAP, LARGEST_GAP))


def truncated_ratio(
  logp: jax.Array, old_logp: jax.Array, largest: float
) -> jax.Array:
  """min(exp(logp - old_logp), largest), a constant: an importance weight.

  Args:
    logp: [...], nats, of the taken token under the law that is wanted.
    old_logp: [...], nats, under the law it was drawn from.
    largest: cap of the weight.

  Returns:
    [...], in (0, largest].

  Source: SDPO, arXiv 2601.20802 (importance weights, cap 2).
  """
  return jax.lax.stop_gradient(jnp.minimum(ratio(logp, old_logp), largest))


def _surrogate(r, advantage, clip_low, clip_high, dual_clip):
  clipped = jnp.clip(r, 1 - clip_low, 1 + clip_high)
  gain = jnp.minimum(r * advantage, clipped * advantage)
  if dual_clip:
    floor = jnp.where(advantage < 0, dual_clip * advantage, -jnp.inf)
    gain = jnp.maximum(gain, floor)
  return -gain


def clipped_policy_gradient(
  logp: jax.Array,
  old_logp: jax.Array,
  advantage: jax.Array,
  *,
  clip_low: jax.Array | float,
  clip_high: jax.Array | float,
  dual_clip: float = 0.0,
  mask: jax.Array | None = None,
) -> jax.Array:
  """-min(r A, clip(r, 1 - low, 1 + high) A), token by token.

  Source: PPO (arXiv 1707.06347, eq. 7), as GRPO (2402.03300) uses it; two
  widths: DAPO (2503.14476); the dual clip: arXiv 1912.09729.

  Args:
    logp: [...], nats, of the taken token under the student.
    old_logp: [...], nats, under the policy that sampled it.
    advantage: [...].
    clip_low: lower clip distance, >= 0; an array gives each token its own.
    clip_high: upper clip distance, >= 0; likewise.
    dual_clip: for a negative advantage the loss is at most this times -A,
      however large the ratio; above 1, or 0 for no such bound.
    mask: unused; tokens do not depend on each other.

  Returns:
    [...], the loss of each token.
  """
  del mask
  r = ratio(logp, old_logp)
  return _surrogate(r, advantage, clip_low, clip_high, dual_clip)


def sequence_policy_gradient(
  logp: jax.Array,
  old_logp: jax.Array,
  advantage: jax.Array,
  *,
  clip_low: float,
  clip_high: float,
  dual_clip: float = 0.0,
  mask: jax.Array | None = None,
) -> jax.Array:
  """The clipped loss of the sequence's ratio exp(mean_t log r_t).

  Every token has that ratio as the value of its own, and moves it by its own
  log-probability (GSPO-token): with `sequence_mean` and one advantage a
  sequence that is GSPO (arXiv 2507.18071, eq. 5 and 14), and tokens with
  advantages of their own keep them.

  Args:
    logp: [..., T], nats.
    old_logp: [..., T], nats.
    advantage: [..., T].
    clip_low: lower clip distance of the sequence's ratio.
    clip_high: upper clip distance.
    dual_clip: as in `clipped_policy_gradient`.
    mask: bool [..., T], the sequence's tokens.

  Returns:
    [..., T].
  """
  assert mask is not None, 'a sequence needs to know which tokens are its own'
  gap = jnp.where(mask, logp - jax.lax.stop_gradient(old_logp), 0)
  count = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
  mean_gap = gap.sum(axis=-1, keepdims=True) / count
  s = jnp.exp(jnp.clip(mean_gap, -LARGEST_GAP, LARGEST_GAP))
  r = jax.lax.stop_gradient(s) * jnp.exp(logp - jax.lax.stop_gradient(logp))
  return _surrogate(r, advantage, clip_low, clip_high, dual_clip)


def clipped_away(
  logp: jax.Array,
  old_logp: jax.Array,
  advantage: jax.Array,
  low: jax.Array | float,
  high: jax.Array | float,
) -> jax.Array:
  """Marks the tokens that PPO's clip leaves without a gradient.

  Args:
    logp: [...], nats.
    old_logp: [...], nats.
    advantage: [...].
    low: lower clip distance; inf for none.
    high: upper clip distance; likewise.

  Returns:
    bool [...]: the ratio is above 1 + high and the advantage positive, or
    below 1 - low and the advantage negative.
  """
  r = ratio(logp, old_logp)
  above = (advantage > 0) & (r > 1 + high)
  return above | ((advantage < 0) & (r < 1 - low))


def clipped_importance(
  logp: jax.Array,
  old_logp: jax.Array,
  advantage: jax.Array,
  *,
  clip_low: float,
  clip_high: float,
  dual_clip: float = 0.0,
  mask: jax.Array | None = None,
) -> jax.Array:
  """-sg(clip(r, 1 - low, 1 + high)) A log p: no token loses its gradient.

  Source: CISPO (arXiv 2506.13585).

  Args:
    logp: [...], nats.
    old_logp: [...], nats.
    advantage: [...].
    clip_low: lower clip distance; 1 for no lower clip.
    clip_high: upper clip distance.
    dual_clip: must be 0; the weight is bounded already.
    mask: unused.

  Returns:
    [...].
  """
  del mask
  assert not dual_clip, 'cispo has no dual clip'
  weight = jnp.clip(ratio(logp, old_logp), 1 - clip_low, 1 + clip_high)
  return -jax.lax.stop_gradient(weight) * advantage * logp


def reinforce(
  logp: jax.Array,
  old_logp: jax.Array,
  advantage: jax.Array,
  *,
  clip_low: float = 0.0,
  clip_high: float = 0.0,
  dual_clip: float = 0.0,
  mask: jax.Array | None = None,
) -> jax.Array:
  """-A log p: right for one update on fresh rollouts, and no ratio at all.

  Source: R. J. Williams, 1992.

  Args:
    logp: [...], nats.
    old_logp: unused.
    advantage: [...].
    clip_low: unused.
    clip_high: unused.
    dual_clip: unused.
    mask: unused.

  Returns:
    [...].
  """
  del old_logp, clip_low, clip_high, dual_clip, mask
  return -advantage * logp


POLICY_LOSSES: dict[str, Callable[..., jax.Array]] = {
  'clip': clipped_policy_gradient,
  'gspo': sequence_policy_gradient,
  'cispo': clipped_importance,
  'reinforce': reinforce,
}
"""Name to `f(logp, old_logp, advantage, *, clip_low, clip_high, ...)`."""


def adaptive_clip(
  logp: jax.Array,
  old_logp: jax.Array,
  mask: jax.Array,
  *,
  num_bins: int = 5,
  base: float = 0.2,
  scale: float = 3.0,
  smallest: float = 0.0,
  largest: float = 3.0,
) -> jax.Array:
  """A clip width for each token, from the spread of ratios like its own.

  Tokens fall into `num_bins` equally wide bins of their current probability;
  a bin's width is clip(base + scale * sqrt(Var[r] + 1e-8), smallest, largest),
  with the variance over all counted tokens of the bin.

  Args:
    logp: [...], nats, under the student.
    old_logp: [...], nats, under the policy that sampled.
    mask: bool [...], tokens that count.
    num_bins: bins.
    base: width where all ratios are equal.
    scale: width gained for each unit of standard deviation.
    smallest: width at least.
    largest: width allowed.

  Returns:
    [...], >= 0.

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
