# pyright: reportArgumentType=false
"""Runs the library on the inputs that reference codes were run on.

`NEWER` maps the method of a case to a function that tells our steps what the
case told its code, and names where its mean differs from ours.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from golden_problem import (
  Arrays,
  Case,
  Found,
  Problem,
  advantages,
  apply_fn,
  column,
  grpo,
  of_tokens,
)
from sdjax.objectives.policy_gradient import adaptive_clip

from sdjax.objectives import credit
from sdjax.steps import mix, rl, sd


class Missing(Exception):
  """There is no such method here, or no such option of it."""


def only_advantages(problem: Problem, case: Case) -> Found:
  """Advantages without a loss."""
  if case['method'] != 'grpo':
    each = advantages(problem.data, case['method'])
  else:
    constant = case['options'].get('epsilon', 1e-6)
    each = grpo(problem, case, std_epsilon=constant)
  return {'advantage': of_tokens(problem, each)}


ACPO = 'Control-derek/ACPO'
RLCSD = 'THU-BPM/RLCSD'

SEQUENCES = {
  'seq-mean-token-mean': 'sequence_mean',
  'seq-mean-token-sum': 'sequence_sum',
  'seq-mean-token-sum-norm': 'sequence_sum_norm',
}

TOKENS = (
  'token-mean',
  'sum over mask / max',
  'sum over counted positions',
  'one sum over all masked tokens',
  'sum / num_items_in_batch',
  'sum / tokens of the batch',
)
"""How the names of a mean over all tokens begin."""


def mean_of(problem: Problem, case: Case) -> dict[str, Any]:
  """Our name of a mean, and what the reference's differs from it by."""
  told, tokens = case['aggregation'], problem.mask.sum(axis=1)
  acpo = case['repo'] == ACPO
  # Ours is over the rows that have tokens, theirs is over all.
  all_rows = (tokens > 0).sum() / len(tokens)
  if told.startswith('mean over tokens (at least 1) of each row'):
    return {'aggregation': 'sequence_mean', 'row_scale': all_rows}
  if told.startswith('sum / (rows * max_completion_length)'):
    return {
      'aggregation': 'sequence_sum_norm',
      'row_scale': all_rows,
      'horizon': case['options']['max_completion_length'],
    }
  if told in SEQUENCES:
    scale = all_rows if acpo else 1.0
    if told == 'seq-mean-token-mean' and not acpo:
      scale = tokens / (tokens + 1e-8)  # theirs adds this
    return {'aggregation': SEQUENCES[told], 'row_scale': scale}
  if not told.startswith(TOKENS):
    raise Missing(f'aggregation {told!r}')
  total = tokens.sum()
  return {
    'aggregation': 'token_mean',
    'row_scale': total / (total + 1e-8) if acpo else 1.0,
  }


def clips(options: Arrays) -> dict[str, float]:
  """Clip widths, under the names that the codes have for them."""
  both = options.get('cliprange', options.get('clip_ratio', 0.2))
  both = options.get('epsilon', both)
  names = ('clip_ratio_{}', 'cliprange_{}', 'epsilon_{}')

  def width(side):
    given = (options.get(name.format(side)) for name in names)
    return next((x for x in given if x is not None), both)

  return {
    'clip_low': width('low'),
    'clip_high': width('high'),
    'dual_clip': options.get('clip_ratio_c') or options.get('delta') or 0.0,
  }


