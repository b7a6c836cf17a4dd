"""The self-distillation step: the teacher's view, and the pull towards it.

Mirror image of `sdjax.steps.rl`: the same functions, in the same order, with
the same arguments.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from sdjax.objectives.credit import future_sum
from sdjax.objectives.policy_gradient import truncated_ratio
from sdjax.objectives.pooling import sequence_log_weight
from sdjax.steps.score import completion_hidden
from sdjax.steps.teacher import (
  comparison,
  mean_over_teachers,
  teacher_inputs,
  teacher_tokens,
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

SCORE_WEIGHTED = 'score_weighted'


def signal_step(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params | None,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  evidence: Evidence,
  *,
  objective: str = 'reverse_kl',
  pooling: str = 'loss',
  teacher_temperature: float = 1.0,
  anchor: str = 'none',
  teacher_share: float = 1.0,
  success_exponent: float = 0.0,
  with_ref_kl: bool = True,
  kl_estimator: str = 'k3',
  skip_tokens: int = 0,
  mask_truncated: bool = False,
  sampler_clip: float = 0.0,
  recompute: bool = False,
  temperature: float = 1.0,
  chunk: int = 16,
) -> Signal:
  """Scores every rollout with the teacher, shown its demonstrations.

  Each distinct (question, demonstration) context runs once, however many
  rollouts are scored under it.

  Args:
    apply_fn: the model.
    params: the weights that sampled the rollout.
    teacher_params: the teacher's weights; None: the student's own, `params`.
      Where the training state holds an average, that is what to pass.
    ref_params: the reference's weights, or None without a use for them.
    prompts: the student's contexts.
    rollout: what is scored.
    evidence: the teacher's contexts and who is scored under which.
    objective: as in `loss`; `score_weighted` is made here, from the mean
      log-probability of each rollout under its teachers.
    pooling: as in `loss`.
    teacher_temperature: as in `loss`; used by `score_weighted` alone.
    anchor: `none`; or the reference model whose law the teacher's is mixed
      with, geometrically: shown what the teacher is shown (`teacher`: the
      trust region of SDPO) or what the student is (`student`: beta-OPSD).
    teacher_share: the teacher's share in that mixture, where the evidence
      does not say it.
    success_exponent: each question weighs (p (1 - p))^this, p being its share
      of correct rollouts, divided by the mean of that over questions; 0: all
      alike. SC-SDPO (arXiv 2605.27765) has 0.5.
    with_ref_kl: whether the loss has a KL to the reference.
    kl_estimator: see `new_signal`; so the following.
    skip_tokens: first tokens of every completion that do not count.
    mask_truncated: rollouts that were cut off do not count.
    sampler_clip: cap of the weights that correct for the sampler; 0: none.
    recompute: compute the log-probabilities of `params` anew.
    temperature: divides all logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The teacher's hidden states, and what `new_signal` says.

  Raises:
    ValueError: for an anchor without a reference, or an unknown one.
  """
  if teacher_params is None:
    teacher_params = params
  signal = new_signal(
    apply_fn,
    params,
    ref_params if with_ref_kl else None,
    prompts,
    rollout,
    kl_estimator=kl_estimator,
    skip_tokens=skip_tokens,
    mask_truncated=mask_truncated,
    sampler_clip=sampler_clip,
    recompute=recompute,
    temperature=temperature,
    chunk=chunk,
  )
  index_QGK, mask_QGK = evidence.context_index, evidence.context_mask
  num_q, num_g, num_k = index_QGK.shape
  width = rollout.ids.shape[-1]

  def in_context(params):
    hidden = completion_hidden(
      apply_fn,
      params,
      evidence.context_ids,
      evidence.context_length,
      jnp.repeat(rollout.ids, num_k, axis=1),
      index_QGK.reshape(num_q, num_g * num_k),
    )
    hidden_QGKTD = hidden.reshape(num_q, num_g, num_k, width, -1)
    return jnp.moveaxis(hidden_QGKTD, 2, 3)

  signal = replace(
    signal,
    sample_mask=signal.sample_mask & mask_QGK.any(axis=-1),
    teacher_hidden=in_context(teacher_params),
    teacher_mask=mask_QGK,
  )
  if anchor not in ('none', 'teacher', 'student'):
    raise ValueError(f'anchor={anchor!r} is not one of none, teacher, student.')
  if anchor != 'none':
    if ref_params is None:
      raise ValueError(f'anchor={anchor!r} needs ref_params.')
    share = evidence.teacher_share
    if share is None:
      share = jnp.full(num_q, teacher_share, jnp.float32)
    if anchor == 'teacher':
      anchor_hidden = in_context(ref_params)
    else:
      anchor_hidden = completion_hidden(
        apply_fn,
        ref_params,
        prompts.ids[:, None],
        prompts.length[:, None],
        rollout.ids,
      )[:, :, :, None]
    signal = replace(
      signal, anchor_hidden=anchor_hidden, anchor_weight=1 - share
    )
  if pooling == 'sequence_mixture':
    taken_QGTK, *_ = teacher_tokens(
      apply_fn,
      teacher_params,
      ref_params,
      signal,
      rollout.ids,
      temperature=temperature,
      chunk=chunk,
    )
    signal = replace(signal, teacher_log_weight=sequence_log_weight(taken_QGTK))
  if success_exponent:
    share_Q = jnp.mean(evidence.correct, axis=1)
    weight_Q = (share_Q * (1 - share_Q)) ** success_exponent
    weight_Q /= jnp.maximum(weight_Q.mean(), 1e-6)
    signal = _weighted(signal, weight_Q[:, None, None])
  if objective == SCORE_WEIGHTED:
    teacher_logp_QGTK, _, found_QGTK = teacher_tokens(
      apply_fn,
      teacher_params,
      ref_params,
      signal,
      rollout.ids,
      pooling=pooling,
      teacher_temperature=teacher_temperature,
      temperature=temperature,
      chunk=chunk,
    )
    logp_QGT = mean_over_teachers(teacher_logp_QGTK, found_QGTK)
    mask_QGT = counted_tokens(rollout, signal)
    score_QG = mean_over_teachers(logp_QGT, mask_QGT)
    score_QG = jnp.where(signal.sample_mask, score_QG, -jnp.inf)
    count_Q1 = signal.sample_mask.sum(axis=1, keepdims=True)
    share_QG = jax.nn.softmax(jnp.where(count_Q1 > 0, score_QG, 0), axis=1)
    signal = replace(
      _weighted(signal, (count_Q1 * share_QG)[..., None]),
      teacher_hidden=None,
      anchor_hidden=None,
    )
  return jax.lax.stop_gradient(signal)


def token_loss(
  view: View,
  rollout: Rollout,
  signal: Signal,
  *,
  objective: str = 'reverse_kl',
  support: str = 'full',
  importance_clip: float = 2.0,
  credit_discount: float = 0.0,
) -> jax.Array:
  """The distillation loss of each token.

  Args:
    view: the student's, compared with its teacher.
    rollout: what was sampled.
    signal: from `signal_step`.
    objective: see `loss`; so the following.
    support: see `loss`.
    importance_clip: see `loss`.
    credit_discount: see `loss`.

  Returns:
    float32 [Q, G, T].
  """
  if objective == SCORE_WEIGHTED:
    each_QGT = -view.logp
  else:
    each_QGT = view.extra.each
  if credit_discount:
    # What the token's successors cost is a cost of the token.
    cost = -view.extra.log_ratio if support == 'sampled' else each_QGT
    later = future_sum(
      jax.lax.stop_gradient(cost),
      counted_tokens(rollout, signal),
      credit_discount,
    )
    each_QGT = each_QGT + later * view.logp
  if importance_clip:
    each_QGT = each_QGT * truncated_ratio(
      view.logp, importance_base(rollout, signal), importance_clip
    )
  if signal.sd_weight is not None:
    each_QGT = each_QGT * signal.sd_weight
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
  objective: str = 'reverse_kl',
  jsd_alpha: float = 0.5,
  jsd_normalised: bool = False,
  pointwise_clip: float = 0.0,
  support: str = 'full',
  top_k: int = 100,
  tail: bool = True,
  pooling: str = 'loss',
  teacher_temperature: float = 1.0,
  importance_clip: float = 2.0,
  credit_discount: float = 0.0,
  kl_coef: float = 0.0,
  kl_estimator: str = 'k3',
  temperature: float = 1.0,
  chunk: int = 16,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Divergence of the student from its teacher, plus KL to the reference.

  With several demonstrations the LOSSES are averaged (the paper's K = 3),
  which for `reverse_kl` pools the teachers geometrically; or the teachers are
  mixed first.

  Args:
    apply_fn: the model.
    params: the student's weights; the only differentiated argument.
    teacher_params: the teacher's weights (its head is what is used).
    ref_params: the reference's weights (likewise), or None.
    prompts: the student's contexts.
    rollout: the scored completions.
    signal: from `signal_step`.
    weight_QGT: float32, from `token_weights`.
    objective: `reverse_kl`, `forward_kl`, `jsd`, `cross_entropy`, or
      `score_weighted`: -w_i log p(y_i), w being n times the softmax over the
      question's n counted rollouts of their mean log-probability under the
      teacher. With `sequence_sum` that is -sum_i softmax_i log p(y_i).
    jsd_alpha: the teacher's share in `jsd`.
    jsd_normalised: divide `jsd` by alpha (1 - alpha).
    pointwise_clip: no token of the vocabulary adds more nats than this to a
      divergence; 0: no clip.
    support: `full` vocabulary, the `top_k` likeliest tokens of the student or
      the teacher (`student_top_k`, `teacher_top_k`), or the `sampled` token,
      in the policy-gradient form (`reverse_kl` only).
    top_k: k of the two.
    tail: whether all other tokens are one more event of the two; else the k
      probabilities are scaled to sum to 1.
    pooling: `loss`: the losses under K teachers are averaged; `mixture`: the
      teacher is the arithmetic mean of their next-token laws;
      `sequence_mixture`: the next-token law of the mean of their laws of
      whole answers (ours), see `pooling.sequence_log_weight`.
    teacher_temperature: the target is that law to the power 1 over this,
      normalised. Below 1 its slips fade, while solutions to which it gives
      the same probability keep the same (ours).
    importance_clip: each token's loss is multiplied by min(p / p_old, this),
      a constant; 1 while the rollouts are the student's own. 0: no factor.
    credit_discount: each token also bears, in the policy-gradient form, the
      losses of the tokens behind it, discounted by this per token; 1 is
      DistIL's future credit (with `cross_entropy`), 0: none.
    kl_coef: weight of the KL to the reference.
    kl_estimator: `k1`, `k2`, `k3` or `full`.
    temperature: divides all logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The weighted sum, and weighted sums of what is worth logging.

  Raises:
    ValueError: for an unknown option, or a pair of them that is not defined.

  Source: arXiv 2606.26091 sec. 2 (reverse KL); 2601.20802 (forward, JSD,
    top-k, importance weight); 2601.18734 (pointwise clip); 2606.05152
    (future credit). The mixture is ours; `score_weighted` is how summaries
    describe 2606.26091, not what it minimises.
  """
  view, each_QGT = distilled(
    apply_fn,
    params,
    teacher_params,
    ref_params,
    prompts,
    rollout,
    signal,
    objective=objective,
    jsd_alpha=jsd_alpha,
    jsd_normalised=jsd_normalised,
    pointwise_clip=pointwise_clip,
    support=support,
    top_k=top_k,
    tail=tail,
    pooling=pooling,
    teacher_temperature=teacher_temperature,
    importance_clip=importance_clip,
    credit_discount=credit_discount,
    temperature=temperature,
    chunk=chunk,
  )
  metrics = {'divergence': jnp.sum(weight_QGT * each_QGT)}
  if view.extra is not None:
    metrics['teacher_log_ratio'] = jnp.sum(weight_QGT * view.extra.log_ratio)
  return add_reference_kl(
    metrics['divergence'],
    metrics,
    view,
    signal,
    weight_QGT,
    kl_coef,
    kl_estimator,
  )


