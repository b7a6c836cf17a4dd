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
from collections.abc import Callable
from typing import Any

import numpy as np

from sdjax.config import schema as config_lib
from sdjax.config.check import parts
from sdjax.data.context import check_endings, opens_thinking
from sdjax.feedback import demonstrations, rewards
from sdjax.feedback.grading import Graded, strategies
from sdjax.feedback.strategies import Demonstrations
from sdjax.steps import mix, rl, sd
from sdjax.steps.student import Shared
from sdjax.steps.teacher import Teacher
from sdjax.tasks.base import Task
from sdjax.types import ApplyFn, Gathered, TeacherContexts


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
  options, shared = config.method, shared_options(config)
  assert isinstance(options, sd.Options)
  gather, notes = _show(config, options, task, tokenizer)
  return Method(
    gather=gather,
    **_bound(sd, apply_fn, options, shared),
    teacher=options.teacher,
    reference=shared.kl.coef > 0 or bool(options.anchor.reads),
    num_contexts=_num_contexts(config, options.demonstrations),
    notes=notes,
  )


def policy_gradient(
  config: config_lib.Config, apply_fn: ApplyFn, task: Task, tokenizer: Any
) -> Method:
  """Binds a config's options to the reinforcement learning step."""
  del task, tokenizer
  options, shared = config.method, shared_options(config)
  assert isinstance(options, rl.Options)
  return Method(
    gather=_reward(config, options),
    **_bound(rl, apply_fn, options, shared),
    reference=shared.kl.coef > 0,
    refresh=_refresh(apply_fn, options, shared),
  )


def mixed(
  config: config_lib.Config, apply_fn: ApplyFn, task: Task, tokenizer: Any
) -> Method:
  """Binds a config's options to the step with rewards and a teacher."""
  options, shared = config.method, shared_options(config)
  assert isinstance(options, mix.Options)
  show, notes = _show(config, options.sd, task, tokenizer)
  reward = _reward(config, options.rl)

  def gather(graded: Graded, step: int) -> Gathered:
    shown, rewarded = show(graded, step), reward(graded, step)
    weight = options.rule.weight * options.schedule.factor(step)
    mask_QGK = np.asarray(shown.evidence.context_mask)
    right, wrong = np.split(mask_QGK, [options.sd.demonstrations.count], -1)
    return Gathered(
      evidence=mix.Evidence(
        sd=shown.evidence,
        rl=rewarded.evidence,
        strategy=strategies(graded) if options.rule.needs_strategy else None,
        weight=np.full(len(graded.questions), weight, np.float32),
      ),
      shown=shown.shown,
      useful=options.rule.useful(
        rewarded.useful,
        right.any(-1),
        ~graded.correct,
        right.any(-1) & wrong.any(-1),
      ),
      metrics={**shown.metrics, **rewarded.metrics, 'weight': weight},
    )

  return Method(
    gather=gather,
    **_bound(mix, apply_fn, options, shared),
    teacher=options.sd.teacher,
    reference=shared.kl.coef > 0 or bool(options.sd.anchor.reads),
    refresh=_refresh(apply_fn, options.rl, shared),
    num_contexts=_num_contexts(config, options.sd.demonstrations),
    notes=notes,
  )


METHODS: dict[str, Callable[..., Method]] = {
  'sd': self_distillation,
  'rl': policy_gradient,
  'mix': mixed,
}
"""Method name to a function from (config, apply_fn, task, tokenizer)."""


def shared_options(config: config_lib.Config) -> Shared:
  """Returns what all methods share in the loss, of a config."""
  assert config.loss and config.rollout
  return Shared(**vars(config.loss), sampling=config.rollout.sampling)


def _bound(
  step: Any, apply_fn: ApplyFn, options: Any, shared: Shared
) -> dict[str, Any]:
  """The pure functions of a step, all but the batch bound."""
  bound = {'options': options, 'shared': shared}
  return {
    'signal': functools.partial(step.signal_step, apply_fn, **bound),
    'loss': functools.partial(step.loss, apply_fn, **bound),
  }


def _refresh(
  apply_fn: ApplyFn, options: rl.Options, shared: Shared
) -> Callable[..., Any] | None:
  if not options.policy_loss.adapts:
    return None
  return functools.partial(rl.refresh, apply_fn, options=options, shared=shared)


