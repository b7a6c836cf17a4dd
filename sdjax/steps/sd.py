"""Self-distillation: the teacher scores, the student follows.

Mirror image of `sdjax.steps.rl`.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Gt
from flax import struct

from sdjax.feedback.strategies import Demonstrations
from sdjax.objectives.anchor import Anchor, NoAnchor
from sdjax.objectives.credit import future_sum
from sdjax.objectives.divergence import Divergence, ReverseKL
from sdjax.objectives.policy_loss import truncated_ratio
from sdjax.objectives.pooling import (
  MeanLoss,
  Pooling,
  mean_over_teachers,
  sequence_log_weight,
)
from sdjax.objectives.support import FullVocabulary, SampledToken, Support
from sdjax.options import ConfigError, NonNegative, Section, Share
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
from sdjax.steps.teacher import (
  EMA,
  Target,
  Teacher,
  TeacherStates,
  comparison,
  teacher_distribution,
  teacher_states,
  teacher_tokens,
)
from sdjax.types import ApplyFn, Params, Prompts, Rollout, TeacherContexts


@dataclass(frozen=True)
class Options(Section):
  """The student is distilled from itself, shown a correct answer.

  Source: arXiv 2606.26091 sec. 2; each value's class names its own.

  Attributes:
    name: selects the method.
    divergence: of the student from its teacher at each token.
    support: the events it is taken over.
    pooling: of several demonstrations.
    teacher: whose weights.
    anchor: to the reference.
    teacher_temperature: the pooled teacher is raised to the power of 1 over
      this; below 1 it is sharper than the teachers are (ours).
    importance_clip: each token's loss is multiplied by min(p / p_old, this),
      a constant; 1 while the rollouts are the student's own. 0: no factor.
      Source: 2601.20802.
    credit_discount: each token also bears, in the policy-gradient form, the
      losses of the tokens behind it, discounted by this per token; 1 is
      DistIL's future credit (2606.05152), 0: none.
    success_exponent: a question weighs (p (1 - p))^this, p its share of
      correct rollouts, divided by the mean of that over questions; 0: all
      alike. SC-SDPO (2605.27765) has 0.5.
    demonstrations: what the teacher is shown.
  """

  name: str = 'sd'
  divergence: Divergence = ReverseKL()
  support: Support = FullVocabulary()
  pooling: Pooling = MeanLoss()
  teacher: Teacher = EMA()
  anchor: Anchor = NoAnchor()
  teacher_temperature: Annotated[float, Gt(0)] = 1.0
  importance_clip: NonNegative = 2.0
  credit_discount: Share = 0.0
  success_exponent: NonNegative = 0.0
  demonstrations: Demonstrations = Demonstrations()

  def __post_init__(self):
    """Refuses options that do nothing under the others, or contradict them."""
    super().__post_init__()
    sampled = isinstance(self.support, SampledToken)
    if not self.divergence.compares:
      for name in ('support', 'credit_discount'):
        if getattr(self, name) not in (0, FullVocabulary()):
          raise ConfigError(
            f'{name}={getattr(self, name)} does nothing with divergence='
            f'{str(self.divergence)!r}, which compares no distributions.'
          )
    elif sampled and self.divergence != ReverseKL():
      raise ConfigError(
        "support='sampled' is defined for divergence='reverse_kl' only, not "
        f"{str(self.divergence)!r}; use support='full'."
      )
    if self.pooling.mixes and self.demonstrations.count == 1:
      raise ConfigError(
        f'pooling={str(self.pooling)!r} does nothing with '
        'demonstrations.count=1; a mixture needs at least 2.'
      )

  @property
  def target(self) -> Target:
    """How the teachers become what is distilled."""
    return Target(self.pooling, self.teacher_temperature)


Evidence = TeacherContexts
"""What was gathered about a batch of rollouts."""


@struct.dataclass
class Signal(student_lib.Signal):
  """The teacher's word on every token.

  Attributes:
    teacher: what its distributions are made of; None where nothing is
      compared.
  """

  teacher: TeacherStates | None = None


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
  """Gives every token of a rollout its teacher, shown the demonstrations.

  `params` are the weights that sampled, and the teacher's where
  `teacher_params` is None. See `sdjax.steps.student`. Each distinct (question,
  demonstration) context runs once, however many rollouts are scored under it.

  Raises:
    ValueError: for an anchor without a reference.
  """
  if teacher_params is None:
    teacher_params = params
  fields = new_signal(
    apply_fn,
    params,
    ref_params if shared.kl.coef else None,
    prompts,
    rollout,
    shared,
    ratios=options.importance_clip > 0,
  )
  models = (apply_fn, teacher_params, ref_params)
  states = teacher_states(*models, prompts, rollout, evidence, options.anchor)
  fields['sample_mask'] &= evidence.context_mask.any(axis=-1)
  tokens = partial(
    teacher_tokens,
    *models,
    temperature=shared.temperature,
    chunk=shared.chunk,
  )
  if options.pooling.weighs_answers:
    each = tokens(states, rollout.ids, Target(MeanLoss(), 1.0))
    states = replace(states, log_weight=sequence_log_weight(each.logp))
  signal = Signal(**fields, teacher=states)
  if options.success_exponent:
    assert evidence.correct is not None
    share_Q = jnp.mean(evidence.correct, axis=1)
    weight_Q = (share_Q * (1 - share_Q)) ** options.success_exponent
    weight_Q /= jnp.maximum(weight_Q.mean(), 1e-6)
    signal = signal.weighted(
      jnp.broadcast_to(weight_Q[:, None, None], rollout.ids.shape)
    )
  if not options.divergence.compares:
    each = tokens(states, rollout.ids, options.target)
    logp_QGT = mean_over_teachers(each.logp, each.found)
    mask_QGT = counted_tokens(rollout, signal)
    score_QG = mean_over_teachers(logp_QGT, mask_QGT)
    score_QG = jnp.where(signal.sample_mask, score_QG, -jnp.inf)
    count_Q1 = signal.sample_mask.sum(axis=1, keepdims=True)
    share_QG = jax.nn.softmax(jnp.where(count_Q1 > 0, score_QG, 0), axis=1)
    weight_QGT = jnp.broadcast_to(
      (count_Q1 * share_QG)[..., None], rollout.ids.shape
    )
    signal = replace(signal.weighted(weight_QGT), teacher=None)
  return jax.lax.stop_gradient(signal)


def token_loss(
  student: Student, rollout: Rollout, signal: Signal, options: Options
) -> jax.Array:
  """The distillation loss [Q, G, T] of a student from `compared`."""
  if options.divergence.compares:
    each_QGT = student.compared.each
  else:
    each_QGT = -student.logp
  if options.credit_discount:
    # What the token's successors cost is a cost of the token.
    sampled = isinstance(options.support, SampledToken)
    cost = -student.compared.log_ratio if sampled else each_QGT
    later = future_sum(
      jax.lax.stop_gradient(cost),
      counted_tokens(rollout, signal),
      options.credit_discount,
    )
    each_QGT = each_QGT + later * student.logp
  if options.importance_clip:
    each_QGT = each_QGT * truncated_ratio(
      student.logp, importance_base(rollout, signal), options.importance_clip
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
  """A divergence from the teacher, plus KL to the reference.

  Returns the weighted sum, and weighted sums of what is worth logging. See
  `sdjax.steps.student`.
  """
  models = (apply_fn, params, teacher_params, ref_params)
  student = compared(*models, prompts, rollout, signal, options, shared)
  each_QGT = token_loss(student, rollout, signal, options)
  metrics = {'divergence': jnp.sum(weight_QGT * each_QGT)}
  if student.compared is not None:
    metrics['teacher_log_ratio'] = jnp.sum(
      weight_QGT * student.compared.log_ratio
    )
  return with_reference_kl(
    metrics['divergence'], metrics, student, signal, weight_QGT, shared.kl
  )


def compared(
  apply_fn: ApplyFn,
  params: Params,
  teacher_params: Params,
  ref_params: Params | None,
  prompts: Prompts,
  rollout: Rollout,
  signal: Signal,
  options: Options,
  shared: Shared,
) -> Student:
  """What the student says, with a `Comparison` with its teacher beside it."""
  compare, inputs = None, ()
  if signal.teacher is not None:
    inputs = (signal.teacher.by_token(),)
    compare = comparison(
      partial(options.support.compare, options.divergence),
      partial(
        teacher_distribution,
        apply_fn,
        teacher_params,
        ref_params,
        target=options.target,
        temperature=shared.temperature,
      ),
    )
  models, batch = (apply_fn, params, ref_params), (prompts, rollout, signal)
  return student_tokens(*models, *batch, shared, compare, inputs)
