"""What a run minimises and what its model is shown, for a person to read."""

import functools
import re
from typing import Any

from sdjax.config import schema as config_lib
from sdjax.data.context import NO_LIMIT, common_ending, encode_context
from sdjax.methods import (
  check_example,
  kinds_shown,
  shown_of,
  teacher_templates,
)
from sdjax.objectives.schedule import Constant
from sdjax.steps import mix, rl, sd
from sdjax.tasks.base import Task

AGGREGATIONS = {
  'token_mean': 'mean over all counted tokens',
  'sequence_mean': 'mean over counted rollouts of the mean over tokens',
  'sequence_sum': 'mean over counted rollouts of the sum over tokens',
  'sequence_sum_norm': (
    'mean over counted rollouts of the sum over tokens, divided by the '
    'longest length allowed,'
  ),
}


def loss_in_words(config: config_lib.Config) -> str:
  """Says in a few sentences what a run of a checked config minimises."""
  method, loss, rollout = config.method, config.loss, config.rollout
  if isinstance(method, config_lib.Pretraining):
    return (
      'loss = mean over answer tokens of -log p(token), documents drawn anew '
      'at every step.'
    )
  assert loss and rollout
  if isinstance(method, mix.Options):
    main = _mixed(config, method)
  elif isinstance(method, sd.Options):
    main = _distillation(method)
  elif isinstance(method, rl.Options):
    main = _policy(config, method)
  else:
    main = f'method {method.name!r}'
  train = config.train
  updates = train.epochs * train.mini_batches
  main = _list(
    main + loss.kl.words(),
    loss.skip_tokens and f'the first {loss.skip_tokens} tokens do not count',
    loss.mask_truncated and 'rollouts that were cut off do not count',
    loss.sampler_clip
    and f'each token times min(p / sampler, {loss.sampler_clip:g})',
    rollout.resample
    and f'up to {rollout.resample} more batches are sampled in place of '
    'questions that teach nothing',
    updates > 1
    and f'{updates} updates a step ({train.epochs} epochs of '
    f'{train.mini_batches} mini-batches)',
    separator='; ',
  )
  return f'loss = {AGGREGATIONS[loss.aggregation]} of {main}.'


def _mixed(config: config_lib.Config, method: mix.Options) -> str:
  rule = method.rule
  weight = ''
  if rule.scheduled:
    scheduled = '' if method.schedule == Constant() else ' times a schedule'
    weight = f', w = {rule.weight:g}{scheduled}'
  policy = _policy(config, method.rl)
  if rule.on_loss:
    return (
      f'{rule.words()}{weight}; L_rl = {policy}; L_sd = '
      f'{_distillation(method.sd)}'
    )
  said = rule.words()
  if re.search(r'\bu\b', said):
    weight += ', u = log teacher - log student of the token'
  return f'{policy}; in place of A: {said}{weight}, {_teacher(method.sd)}'


def _teacher(method: sd.Options) -> str:
  shown = method.demonstrations
  heat = method.teacher_temperature
  return _list(
    f'teacher = {method.teacher.words()}',
    method.anchor.words(),
    heat != 1 and f'to the power 1/{heat:g}',
    shown.strategy.shows
    and f'shown {shown.count} correct answer(s) to the question, '
    + shown.strategy.words(),
    shown.strategy.shows and shown.count > 1 and method.pooling.words(),
    shown.contrast and f'and {shown.contrast} wrong one(s), for contrast',
    shown.feedback != 'never'
    and "shown the verifier's feedback on a failed rollout"
    + (' without a peer' if shown.feedback == 'without_peer' else ''),
  )


def _distillation(method: sd.Options) -> str:
  clip, discount = method.importance_clip, method.credit_discount
  what = method.divergence.words()
  if method.divergence.compares:
    what += f' over {method.support.words()}'
  return _list(
    what,
    clip and f'times min(p / p_old, {clip:g})',
    discount and f'plus the later losses, discounted by {discount:g}',
    _teacher(method),
    method.success_exponent
    and f'each question weighing (p (1 - p))^{method.success_exponent:g}',
    'rollouts that are shown nothing do not count',
  )


def _list(*words: Any, separator: str = ', ') -> str:
  return separator.join(filter(None, words))


def _policy(config: config_lib.Config, method: rl.Options) -> str:
  assert config.rollout
  extra = method.diversity.words()
  if method.overlong_share:
    extra += (
      f' - a penalty over the last {method.overlong_share:.0%} of the length'
    )
  source = {
    'verifier': 'task reward',
    'function': f'reward of {config.reward.function}',
    'model': f'reward of {config.reward.model}',
  }[config.reward.name]
  return (
    f'{method.policy_loss.words()}; A = {method.advantage.words()} in groups '
    f'of {config.rollout.num_samples}, R = {source}{extra}'
  )


def contexts_in_words(
  config: config_lib.Config, task: Task, tokenizer: Any
) -> str:
  """Shows the first training question as student and teacher see it.

  Both contexts are decoded from their tokens, with marks where they become
  the same and where the answer begins, and what is wrong with them if
  anything; the student's stands alone where the method shows no
  demonstrations.
  """
  assert config.model
  question = task.questions('train')[0]
  encode = functools.partial(
    encode_context, tokenizer, thinking=config.model.thinking
  )
  begin = '[the answer begins here]'
  student, _ = encode(task.student_template, question.text, None, NO_LIMIT)
  head = f"the student's context, {len(student)} tokens:"
  shown = shown_of(config)
  if shown is None:
    return f'{head}\n{tokenizer.decode(student)}{begin}'
  feedback = task.verify(question, '').feedback
  example = kinds_shown(shown, task.example(question), feedback)[0]
  teacher, lost = encode(
    template=teacher_templates(shown, task).of(example),
    question=question.text,
    demonstration=example.demonstration,
    feedback=example.feedback,
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
