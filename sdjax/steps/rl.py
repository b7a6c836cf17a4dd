"""The reinforcement learning step: advantages, and the push along them.

Mirror image of `sdjax.steps.sd`: the same functions, in the same order, with
the same arguments.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from sdjax.objectives.advantage import advantage_of
from sdjax.objectives.kl_reward import PLACES, kl_charge
from sdjax.objectives.policy_gradient import (
  POLICY_LOSSES,
  adaptive_clip,
  clipped_away,
)
from sdjax.steps.view import (
  View,
  add_reference_kl,
  counted_tokens,
  importance_base,
  new_signal,
  student_view,
)
from sdjax.types import ApplyFn, Evidence, Params, Prompts, Rollout, Signal


def signal_step(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params | None,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  evidence: Evidence,
  *,
  advantage: str = 'grpo',
  pass_k: int = 4,
  std: str = 'population',
  std_epsilon: float = 1e-4,
  kl_in: str = 'loss',
  kl_coef: float = 0.0,
  kl_estimator: str = 'k3',
  skip_tokens: int = 0,
  mask_truncated: bool = False,
  sampler_clip: float = 0.0,
  recompute: bool = False,
  temperature: float = 1.0,
  chunk: int = 16,
) -> Signal:
  """Gives every token of a rollout its advantage.

  Args:
    apply_fn: the model.
    params: the weights that sampled the rollout.
    teacher_params: unused; there is no teacher.
    ref_params: the reference's weights, or None without a KL to it.
    prompts: the student's contexts.
    rollout: what was sampled.
    evidence: the rewards; for `pass_at_k` the verifier's word, for `rosa` the
      set rewards.
    advantage: one of `sdjax.objectives.advantage.CHOICES`.
    pass_k: k of `pass_at_k`.
    std: of `grpo`: `population` or `sample`, see `group_normalised`.
    std_epsilon: of `grpo`: added to that standard deviation.
    kl_in: where the KL to the reference is: in the `loss`, which adds it; or
      in the `reward`, charged to a rollout as a whole, or `reward_to_go`, to
      each token from it on, see `kl_charge`. Either takes the tokens'
      log-probabilities from `recompute`, or else from the sampler.
    kl_coef: its weight, for a KL in the reward.
    kl_estimator: see `new_signal`, for a KL in the loss; so the following.
    skip_tokens: first tokens of every completion that do not count.
    mask_truncated: rollouts that were cut off do not count; their rewards
      still enter the group's mean.
    sampler_clip: cap of the weights that correct for the sampler; 0: none.
    recompute: compute the log-probabilities of `params` anew.
    temperature: divides the logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The advantages, and what `new_signal` says.

  Raises:
    ValueError: for another advantage or place of the KL, or for a KL in the
      reward without a reference.
  """
  del teacher_params
  if kl_in not in PLACES:
    raise ValueError(f'kl_in={kl_in!r} is not one of {PLACES}.')
  charged = kl_in != 'loss' and kl_coef > 0
  if charged and ref_params is None:
    raise ValueError(
      f'kl_in={kl_in!r} with kl_coef={kl_coef} needs ref_params, the '
      'weights that the KL is to.'
    )
  signal = new_signal(
    apply_fn,
    params,
    ref_params,
    prompts,
    rollout,
    kl_estimator='k1' if charged else kl_estimator,
    skip_tokens=skip_tokens,
    mask_truncated=mask_truncated,
    sampler_clip=sampler_clip,
    recompute=recompute,
    temperature=temperature,
    chunk=chunk,
  )
  advantage_QG = advantage_of(
    advantage,
    evidence.reward,
    evidence.correct,
    evidence.set_reward,
    pass_k,
    std,
    std_epsilon,
  )
  advantage_QGT = jnp.broadcast_to(advantage_QG[..., None], rollout.ids.shape)
  if charged:
    advantage_QGT -= kl_coef * kl_charge(
      importance_base(rollout, signal),
      signal.ref_logp,
      counted_tokens(rollout, signal),
      to_go=kl_in == 'reward_to_go',
      advantage=advantage,
    )
  signal = replace(signal, advantage=advantage_QGT)
  return jax.lax.stop_gradient(signal)


def token_loss(
  view: View,
  rollout: Rollout,
  signal: Signal,
  *,
  policy_loss: str = 'clip',
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float = 0.0,
  drop_low: float = 0.0,
  drop_high: float = 0.0,
) -> jax.Array:
  """The policy loss of each token.

  Args:
    view: the student's.
    rollout: what was sampled.
    signal: from `signal_step`.
    policy_loss: see `loss`; so the following.
    clip_low: see `loss`.
    clip_high: see `loss`.
    dual_clip: see `loss`.
    drop_low: see `loss`.
    drop_high: see `loss`.

  Returns:
    float32 [Q, G, T].

  Raises:
    ValueError: for another policy loss.
  """
  if policy_loss not in POLICY_LOSSES:
    raise ValueError(
      f'policy_loss={policy_loss!r} is not one of {sorted(POLICY_LOSSES)}.'
    )
  own = signal.clip_width
  base_QGT = importance_base(rollout, signal)
  each_QGT = POLICY_LOSSES[policy_loss](
    view.logp,
    base_QGT,
    signal.advantage,
    clip_low=clip_low if own is None else own,
    clip_high=clip_high if own is None else own,
    dual_clip=dual_clip,
    mask=counted_tokens(rollout, signal),
  )
  if drop_low or drop_high:
    dropped_QGT = clipped_away(
      view.logp,
      base_QGT,
      signal.advantage,
      drop_low or jnp.inf,
      drop_high or jnp.inf,
    )
    each_QGT = jnp.where(dropped_QGT, 0, each_QGT)
  if signal.rl_weight is not None:
    each_QGT = each_QGT * signal.rl_weight
  return each_QGT


def loss(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  weight_QGT: jax.Array,
  *,
  policy_loss: str = 'clip',
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  dual_clip: float = 0.0,
  drop_low: float = 0.0,
  drop_high: float = 0.0,
  kl_in: str = 'loss',
  kl_coef: float = 0.0,
  kl_estimator: str = 'k3',
  temperature: float = 1.0,
  chunk: int = 16,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """A policy-gradient loss, plus KL to the reference.

  Args:
    apply_fn: the model.
    params: the student's weights; the only differentiated argument.
    teacher_params: unused; there is no teacher.
    ref_params: the reference's weights, for the KL `full`; or None.
    prompts: the student's contexts.
    rollout: the sampled completions.
    signal: from `signal_step`.
    weight_QGT: float32, from `token_weights`.
    policy_loss: `clip` (PPO, GRPO, DAPO), `gspo`, `cispo` or `reinforce`.
    clip_low: the ratio is clipped below at 1 - this.
    clip_high: and above at 1 + this.
    dual_clip: see `clipped_policy_gradient`; 0: none.
    drop_low: tokens that PPO would clip below at 1 - this have no loss, and
      still count in the mean; 0: none are dropped.
    drop_high: likewise above at 1 + this. With `cispo` these are ACPO's
      variant of it.
    kl_in: as in `signal_step`: a KL in the reward is in the signal already,
      and only measured here.
    kl_coef: weight of the KL to the reference.
    kl_estimator: `k1`, `k2`, `k3` or `full`.
    temperature: divides the logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The weighted sum, and weighted sums of what is worth logging.

  Source: see `sdjax.objectives.policy_gradient` for each.
  """
  del teacher_params
  view = student_view(
    apply_fn,
    params,
    ref_params,
    prompts,
    rollout,
    signal,
    temperature=temperature,
    chunk=chunk,
  )
  each_QGT = token_loss(
    view,
    rollout,
    signal,
    policy_loss=policy_loss,
    clip_low=clip_low,
    clip_high=clip_high,
    dual_clip=dual_clip,
    drop_low=drop_low,
    drop_high=drop_high,
  )
  gap = jnp.abs(view.logp - importance_base(rollout, signal))
  metrics = {
    'policy': jnp.sum(weight_QGT * each_QGT),
    'behavior_gap': jnp.sum(weight_QGT * gap),
  }
  in_loss = kl_in == 'loss'
  return add_reference_kl(
    metrics['policy'],
    metrics,
    view,
    signal,
    weight_QGT,
    kl_coef if in_loss else 0.0,
    kl_estimator if in_loss else 'k1',
  )


def adapt_clip(
  apply_fn: ApplyFn,
  params: Params,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  *,
  temperature: float = 1.0,
  chunk: int = 16,
) -> Signal:
  """Gives every token the clip width of its kind (ACPO), before an update.

  The widths depend on the ratios of the whole mini-batch at the weights it
  is about to move, so they cost one more forward pass.

  Args:
    apply_fn: the model.
    params: the student's weights now.
    prompts: contexts of the mini-batch.
    rollout: its completions.
    signal: their target.
    temperature: divides the logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The signal with `clip_width`.

  Source: arXiv 2606.22570.
  """
  view = student_view(
    apply_fn,
    params,
    None,
    prompts,
    rollout,
    replace(signal, ref_hidden=None),
    temperature=temperature,
    chunk=chunk,
  )
  mask_QGT = counted_tokens(rollout, signal) & signal.sample_mask[..., None]
  width = adaptive_clip(view.logp, importance_base(rollout, signal), mask_QGT)
  return replace(signal, clip_width=width)
