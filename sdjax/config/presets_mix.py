"""Published methods with rewards and a teacher, for `sdjax.config.presets`.

The sources are named there.
"""

from typing import Any

OURS = 'ours'

VERL_STD: dict[str, tuple[Any, str]] = {
  'std': ('sample', 'VERL'),
  'std_epsilon': (1e-6, 'VERL'),
}
"""The spread of a group's rewards in verl, which most codes are built on."""

_VERL = {f'method.rl.{name}': value for name, value in VERL_STD.items()}

MIXED: dict[str, dict[str, tuple[Any, str]]] = {
  'lambda_mix': {
    'method.rule': ('advantage', 'SDPO eq. 3'),
    'method.weight': (0.9, 'SDPO fig. 11'),
    'method.rl.advantage': ('dr_grpo', 'SDPO'),
    'method.sd.teacher': ('ema', 'SDPO'),
    'method.sd.ema_rate': (0.05, 'SDPO'),
    'method.sd.demonstrations.strategy': ('first', 'SDPO-c'),
    'optimizer.learning_rate': (1e-5, 'SDPO table 12'),
  },
  'rlsd': {
    'method.rule': ('rlsd', 'RLSD'),
    'method.weight': (0.5, 'codes of RLCSD and SDPG'),
    'method.ratio_clip': (0.2, 'codes of RLCSD and SDPG'),
    'method.schedule.fall': (50, 'codes of RLCSD and SDPG'),
    **_VERL,
    'method.sd.teacher': ('current', OURS),
    'method.sd.demonstrations.strategy': ('reference', OURS),
  },
  'srpo': {
    'method.rule': ('srpo', 'SRPO'),
    'method.entropy_exponent': (1.0, 'RLCSD-c'),
    'method.rl.clip_high': (0.28, 'SRPO'),
    **_VERL,
    'method.sd.objective': ('jsd', 'RLCSD-c'),
    'method.sd.jsd_alpha': (0.5, 'RLCSD-c'),
    'method.sd.support': ('student_top_k', 'RLCSD-c'),
    'method.sd.top_k': (100, 'RLCSD-c'),
    'method.sd.importance_clip': (2.0, 'RLCSD-c'),
    'method.sd.ema_rate': (0.05, 'RLCSD-c: the average keeps 0.95'),
    'optimizer.learning_rate': (5e-6, 'SRPO'),
    'train.mini_batches': (4, 'RLCSD-c: 64 questions, 16 an update'),
  },
  'sdpg': {
    'method.rule': ('sdpg', 'SDPG'),
    'method.weight': (1e-3, 'SDPG-c'),
    'method.positive_only': (False, 'SDPG-c: its run files'),
    'method.rl.clip_low': (0.2, 'SDPG-c: its run files'),
    'method.rl.clip_high': (0.28, 'SDPG-c: its run files'),
    'method.rl.dual_clip': (10.0, 'SDPG-c: its run files'),
    **_VERL,
    'method.sd.objective': ('reverse_kl', 'SDPG-c'),
    'method.sd.importance_clip': (0.0, OURS),
    'method.sd.teacher': ('current', 'SDPG-c'),
    'method.sd.demonstrations.strategy': ('reference', 'SDPG-c'),
    'loss.kl_coef': (1e-3, 'SDPG-c'),
    'loss.kl_estimator': ('k2', 'SDPG: URKL; k3 is its UFKL less 1'),
    'optimizer.learning_rate': (1e-6, 'SDPG-c'),
    'train.mini_batches': (8, 'SDPG-c: 128 questions, 16 an update'),
  },
  'antisd': {
    'method.rule': ('antisd', 'ANTI'),
    'method.weight': (0.5, 'ANTI, at second hand'),
    'method.schedule.delay': (5, 'ANTI'),
    # ANTI shuts the term off below .93 of the entropy it began with.
    'method.entropy_floor': (0.0, OURS),
    'method.sd.teacher': ('current', OURS),
    'method.sd.demonstrations.strategy': ('uniform', OURS),
  },
  'rlcsd': {
    'method.rule': ('rlcsd', 'RLCSD'),
    'method.weight': (0.5, 'RLCSD-c: beta 1 times lambda 0.5'),
    'method.contrast_temperature': (0.02, 'RLCSD-c'),
    'method.contrast_clip': (2.0, 'RLCSD-c'),
    'method.contrast_threshold': (0.02, 'RLCSD-c'),
    'method.touched_weight': (1.0, 'RLCSD-c'),
    **_VERL,
    'method.sd.teacher': ('snapshot', 'RLCSD-c'),
    'method.sd.snapshot_every': (10, 'RLCSD-c'),
    'method.sd.demonstrations.strategy': (
      'uniform',
      'RLCSD-c: its run files; the reference is an option there',
    ),
    'method.sd.demonstrations.exclude_self': (True, 'RLCSD-c'),
    'method.sd.demonstrations.contrast': (4, 'RLCSD-c'),
    'optimizer.learning_rate': (1e-6, 'RLCSD-c'),
    'rollout.num_samples': (8, 'RLCSD-c'),
  },
}
"""Preset name to its options, each with its value and source."""
