# pyright: reportArgumentType=false
"""Runs the library on the inputs that reference codes were run on.

`NEWER` maps the method of a case to a function that tells our steps what the
case told its code, and names where its mean differs from ours.
"""

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
  column,
  grpo,
  of_tokens,
  rewarded,
)
from mixing_inputs import inputs_of

from sdjax.feedback.strategies import Demonstrations
from sdjax.objectives import mixing
from sdjax.objectives.advantages import RLOO, DrGRPO
from sdjax.objectives.divergence import JSD, ForwardKL, ReverseKL
from sdjax.objectives.policy_loss import (
  CISPO,
  GSPO,
  AdaptiveClip,
  Clip,
  PolicyLoss,
  Reinforce,
  adaptive_clip,
)
from sdjax.objectives.reference_kl import K1, K2, K3, NoKL
from sdjax.objectives.support import SampledToken, TopK
from sdjax.steps import mix, rl, sd
from sdjax.steps.sampling import Sampling
from sdjax.steps.student import Shared


class Missing(Exception):
  """There is no such method here, or no such option of it."""


def only_advantages(problem: Problem, case: Case) -> Found:
  """Advantages without a loss."""
  plain = {'dr_grpo': DrGRPO(), 'rloo': RLOO()}
  if case['method'] != 'grpo':
    each = advantages(problem.data, plain[case['method']])
  else:
    each = grpo(problem, case, case['options'].get('epsilon', 1e-6))
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


def clip_of(options: Arrays) -> Clip:
  """Clip widths, from the names that the codes have for them."""
  both = options.get('cliprange', options.get('clip_ratio', 0.2))
  both = options.get('epsilon', both)
  names = ('clip_ratio_{}', 'cliprange_{}', 'epsilon_{}')

  def width(side):
    given = (options.get(name.format(side)) for name in names)
    return next((x for x in given if x is not None), both)

  dual = options.get('clip_ratio_c') or options.get('delta') or 0.0
  return Clip(width('low'), width('high'), dual)


def policy_losses(problem: Problem, case: Case) -> Found:
  """The losses of verl, trl and ACPO's CISPO."""
  options, method = case['options'], case['method']
  clip, shared = clip_of(options), Shared()
  if method.startswith('trl_'):
    each = advantages(problem.data, DrGRPO())  # an input, as they say
    how: PolicyLoss = clip
    cispo = options['loss_type'] == 'cispo'
    if options['importance_sampling_level'] == 'sequence':
      if cispo:
        raise Missing('cispo of whole sequences')
      how = GSPO(clip.low, clip.high, clip.dual)
    if cispo:
      # Theirs has no lower clip, and the ratio is capped AT epsilon_high.
      how = CISPO(low=1.0, high=clip.high - 1)
    if options['beta']:
      shared = Shared(kl=K3(options['beta']))
  else:
    each = grpo(problem, case)
    # Neither of the two has a dual clip there.
    how = {
      'gspo': GSPO(clip.low, clip.high),
      'cispo': CISPO(clip.low, clip.high),
    }.get(method, clip)
  if method == 'cispo_with_ppo_mask':
    how = CISPO(
      low=options['clip_ratio_is_low'],
      high=options['clip_ratio_is_high'],
      drop_low=clip.low,
      drop_high=clip.high,
    )
  told = rewarded(how)
  signal = problem.signal(rl, told, shared, each)
  found = problem.run(rl, signal, told, shared, **mean_of(problem, case))
  shown = each if method.startswith('trl_') else of_tokens(problem, each)
  return found | {'advantage': shown}


def acpo(problem: Problem, case: Case) -> Found:
  """Clip widths of each token, from the spread of the ratios."""
  options = case['options']
  each = grpo(problem, case)
  told = rewarded(AdaptiveClip(dual=options['clip_ratio_c']))
  signal = problem.signal(rl, told, advantage_B=each)
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
  signal = replace(signal, clip_width=width)
  found = problem.run(rl, signal, told, **mean_of(problem, case))
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
  told = rewarded(Reinforce())
  signal = problem.signal(rl, told, advantage_B=each)
  found = problem.run(rl, signal, told, **mean_of(problem, case))
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
  'k1': (K1, None),
  'kl': (K1, None),
  'k2': (K2, K2),
  'mse': (K2, K2),
  'k3': (K3, K3),
  'low_var_kl': (K3, K3),
  'k1+': (K1, K2),
  'k2+': (K2, K2),
  'k3+': (K3, K2),
}
"""Name in verl to the estimators of ours that have its value and its slope;
None: the plain slope of the log-ratio."""


