"""The mirror: every way to learn from the same rollouts, side by side.

One step of training samples G rollouts of each question, grades them on the
host, and then, whatever the method:

  `gather`  demonstrations for self-distillation, rewards for RL;
  `signal`  the teacher's view of every token, or its advantage;
  `loss`    what `update_step` descends.

To add one, write a function like those below and put it into `METHODS`, or
give it to `sdjax.train`.
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
from sdjax.feedback.strategies import Demonstrations, Given
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
  gather, notes = _show(config, task, tokenizer)
  return _bind(sd, config, apply_fn, gather, notes)


def policy_gradient(
  config: config_lib.Config, apply_fn: ApplyFn, task: Task, tokenizer: Any
) -> Method:
  """Binds a config's options to the reinforcement learning step."""
  del task, tokenizer
  return _bind(rl, config, apply_fn, _reward(config))


def mixed(
  config: config_lib.Config, apply_fn: ApplyFn, task: Task, tokenizer: Any
) -> Method:
  """Binds a config's options to the step with rewards and a teacher."""
  options = config.method
  assert isinstance(options, mix.Options)
  show, notes = _show(config, task, tokenizer)
  reward = _reward(config)

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

  return _bind(mix, config, apply_fn, gather, notes)


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


def _bind(
  step: Any,
  config: config_lib.Config,
  apply_fn: ApplyFn,
  gather: Callable[[Graded, int], Gathered],
  notes: tuple[str, ...] = (),
) -> Method:
  """Binds all but the batch to the pure functions of a step's module."""
  assert isinstance(config.method, step.Options)
  shared = shared_options(config)
  bound = {'options': config.method, 'shared': shared}
  taught, rewarded = parts(config)
  refresh = None
  if rewarded and rewarded.policy_loss.adapts:
    refresh = functools.partial(
      rl.refresh, apply_fn, options=rewarded, shared=shared
    )
  return Method(
    gather=gather,
    signal=functools.partial(step.signal_step, apply_fn, **bound),
    loss=functools.partial(step.loss, apply_fn, **bound),
    teacher=taught.teacher if taught else None,
    reference=shared.kl.coef > 0 or bool(taught and taught.anchor.reads),
    refresh=refresh,
    num_contexts=_num_contexts(config, taught.demonstrations) if taught else (),
    notes=notes,
  )


def _reward(config: config_lib.Config) -> Callable[[Graded, int], Gathered]:
  _, options = parts(config)
  assert options and config.rollout
  return functools.partial(
    rewards.gather,
    advantage=options.advantage,
    diversity=options.diversity,
    overlong_share=options.overlong_share,
    max_new_tokens=config.rollout.max_new_tokens,
  )


def _show(
  config: config_lib.Config, task: Task, tokenizer: Any
) -> tuple[Callable[[Graded, int], Gathered], tuple[str, ...]]:
  """How the teacher's contexts are gathered, and notes about it."""
  options, _ = parts(config)
  assert options
  check_example(config, task, tokenizer)
  given, notes = options.demonstrations.strategy.given(task)
  gather = demonstrated(config, options.demonstrations, task, tokenizer, given)
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


def demonstrated(
  config: config_lib.Config,
  shown: Demonstrations,
  task: Task,
  tokenizer: Any,
  given: Given | None = None,
) -> Callable[[Graded, int], Gathered]:
  """Binds all but the rollouts to `demonstrations.gather`."""
  assert config.model
  thinking = config.model.thinking
  return functools.partial(
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


def teacher_contexts(evidence: Any) -> TeacherContexts | None:
  """Returns the teachers' contexts in what a method gathered, if any."""
  if isinstance(evidence, mix.Evidence):
    return evidence.sd
  return evidence if isinstance(evidence, TeacherContexts) else None


def with_contexts(evidence: Any, number: int) -> Any:
  """Returns evidence with E = `number` blank contexts a question.

  Its shapes are those of a step with so many distinct demonstrations.
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


def kinds_shown(
  shown: Demonstrations, answer: str, feedback: str
) -> list[demonstrations.Shown]:
  """Lists what a teacher may be shown: an answer, feedback, or both."""
  kinds = []
  if shown.strategy.shows:
    kinds.append(demonstrations.Shown(answer))
  if shown.feedback != 'never':
    kinds.append(demonstrations.Shown(feedback=feedback))
  if shown.feedback == 'always' and shown.strategy.shows:
    kinds.append(demonstrations.Shown(answer, feedback))
  return kinds


def check_example(
  config: config_lib.Config, task: Task, tokenizer: Any
) -> None:
  """Checks the first training question's contexts with `check_endings`.

  Raises:
    ConfigError: student and teacher are not asked for an answer alike.
  """
  shown = shown_of(config)
  assert shown and config.model
  question = task.questions('train')[0]
  feedback = task.verify(question, '').feedback
  templates = teacher_templates(shown, task)
  for example in kinds_shown(shown, task.example(question), feedback):
    check_endings(
      tokenizer,
      task.student_template,
      templates.of(example),
      question.text,
      example.demonstration,
      config.model.thinking,
      example.feedback,
    )
