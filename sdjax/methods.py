"""The mirror: every way to learn from the same rollouts, side by side.

One step of training, whatever the method:

  1. sample G rollouts of each question (`rollout_step`);
  2. grade them on the host (`grade`);
  3. `gather`: demonstrations for self-distillation, rewards for RL;
  4. `signal`: the teacher's view of every token, or its advantage;
  5. `update_step` with the method's `loss`.

To add one, write a function like those below and put it into `METHODS`, or
give it to `sdjax.training.loop.train`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdjax.config import schema as config_lib
from sdjax.data.context import check_endings, opens_thinking
from sdjax.feedback import demonstrations, rewards
from sdjax.feedback.demonstration_file import read_external
from sdjax.feedback.grading import Graded, strategies
from sdjax.objectives import schedule
from sdjax.steps import mix, rl, sd
from sdjax.tasks.base import Question, Task
from sdjax.types import ApplyFn, Gathered


@dataclasses.dataclass(frozen=True)
class Teacher:
  """Whose weights a method's teacher has.

  Attributes:
    kind: `current`, `frozen`, or `ema`, which is in the training state.
    rate: share of the student that enters the average.
    every: steps between two changes of it.
  """

  kind: str
  rate: float = 0.0
  every: int = 1


@dataclasses.dataclass(frozen=True)
class Method:
  """How a model learns from its rollouts.

  Attributes:
    gather: `(graded, step) -> Gathered`, on the host.
    signal: `(params, teacher_params, ref_params, prompts, rollout, evidence)
      -> Signal`, pure.
    loss: `(params, teacher_params, ref_params, prompts, rollout, signal,
      weight_QGT) -> (sum, metrics)`, pure.
    teacher: whose weights `teacher_params` are; None: there is no teacher.
    reference: whether `ref_params` are used, the weights the run began with.
    refresh: `(params, prompts, rollout, signal) -> Signal`, pure, called with
      each mini-batch before its update; None: nothing to do.
    num_contexts: the sizes E may take in the evidence (each compiles once).
    notes: what a person should be told before the first step.
  """

  gather: Callable[..., Gathered]
  signal: Callable[..., Any]
  loss: Callable[..., Any]
  teacher: Teacher | None = None
  reference: bool = False
  refresh: Callable[..., Any] | None = None
  num_contexts: tuple[int, ...] = ()
  notes: tuple[str, ...] = ()


def self_distillation(
  config: config_lib.Config, apply_fn: ApplyFn, task: Task, tokenizer: Any
) -> Method:
  """Binds a config's options to the self-distillation step."""
  method = config.method
  assert isinstance(method, config_lib.SelfDistillation) and config.loss
  anchor = _anchor(method)
  gather, notes = _show(config, method, task, tokenizer)
  return Method(
    gather=gather,
    signal=functools.partial(
      sd.signal_step,
      apply_fn,
      with_ref_kl=config.loss.kl_coef > 0,
      **_pick(
        method,
        'objective',
        'pooling',
        'teacher_temperature',
        'success_exponent',
      ),
      **anchor,
      **_masks(config, method.importance_clip > 0),
    ),
    loss=functools.partial(
      sd.loss, apply_fn, **_distance(method), **_kl(config)
    ),
    teacher=_teacher(method),
    reference=config.loss.kl_coef > 0 or anchor['anchor'] != 'none',
    num_contexts=_num_contexts(config, method.demonstrations),
    notes=notes,
  )


def policy_gradient(
  config: config_lib.Config, apply_fn: ApplyFn, task: Task, tokenizer: Any
) -> Method:
  """Binds a config's options to the reinforcement learning step."""
  del task, tokenizer
  method = config.method
  assert isinstance(method, config_lib.PolicyGradient) and config.loss
  return Method(
    gather=_reward(config, method),
    signal=functools.partial(
      rl.signal_step,
      apply_fn,
      **_pick(method, 'advantage', 'pass_k', 'std', 'std_epsilon'),
      **_pick(config.loss, 'kl_in', 'kl_coef'),
      **_masks(
        config, method.policy_loss != 'reinforce' or config.loss.kl_in != 'loss'
      ),
    ),
    loss=functools.partial(
      rl.loss,
      apply_fn,
      **_push(method),
      **_pick(config.loss, 'kl_in'),
      **_kl(config),
    ),
    reference=config.loss.kl_coef > 0,
    refresh=_refresh(config, method, apply_fn),
  )


