"""Configs that switch on every option of every method, one after another."""

import dataclasses
from pathlib import Path
from typing import Any

from sdjax.config import presets
from sdjax.config import schema as c
from sdjax.config.convert import replace
from sdjax.feedback.strategies import (
  Balanced,
  External,
  First,
  MostDifferent,
  NoDemonstration,
  Reference,
  Uniform,
)
from sdjax.objectives.advantages import (
  GRPO,
  RLOO,
  ROSA,
  DrGRPO,
  MaxRL,
  PassAtK,
  RewardItself,
)
from sdjax.objectives.anchor import Tempered, TrustRegion
from sdjax.objectives.divergence import (
  JSD,
  CrossEntropy,
  ForwardKL,
  ReverseKL,
  ScoreWeighted,
  SkewedKL,
)
from sdjax.objectives.diversity_reward import (
  Bonus,
  Scale,
)
from sdjax.objectives.mixing import (
  RLCSD,
  RLSD,
  SDPG,
  SRPO,
  Advantages,
  AntiSD,
  Debiased,
  Losses,
)
from sdjax.objectives.policy_loss import (
  CISPO,
  GSPO,
  AdaptiveClip,
  Clip,
  Reinforce,
)
from sdjax.objectives.pooling import Mixture, SequenceMixture
from sdjax.objectives.reference_kl import K1, K2, K3, FullKL, KLReward
from sdjax.objectives.schedule import Trapezoid
from sdjax.objectives.support import SampledToken, TopK
from sdjax.steps import mix, rl
from sdjax.steps.teacher import EMA, Current, Frozen, Snapshot

NUM_Q, NUM_G, WIDTH = 4, 4, 4
"""Questions, rollouts of each and tokens at most."""

BASE = c.Config(
  rollout=c.Rollout(
    num_questions=NUM_Q,
    num_samples=NUM_G,
    max_context=9,
    context_buckets=(9,),
    max_new_tokens=WIDTH,
  ),
  task=c.ConceptGraph(),
)
SD = replace(BASE, method__demonstrations__max_context=12)
RL = dataclasses.replace(BASE, method=rl.Options())
MIX = replace(
  dataclasses.replace(BASE, method=mix.Options()),
  method__sd__demonstrations__max_context=12,
)
BASES = {'sd': SD, 'rl': RL, 'mix': MIX}
LETTERS = External(str(Path(__file__).parent / 'letters.jsonl'))

PEERS: tuple[Any, ...] = (Uniform, First, MostDifferent, Balanced)


def clipped(**changes: Any) -> dict[str, Any]:
  """With a second pass, or all ratios were 1."""
  return {**changes, 'train__epochs': 2}


SD_VARIANTS: list[dict[str, Any]] = [
  {'divergence': ReverseKL(clip=0.05)},
  {'divergence': ForwardKL()},
  {'divergence': ForwardKL(clip=0.05)},
  {'divergence': SkewedKL()},
  {'divergence': SkewedKL(alpha=0.5)},
  {'divergence': JSD(alpha=0.3)},
  {'divergence': JSD(normalised=True)},
  {'divergence': JSD(clip=0.01)},
  {'divergence': CrossEntropy(), 'credit_discount': 1.0},
  {'divergence': CrossEntropy(clip=0.2)},
  {'divergence': ScoreWeighted()},
  {'support': TopK(3)},
  {'support': TopK(3, tail=False)},
  {'support': TopK(2, 'teacher')},
  {'support': TopK(2, 'teacher', tail=False)},
  {'support': SampledToken()},
  {'support': SampledToken(), 'credit_discount': 0.9},
  clipped(importance_clip=1.1),
  {'success_exponent': 0.5},
  {'teacher': Current()},
  {'teacher': Frozen()},
  {'teacher': Snapshot(1)},
  {'teacher': EMA(0.2)},
  {'teacher': Current(), 'anchor': TrustRegion(0.3)},
  {'anchor': TrustRegion(0.3)},
  {'anchor': Tempered(3.0)},
  {'anchor': Tempered(2.5, 5)},
  {'teacher_temperature': 0.5},
  {'demonstrations__strategy': First()},
  {'demonstrations__strategy': Balanced()},
  {'demonstrations__strategy': MostDifferent(), 'demonstrations__count': 2},
  {'demonstrations__strategy': Reference()},
  *({'demonstrations__strategy': kind(exclude_self=False)} for kind in PEERS),
  *(
    {
      'demonstrations__strategy': kind(exclude_same_text=True),
      'demonstrations__count': 3,
    }
    for kind in PEERS
  ),
  {'demonstrations__strategy': LETTERS},
  {
    'demonstrations__strategy': dataclasses.replace(LETTERS, draw='distinct'),
  },
  {'demonstrations__count': 3},
  {'demonstrations__count': 3, 'pooling': Mixture()},
  {'demonstrations__count': 3, 'pooling': SequenceMixture()},
  {'demonstrations__feedback': 'without_peer'},
  {
    'demonstrations__feedback': 'always',
    'demonstrations__both_template': '{feedback} {demonstration} = {question}',
  },
  {
    'demonstrations__strategy': NoDemonstration(),
    'demonstrations__feedback': 'always',
    'demonstrations__feedback_template': '{feedback} = {question}',
  },
  {'demonstrations__template': '{demonstration} no {question}'},
]

