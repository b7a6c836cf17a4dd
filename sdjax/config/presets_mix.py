"""Published methods with rewards and a teacher, for `sdjax.config.presets`.

The sources are named there.
"""

from typing import Any

from sdjax.feedback.strategies import First, Reference, Uniform
from sdjax.objectives.advantages import GRPO, DrGRPO
from sdjax.objectives.divergence import JSD, ReverseKL
from sdjax.objectives.mixing import RLCSD, RLSD, SDPG, SRPO, Advantages, AntiSD
from sdjax.objectives.policy_loss import Clip
from sdjax.objectives.reference_kl import K2
from sdjax.objectives.schedule import Trapezoid
from sdjax.objectives.support import TopK
from sdjax.steps.teacher import EMA, Current, Snapshot

OURS = 'ours'

VERL_GRPO = GRPO('sample', 1e-6)
"""The spread of a group's rewards in verl, which most codes are built on."""

_VERL = {'method.rl.advantage': (VERL_GRPO, 'VERL')}

MIXED: dict[str, dict[str, tuple[Any, str]]] = {
  'lambda_mix': {
    'method.rule': (Advantages(0.9), 'SDPO eq. 3; weight: fig. 11'),
    'method.rl.advantage': (DrGRPO(), 'SDPO'),
    'method.sd.teacher': (EMA(0.05), 'SDPO'),
    'method.sd.demonstrations.strategy': (First(), 'SDPO-c'),
    'optimizer.learning_rate': (1e-5, 'SDPO table 12'),
  },
  'rlsd': {
    'method.rule': (RLSD(0.5, 0.2), 'RLSD; values: codes of RLCSD and SDPG'),
    'method.schedule': (Trapezoid(fall=50), 'codes of RLCSD and SDPG'),
    **_VERL,
    'method.sd.teacher': (Current(), OURS),
    'method.sd.demonstrations.strategy': (Reference(), OURS),
  },
  'srpo': {
    'method.rule': (SRPO(1.0), 'SRPO; exponent: RLCSD-c'),
    'method.rl.policy_loss': (Clip(high=0.28), 'SRPO'),
    **_VERL,
    'method.sd.divergence': (JSD(0.5), 'RLCSD-c'),
    'method.sd.support': (TopK(100), 'RLCSD-c'),
    'method.sd.importance_clip': (2.0, 'RLCSD-c'),
    'method.sd.teacher': (EMA(0.05), 'RLCSD-c: the average keeps 0.95'),
    'optimizer.learning_rate': (5e-6, 'SRPO'),
    'train.mini_batches': (4, 'RLCSD-c: 64 questions, 16 an update'),
  },
  'sdpg': {
    'method.rule': (SDPG(1e-3), 'SDPG, SDPG-c: its run files'),
    'method.rl.policy_loss': (
      Clip(0.2, 0.28, 10.0),
      'SDPG-c: its run files',
    ),
    **_VERL,
    'method.sd.divergence': (ReverseKL(), 'SDPG-c'),
    'method.sd.importance_clip': (0.0, OURS),
    'method.sd.teacher': (Current(), 'SDPG-c'),
    'method.sd.demonstrations.strategy': (Reference(), 'SDPG-c'),
    'loss.kl': (K2(1e-3), 'SDPG-c; k2: SDPG, URKL; k3 is its UFKL less 1'),
    'optimizer.learning_rate': (1e-6, 'SDPG-c'),
    'train.mini_batches': (8, 'SDPG-c: 128 questions, 16 an update'),
  },
  'antisd': {
    # ANTI shuts the term off below .93 of the entropy it began with: ours is
    # off.
    'method.rule': (AntiSD(0.5), f'ANTI, at second hand; no gate: {OURS}'),
    'method.schedule': (Trapezoid(delay=5), 'ANTI'),
    'method.sd.teacher': (Current(), OURS),
    'method.sd.demonstrations.strategy': (Uniform(), OURS),
  },
  'rlcsd': {
    'method.rule': (
      RLCSD(0.5, 0.02, 2.0, 0.02, 1.0),
      'RLCSD-c; weight: beta 1 times lambda 0.5',
    ),
    **_VERL,
    'method.sd.teacher': (Snapshot(10), 'RLCSD-c'),
    'method.sd.demonstrations.strategy': (
      Uniform(),
      'RLCSD-c: its run files; the reference is an option there',
    ),
    'method.sd.demonstrations.contrast': (4, 'RLCSD-c'),
    'optimizer.learning_rate': (1e-6, 'RLCSD-c'),
    'rollout.num_samples': (8, 'RLCSD-c'),
  },
}
"""Preset name to its options, each with its value and source."""