def _reward(
  config: config_lib.Config, options: rl.Options
) -> Callable[[Graded, int], Gathered]:
  assert config.rollout
  return functools.partial(
    rewards.gather,
    advantage=options.advantage,
    diversity=options.diversity,
    overlong_share=options.overlong_share,
    max_new_tokens=config.rollout.max_new_tokens,
  )


def _show(
  config: config_lib.Config, options: sd.Options, task: Task, tokenizer: Any
) -> tuple[Callable[[Graded, int], Gathered], tuple[str, ...]]:
  """How the teacher's contexts are gathered, and notes about it."""
  assert config.model
  shown, thinking = options.demonstrations, config.model.thinking
  check_example(config, task, tokenizer)
  given, notes = shown.strategy.given(task)
  gather = functools.partial(
    demonstrations.gather,
    options=shown,
    tokenizer=tokenizer,
    templates=teacher_templates(shown, task),
    seed=config.seed,
    given=given,
    thinking=thinking,
    # Answers from elsewhere did not begin in this model's context.
    opened=given is None
    and opens_thinking(tokenizer, task.student_template, thinking),
  )
  if not options.anchor.reads:
    return gather, notes

  def with_share(graded: Graded, step: int) -> Gathered:
    gathered = gather(graded, step)
    share = options.anchor.share_at(step)
    return dataclasses.replace(
      gathered,
      evidence=dataclasses.replace(
        gathered.evidence,
        teacher_share=np.full(len(graded.questions), share, np.float32),
      ),
      metrics={**gathered.metrics, 'teacher_share': share},
    )

  return with_share, notes


def teacher_contexts(evidence: Any) -> TeacherContexts | None:
  """Returns the teachers' contexts in what a method gathered, if any."""
  if isinstance(evidence, mix.Evidence):
    return evidence.sd
  return evidence if isinstance(evidence, TeacherContexts) else None


def with_contexts(evidence: Any, number: int) -> Any:
  """Returns evidence of a given number of blank contexts a question.

  Args:
    evidence: what a method gathered.
    number: E.

  Returns:
    The same, its shapes those of a step with E distinct demonstrations.
  """
  contexts = teacher_contexts(evidence)
  assert contexts is not None
  num_q, _, width = contexts.context_ids.shape
  blank = dataclasses.replace(
    contexts,
    context_ids=np.zeros((num_q, number, width), np.int32),
    context_length=np.ones((num_q, number), np.int32),
  )
  if isinstance(evidence, mix.Evidence):
    return dataclasses.replace(evidence, sd=blank)
  return blank


def _num_contexts(
  config: config_lib.Config, shown: Demonstrations
) -> tuple[int, ...]:
  """The numbers of contexts a question may have."""
  assert config.rollout
  most = config.rollout.num_samples  # answers, or rollouts with feedback
  if shown.strategy.always_there and shown.feedback == 'never':
    most = 1 + shown.contrast * most
  given = not shown.strategy.from_peers and shown.strategy.shows
  given = given and not shown.strategy.always_there
  if given or shown.feedback == 'always':
    most *= shown.count + shown.contrast
  if shown.contrast and shown.feedback != 'never':
    most += config.rollout.num_samples  # feedback, and wrong answers besides
  return tuple(demonstrations.context_buckets(most))


def teacher_templates(
  shown: Demonstrations, task: Task
) -> demonstrations.Templates:
  """The templates of a config, or where it has none the task's."""
  return demonstrations.Templates(
    demonstration=shown.template or task.teacher_template,
    feedback=shown.feedback_template or task.feedback_template,
    both=shown.both_template or task.both_template,
  )


def shown_of(config: config_lib.Config) -> Demonstrations | None:
  """Returns what a config's teacher is shown; None without a teacher."""
  taught, _ = parts(config)
  return taught.demonstrations if taught else None


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
  if shown.strategy.shows:
    possible.append(demonstrations.Shown(answer))
  if shown.feedback != 'never':
    possible.append(demonstrations.Shown(feedback=feedback))
  if shown.feedback == 'always' and shown.strategy.shows:
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