def policy_losses(problem: Problem, case: Case) -> Found:
  """The losses of verl, trl and ACPO's CISPO."""
  options, method = case['options'], case['method']
  how = clips(options)
  if method.startswith('trl_'):
    each = advantages(problem.data, 'dr_grpo')  # an input, as they say
    loss_type = options['loss_type']
    how['policy_loss'] = 'cispo' if loss_type == 'cispo' else 'clip'
    if options['importance_sampling_level'] == 'sequence':
      if loss_type == 'cispo':
        raise Missing('cispo of whole sequences')
      how['policy_loss'] = 'gspo'
    if loss_type == 'cispo':
      # Theirs has no lower clip, and the ratio is capped AT epsilon_high.
      how |= {'clip_low': 1.0, 'clip_high': how['clip_high'] - 1}
      how['dual_clip'] = 0.0
    how |= {'kl_coef': options['beta'], 'kl_estimator': 'k3'}
  else:
    each = grpo(problem, case)
    named = {'gspo': 'gspo', 'cispo': 'cispo', 'cispo_with_ppo_mask': 'cispo'}
    how['policy_loss'] = named.get(method, 'clip')
    if method in named:
      how['dual_clip'] = 0.0  # theirs has none here
  if method == 'cispo_with_ppo_mask':
    how |= {'drop_low': how['clip_low'], 'drop_high': how['clip_high']}
    how['clip_low'] = options['clip_ratio_is_low']
    how['clip_high'] = options['clip_ratio_is_high']
  signal = problem.signal(rl, each)
  found = problem.run(
    functools.partial(rl.loss, apply_fn, **how),
    signal,
    **mean_of(problem, case),
  )
  shown = each if method.startswith('trl_') else of_tokens(problem, each)
  return found | {'advantage': shown}


def acpo(problem: Problem, case: Case) -> Found:
  """Clip widths of each token, from the spread of the ratios."""
  options = case['options']
  each = grpo(problem, case)
  signal = problem.signal(rl, each)
  width = adaptive_clip(
    problem.current_logp(),
    problem.rollout.behavior_logp,
    column(problem.mask),
    num_bins=options['variance_num_bins'],
    base=options['variance_base_clip'],
    scale=options['variance_alpha'],
    smallest=options['variance_clip_min'],
    largest=options['variance_clip_max'],
  )
  loss = functools.partial(rl.loss, apply_fn, dual_clip=options['clip_ratio_c'])
  found = problem.run(
    loss, replace(signal, clip_width=width), **mean_of(problem, case)
  )
  return found | {
    'advantage': of_tokens(problem, each),
    # Theirs has the least width where padded.
    'clip_width': jnp.where(
      problem.mask, width[:, 0], options['variance_base_clip']
    ),
  }


def log_ratio_to_reference(
  problem: Problem, case: Case, coefficient: float
) -> Found:
  """Coefficient * (log p - log r) with its own derivative.

  It is no loss of ours, as the mean of its slope is 0; the policy loss of an
  advantage of -coefficient has that slope.
  """
  each = np.full(len(problem.data['ids']), -coefficient)
  loss = functools.partial(rl.loss, apply_fn, policy_loss='reinforce')
  found = problem.run(loss, problem.signal(rl, each), **mean_of(problem, case))
  reference = coefficient * problem.data['ref_logp'] * problem.mask
  return found | {
    'loss': found['loss'] - reference.sum() / problem.mask.sum(),
    'per_token': found['per_token'] - reference,
  }


def add(a: Found, b: Found, constant: float, mask: np.ndarray) -> Found:
  """The sum of two losses and of a constant for each token."""
  return {
    'loss': a['loss'] + b['loss'] + constant,
    'grad': a['grad'] + b['grad'],
    'per_token': a['per_token'] + b['per_token'] + constant * mask,
  }


KL = {
  'k1': ('k1', 'plain'),
  'kl': ('k1', 'plain'),
  'k2': ('k2', 'k2'),
  'mse': ('k2', 'k2'),
  'k3': ('k3', 'k3'),
  'low_var_kl': ('k3', 'k3'),
  'k1+': ('k1', 'k2'),
  'k2+': ('k2', 'k2'),
  'k3+': ('k3', 'k2'),
}
"""Name in verl to the estimators of ours that have its value and its slope."""


def reference_kl(problem: Problem, case: Case) -> Found:
  """An estimate of the KL alone, as a loss."""
  name = case['options']['kl_penalty']
  if name not in KL:
    raise Missing(f'kl_penalty {name!r}')

  def run(estimator):
    signal = problem.signal(rl, kl_estimator=estimator)
    how = {'kl_coef': 1.0, 'kl_estimator': estimator}
    how |= {'policy_loss': 'reinforce'}
    loss = functools.partial(rl.loss, apply_fn, **how)
    return problem.run(loss, signal, **mean_of(problem, case))

  value, slope = KL[name]
  if slope == 'plain':
    grad = log_ratio_to_reference(problem, case, 1.0)['grad']
  else:
    grad = run(slope)['grad']
  return run(value) | {'grad': grad}


