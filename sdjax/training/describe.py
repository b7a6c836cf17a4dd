"""What a run minimises and what its model is shown, for a person to read."""

import functools
from typing import Any

from sdjax.config import schema as config_lib
from sdjax.data.context import NO_LIMIT, common_ending, encode_context
from sdjax.feedback.demonstrations import Shown
from sdjax.methods import check_example, shown_of, teacher_templates
from sdjax.steps.mix import ADVANTAGE_RULES
from sdjax.tasks.base import Task

CHARGES = {
  'reward': 'over the rollout',
  'reward_to_go': 'from the token on',
}

AGGREGATIONS = {
  'token_mean': 'mean over all counted tokens',
  'sequence_mean': 'mean over counted rollouts of the mean over tokens',
  'sequence_sum': 'mean over counted rollouts of the sum over tokens',
  'sequence_sum_norm': (
    'mean over counted rollouts of the sum over tokens, divided by the '
    'longest length allowed,'
  ),
}

DISTANCES = {
  'reverse_kl': 'KL(student || teacher)',
  'forward_kl': 'KL(teacher || student)',
  'cross_entropy': '-sum teacher log student',
  'score_weighted': '-softmax(score under the teacher) log p',
}

SOURCES = {
  'uniform': 'drawn uniformly from the correct rollouts',
  'first': 'the first of the correct rollouts',
  'most_different': 'the correct rollouts least like it',
  'balanced': 'drawn uniformly from the solutions that rollouts found',
  'reference': "the task's own",
  'external': 'drawn from a file',
}

RULES = {
  'advantage': 'w A + (1 - w) u',
  'rlsd': 'A ((1 - w) + w clip(exp(sign(A) u)))',
  'debiased': "w A + (1 - w) (u - its strategy's own liking)",
  'antisd': 'A - w (softplus(u) - log 2) / 2',
  'rlcsd': 'A + w tanh(contrast / temperature), clipped, its sign kept',
  'loss': 'w L_rl + (1 - w) L_sd',
  'srpo': 'L_sd for failed rollouts with a teacher, L_rl for all others',
  'sdpg': 'L_rl + w L_sd',
}


