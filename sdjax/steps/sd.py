"""The self-distillation step: the teacher's view, and the pull towards it.

Mirror image of `sdjax.steps.rl`: the same functions, in the same order, with
the same arguments.
"""

import jax
import jax.numpy as jnp

from sdjax.objectives.divergence import divergence, sampled_reverse_kl
from sdjax.steps.score import (
  add_reference_kl,
  completion_hidden,
  log_softmax,
  over_token_chunks,
  reference_logp,
  student_hidden,
  take_token,
)
from sdjax.types import (
  ApplyFn,
  Evidence,
  Params,
  Prompts,
  Rollout,
  Signal,
)


def signal_step(
  apply_fn: ApplyFn,
  teacher_params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  evidence: Evidence,
  *,
  temperature: float = 1.0,
  chunk: int = 16,
) -> Signal:
  """Scores every rollout with the teacher, shown its demonstrations.

  Each distinct (question, demonstration) context runs once, however many
  rollouts are scored under it.

  Args:
    apply_fn: the model.
    teacher_params: the teacher's weights.
    ref_params: the reference's weights, or None without a KL to it.
    prompts: the student's contexts (for the reference).
    rollout: what is scored.
    evidence: the teacher's contexts and who is scored under which.
    temperature: divides the reference's logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The teacher's hidden states, and the reference's log-probabilities.
  """
  index_QGK, mask_QGK = evidence.context_index, evidence.context_mask
  num_q, num_g, num_k = index_QGK.shape
  width = rollout.ids.shape[-1]
  hidden = completion_hidden(
    apply_fn,
    teacher_params,
    evidence.context_ids,
    evidence.context_length,
    jnp.repeat(rollout.ids, num_k, axis=1),
    index_QGK.reshape(num_q, num_g * num_k),
  )
  hidden_QGKTD = hidden.reshape(num_q, num_g, num_k, width, -1)
  signal = Signal(
    sample_mask=mask_QGK.any(axis=-1),
    teacher_hidden=jnp.moveaxis(hidden_QGKTD, 2, 3),
    teacher_mask=mask_QGK,
    ref_logp=reference_logp(
      apply_fn, ref_params, prompts, rollout, temperature, chunk
    ),
  )
  return jax.lax.stop_gradient(signal)


def loss(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  weight_QGT: jax.Array,
  *,
  objective: str = 'reverse_kl',
  jsd_alpha: float = 0.5,
  support: str = 'full',
  kl_coef: float = 0.0,
  temperature: float = 1.0,
  chunk: int = 16,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Divergence of the student from its teacher, plus KL to the reference.

  With several demonstrations the LOSSES are averaged (the paper's K = 3),
  which for `reverse_kl` pools the teachers geometrically.

  Args:
    apply_fn: the model.
    params: the student's weights; the only differentiated argument.
    teacher_params: the teacher's weights (its head is what is used).
    prompts: the student's contexts.
    rollout: the scored completions.
    signal: from `signal_step`.
    weight_QGT: float32, from `token_weights`.
    objective: `reverse_kl`, `forward_kl` or `jsd`.
    jsd_alpha: the teacher's share in `jsd`.
    support: `full` vocabulary or the `sampled` token (`reverse_kl` only).
    kl_coef: weight of the KL to the reference.
    temperature: divides both sides' logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The weighted sum, and weighted sums of what is worth logging.

  Raises:
    ValueError: for an unknown objective or support, or a pair of them that
      is not defined.

  Source: arXiv 2606.26091 sec. 2 (reverse KL); 2601.20802 (forward, JSD).
  """
  if support not in ('full', 'sampled'):
    raise ValueError(f"support={support!r} is not one of 'full', 'sampled'.")
  if support == 'sampled' and objective != 'reverse_kl':
    raise ValueError(
      f"support='sampled' is defined for objective='reverse_kl' only, not "
      f"{objective!r}; use support='full'."
    )
  distance = divergence(objective, jsd_alpha)
  hidden = student_hidden(apply_fn, params, prompts, rollout.ids)

  def part(hidden_QGTD, teacher_hidden_QGTKD, ids_QGT, mask_QGTK):
    student = log_softmax(
      apply_fn(params, hidden_QGTD, method='head'), temperature
    )
    teacher = jax.lax.stop_gradient(
      log_softmax(
        apply_fn(teacher_params, teacher_hidden_QGTKD, method='head'),
        temperature,
      )
    )
    logp_QGT = take_token(student, ids_QGT)
    teacher_logp_QGTK = take_token(teacher, ids_QGT[..., None])
    if support == 'sampled':
      each_QGTK = sampled_reverse_kl(logp_QGT[..., None], teacher_logp_QGTK)
    else:
      each_QGTK = distance(student[..., None, :], teacher)
    count_QGT = jnp.maximum(mask_QGTK.sum(axis=-1), 1)

    def over_teachers(x_QGTK):
      return jnp.where(mask_QGTK, x_QGTK, 0).sum(axis=-1) / count_QGT

    entropy = -jnp.sum(jnp.exp(student) * student, axis=-1)
    return (
      over_teachers(each_QGTK),
      logp_QGT,
      over_teachers(teacher_logp_QGTK - logp_QGT[..., None]),
      entropy,
    )

  mask_QGTK = jnp.broadcast_to(
    signal.teacher_mask[:, :, None], signal.teacher_hidden.shape[:-1]
  )
  each, logp, log_ratio, entropy = over_token_chunks(
    part, chunk, hidden, signal.teacher_hidden, rollout.ids, mask_QGTK
  )
  metrics = {
    'divergence': jnp.sum(weight_QGT * each),
    'teacher_log_ratio': jnp.sum(weight_QGT * log_ratio),
    'entropy': jnp.sum(weight_QGT * entropy),
  }
  return add_reference_kl(
    metrics['divergence'], metrics, logp, signal.ref_logp, weight_QGT, kl_coef
  )
