"""The mirror: both ways to learn from the same rollouts, side by side.

One step of training, whatever the method:

  1. sample G rollouts of each question (`rollout_step`);
  2. grade them on the host (`grade`);
  3. `gather`: demonstrations for self-distillation, rewards for RL;
  4. `signal`: the teacher's view of every token, or its advantage;
  5. `update_step` with the method's `loss`.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

from sdjax import config as config_lib
from sdjax import demonstrations, rewards
from sdjax.data.context import (
  NO_LIMIT,
  check_endings,
  common_ending,
  encode_context,
  opens_thinking,
)
from sdjax.steps import rl, sd
from sdjax.tasks.base import Question, Task
from sdjax.types import ApplyFn, Gathered


@dataclasses.dataclass(frozen=True)
class Method:
  """How a model learns from its rollouts.

  Attributes:
    gather: `(graded, step) -> Gathered`, on the host.
    signal: `(teacher_params, ref_params, prompts, rollout, evidence) ->
      Signal`, pure.
    loss: `(params, teacher_params, prompts, rollout, signal, weight_QGT) ->
      (sum, metrics)`, pure.
    num_contexts: the sizes E may take in the evidence (each compiles once).
  """

  gather: Callable[..., Gathered]
  signal: Callable[..., Any]
  loss: Callable[..., Any]
  num_contexts: tuple[int, ...] = ()


def self_distillation(
  config: config_lib.Config, apply_fn: ApplyFn, task: Task, tokenizer: Any
) -> Method:
  """Binds a config's options to the self-distillation step."""
  method, shared = config.method, _shared(config)
  assert isinstance(method, config_lib.SelfDistillation)
  assert config.model and config.rollout
  shown, thinking = method.demonstrations, config.model.thinking
  template = shown.template or task.teacher_template
  check_example(config, task, tokenizer)
  given = _given(shown, task)
  # The most distinct demonstrations of a question, which are its contexts.
  most = {'reference': 1, 'external': config.rollout.num_samples * shown.count}
  return Method(
    gather=functools.partial(
      demonstrations.gather,
      tokenizer=tokenizer,
      template=template,
      max_context=shown.max_context,
      strategy=shown.strategy,
      count=shown.count,
      seed=config.seed,
      given=given,
      thinking=thinking,
      # Answers from elsewhere did not begin in this model's context.
      opened=given is None
      and opens_thinking(tokenizer, task.student_template, thinking),
    ),
    signal=functools.partial(
      sd.signal_step,
      apply_fn,
      temperature=shared['temperature'],
      chunk=shared['chunk'],
    ),
    loss=functools.partial(
      sd.loss,
      apply_fn,
      objective=method.objective,
      jsd_alpha=method.jsd_alpha,
      support=method.support,
      **shared,
    ),
    num_contexts=tuple(
      demonstrations.context_buckets(
        most.get(shown.strategy, config.rollout.num_samples)
      )
    ),
  )


def _given(
  shown: config_lib.Demonstrations, task: Task
) -> Callable[[Question], Sequence[str]] | None:
  """Where answers come from that are not the peers' own; None: nowhere."""
  if shown.strategy == 'reference':
    return lambda question: [x for x in [task.example(question)] if x]
  if shown.strategy != 'external':
    return None
  external = demonstrations.read_external(shown.file)
  needed = {q.question_id for q in task.questions('train')}
  if missing := needed - external.keys():
    raise config_lib.ConfigError(
      f'method.demonstrations.file={shown.file!r} has no answer for '
      f'{len(missing)} of {len(needed)} training questions, among them '
      f'question_id {min(missing)}; every question needs one.'
    )
  return lambda question: external[question.question_id]


def policy_gradient(
  config: config_lib.Config, apply_fn: ApplyFn, task: Task, tokenizer: Any
) -> Method:
  """Binds a config's options to the reinforcement learning step."""
  del task, tokenizer
  method, shared = config.method, _shared(config)
  assert isinstance(method, config_lib.PolicyGradient)
  return Method(
    gather=functools.partial(
      rewards.gather,
      diversity_weight=method.diversity_weight,
      diversity_for=method.diversity_for,
    ),
    signal=functools.partial(
      rl.signal_step,
      apply_fn,
      temperature=shared['temperature'],
      chunk=shared['chunk'],
    ),
    loss=functools.partial(
      rl.loss,
      apply_fn,
      clip_low=method.clip_low,
      clip_high=method.clip_high,
      **shared,
    ),
  )


METHODS: dict[str, Callable[..., Method]] = {
  'sd': self_distillation,
  'rl': policy_gradient,
}
"""Method name to a function from (config, apply_fn, task, tokenizer)."""


def _shared(config: config_lib.Config) -> dict[str, Any]:
  assert config.loss and config.rollout
  return {
    'kl_coef': config.loss.kl_coef,
    'chunk': config.loss.chunk,
    'temperature': config.rollout.temperature,
  }