def distilled(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  *,
  objective: str = 'reverse_kl',
  support: str = 'full',
  importance_clip: float = 2.0,
  credit_discount: float = 0.0,
  temperature: float = 1.0,
  chunk: int = 16,
  **distance: Any,
) -> tuple[View, jax.Array]:
  """Runs the student beside its teacher.

  Args:
    apply_fn: as in `loss`; so all that follow.
    params: likewise.
    teacher_params: likewise.
    ref_params: likewise.
    prompts: likewise.
    rollout: likewise.
    signal: likewise.
    objective: likewise.
    support: likewise.
    importance_clip: likewise.
    credit_discount: likewise.
    temperature: likewise.
    chunk: likewise.
    **distance: what else `comparison` takes.

  Returns:
    The student's view, and float32 [Q, G, T], the distillation loss of each
    token.
  """
  compare, inputs = None, ()
  if objective != SCORE_WEIGHTED:
    inputs = (teacher_inputs(signal),)
    compare = comparison(
      apply_fn,
      teacher_params,
      ref_params,
      objective=objective,
      support=support,
      temperature=temperature,
      **distance,
    )
  view = student_view(
    apply_fn,
    params,
    ref_params,
    prompts,
    rollout,
    signal,
    compare=compare,
    inputs=inputs,
    temperature=temperature,
    chunk=chunk,
  )
  each_QGT = token_loss(
    view,
    rollout,
    signal,
    objective=objective,
    support=support,
    importance_clip=importance_clip,
    credit_discount=credit_discount,
  )
  return view, each_QGT


def _weighted(signal: Signal, weight: jax.Array) -> Signal:
  """Multiplies every token's distillation loss by a weight."""
  shape = signal.teacher_hidden.shape[:3]
  if signal.sd_weight is not None:
    weight = weight * signal.sd_weight
  return replace(signal, sd_weight=jnp.broadcast_to(weight, shape))