def rlsd(problem: Problem, case: Case) -> Found:
  """RLSD, by the teacher's ratio to the student now, or to the old policy."""
  options = case['options']
  each, rollout = grpo(problem, case), problem.rollout
  now = case['repo'] == RLCSD
  if now:
    rollout = replace(rollout, behavior_logp=problem.current_logp())
  clip = options.get('epsilon_w', options.get('rlsd_epsilon_w'))
  lam = case.get('scalars', {}).get('lam', options.get('lam'))  # decayed
  if case['method'] == 'rlsd_ectr':
    wrong = problem.data['wrong_logp'][:, 0]
    contrast = column(problem.data['teacher_logp'] - wrong)
    plain = problem.signal(rl, each)
    new = credit.rlsd(plain.advantage, contrast, lam, clip=clip)
    signal = replace(plain, advantage=new)
  else:
    signal = problem.signal(
      mix, each, rule='rlsd', rollout=rollout, strength=lam, ratio_clip=clip
    )
  loss = functools.partial(rl.loss, apply_fn, **clips(options))
  found = problem.run(loss, signal, **mean_of(problem, case))
  return found | {
    'advantage': of_tokens(problem, each),
    'new_advantage': signal.advantage[:, 0] * problem.mask,
  }


def rlcsd(problem: Problem, case: Case) -> Found:
  """RLCSD: two means; the teacher is shown right and wrong answers."""
  options = case['options']
  largest = options['rlcsd_residual_clip_high']
  if options['rlcsd_residual_clip_low'] != -largest:
    raise Missing('a residual clip that is not the same on both sides')
  each = grpo(problem, case)
  signal = problem.signal(
    mix,
    each,
    rule='rlcsd',
    strength=options['rlcsd_beta'] * options['rlcsd_lam'],
    contrast=True,
    num_contrast=problem.num_wrong,
    contrast_temperature=options['rlcsd_tau'],
    contrast_clip=largest,
    contrast_threshold=options['rlcsd_delta'],
    touched_weight=options['rlcsd_eta'],
  )
  loss = functools.partial(rl.loss, apply_fn, **clips(options))
  found = problem.run(loss, signal, weighted=False)
  return found | {
    'advantage': of_tokens(problem, each),
    'new_advantage': signal.advantage[:, 0] * problem.mask,
  }


def distance_of(options: Arrays) -> dict[str, Any]:
  """Our options of a divergence; 0 is KL(teacher || student) in all codes."""
  alpha = float(options['alpha'] if 'alpha' in options else options['beta'])
  objective = {0.0: 'forward_kl', 1.0: 'reverse_kl'}.get(alpha, 'jsd')
  how: dict[str, Any] = {'objective': objective, 'importance_clip': 0.0}
  if objective == 'jsd':
    how['jsd_alpha'] = alpha
  top_k = options.get('top_k_distill', options.get('top_k'))
  if not options.get('full_logit_distill', True):
    how['support'] = 'sampled'
  elif top_k:
    how |= {
      # The official OPSD and what follows it choose by the teacher.
      'support': 'student_top_k' if 'is_clip' in options else 'teacher_top_k',
      'top_k': top_k,
      'tail': options.get('distill_add_tail', False),
    }
  how['importance_clip'] = options.get('is_clip') or 0.0
  clip = options.get('jsd_token_clip', options.get('token_clip'))
  how['pointwise_clip'] = clip or 0.0
  return how


def distillation(problem: Problem, case: Case) -> Found:
  """SDPO and OPSD: every rollout has a teacher."""
  options = case['options']
  how = distance_of(options)
  if case['method'] == 'opsd' and how.get('support') == 'sampled':
    raise Missing('squared differences of log-probabilities')
  loss = functools.partial(
    sd.loss, apply_fn, temperature=options.get('temperature', 1.0), **how
  )
  if case['aggregation'].startswith('batchmean'):
    # No mask there: padded positions count, and rows are what is divided by.
    whole = {**problem.data, 'mask': np.ones_like(problem.data['mask'])}
    problem = Problem(whole)
    return problem.run(loss, problem.signal(sd), 'sequence_sum')
  return problem.run(loss, problem.signal(sd), **mean_of(problem, case))


