"""Reinforcement learning: rewards give advantages, the student follows.

Mirror image of `sdjax.steps.sd`.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import struct

from sdjax.objectives.advantages import GRPO, Advantage
from sdjax.objectives.diversity_reward import DiversityReward, NoDiversityReward
from sdjax.objectives.policy_loss import Clip, PolicyLoss
from sdjax.objectives.reference_kl import KLReward
from sdjax.options import ConfigError, Section, Share
from sdjax.steps import student as student_lib
from sdjax.steps.student import (
  Shared,
  Student,
  counted_tokens,
  importance_base,
  new_signal,
  student_tokens,
  with_reference_kl,
)
from sdjax.types import ApplyFn, Array, Params, Prompts, Rewards, Rollout


@dataclass(frozen=True)
class Options(Section):
  """The student follows its rewards.

  Attributes:
    name: selects the method.
    advantage: of a reward within its question's group of rollouts.
    policy_loss: of each token.
    diversity: what a rollout earns for being unlike the others.
    overlong_share: over this last share of the longest length a rollout
      loses 0 to 1 of its reward, linearly, and 1 when cut off; 0: nothing.
      Source: DAPO, arXiv 2503.14476.
  """

  name: str = 'rl'
  advantage: Advantage = GRPO()
  policy_loss: PolicyLoss = Clip()
  diversity: DiversityReward = NoDiversityReward()
  overlong_share: Share = 0.0

  def __post_init__(self):
    """Refuses options that do nothing under the others, or contradict them."""
    super().__post_init__()
    if self.advantage.plain:
      return
    for name in ('diversity', 'overlong_share'):
      value = getattr(self, name)
      if value not in (0, NoDiversityReward()):
        raise ConfigError(
          f'{name}={value} does nothing with advantage='
          f'{str(self.advantage)!r}, which does not look at the rewards '
          'alone. Remove one of the two.'
        )


Evidence = Rewards
"""What was gathered about a batch of rollouts."""


@struct.dataclass
class Signal(student_lib.Signal):
  """The advantage of every token.

  Attributes:
    advantage: float32 [Q, G, T].
    clip_width: float32 [Q, G, T], each token's own clip width, or None.
  """

  advantage: Array | None = None
  clip_width: Array | None = None


def signal_step(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params | None,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  evidence: Evidence,
  options: Options = Options(),  # noqa: B008
  shared: Shared = Shared(),  # noqa: B008
) -> Signal:
  """Gives every token of a rollout its advantage.

  `params` are the weights that sampled. See `sdjax.steps.student`.

  Raises:
    ValueError: for a KL in the reward without a reference.
  """
  del teacher_params
  fields = new_signal(
    apply_fn,
    params,
    ref_params if shared.kl.coef else None,
    prompts,
    rollout,
    shared,
    ratios=options.policy_loss.uses_ratio or shared.kl.in_reward,
  )
  advantage_QG = options.advantage(evidence)
  advantage_QGT = jnp.broadcast_to(advantage_QG[..., None], rollout.ids.shape)
  signal = Signal(**fields, advantage=advantage_QGT)
  if isinstance(kl := shared.kl, KLReward):
    if ref_params is None:
      raise ValueError(
        f'kl={str(kl)!r} needs ref_params, the weights that the KL is to.'
      )
    charge_QGT = kl.charge(
      importance_base(rollout, signal),
      signal.ref_logp,
      counted_tokens(rollout, signal),
      options.advantage,
    )
    signal = replace(signal, advantage=advantage_QGT - kl.coef * charge_QGT)
  return jax.lax.stop_gradient(signal)


def token_loss(
  student: Student, rollout: Rollout, signal: Signal, options: Options
) -> jax.Array:
  """The policy loss [Q, G, T] of a student."""
  each_QGT = options.policy_loss(
    student.logp,
    importance_base(rollout, signal),
    signal.advantage,
    counted_tokens(rollout, signal),
    signal.clip_width,
  )
  return each_QGT if signal.weight is None else each_QGT * signal.weight


def loss(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  weight_QGT: jax.Array,
  options: Options = Options(),  # noqa: B008
  shared: Shared = Shared(),  # noqa: B008
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """A policy loss, plus KL to the reference.

  Returns the weighted sum, and weighted sums of what is worth logging. See
  `sdjax.steps.student`.
  """
  del teacher_params
  models = (apply_fn, params, ref_params)
  student = student_tokens(*models, prompts, rollout, signal, shared)
  each_QGT = token_loss(student, rollout, signal, options)
  gap_QGT = jnp.abs(student.logp - importance_base(rollout, signal))
  metrics = {
    'policy': jnp.sum(weight_QGT * each_QGT),
    'behavior_gap': jnp.sum(weight_QGT * gap_QGT),
  }
  return with_reference_kl(
    metrics['policy'], metrics, student, signal, weight_QGT, shared.kl
  )


def refresh(
  apply_fn: ApplyFn,
  params: Params,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  options: Options,
  shared: Shared,
) -> Signal:
  """Gives every token its clip width, before each update.

  The widths depend on the ratios of the whole mini-batch at the weights it is
  about to move, so they cost one more forward pass.
  """
  alone = replace(signal, ref_hidden=None)
  student = student_tokens(
    apply_fn, params, None, prompts, rollout, alone, shared
  )
  mask_QGT = counted_tokens(rollout, signal) & signal.sample_mask[..., None]
  base_QGT = importance_base(rollout, signal)
  width = options.policy_loss.width_of(student.logp, base_QGT, mask_QGT)
  return replace(signal, clip_width=width)
