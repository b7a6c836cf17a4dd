"""The reinforcement learning step: advantages, and the push along them.

Mirror image of `sdjax.steps.sd`: the same functions, in the same order, with
the same arguments.
"""

import jax
import jax.numpy as jnp

from sdjax.objectives.advantage import group_normalised
from sdjax.objectives.policy_gradient import clipped_policy_gradient
from sdjax.steps.score import (
  add_reference_kl,
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
  """Gives every token of a rollout its group-normalised advantage.

  Args:
    apply_fn: the model.
    teacher_params: unused; there is no teacher.
    ref_params: the reference's weights, or None without a KL to it.
    prompts: the student's contexts (for the reference).
    rollout: what was sampled.
    evidence: the rewards.
    temperature: divides the reference's logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The advantages, and the reference's log-probabilities.
  """
  del teacher_params
  advantage_QG = group_normalised(evidence.reward)
  signal = Signal(
    sample_mask=jnp.ones(advantage_QG.shape, bool),
    advantage=jnp.broadcast_to(advantage_QG[..., None], rollout.ids.shape),
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
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  kl_coef: float = 0.0,
  temperature: float = 1.0,
  chunk: int = 16,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Clipped policy gradient, plus KL to the reference.

  Args:
    apply_fn: the model.
    params: the student's weights; the only differentiated argument.
    teacher_params: unused; there is no teacher.
    prompts: the student's contexts.
    rollout: the sampled completions.
    signal: from `signal_step`.
    weight_QGT: float32, from `token_weights`.
    clip_low: the ratio is clipped below at 1 - this.
    clip_high: and above at 1 + this.
    kl_coef: weight of the KL to the reference.
    temperature: divides the logits.
    chunk: tokens whose logits exist at once.

  Returns:
    The weighted sum, and weighted sums of what is worth logging.

  Source: arXiv 2402.03300 (GRPO).
  """
  del teacher_params
  hidden = student_hidden(apply_fn, params, prompts, rollout.ids)

  def part(hidden_QGTD, ids_QGT):
    student = log_softmax(
      apply_fn(params, hidden_QGTD, method='head'), temperature
    )
    entropy = -jnp.sum(jnp.exp(student) * student, axis=-1)
    return take_token(student, ids_QGT), entropy

  logp, entropy = over_token_chunks(part, chunk, hidden, rollout.ids)
  each = clipped_policy_gradient(
    logp,
    rollout.behavior_logp,
    signal.advantage,
    clip_low=clip_low,
    clip_high=clip_high,
  )
  gap = logp - rollout.behavior_logp
  metrics = {
    'policy': jnp.sum(weight_QGT * each),
    'behavior_gap': jnp.sum(weight_QGT * jnp.abs(gap)),
    'entropy': jnp.sum(weight_QGT * entropy),
  }
  return add_reference_kl(
    metrics['policy'], metrics, logp, signal.ref_logp, weight_QGT, kl_coef
  )