def mixed(
  config: config_lib.Config, apply_fn: ApplyFn, task: Task, tokenizer: Any
) -> Method:
  """Binds a config's options to the step with rewards and a teacher."""
  method = config.method
  assert isinstance(method, config_lib.Mix) and config.loss and config.rollout
  show, notes = _show(config, method.sd, task, tokenizer)
  reward = _reward(config, method.rl)
  anchor = _anchor(method.sd)
  on_loss = method.rule in mix.LOSS_RULES

  def useful(graded: Graded, shown: Gathered, rewarded: Gathered) -> Any:
    mask_QGK = np.asarray(shown.evidence.context_mask)
    gated = method.rule == 'sdpg' and method.positive_only
    if method.rule == 'rlsd' or gated:  # nothing without an advantage
      return rewarded.useful
    if method.rule == 'rlcsd':  # which also needs something of either side
      cut = mask_QGK.shape[-1] - method.sd.demonstrations.contrast
      both_QG = mask_QGK[..., :cut].any(-1) & mask_QGK[..., cut:].any(-1)
      return rewarded.useful & np.any(both_QG, axis=1)
    if method.rule == 'srpo':
      taught_QG = mask_QGK.any(axis=-1)
      return rewarded.useful | (taught_QG & ~graded.correct).any(axis=1)
    return shown.useful | rewarded.useful

  def gather(graded: Graded, step: int) -> Gathered:
    shown, rewarded = show(graded, step), reward(graded, step)
    weight = method.weight * schedule.factor(method.schedule, step)
    return Gathered(
      evidence=dataclasses.replace(
        shown.evidence,
        reward=rewarded.evidence.reward,
        set_reward=rewarded.evidence.set_reward,
        strategy=strategies(graded) if method.rule == 'debiased' else None,
        strength=np.full(len(graded.questions), weight, np.float32),
      ),
      shown=shown.shown,
      useful=useful(graded, shown, rewarded),
      metrics={**shown.metrics, **rewarded.metrics, 'weight': weight},
    )

  return Method(
    gather=gather,
    signal=functools.partial(
      mix.signal_step,
      apply_fn,
      num_contrast=method.sd.demonstrations.contrast,
      aggregation=config.loss.aggregation,
      with_ref_kl=config.loss.kl_coef > 0,
      **_pick(
        method,
        'rule',
        'ratio_clip',
        'entropy_floor',
        'entropy_exponent',
        'positive_only',
        'contrast_temperature',
        'contrast_clip',
        'contrast_threshold',
        'touched_weight',
      ),
      **_pick(method.rl, 'advantage', 'pass_k', 'std', 'std_epsilon'),
      **_pick(method.sd, 'pooling', 'teacher_temperature', 'success_exponent'),
      **anchor,
      **_masks(config, True),
    ),
    loss=functools.partial(
      mix.loss,
      apply_fn,
      distance=_distance(method.sd),
      push=_push(method.rl),
      **_kl(config),
    )
    if on_loss
    else functools.partial(
      rl.loss, apply_fn, **_push(method.rl), **_kl(config)
    ),
    teacher=_teacher(method.sd),
    reference=config.loss.kl_coef > 0 or anchor['anchor'] != 'none',
    refresh=_refresh(config, method.rl, apply_fn),
    num_contexts=_num_contexts(config, method.sd.demonstrations),
    notes=notes,
  )


METHODS: dict[str, Callable[..., Method]] = {
  'sd': self_distillation,
  'rl': policy_gradient,
  'mix': mixed,
}
"""Method name to a function from (config, apply_fn, task, tokenizer)."""


def _pick(section: Any, *names: str) -> dict[str, Any]:
  return {name: getattr(section, name) for name in names}


def _view(config: config_lib.Config) -> dict[str, Any]:
  return _pick(config.rollout, 'temperature') | _pick(config.loss, 'chunk')


def _kl(config: config_lib.Config) -> dict[str, Any]:
  return _pick(config.loss, 'kl_coef', 'kl_estimator') | _view(config)


def _masks(config: config_lib.Config, needs_old_logp: bool) -> dict[str, Any]:
  """Options of `new_signal`.

  A truncating sampler's log-probabilities are those of another law than the
  model's; where old ones are needed they are then computed anew.
  """
  sampling = config.rollout
  assert sampling
  truncated = sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0
  return {
    'recompute': truncated and needs_old_logp,
    **_pick(
      config.loss,
      'kl_estimator',
      'skip_tokens',
      'mask_truncated',
      'sampler_clip',
    ),
    **_view(config),
  }


def _distance(method: config_lib.SelfDistillation) -> dict[str, Any]:
  return _pick(
    method,
    'objective',
    'jsd_alpha',
    'jsd_normalised',
    'pointwise_clip',
    'support',
    'top_k',
    'tail',
    'pooling',
    'teacher_temperature',
    'importance_clip',
    'credit_discount',
  )


def _push(method: config_lib.PolicyGradient) -> dict[str, Any]:
  return _pick(
    method,
    'policy_loss',
    'clip_low',
    'clip_high',
    'dual_clip',
    'drop_low',
    'drop_high',
  )


def _refresh(
  config: config_lib.Config,
  method: config_lib.PolicyGradient,
  apply_fn: ApplyFn,
) -> Callable[..., Any] | None:
  if not method.adaptive_clip:
    return None
  return functools.partial(rl.adapt_clip, apply_fn, **_view(config))


def _teacher(method: config_lib.SelfDistillation) -> Teacher:
  if method.teacher == 'snapshot':
    return Teacher('ema', rate=1.0, every=method.snapshot_every)
  if method.teacher == 'trust_region':
    return Teacher('current')
  return Teacher(method.teacher, rate=method.ema_rate)


