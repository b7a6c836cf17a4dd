"""Both at once: the step that learns from rewards and from a teacher.

Mirror of `sdjax.steps.sd` and `sdjax.steps.rl`: the same functions with the
same arguments. Rules that act on the ADVANTAGE (`ADVANTAGE_RULES`) end in the
policy loss of `rl`; rules that act on the LOSS (`LOSS_RULES`) add the losses
of `rl` and `sd`, each token with its own weight of either.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.objectives import credit
from sdjax.objectives.pooling import arithmetic_mixture
from sdjax.objectives.reduce import token_weights
from sdjax.steps import rl, sd
from sdjax.steps.teacher import mean_over_teachers, teacher_tokens
from sdjax.steps.view import add_reference_kl, counted_tokens, importance_base
from sdjax.types import ApplyFn, Evidence, Params, Prompts, Rollout, Signal

ADVANTAGE_RULES = ('advantage', 'debiased', 'rlsd', 'antisd', 'rlcsd')
LOSS_RULES = ('loss', 'srpo', 'sdpg')
RULES = (*ADVANTAGE_RULES, *LOSS_RULES)

NOTHING: Mapping[str, Any] = MappingProxyType({})


def signal_step(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params | None,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  evidence: Evidence,
  *,
  rule: str = 'advantage',
  weight: float = 0.5,
  advantage: str = 'grpo',
  pass_k: int = 4,
  std: str = 'population',
  std_epsilon: float = 1e-4,
  pooling: str = 'loss',
  teacher_temperature: float = 1.0,
  anchor: str = 'none',
  teacher_share: float = 1.0,
  success_exponent: float = 0.0,
  ratio_clip: float = 0.2,
  entropy_floor: float = 0.0,
  entropy_exponent: float = 1.0,
  positive_only: bool = False,
  num_contrast: int = 0,
  contrast_temperature: float = 0.02,
  contrast_clip: float = 2.0,
  contrast_threshold: float = 0.02,
  touched_weight: float = 1.0,
  aggregation: str = 'token_mean',
  with_ref_kl: bool = True,
  kl_estimator: str = 'k3',
  skip_tokens: int = 0,
  mask_truncated: bool = False,
  sampler_clip: float = 0.0,
  recompute: bool = False,
  temperature: float = 1.0,
  chunk: int = 16,
) -> Signal:
  """Combines the advantage of rewards with the teacher's view.

  With A the advantage of rewards, u the teacher's log-ratio of a token (0
  where a rollout has no teacher) and w the weight:

    advantage  w A + (1 - w) u                       (SDPO eq. 3)
    debiased   w A + (1 - w) u', u' being u without its liking for one
               strategy over another, see `credit.debiased` (ours)
    rlsd       A [(1 - w) + w clip(exp(sign(A) u))]  (arXiv 2604.03128); u is
               the ratio to the weights that sampled, as in SDPG's code, where
               RLCSD's takes the weights of each update: at the first update
               of a step they are the same
    antisd     A - w (softplus(u) - log 2) / 2       (2605.11609)
    rlcsd      A plus a bounded contrast; rollouts that lack a right or a
               wrong answer to be shown do not count, as in its code
               (2606.11709)
    loss       w L_rl + (1 - w) L_sd, each its own mean
    srpo       L_sd for failed rollouts that have a teacher, L_rl for all
               others, in one mean (2604.02288 sec. 3.1)
    sdpg       L_rl + w L_sd, if asked only where A > 0 (2606.04036)

  Args:
    apply_fn: the model.
    params: the weights that sampled the rollout.
    teacher_params: see `sd.signal_step`.
    ref_params: the reference's weights, or None without a use for them.
    prompts: the student's contexts.
    rollout: what was sampled.
    evidence: rewards, the verifier's word, and the teacher's contexts.
    rule: one of `RULES`.
    weight: w, where the evidence does not say it.
    advantage: see `rl.signal_step`.
    pass_k: see `rl.signal_step`.
    std: see `rl.signal_step`.
    std_epsilon: see `rl.signal_step`.
    pooling: see `sd.loss`.
    teacher_temperature: see `sd.loss`.
    anchor: see `sd.signal_step`.
    teacher_share: see `sd.signal_step`.
    success_exponent: see `sd.signal_step`; for rules on the loss.
    ratio_clip: of `rlsd`: how far from 1 its factor may be.
    entropy_floor: of `antisd`: w is 0 while the median entropy of the teacher
      is below this many nats. The paper takes 0.93 times the median of its
      first steps; here it is a number, so that a step depends on nothing but
      its arguments.
    entropy_exponent: of `srpo`: a token's distillation weighs
      exp(-this * teacher's entropy), scaled to mean 1 over those tokens.
    positive_only: of `sdpg`: only rollouts whose advantage is above 0 are
      distilled.
    num_contrast: of `rlcsd`: how many of the K contexts, the last ones, show
      a WRONG answer.
    contrast_temperature: of `rlcsd`, nats; see `credit.rlcsd`.
    contrast_clip: of `rlcsd`.
    contrast_threshold: of `rlcsd`.
    touched_weight: of `rlcsd`: weight of the mean over touched tokens, beside
      1 for that over the others.
    aggregation: of the loss, for the rules with several means. They are
      balanced over the whole step: with mini-batches the share of each in one
      update varies, and a KL to the reference is over all counted rollouts.
    with_ref_kl: whether the loss has a KL to the reference.
    kl_estimator: see `new_signal`; so the following.
    skip_tokens: first tokens of every completion that do not count.
    mask_truncated: rollouts that were cut off do not count.
    sampler_clip: cap of the weights that correct for the sampler; 0: none.
    recompute: compute the log-probabilities of `params` anew.
    temperature: divides all logits.
    chunk: tokens whose logits exist at once.

  Returns:
    An advantage, and for rules on the loss the teacher's hidden states and
    each token's weight of either loss.

  Raises:
    ValueError: for another rule, or without what it needs of the evidence.
  """
  if rule not in RULES:
    raise ValueError(f'rule={rule!r} is not one of {RULES}.')
  if rule == 'debiased' and evidence.strategy is None:
    raise ValueError(
      "rule='debiased' needs evidence.strategy, int32 [Q, G]: which strategy "
      'each correct rollout takes, -1 for the others.'
    )
  if teacher_params is None:
    teacher_params = params
  masks = {'skip_tokens': skip_tokens, 'mask_truncated': mask_truncated}
  view = {'temperature': temperature, 'chunk': chunk}
  # The reference and the old weights are looked at once, for both.
  rewarded = rl.signal_step(
    apply_fn,
    params,
    teacher_params,
    ref_params if with_ref_kl else None,
    prompts,
    rollout,
    evidence,
    advantage=advantage,
    pass_k=pass_k,
    std=std,
    std_epsilon=std_epsilon,
    kl_estimator=kl_estimator,
    sampler_clip=sampler_clip,
    recompute=recompute,
    **masks,
    **view,
  )
  taught = sd.signal_step(
    apply_fn,
    params,
    teacher_params,
    ref_params,
    prompts,
    rollout,
    evidence,
    pooling=pooling,
    teacher_temperature=teacher_temperature,
    anchor=anchor,
    teacher_share=teacher_share,
    success_exponent=success_exponent,
    with_ref_kl=False,
    **masks,
    **view,
  )
  strength = evidence.strength
  if strength is None:
    strength = jnp.full(rollout.ids.shape[0], weight, jnp.float32)
  w_Q11 = strength[:, None, None]
  mask_QGT = counted_tokens(rollout, rewarded)

  def tokens():
    """The teacher's word on each token; not every rule asks for it."""
    return teacher_tokens(
      apply_fn,
      teacher_params,
      ref_params,
      taught,
      rollout.ids,
      pooling='loss' if num_contrast else pooling,
      teacher_temperature=teacher_temperature,
      **view,
    )

  if rule == 'rlcsd':
    logp_QGTK, _, found_QGTK = tokens()
    contrast_QGT, both_QGT = _contrast(logp_QGTK, found_QGTK, num_contrast)
    rewarded = replace(
      rewarded, sample_mask=rewarded.sample_mask & both_QGT.any(axis=-1)
    )
    new_QGT, touched_QGT = credit.rlcsd(
      rewarded.advantage,
      contrast_QGT,
      w_Q11,
      temperature=contrast_temperature,
      largest=contrast_clip,
      threshold=contrast_threshold,
    )
    signal = _weigh_touched(
      rewarded, mask_QGT, touched_QGT, touched_weight, aggregation
    )
    signal = replace(signal, advantage=new_QGT)
  elif rule in ADVANTAGE_RULES:
    logp_QGTK, entropy_QGTK, found_QGTK = tokens()
    base_QGT1 = importance_base(rollout, rewarded)[..., None]
    u_QGT = mean_over_teachers(logp_QGTK - base_QGT1, found_QGTK)
    if rule == 'advantage':
      new_QGT = credit.mixed(rewarded.advantage, u_QGT, w_Q11)
    elif rule == 'debiased':
      strategy_QG = jnp.where(taught.sample_mask, evidence.strategy, -1)
      even_QGT = credit.debiased(u_QGT, mask_QGT, strategy_QG)
      new_QGT = credit.mixed(rewarded.advantage, even_QGT, w_Q11)
    elif rule == 'rlsd':
      new_QGT = credit.rlsd(rewarded.advantage, u_QGT, w_Q11, clip=ratio_clip)
    else:
      seen = found_QGTK & mask_QGT[..., None]
      level = jnp.nanmedian(jnp.where(seen, entropy_QGTK, jnp.nan))
      on = jnp.where(level >= entropy_floor, 1.0, 0.0)
      new_QGT = credit.antisd(rewarded.advantage, u_QGT, w_Q11 * on)
    signal = replace(rewarded, advantage=new_QGT)
  else:
    has_QG, samples_QG = taught.sample_mask, rewarded.sample_mask
    rl_QGT = jnp.ones(mask_QGT.shape, jnp.float32)
    sd_QGT = rl_QGT if taught.sd_weight is None else taught.sd_weight
    sd_QGT = jnp.where(has_QG[..., None], sd_QGT, 0)
    if rule == 'loss':
      both = token_weights(mask_QGT, samples_QG, aggregation)
      own = token_weights(mask_QGT, samples_QG & has_QG, aggregation)
      sd_QGT = (1 - w_Q11) * sd_QGT * _ratio(own, both)
      rl_QGT = w_Q11 * rl_QGT
    elif rule == 'sdpg':
      sd_QGT = w_Q11 * sd_QGT
      if positive_only:
        sd_QGT = sd_QGT * (rewarded.advantage > 0)
    else:
      failed_QG = ~jnp.asarray(evidence.correct) & has_QG
      _, entropy_QGTK, found_QGTK = tokens()
      calm_QGT = jnp.exp(
        -entropy_exponent * mean_over_teachers(entropy_QGTK, found_QGTK)
      )
      routed_QGT = mask_QGT & (failed_QG & samples_QG)[..., None]
      mean = jnp.where(routed_QGT, calm_QGT, 0).sum() / jnp.maximum(
        routed_QGT.sum(), 1
      )
      calm_QGT = calm_QGT / jnp.where(mean > 0, mean, 1)
      sd_QGT = jnp.where(failed_QG[..., None], sd_QGT * calm_QGT, 0)
      rl_QGT = jnp.where(failed_QG[..., None], 0, rl_QGT)
    if rewarded.rl_weight is not None:  # the sampler's correction
      rl_QGT, sd_QGT = (x * rewarded.rl_weight for x in (rl_QGT, sd_QGT))
    signal = replace(
      rewarded,
      sample_mask=samples_QG,
      teacher_hidden=taught.teacher_hidden,
      teacher_mask=taught.teacher_mask,
      teacher_log_weight=taught.teacher_log_weight,
      anchor_hidden=taught.anchor_hidden,
      anchor_weight=taught.anchor_weight,
      rl_weight=rl_QGT,
      sd_weight=sd_QGT,
    )
  return jax.lax.stop_gradient(signal)


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
  distance: Mapping[str, Any] = NOTHING,
  push: Mapping[str, Any] = NOTHING,
  kl_coef: float = 0.0,
  kl_estimator: str = 'k3',
  temperature: float = 1.0,
  chunk: int = 16,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The policy loss and the distillation loss, each token weighted as told.

  For the rules on the advantage the loss is `rl.loss`.

  Args:
    apply_fn: the model.
    params: the student's weights; the only differentiated argument.
    teacher_params: the teacher's weights (its head is what is used).
    ref_params: the reference's weights (likewise), or None.
    prompts: the student's contexts.
    rollout: the sampled completions.
    signal: from `signal_step`, of a rule on the loss.
    weight_QGT: float32, from `token_weights`.
    distance: options of `sd.loss`, those below aside.
    push: options of `rl.loss`, those below aside.
    kl_coef: weight of the KL to the reference.
    kl_estimator: `k1`, `k2`, `k3` or `full`.
    temperature: divides all logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The weighted sum, and weighted sums of what is worth logging.
  """
  view, distilled_QGT = sd.distilled(
    apply_fn,
    params,
    teacher_params,
    ref_params,
    prompts,
    rollout,
    signal,
    temperature=temperature,
    chunk=chunk,
    **distance,
  )
  pushed_QGT = rl.token_loss(view, rollout, signal, **push)
  metrics = {
    'policy': jnp.sum(weight_QGT * pushed_QGT),
    'divergence': jnp.sum(weight_QGT * distilled_QGT),
    'teacher_log_ratio': jnp.sum(weight_QGT * view.extra.log_ratio),
  }
  return add_reference_kl(
    metrics['policy'] + metrics['divergence'],
    metrics,
    view,
    signal,
    weight_QGT,
    kl_coef,
    kl_estimator,
  )


def _ratio(own: jax.Array, both: jax.Array) -> jax.Array:
  """What turns the weights of one mean into those of another."""
  return own / jnp.where(both > 0, both, 1)


def _contrast(
  logp_QGTK: jax.Array, found_QGTK: jax.Array, num_contrast: int
) -> tuple[jax.Array, jax.Array]:
  """The log-ratio of teachers shown right and wrong answers; who has both."""
  cut = logp_QGTK.shape[-1] - num_contrast
  right, wrong = found_QGTK[..., :cut], found_QGTK[..., cut:]
  liked = mean_over_teachers(logp_QGTK[..., :cut], right)
  mixed = arithmetic_mixture(logp_QGTK[..., cut:, None], wrong)[..., 0]
  both = right.any(axis=-1) & wrong.any(axis=-1)
  return jnp.where(both, liked - mixed, 0), both


def _weigh_touched(
  signal: Signal,
  mask_QGT: jax.Array,
  touched_QGT: jax.Array,
  touched_weight: float,
  aggregation: str,
) -> Signal:
  """Gives touched and untouched tokens a mean each."""
  samples_QG = signal.sample_mask
  both = token_weights(mask_QGT, samples_QG, aggregation)
  plain = token_weights(mask_QGT & ~touched_QGT, samples_QG, aggregation)
  touched = token_weights(mask_QGT & touched_QGT, samples_QG, aggregation)
  factor = _ratio(plain + touched_weight * touched, both)
  if signal.rl_weight is not None:
    factor = factor * signal.rl_weight
  return replace(signal, rl_weight=factor)
