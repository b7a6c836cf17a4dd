"""What may stand in each option, and when an option acts: tables by section.

`sdjax.config.check` applies them.
"""

import dataclasses
from typing import Any

from sdjax.config.method import (
  ADVANTAGE_RULES,
  CLIPPED_LOSSES,
  GIVEN_STRATEGIES,
  LOSS_RULES,
  PEER_STRATEGIES,
  PLAIN_ADVANTAGES,
  TOP_K_SUPPORTS,
)
from sdjax.config.schema import (
  Alarm,
  Config,
  Data,
  Demonstrations,
  Eval,
  Lora,
  Loss,
  Mesh,
  Mix,
  Model,
  Optimizer,
  PolicyGradient,
  Pretraining,
  Reward,
  Rollout,
  Schedule,
  SelfDistillation,
  Train,
)


def is_positive(value: Any) -> bool:
  """Returns whether a size or weight is not 0."""
  return value > 0


ALLOWED: dict[type, dict[str, tuple[str, ...]]] = {
  Config: {'mode': ('train', 'eval', 'forecast', 'pretrain')},
  Model: {
    'dtype': ('float32', 'bfloat16'),
    'param_dtype': ('float32', 'bfloat16'),
    'remat': ('none', 'dots', 'full'),
  },
  SelfDistillation: {
    'objective': (
      'reverse_kl',
      'forward_kl',
      'jsd',
      'cross_entropy',
      'score_weighted',
    ),
    'support': ('full', *TOP_K_SUPPORTS, 'sampled'),
    'pooling': ('loss', 'mixture', 'sequence_mixture'),
    'teacher': ('ema', 'current', 'frozen', 'snapshot', 'trust_region'),
  },
  Demonstrations: {
    'strategy': (*PEER_STRATEGIES, *GIVEN_STRATEGIES, 'none'),
    'feedback': ('never', 'without_peer', 'always'),
    'file_draw': ('frequency', 'distinct'),
  },
  PolicyGradient: {
    'advantage': (*PLAIN_ADVANTAGES, 'pass_at_k', 'rosa'),
    'std': ('population', 'sample'),
    'policy_loss': (*CLIPPED_LOSSES, 'reinforce'),
    'diversity_how': ('add', 'multiply'),
    'diversity_by': ('concepts', 'solution'),
    'diversity_for': ('correct', 'all'),
  },
  Mix: {'rule': (*ADVANTAGE_RULES, *LOSS_RULES)},
  Loss: {
    'aggregation': (
      'token_mean',
      'sequence_mean',
      'sequence_sum',
      'sequence_sum_norm',
    ),
    'kl_in': ('loss', 'reward', 'reward_to_go'),
    'kl_estimator': ('k1', 'k2', 'k3', 'full'),
  },
  Data: {'over_length': ('error', 'skip', 'truncate_question')},
  Optimizer: {'schedule': ('constant', 'cosine')},
  Reward: {
    'name': ('verifier', 'function', 'model'),
    'judge': ('verifier', 'reward'),
  },
  Alarm: {'action': ('warn', 'stop', 'off')},
}
"""The values of every option that is a choice."""

AT_LEAST: dict[type, dict[str, float]] = {
  Lora: {'rank': 0, 'alpha': 0},
  Rollout: {
    'num_questions': 1,
    'num_samples': 1,
    'max_context': 1,
    'max_new_tokens': 1,
    'temperature': 0,
    'top_k': 0,
    'resample': 0,
  },
  Demonstrations: {'count': 1, 'contrast': 0, 'max_context': 1},
  SelfDistillation: {
    'top_k': 1,
    'pointwise_clip': 0,
    'importance_clip': 0,
    'success_exponent': 0,
    'snapshot_every': 1,
    'anchor_beta': 1,
    'anchor_steps': 0,
  },
  PolicyGradient: {
    'pass_k': 1,
    'clip_low': 0,
    'clip_high': 0,
    'dual_clip': 0,
    'drop_low': 0,
    'drop_high': 0,
    'diversity_weight': 0,
  },
  Schedule: {'delay': 0, 'rise': 0, 'hold': 0, 'fall': 0},
  Mix: {
    'weight': 0,
    'ratio_clip': 0,
    'entropy_floor': 0,
    'entropy_exponent': 0,
    'contrast_temperature': 0,
    'contrast_clip': 0,
    'contrast_threshold': 0,
    'touched_weight': 0,
  },
  Pretraining: {
    'batch_size': 1,
    'careful_steps': 0,
    'max_context': 1,
    'num_layers': 1,
  },
  Loss: {'kl_coef': 0, 'skip_tokens': 0, 'sampler_clip': 0, 'chunk': 1},
  Optimizer: {
    'learning_rate': 0,
    'warmup_steps': 0,
    'weight_decay': 0,
    'clip_norm': 0,
  },
  Train: {
    'num_steps': 1,
    'epochs': 1,
    'mini_batches': 1,
    'micro_batches': 1,
    'eval_every': 0,
    'checkpoint_every': 1,
    'keep_checkpoints': 1,
    'logged_questions': 0,
    'credit_questions': 0,
  },
  Eval: {
    'num_questions': 1,
    'num_samples': 1,
    'batch_questions': 1,
    'temperature': 0,
  },
  Alarm: {'window': 1, 'length_factor': 1},
  Mesh: {'model': 1},
  Reward: {'workers': 1, 'max_tokens': 1},
}
"""The smallest value of every option that is a size or a weight."""