def srpo(problem: Problem, case: Case) -> Found:
  """SRPO, routed by the sign of the advantage, as this code does it."""
  options = case['options']
  each = grpo(problem, case)
  signal = problem.signal(
    mix, each, rule='srpo', entropy_exponent=options['srpo_beta']
  )
  loss = functools.partial(
    mix.loss, apply_fn, push=clips(options), distance=distance_of(options)
  )
  found = problem.run(loss, signal, **mean_of(problem, case))
  assert signal.sd_weight is not None
  return found | {
    'advantage': of_tokens(problem, each),
    'routed': (np.asarray(signal.rl_weight)[:, 0] == 0).all(axis=-1),
    'entropy_weight': signal.sd_weight[:, 0] * problem.mask,
  }


ANCHORS = {
  # (log w)^2 / 2, and (log w + 1)^2 / 2.
  'urkl': ('k2', 0.0, 0.0),
  'rkl': ('k2', 1.0, 0.5),
  # 1 / w + log w, and 1 / w.
  'ufkl': ('k3', 0.0, 1.0),
  'fkl': ('k3', -1.0, 1.0),
}
"""SDPG's anchors, w the ratio to the reference: our estimator, how much of the
plain log-ratio it lacks, and the constant it lacks."""


def sdpg(problem: Problem, case: Case) -> Found:
  """SDPG: policy loss, distillation and an anchor."""
  options = case['options']
  each = grpo(problem, case)
  estimator, plain, constant = ANCHORS[options['kl_mode']]
  signal = problem.signal(
    mix,
    each,
    rule='sdpg',
    strength=case['scalars']['beta_effective'],  # after its warm-up and decay
    kl_estimator=estimator,
    positive_only=options.get('beta_distill_positive_advantage_only', False),
  )
  loss = functools.partial(
    mix.loss,
    apply_fn,
    push=clips(options),
    distance={'importance_clip': 0.0},
    kl_coef=options['alpha'],
    kl_estimator=estimator,
  )
  found = problem.run(loss, signal, **mean_of(problem, case))
  rest = log_ratio_to_reference(problem, case, plain * options['alpha'])
  total = add(found, rest, constant * options['alpha'], problem.mask)
  return total | {'advantage': of_tokens(problem, each)}


NEWER: dict[str, Callable[[Problem, Case], Found]] = {
  'grpo': policy_losses,
  'dr_grpo': policy_losses,
  'rloo': only_advantages,
  'dapo': policy_losses,
  'clip': policy_losses,
  'gspo': policy_losses,
  'cispo': policy_losses,
  'cispo_with_ppo_mask': policy_losses,
  **{
    f'trl_{name}': policy_losses
    for name in ('grpo', 'dapo', 'dr_grpo', 'bnpo', 'cispo')
  },
  'acpo': acpo,
  'reference_kl': reference_kl,
  'rlsd': rlsd,
  'rlsd_ectr': rlsd,
  'rlcsd': rlcsd,
  'srpo': srpo,
  'sdpg': sdpg,
  'sdpo': distillation,
  'opsd': distillation,
  'd-OPSD': distillation,
}
"""Method of a case to what runs it; the others do not exist here."""


def run(case: Case, data: Arrays) -> Found:
  """Runs a case of `newer.json`.

  Args:
    case: its entry.
    data: all arrays of `newer.npz`.

  Returns:
    What we make of it, under the names of the file.

  Raises:
    Missing: there is no such method here.
  """
  method = case['method']
  if method not in NEWER:
    raise Missing(f'method {method!r}')
  if 'batch' not in case:
    raise Missing(f'method {method!r}, function {case["function"]!r}')
  prefix = f'batch/{case["batch"]}/'
  problem = Problem(
    {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}
  )
  if 'loss' not in case:
    return only_advantages(problem, case)
  return NEWER[method](problem, case)