RL_VARIANTS: list[dict[str, Any]] = [
  {'advantage': MaxRL()},
  {'advantage': DrGRPO()},
  {'advantage': RLOO()},
  {'advantage': RewardItself()},
  {'advantage': GRPO(std='sample')},
  {'advantage': GRPO(epsilon=0.1)},
  {'advantage': PassAtK(2)},
  {'advantage': ROSA()},
  clipped(policy_loss=Clip(low=0.1)),
  clipped(policy_loss=Clip(high=0.28)),
  clipped(policy_loss=Clip(dual=3.0)),
  {'policy_loss': GSPO()},
  clipped(policy_loss=GSPO(low=0.0)),
  clipped(policy_loss=GSPO(high=0.02)),
  clipped(policy_loss=GSPO(dual=1.01)),
  clipped(policy_loss=CISPO(low=1.0)),
  clipped(policy_loss=CISPO(low=0.0)),
  clipped(policy_loss=CISPO(high=0.1)),
  clipped(policy_loss=CISPO(low=1.0, drop_low=0.1)),
  clipped(policy_loss=CISPO(low=1.0, drop_high=0.1)),
  {'policy_loss': Reinforce()},
  clipped(policy_loss=AdaptiveClip()),
  clipped(policy_loss=AdaptiveClip(dual=1.5)),
  {'diversity': Bonus()},
  {'diversity': Bonus(0.3)},
  {'diversity': Bonus(of='all')},
  {'diversity': Bonus(by='solution')},
  {'diversity': Scale()},
  {'diversity': Scale(0.5)},
  {'diversity': Scale(by='solution')},
  {'overlong_share': 0.5},
]

LOSS_VARIANTS: list[dict[str, Any]] = [
  {'aggregation': 'sequence_mean'},
  {'aggregation': 'sequence_sum'},
  {'aggregation': 'sequence_sum_norm'},
  {'kl': K1(0.1)},
  {'kl': K2(0.1)},
  {'kl': K3(0.1)},
  {'kl': FullKL(0.1)},
  {'skip_tokens': 1},
  {'mask_truncated': True},
  {'sampler_clip': 0.9},
  {'chunk': 3},
]

MIX_VARIANTS: list[dict[str, Any]] = [
  {'rule': Advantages(0.3)},
  {'schedule': Trapezoid(rise=3)},
  {'schedule': Trapezoid(hold=1, fall=4)},
  {'rule': AntiSD(), 'schedule': Trapezoid(delay=1, rise=3)},
  {'rule': RLSD(clip=0.4)},
  {'rule': RLSD(0.2)},
  {'rule': Debiased(0.1)},
  {'rule': AntiSD(0.2)},
  {'rule': AntiSD(entropy_floor=5.0)},
  {
    'rule': RLCSD(0.4, 1.0, 0.3, 0.2, 0.5),
    'sd__demonstrations__contrast': 2,
  },
  {
    'rule': Losses(),
    'sd__divergence': JSD(),
    'rl__advantage': RLOO(),
  },
  {'rule': Losses(0.2)},
  {'rule': SRPO(0.5)},
  {'rule': SDPG()},
  {'rule': SDPG(0.2)},
  {'rule': SDPG(positive_only=True)},
]


def variants() -> dict[str, c.Config]:
  """Config name to config, each switching something on."""
  out = dict(BASES)

  def add(base: c.Config, prefix: str, changes: dict[str, Any]) -> None:
    dotted = {
      k if k.startswith('train__') else prefix + k: v
      for k, v in changes.items()
    }
    label = ','.join(
      f'{k}={Path(v.file).name if isinstance(v, External) else v}'
      + (f'({v.draw})' if isinstance(v, External) else '')
      for k, v in changes.items()
    )
    name = f'{base.method.name}:{label}'
    assert name not in out, name
    out[name] = replace(base, **dotted)

  for changes in SD_VARIANTS:
    add(SD, 'method__', changes)
  for changes in RL_VARIANTS:
    add(RL, 'method__', changes)
  for changes in LOSS_VARIANTS:
    add(SD, 'loss__', changes)
    add(RL, 'loss__', changes)
  for base in (SD, RL):
    add(base, '', {'train__epochs': 2, 'train__mini_batches': 2})
  for kl in (KLReward(0.1), KLReward(0.1, to_go=True)):
    add(RL, 'loss__', {'kl': kl})
  for changes in MIX_VARIANTS:
    add(MIX, 'method__', changes)
  for name in presets.PRESETS:
    out[f'preset:{name}'] = presets.apply(SD, name)
  # Of 4 rollouts the best of 4 is always the same.
  name = 'preset:pass_at_k'
  out[name] = replace(out[name], method__advantage=PassAtK(2))
  return out


VARIANTS = variants()