def loss_in_words(config: config_lib.Config) -> str:
  """Says in a few sentences what a run minimises.

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
  counted = AGGREGATIONS[config.loss.aggregation]
  if isinstance(method, config_lib.Mix):
    moves = method.schedule != config_lib.Schedule()
    scheduled = ' times a schedule' if moves else ''
    weight = f'w = {method.weight:g}{scheduled}'
    if method.rule in ADVANTAGE_RULES:
      told = ', u = log teacher - log student of the token'
      if method.rule == 'rlcsd':
        told = (
          ', contrast = log q(right answer shown) - log q(wrong ones), '
          'rollouts without both do not count'
        )
      if method.entropy_floor:
        told += f', w = 0 below {method.entropy_floor:g} nats of the teacher'
      main = (
        f'{_policy(config, method.rl)}; in place of A: {RULES[method.rule]}, '
        f'{weight}{told}, '
        f'{_teacher(method.sd)}'
      )
    else:
      weight = '' if method.rule == 'srpo' else f', {weight}'
      if method.positive_only:
        weight = f' where A > 0{weight}'
      main = (
        f'{RULES[method.rule]}{weight}; L_rl = {_policy(config, method.rl)}; '
        f'L_sd = {_distillation(method.sd)}'
      )
  elif isinstance(method, config_lib.SelfDistillation):
    main = _distillation(method)
  elif isinstance(method, config_lib.PolicyGradient):
    main = _policy(config, method)
  else:
    main = f'method {method.name!r}'
  if config.loss.kl_coef and config.loss.kl_in == 'loss':
    main += (
      f'; + {config.loss.kl_coef:g} x KL(student || reference), '
      f'{config.loss.kl_estimator}'
    )
  elif config.loss.kl_coef:
    main += (
      f'; A less {config.loss.kl_coef:g} x K, K = the sum of log student - log '
      f'reference {CHARGES[config.loss.kl_in]}'
    )
    advantage = getattr(method, 'advantage', 'reinforce')
    if advantage != 'reinforce':
      others = ' of the others' if advantage == 'rloo' else ''
      main += f", less the group's mean{others}"
  if config.loss.skip_tokens:
    main += f'; the first {config.loss.skip_tokens} tokens do not count'
  if config.loss.mask_truncated:
    main += '; rollouts that were cut off do not count'
  if config.loss.sampler_clip:
    main += f'; each token times min(p / sampler, {config.loss.sampler_clip:g})'
  if config.rollout.resample:
    main += (
      f'; up to {config.rollout.resample} more batches are sampled in place of '
      'questions that teach nothing'
    )
  updates = config.train.epochs * config.train.mini_batches
  if updates > 1:
    main += (
      f'; {updates} updates a step ({config.train.epochs} epochs of '
      f'{config.train.mini_batches} mini-batches)'
    )
  return f'loss = {counted} of {main}.'


def _teacher(method: config_lib.SelfDistillation) -> str:
  shown = method.demonstrations
  teacher = {
    'ema': f'a moving average of the student (rate {method.ema_rate:g})',
    'current': "the student's own current weights",
    'frozen': 'the weights the run began with',
    'snapshot': f'a copy of the student, renewed every '
    f'{method.snapshot_every} steps',
    'trust_region': (
      f"the student's current weights to the power {method.trust_region:g} "
      f'times the reference to the power {1 - method.trust_region:g}'
    ),
  }[method.teacher]
  words = [f'teacher = {teacher}']
  if method.anchor_beta > 1:
    words.append(
      f'anchored to the reference with beta = {method.anchor_beta:g}'
    )
    if method.anchor_steps:
      words.append(f'which goes to 1 in {method.anchor_steps} steps')
  if method.teacher_temperature != 1:
    words.append(f'to the power 1/{method.teacher_temperature:g}')
  if shown.strategy != 'none':
    others = 'other ' if shown.exclude_self else ''
    source = SOURCES[shown.strategy].replace('correct', f'{others}correct')
    if shown.exclude_same_text:
      source += " whose text is not the rollout's own"
    if shown.strategy == 'external':
      source += {
        'frequency': ' by frequency',
        'distinct': ', each text equally likely',
      }[shown.file_draw]
    pooled = {
      'loss': 'the losses averaged',
      'mixture': 'the teachers mixed token by token',
      'sequence_mixture': 'the mixture of the distributions of whole answers',
    }
    words.append(
      f'shown {shown.count} correct answer(s) to the question, {source}, '
      f'{pooled[method.pooling]}'
    )
  if shown.contrast:
    words.append(f'and {shown.contrast} wrong one(s), for contrast')
  if shown.feedback != 'never':
    words.append(
      "shown the verifier's feedback on a failed rollout"
      + (' without a peer' if shown.feedback == 'without_peer' else '')
    )
  return ', '.join(words)


def _distillation(method: config_lib.SelfDistillation) -> str:
  distance = DISTANCES.get(
    method.objective,
    f'JSD(student, teacher; alpha={method.jsd_alpha:g}'
    f'{", normalised" if method.jsd_normalised else ""})',
  )
  rest = 'the rest as one event' if method.tail else 'scaled to sum to 1'
  over = {
    'full': 'the full vocabulary',
    'student_top_k': f"the student's {method.top_k} likeliest tokens, {rest}",
    'teacher_top_k': f"the teacher's {method.top_k} likeliest tokens, {rest}",
    'sampled': 'the sampled token',
  }[method.support]
  words = [f'{distance} over {over}']
  if method.objective == 'score_weighted':
    words = [distance]
  if method.pointwise_clip:
    words.append(f'no token adding more than {method.pointwise_clip:g} nats')
  if method.importance_clip:
    words.append(f'times min(p / p_old, {method.importance_clip:g})')
  if method.credit_discount:
    words.append(
      f'plus the later losses, discounted by {method.credit_discount:g}'
    )
  words.append(_teacher(method))
  if method.success_exponent:
    words.append(
      f'each question weighing (p (1 - p))^{method.success_exponent:g}'
    )
  words.append('rollouts that are shown nothing do not count')
  return ', '.join(words)


def _policy(
  config: config_lib.Config, method: config_lib.PolicyGradient
) -> str:
  assert config.rollout
  low, high = f'{1 - method.clip_low:g}', f'{1 + method.clip_high:g}'
  if method.adaptive_clip:
    low, high = '1 - e', '1 + e'
  form = {
    'clip': f'-min(r A, clip(r, {low}, {high}) A)',
    'gspo': f'-min(s A, clip(s, {low}, {high}) A), s the geometric mean of the '
    "sequence's ratios",
    'cispo': f'-sg(clip(r, {low}, {high})) A log p',
    'reinforce': '-A log p',
  }[method.policy_loss]
  drops = [
    f'{sign} with A {side} 0'
    for width, sign, side in (
      (method.drop_low, f'below {1 - method.drop_low:g}', '<'),
      (method.drop_high, f'above {1 + method.drop_high:g}', '>'),
    )
    if width
  ]
  if drops:
    form += f', 0 where r is {" or ".join(drops)}'
  if method.dual_clip:
    form += f', at most {method.dual_clip:g} |A|'
  advantage = {
    'grpo': f'(R - mean) / ({"sample " * (method.std == "sample")}std + '
    f'{method.std_epsilon:g})',
    'dr_grpo': 'R - mean',
    'rloo': 'R - mean of the others',
    'reinforce': 'R',
    'pass_at_k': f'its part in pass@{method.pass_k}',
    'rosa': 'what it adds to the best of its set under an uncertain reward',
  }[method.advantage]
  extra = ''
  if method.diversity_weight:
    unlike = {
      'concepts': 'disjoint concepts',
      'solution': 'another solution',
    }[method.diversity_by]
    share = (
      f'the share of the group with {unlike} ({method.diversity_for} rollouts)'
    )
    extra = (
      f' + {method.diversity_weight:g} x {share}'
      if method.diversity_how == 'add'
      else f' x ({1 - method.diversity_weight:g} + '
      f'{method.diversity_weight:g} x {share}, scaled to at most 1)'
    )
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
    f'{form}; A = {advantage} in groups of {config.rollout.num_samples}, R = '
    f'{source}{extra}'
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
  shown = shown_of(config)
  if shown is None:
    return f'{head}\n{tokenizer.decode(student)}{begin}'
  example = Shown(task.example(question))
  if shown.strategy == 'none':
    example = Shown(feedback=task.verify(question, '').feedback)
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
