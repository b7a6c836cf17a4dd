"""Both at once: learning from rewards and from a teacher.

Mirror of `sdjax.steps.sd` and `sdjax.steps.rl`; `sdjax.objectives.mixing` has
the rules. A rule on the advantage ends in the policy loss of `rl`, one on the
loss adds the losses of both, each token with its own weight of either.
"""

import functools
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
from flax import struct

from sdjax.objectives.mixing import Advantages, Inputs, Rule
from sdjax.objectives.policy_loss import Clip
from sdjax.objectives.pooling import MeanLoss
from sdjax.objectives.reference_kl import NoKL
from sdjax.objectives.schedule import Constant, Schedule
from sdjax.options import ConfigError, Section
from sdjax.steps import rl as rl_step
from sdjax.steps import sd as sd_step
from sdjax.steps.student import (
  Shared,
  counted_tokens,
  importance_base,
  with_reference_kl,
)
from sdjax.steps.teacher import teacher_tokens
from sdjax.types import ApplyFn, Array, Params, Prompts, Rollout

SHAPES_THE_LOSS = (
  'divergence',
  'support',
  'importance_clip',
  'credit_discount',
  'success_exponent',
)
"""Options of self-distillation that a rule on the advantage does not use."""


@dataclass(frozen=True)
class Options(Section):
  """Rewards and a teacher together.

  Attributes:
    name: selects the method.
    rule: how they are joined.
    schedule: what the rule's weight is multiplied by over the steps.
    sd: the teacher; what shapes a distillation loss acts only in rules on the
      loss.
    rl: the rewards.
  """

  name: str = 'mix'
  rule: Rule = Advantages()
  schedule: Schedule = Constant()
  sd: sd_step.Options = field(default_factory=sd_step.Options)
  rl: rl_step.Options = field(default_factory=rl_step.Options)

  def __post_init__(self):
    """Refuses options that do nothing under the rule, or contradict it."""
    super().__post_init__()
    unused, plain = (), sd_step.Options()
    if not self.rule.on_loss:
      unused = SHAPES_THE_LOSS
    if self.rule.needs_contrast:
      unused = (*unused, 'pooling')
    for name in unused:
      value = getattr(self.sd, name)
      if value != getattr(plain, name):
        raise ConfigError(
          f'sd.{name}={value} does nothing with rule={str(self.rule)!r}, '
          'which uses only what the teachers say of the sampled tokens.'
        )
    if not self.sd.divergence.compares:
      raise ConfigError(
        f'sd.divergence={str(self.sd.divergence)!r} is not a loss per token '
        'that could be mixed; choose a divergence.'
      )
    if self.schedule != Constant() and not self.rule.scheduled:
      raise ConfigError(
        f'schedule={str(self.schedule)!r} does nothing with rule='
        f'{str(self.rule)!r}, which has no weight. Remove one of the two.'
      )
    contrast = self.sd.demonstrations.contrast
    if self.rule.needs_contrast and not contrast:
      raise ConfigError(
        f'rule={str(self.rule)!r} needs sd.demonstrations.contrast above 0.'
      )
    if contrast and not self.rule.needs_contrast:
      raise ConfigError(
        f'sd.demonstrations.contrast={contrast} does nothing but with '
        "rule='rlcsd'."
      )


@struct.dataclass
class Evidence:
  """What was gathered about a batch of rollouts, for both.

  Attributes:
    sd: what the teachers are shown.
    rl: the rewards.
    strategy: int32 [Q, G], the same for correct rollouts of a question that
      take one strategy, -1 for wrong ones, or None.
    weight: float32 [Q], the rule's weight at this step (the same for every
      question), or None: the rule's own.
  """

  sd: sd_step.Evidence
  rl: rl_step.Evidence
  strategy: Array | None = None
  weight: Array | None = None


@struct.dataclass
class Signal(rl_step.Signal):
  """The advantage of every token, and the teacher's word where it counts.

  Attributes:
    taught: the target of the distillation loss, its weights those of the
      rule; None for rules on the advantage.
  """

  taught: sd_step.Signal | None = None


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
  """Joins the advantage of rewards with the teacher's word.

  `params` are the weights that sampled, and the teacher's where
  `teacher_params` is None. See `sdjax.steps.student`.

  Raises:
    ValueError: without what the rule needs of the evidence.
  """
  if teacher_params is None:
    teacher_params = params
  batch = (prompts, rollout)
  ratios = replace(options.rl, policy_loss=Clip())  # every rule takes some
  rewarded = rl_step.signal_step(
    apply_fn, params, None, ref_params, *batch, evidence.rl, ratios, shared
  )
  # The reference and the old weights are looked at once, for both.
  sampling = shared.sampling.plain()
  plain = replace(shared, kl=NoKL(), sampler_clip=0.0, sampling=sampling)
  models = (apply_fn, params, teacher_params, ref_params)
  taught = sd_step.signal_step(*models, *batch, evidence.sd, options.sd, plain)
  contrast = options.sd.demonstrations.contrast
  target = options.sd.target
  if contrast:
    target = target._replace(pooling=MeanLoss())

  @functools.cache
  def tokens():
    assert taught.teacher is not None
    return teacher_tokens(
      apply_fn,
      teacher_params,
      ref_params,
      taught.teacher,
      rollout.ids,
      target,
      temperature=shared.temperature,
      chunk=shared.chunk,
    )

  weight = evidence.weight
  if weight is None:
    weight = jnp.full(rollout.ids.shape[0], options.rule.weight, jnp.float32)
  mixed = options.rule(
    Inputs(
      advantage=rewarded.advantage,
      weight=weight[:, None, None],
      counted=counted_tokens(rollout, rewarded),
      samples=rewarded.sample_mask,
      taught=taught.sample_mask,
      correct=evidence.sd.correct,
      strategy=evidence.strategy,
      base_logp=importance_base(rollout, rewarded),
      num_contrast=contrast,
      aggregation=shared.aggregation,
      tokens=tokens,
    )
  )
  follows = None
  if mixed.sd_weight is not None:
    follows = replace(
      taught,
      sample_mask=mixed.samples,
      old_logp=rewarded.old_logp,
      weight=taught.weighted(mixed.sd_weight).weighted(rewarded.weight).weight,
    )
  signal = Signal(**vars(rewarded), taught=follows).weighted(mixed.rl_weight)
  signal = replace(signal, advantage=mixed.advantage, sample_mask=mixed.samples)
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
  options: Options = Options(),  # noqa: B008
  shared: Shared = Shared(),  # noqa: B008
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The policy loss, and for rules on the loss the distillation loss.

  Returns the weighted sum, and weighted sums of what is worth logging. See
  `sdjax.steps.student`.
  """
  models = (apply_fn, params, teacher_params, ref_params)
  batch = (prompts, rollout)
  if signal.taught is None:
    return rl_step.loss(*models, *batch, signal, weight_QGT, options.rl, shared)
  beside = replace(signal.taught, ref_hidden=signal.ref_hidden)
  student = sd_step.compared(*models, *batch, beside, options.sd, shared)
  policy_QGT = rl_step.token_loss(student, rollout, signal, options.rl)
  divergence_QGT = sd_step.token_loss(
    student, rollout, signal.taught, options.sd
  )
  metrics = {
    'policy': jnp.sum(weight_QGT * policy_QGT),
    'divergence': jnp.sum(weight_QGT * divergence_QGT),
    'teacher_log_ratio': jnp.sum(weight_QGT * student.compared.log_ratio),
  }
  total = metrics['policy'] + metrics['divergence']
  return with_reference_kl(
    total, metrics, student, signal, weight_QGT, shared.kl
  )
