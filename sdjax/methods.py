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
from collections.abc import Callable
from typing import Any

from sdjax import config as config_lib
from sdjax import demonstrations, rewards
from sdjax.steps import rl, sd
from sdjax.tasks.base import Task
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
  assert isinstance(method, config_lib.SelfDistillation) and config.rollout
  shown = method.demonstrations
  external = None
  most = config.rollout.num_samples
  if shown.strategy == 'external':
    external = demonstrations.read_external(shown.file)
    most *= shown.count
    needed = {q.question_id for q in task.questions('train')}
    if missing := needed - external.keys():
      raise config_lib.ConfigError(
        f'method.demonstrations.file={shown.file!r} has no answer for '
        f'{len(missing)} of {len(needed)} training questions, among them '
        f'question_id {min(missing)}; every question needs one.'
      )
  return Method(
    gather=functools.partial(
      demonstrations.gather,
      tokenizer=tokenizer,
      template=shown.template or task.teacher_template,
      max_context=shown.max_context,
      strategy=shown.strategy,
      count=shown.count,
      seed=config.seed,
      external=external,
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
    num_contexts=tuple(demonstrations.context_buckets(most)),
  )


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