def reference_kl(problem: Problem, case: Case) -> Found:
  """An estimate of the KL alone, as a loss."""
  name = case['options']['kl_penalty']
  if name not in KL:
    raise Missing(f'kl_penalty {name!r}')

  def run(estimator):
    shared = Shared(kl=estimator(1.0))
    told = rewarded(Reinforce())
    signal = problem.signal(rl, told, shared)
    return problem.run(rl, signal, told, shared, **mean_of(problem, case))

  value, slope = KL[name]
  if slope is None:
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
  rule = mixing.RLSD(clip=clip)
  lam = case.get('scalars', {}).get('lam', options.get('lam'))  # decayed
  told = mix.Options(rule=rule, rl=rewarded(clip_of(options)))
  if case['method'] == 'rlsd_ectr':
    wrong = problem.data['wrong_logp'][:, 0]
    contrast = column(problem.data['teacher_logp'] - wrong)
    signal = problem.signal(rl, told.rl, advantage_B=each)
    mixed = rule(inputs_of(signal.advantage, contrast, lam))
    signal = replace(signal, advantage=mixed.advantage)
    found = problem.run(rl, signal, told.rl, **mean_of(problem, case))
  else:
    signal = problem.signal(
      mix, told, advantage_B=each, rollout=rollout, weight=lam
    )
    found = problem.run(mix, signal, told, **mean_of(problem, case))
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
  told = mix.Options(
    rule=mixing.RLCSD(
      temperature=options['rlcsd_tau'],
      clip=largest,
      threshold=options['rlcsd_delta'],
      touched_weight=options['rlcsd_eta'],
    ),
    sd=sd.Options(demonstrations=Demonstrations(contrast=problem.num_wrong)),
    rl=rewarded(clip_of(options)),
  )
  signal = problem.signal(
    mix,
    told,
    advantage_B=each,
    weight=options['rlcsd_beta'] * options['rlcsd_lam'],
    contrast=True,
  )
  found = problem.run(mix, signal, told, weighted=False)
  return found | {
    'advantage': of_tokens(problem, each),
    'new_advantage': signal.advantage[:, 0] * problem.mask,
  }


def distillation_of(options: Arrays) -> sd.Options:
  """Our options of a divergence; 0 is KL(teacher || student) in all codes."""
  alpha = float(options['alpha'] if 'alpha' in options else options['beta'])
  clip = options.get('jsd_token_clip', options.get('token_clip')) or np.inf
  plain = {0.0: ForwardKL(clip), 1.0: ReverseKL(clip)}
  told = sd.Options(
    divergence=plain.get(alpha) or JSD(alpha, clip=clip),
    importance_clip=options.get('is_clip') or 0.0,
  )
  top_k = options.get('top_k_distill', options.get('top_k'))
  if not options.get('full_logit_distill', True):
    return replace(told, support=SampledToken())
  if not top_k:
    return told
  # The official OPSD and what follows it choose by the teacher.
  support = TopK(
    top_k,
    of='student' if 'is_clip' in options else 'teacher',
    tail=options.get('distill_add_tail', False),
  )
  return replace(told, support=support)


def distillation(problem: Problem, case: Case) -> Found:
  """SDPO and OPSD: every rollout has a teacher."""
  options = case['options']
  if case['method'] == 'opsd' and not options.get('full_logit_distill', True):
    raise Missing('squared differences of log-probabilities')
  told = distillation_of(options)
  shared = Shared(sampling=Sampling(options.get('temperature', 1.0)))
  mean = {'aggregation': 'sequence_sum'}
  if case['aggregation'].startswith('batchmean'):
    # No mask there: padded positions count, and rows are what is divided by.
    whole = {**problem.data, 'mask': np.ones_like(problem.data['mask'])}
    problem = Problem(whole)
  else:
    mean = mean_of(problem, case)
  signal = problem.signal(sd, told, shared)
  return problem.run(sd, signal, told, shared, **mean)


def srpo(problem: Problem, case: Case) -> Found:
  """SRPO, routed by the sign of the advantage, as this code does it."""
  options = case['options']
  each = grpo(problem, case)
  told = mix.Options(
    rule=mixing.SRPO(entropy_exponent=options['srpo_beta']),
    sd=distillation_of(options),
    rl=rewarded(clip_of(options)),
  )
  signal = problem.signal(mix, told, advantage_B=each)
  found = problem.run(mix, signal, told, **mean_of(problem, case))
  return found | {
    'advantage': of_tokens(problem, each),
    'routed': (np.asarray(signal.weight)[:, 0] == 0).all(axis=-1),
    'entropy_weight': signal.taught.weight[:, 0] * problem.mask,
  }


ANCHORS = {
  # (log w)^2 / 2, and (log w + 1)^2 / 2.
  'urkl': (K2, 0.0, 0.0),
  'rkl': (K2, 1.0, 0.5),
  # 1 / w + log w, and 1 / w.
  'ufkl': (K3, 0.0, 1.0),
  'fkl': (K3, -1.0, 1.0),
}
"""SDPG's anchors, w the ratio to the reference: our estimator, how much of the
plain log-ratio it lacks, and the constant it lacks."""


def sdpg(problem: Problem, case: Case) -> Found:
  """SDPG: policy loss, distillation and an anchor."""
  options = case['options']
  each = grpo(problem, case)
  estimator, plain, constant = ANCHORS[options['kl_mode']]
  alpha = options['alpha']
  shared = Shared(kl=estimator(alpha) if alpha else NoKL())
  told = mix.Options(
    rule=mixing.SDPG(
      positive_only=options.get('beta_distill_positive_advantage_only', False)
    ),
    sd=sd.Options(importance_clip=0.0),
    rl=rewarded(clip_of(options)),
  )
  signal = problem.signal(
    mix,
    told,
    shared,
    each,
    weight=case['scalars']['beta_effective'],  # after its warm-up and decay
  )
  found = problem.run(mix, signal, told, shared, **mean_of(problem, case))
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