SHARES: dict[type, tuple[str, ...]] = {
  SelfDistillation: ('ema_rate', 'trust_region', 'credit_discount'),
  PolicyGradient: ('overlong_share',),
  Rollout: ('min_p',),
  Alarm: (
    'variety_drop',
    'success_drop',
    'entropy_share',
    'idle_share',
    'finished_share',
    'finished_drop',
    'reward_drop',
  ),
}
"""Options in 0..1."""


EFFECTIVE_WHEN: dict[type, dict[str, tuple[str, Any]]] = {
  SelfDistillation: {
    'ema_rate': ('teacher', ('ema',)),
    'snapshot_every': ('teacher', ('snapshot',)),
    'trust_region': ('teacher', ('trust_region',)),
    'jsd_alpha': ('objective', ('jsd',)),
    'jsd_normalised': ('objective', ('jsd',)),
    'top_k': ('support', TOP_K_SUPPORTS),
    'tail': ('support', TOP_K_SUPPORTS),
    'pointwise_clip': ('support', ('full', *TOP_K_SUPPORTS)),
    'anchor_steps': ('anchor_beta', lambda beta: beta > 1),
  },
  Demonstrations: {
    'file': ('strategy', ('external',)),
    'file_draw': ('strategy', ('external',)),
    'exclude_self': ('strategy', PEER_STRATEGIES),
    'exclude_same_text': ('strategy', PEER_STRATEGIES),
    'template': ('strategy', lambda strategy: strategy != 'none'),
    'count': ('strategy', lambda strategy: strategy != 'none'),
    'feedback_template': ('feedback', ('without_peer', 'always')),
    'both_template': ('feedback', ('always',)),
  },
  PolicyGradient: {
    'pass_k': ('advantage', ('pass_at_k',)),
    'std': ('advantage', ('grpo',)),
    'std_epsilon': ('advantage', ('grpo',)),
    'clip_low': ('policy_loss', CLIPPED_LOSSES),
    'clip_high': ('policy_loss', CLIPPED_LOSSES),
    'dual_clip': ('policy_loss', ('clip', 'gspo')),
    'drop_low': ('policy_loss', ('cispo',)),
    'drop_high': ('policy_loss', ('cispo',)),
    'adaptive_clip': ('policy_loss', ('clip',)),
    'diversity_how': ('diversity_weight', is_positive),
    'diversity_by': ('diversity_weight', is_positive),
    'diversity_for': ('diversity_weight', is_positive),
    'diversity_weight': ('advantage', PLAIN_ADVANTAGES),
    'overlong_share': ('advantage', PLAIN_ADVANTAGES),
  },
  Mix: {
    'weight': ('rule', lambda rule: rule != 'srpo'),
    'schedule': ('rule', lambda rule: rule != 'srpo'),
    'ratio_clip': ('rule', ('rlsd',)),
    'entropy_floor': ('rule', ('antisd',)),
    'entropy_exponent': ('rule', ('srpo',)),
    'positive_only': ('rule', ('sdpg',)),
    'contrast_temperature': ('rule', ('rlcsd',)),
    'contrast_clip': ('rule', ('rlcsd',)),
    'contrast_threshold': ('rule', ('rlcsd',)),
    'touched_weight': ('rule', ('rlcsd',)),
  },
  Loss: {
    'kl_in': ('kl_coef', is_positive),
    'kl_estimator': ('kl_coef', is_positive),
  },
  Reward: {
    'function': ('name', ('function',)),
    'workers': ('name', ('function',)),
    'timeout': ('name', ('function',)),
    'model': ('name', ('model',)),
    'max_tokens': ('name', ('model',)),
    'judge': ('name', ('function', 'model')),
    'threshold': ('judge', ('reward',)),
  },
  Lora: {'alpha': ('rank', is_positive), 'targets': ('rank', is_positive)},
  Train: {'keep_best': ('eval_every', is_positive)},
  Alarm: {
    field.name: ('action', ('warn', 'stop'))
    for field in dataclasses.fields(Alarm)
    if field.name != 'action'
  },
}
"""Options that act only when another has one of the given values."""

SHAPES_THE_LOSS = (
  'objective',
  'jsd_alpha',
  'jsd_normalised',
  'support',
  'top_k',
  'tail',
  'pointwise_clip',
  'importance_clip',
  'credit_discount',
  'success_exponent',
)
"""Options of self-distillation that do nothing in a rule on the advantage."""

NEEDS_OLD_ROLLOUTS = {
  SelfDistillation: ('importance_clip',),
  PolicyGradient: (
    'clip_low',
    'clip_high',
    'dual_clip',
    'drop_low',
    'drop_high',
    'adaptive_clip',
  ),
}
"""Options that act on ratios, which are 1 in the first update after sampling
from the model's own law."""