def _anchor(method: config_lib.SelfDistillation) -> dict[str, Any]:
  """Which reference the teacher's law is mixed with, and how much."""
  if method.teacher == 'trust_region':
    return {'anchor': 'teacher', 'teacher_share': method.trust_region}
  if method.anchor_beta > 1:
    return {'anchor': 'student'}  # the evidence says the share
  return {'anchor': 'none'}


def _reward(
  config: config_lib.Config, method: config_lib.PolicyGradient
) -> Callable[[Graded, int], Gathered]:
  assert config.rollout
  return functools.partial(
    rewards.gather,
    max_new_tokens=config.rollout.max_new_tokens,
    **_pick(
      method,
      'advantage',
      'pass_k',
      'diversity_weight',
      'diversity_how',
      'diversity_by',
      'diversity_for',
      'overlong_share',
    ),
  )


def _show(
  config: config_lib.Config,
  method: config_lib.SelfDistillation,
  task: Task,
  tokenizer: Any,
) -> tuple[Callable[[Graded, int], Gathered], tuple[str, ...]]:
  """How the teacher's contexts are gathered, and notes about it."""
  assert config.model
  shown, thinking = method.demonstrations, config.model.thinking
  check_example(config, task, tokenizer)
  given, notes = _given(shown, task)
  gather = functools.partial(
    demonstrations.gather,
    tokenizer=tokenizer,
    templates=teacher_templates(shown, task),
    seed=config.seed,
    given=given,
    thinking=thinking,
    # Answers from elsewhere did not begin in this model's context.
    opened=given is None
    and opens_thinking(tokenizer, task.student_template, thinking),
    **_pick(
      shown,
      'max_context',
      'strategy',
      'count',
      'exclude_self',
      'exclude_same_text',
      'contrast',
      'feedback',
    ),
  )
  if method.anchor_beta == 1:
    return gather, notes

  def with_share(graded: Graded, step: int) -> Gathered:
    gathered = gather(graded, step)
    share = schedule.anchored_share(
      method.anchor_beta, method.anchor_steps, step
    )
    return dataclasses.replace(
      gathered,
      evidence=dataclasses.replace(
        gathered.evidence,
        teacher_share=np.full(len(graded.questions), share, np.float32),
      ),
      metrics={**gathered.metrics, 'teacher_share': share},
    )

  return with_share, notes


def _num_contexts(
  config: config_lib.Config, shown: config_lib.Demonstrations
) -> tuple[int, ...]:
  """The numbers of contexts a question may have."""
  assert config.rollout
  most = config.rollout.num_samples  # answers, or rollouts with feedback
  if shown.strategy == 'reference' and shown.feedback == 'never':
    most = 1 + shown.contrast * most
  if shown.strategy == 'external' or shown.feedback == 'always':
    most *= shown.count + shown.contrast
  if shown.contrast and shown.feedback != 'never':
    most += config.rollout.num_samples  # feedback, and wrong answers besides
  return tuple(demonstrations.context_buckets(most))


def teacher_templates(
  shown: config_lib.Demonstrations, task: Task
) -> demonstrations.Templates:
  """The templates of a config, or where it has none the task's."""
  return demonstrations.Templates(
    demonstration=shown.template or task.teacher_template,
    feedback=shown.feedback_template or task.feedback_template,
    both=shown.both_template or task.both_template,
  )


def _given(
  shown: config_lib.Demonstrations, task: Task
) -> tuple[Callable[[Question], Sequence[str]] | None, tuple[str, ...]]:
  """Who gives answers in the peers' place, if anyone; and notes about it."""
  if shown.strategy == 'reference':
    return lambda question: [x for x in [task.example(question)] if x], ()
  if shown.strategy != 'external':
    return None, ()
  external = read_external(shown.file, task, shown.file_draw)
  return external.of, external.notes()


def shown_of(config: config_lib.Config) -> config_lib.Demonstrations | None:
  """Returns what a config's teacher is shown; None without a teacher."""
  method = config.method
  if isinstance(method, config_lib.Mix):
    method = method.sd
  if isinstance(method, config_lib.SelfDistillation):
    return method.demonstrations
  return None


def check_example(
  config: config_lib.Config, task: Task, tokenizer: Any
) -> None:
  """Checks the first training question's contexts with `check_endings`.

  Args:
    config: a checked config of a method with a teacher.
    task: where the question comes from.
    tokenizer: of the model.

  Raises:
    ConfigError: student and teacher are not asked for an answer alike.
  """
  shown = shown_of(config)
  assert shown and config.model
  question = task.questions('train')[0]
  answer = task.example(question)
  feedback = task.verify(question, '').feedback
  templates = teacher_templates(shown, task)
  possible = []
  if shown.strategy != 'none':
    possible.append(demonstrations.Shown(answer))
  if shown.feedback != 'never':
    possible.append(demonstrations.Shown(feedback=feedback))
  if shown.feedback == 'always' and shown.strategy != 'none':
    possible.append(demonstrations.Shown(answer, feedback))
  for example in possible:
    check_endings(
      tokenizer,
      task.student_template,
      templates.of(example),
      question.text,
      example.demonstration,
      config.model.thinking,
      example.feedback,
    )