def in_words(config: config_lib.Config) -> str:
  """Says in a sentence or two what a run minimises.

  Args:
    config: a checked config.

  Returns:
    Plain text.
  """
  method = config.method
  if isinstance(method, config_lib.Pretraining):
    return (
      'loss = mean over answer tokens of -log p(token), documents drawn anew '
      'at every step.'
    )
  assert config.loss and config.rollout
  counted = {
    'token_mean': 'mean over all counted tokens',
    'sequence_mean': 'mean over counted rollouts of the mean over tokens',
  }[config.loss.aggregation]
  if isinstance(method, config_lib.SelfDistillation):
    shown = method.demonstrations
    teacher = {
      'ema': f'a moving average of the student (rate {method.ema_rate:g})',
      'current': "the student's own current weights",
      'frozen': 'the weights the run began with',
    }[method.teacher]
    distance = {
      'reverse_kl': 'KL(student || teacher)',
      'forward_kl': 'KL(teacher || student)',
      'jsd': f'JSD(student, teacher; alpha={method.jsd_alpha:g})',
    }[method.objective]
    over = {'full': 'the full vocabulary', 'sampled': 'the sampled token'}
    source = {
      'uniform': 'drawn uniformly from the other correct rollouts',
      'first': 'the first of the other correct rollouts',
      'most_different': 'the other correct rollouts least like it',
      'external': f'drawn from {shown.file}',
      'reference': "the task's own",
    }[shown.strategy]
    main = (
      f'{distance} over {over[method.support]}; teacher = {teacher}, shown '
      f'{shown.count} correct answer(s) to the question, {source}, the '
      'losses averaged; rollouts without one do not count'
    )
  else:
    extra = ''
    if method.diversity_weight:
      extra = (
        f' + {method.diversity_weight:g} x the share of the group with '
        f'disjoint concepts ({method.diversity_for} rollouts)'
      )
    main = (
      f'-min(r A, clip(r, {1 - method.clip_low:g}, {1 + method.clip_high:g}) '
      f'A); A = (R - mean) / (std + 1e-4) in groups of '
      f'{config.rollout.num_samples}, R = task reward{extra}'
    )
  if config.loss.kl_coef:
    main += f'; + {config.loss.kl_coef:g} x KL(student || reference), k3'
  return f'loss = {counted} of {main}.'


def check_example(
  config: config_lib.Config, task: Task, tokenizer: Any
) -> None:
  """Checks the first training question's contexts with `check_endings`.

  Args:
    config: a checked config of self-distillation.
    task: where the question comes from.
    tokenizer: of the model.

  Raises:
    ConfigError: student and teacher are not asked for an answer alike.
  """
  assert isinstance(config.method, config_lib.SelfDistillation) and config.model
  question = task.questions('train')[0]
  check_endings(
    tokenizer,
    task.student_template,
    config.method.demonstrations.template or task.teacher_template,
    question.text,
    task.example(question),
    config.model.thinking,
  )


def contexts_in_words(
  config: config_lib.Config, task: Task, tokenizer: Any
) -> str:
  """Shows the first training question as student and teacher see it.

  Args:
    config: a checked config that is not of pretraining.
    task: where the question comes from.
    tokenizer: of the model.

  Returns:
    Both contexts, decoded from their tokens, with marks where they become
    the same and where the answer begins, and what is wrong with them if
    anything; the student's alone where the method shows no demonstrations.
  """
  assert config.model
  question = task.questions('train')[0]
  encode = functools.partial(
    encode_context, tokenizer, thinking=config.model.thinking
  )
  begin = '[the answer begins here]'
  student, _ = encode(
    template=task.student_template,
    question=question.text,
    demonstration=None,
    max_tokens=NO_LIMIT,
  )
  head = f"the student's context, {len(student)} tokens:"
  if not isinstance(config.method, config_lib.SelfDistillation):
    return f'{head}\n{tokenizer.decode(student)}{begin}'
  shown = config.method.demonstrations
  template = shown.template or task.teacher_template
  teacher, lost = encode(
    template=template,
    question=question.text,
    demonstration=task.example(question),
    max_tokens=shown.max_context,
  )
  common = common_ending(student, teacher)

  def marked(ids: list[int]) -> str:
    cut = len(ids) - common
    own, same = tokenizer.decode(ids[:cut]), tokenizer.decode(ids[cut:])
    return f'{own}[the same from here]{same}{begin}'

  lines = [
    head,
    marked(student),
    '',
    f"the teacher's context, {len(teacher)} tokens, of which the last "
    f'{common} are the same; the demonstration lost {lost}:',
    marked(teacher),
  ]
  try:
    check_example(config, task, tokenizer)
  except config_lib.ConfigError as error:
    lines += ['', f'error: {error}']
  return '\n'.join(lines)
