"""Published methods as bundles of options, each value with its source.

  name                   what it is
  sdsd_paper             self-distillation with sampled demonstrations
  sdsd_k3_paper          likewise, the losses of three demonstrations averaged
  sdsd_mixture           likewise, distilled from the mixture of three (ours)
  balanced               a teacher for each solution found, all counting alike
                         (ours)
  balanced_rl            likewise, with rewards beside it (ours)
  sdpo                   SDPO without environment feedback
  sdpo_rich_feedback     SDPO with feedback where no peer is correct
  sdpo_trl               SDPO as trl has it by default
  sc_sdpo                SDPO, questions weighted by their pass rate
  opsd                   on-policy self-distillation from reference solutions
  sdft                   self-distillation fine-tuning from demonstrations
  distil                 forward cross-entropy with future credit
  beta_opsd              OPSD with an anchored target and credit to the end
  reinforce, rloo        the plain estimators
  grpo, dr_grpo          GRPO, and without its two divisions
  grpo_paper             GRPO of the paper this library begins from
  grpo_diversity_paper   likewise, with its diversity reward
  dapo, cispo, gspo, acpo  other clips
  pass_at_k, rosa, darling  rewards of sets, and of variety
  lambda_mix             SDPO's and GRPO's advantages, mixed
  rlsd, srpo, sdpg, antisd, rlcsd  other ways to have both

Values marked `ours` are in no source: the source leaves them open, or our
option has no counterpart there. Values without an entry are the defaults of
`sdjax.config`. Demonstrations are drawn uniformly unless a source says
otherwise; widths of contexts belong to the task and are not touched.

Sources: T = arXiv 2606.26091; NANO = nano-aha-moment, the library T trained
with (its defaults, where T is silent); SDPO = 2601.20802, SDPO-c its code;
TRL = huggingface/trl; VERL = verl, on which most of the codes are built, and
the run files of its examples; OPSD = 2601.18734; SDFT = 2601.19897; DISTIL =
2606.05152; BETA = 2607.28582; SC = 2605.27765; GRPO = 2402.03300; DR =
2503.20783; DAPO = 2503.14476; CISPO = 2506.13585; GSPO = 2507.18071; ACPO =
2606.22570; PASSK = 2508.10751; ROSA = 2606.03962; DARLING = 2509.02534; RLOO =
2402.14740; RLSD = 2604.03128; SRPO = 2604.02288; SDPG = 2606.04036; ANTI =
2605.11609; RLCSD = 2606.11709. `-c` is a paper's code.
"""

import dataclasses
import math
from typing import Any

from sdjax.config.check import parts, sections
from sdjax.config.convert import replace
from sdjax.config.presets_mix import MIXED, OURS, VERL_GRPO
from sdjax.config.schema import METHODS, Config, ConfigError, Loss
from sdjax.feedback.strategies import Balanced, First, Reference, Uniform
from sdjax.objectives.advantages import (
  GRPO,
  RLOO,
  ROSA,
  DrGRPO,
  PassAtK,
  RewardItself,
)
from sdjax.objectives.anchor import Tempered
from sdjax.objectives.divergence import JSD, CrossEntropy, ForwardKL, ReverseKL
from sdjax.objectives.diversity_reward import Bonus, Scale
from sdjax.objectives.mixing import Losses
from sdjax.objectives.policy_loss import (
  CISPO,
  GSPO,
  AdaptiveClip,
  Clip,
  Reinforce,
)
from sdjax.objectives.pooling import MeanLoss, Mixture, SequenceMixture
from sdjax.objectives.reference_kl import K3
from sdjax.objectives.support import FullVocabulary, SampledToken, TopK
from sdjax.options import nearest
from sdjax.steps.teacher import EMA, Current, Frozen

RECIPE = ('optimizer.', 'model.', 'rollout.num_', 'rollout.t', 'rollout.min_p')
"""Options that say how a method was run, not what it is."""


Values = dict[str, dict[str, tuple[Any, str]]]
"""Presets by name, each as option to (value, source)."""


@dataclasses.dataclass(frozen=True)
class Preset:
  """A published method: `sd`, `rl` or `mix`, and option to (value, source)."""

  kind: str
  values: dict[str, tuple[Any, str]]


# Their cap of 2 on rollout corrections is for a sampler with other arithmetic
# than the trainer's (`loss.sampler_clip`); here both are the same code.
_SDPO = {
  'method.divergence': (JSD(0.5), 'SDPO-c; alpha: SDPO table 12'),
  'method.support': (TopK(100), 'SDPO-c; k: SDPO table 12'),
  'method.teacher': (EMA(0.05), 'SDPO; rate: SDPO table 12'),
  'method.importance_clip': (2.0, 'SDPO table 12'),
  'method.demonstrations.strategy': (First(), 'SDPO-c'),
  'loss.aggregation': ('token_mean', 'SDPO-c'),
  'optimizer.learning_rate': (1e-5, 'SDPO table 12'),
  'optimizer.warmup_steps': (10, 'SDPO table 12'),
  'optimizer.weight_decay': (0.01, 'SDPO table 12'),
  'optimizer.clip_norm': (1.0, 'SDPO table 12'),
  'rollout.num_questions': (32, 'SDPO table 12'),
  'rollout.num_samples': (8, 'SDPO table 12'),
  'rollout.temperature': (1.0, 'SDPO table 12'),
}

_NANO = {
  'loss.aggregation': ('token_mean', 'NANO'),
  'loss.kl': (K3(0.001), 'NANO'),
  'optimizer.learning_rate': (1e-6, 'NANO'),
  'optimizer.clip_norm': (1.0, 'NANO'),
  'rollout.num_questions': (16, 'T sec. 4.1'),
  'rollout.num_samples': (4, 'T sec. 4.1'),
  'rollout.temperature': (1.0, 'NANO'),
  'rollout.top_p': (0.999, 'NANO'),
}

_SDSD = {
  'method.divergence': (ReverseKL(), 'T sec. 2'),
  'method.support': (FullVocabulary(), 'T sec. 2'),
  'method.teacher': (EMA(0.05), 'T sec. 2; rate: SDPO, T is silent'),
  'method.demonstrations.strategy': (Uniform(), 'T sec. 2, 4.1'),
  **_NANO,
}

_GRPO_PAPER = {
  'method.advantage': (GRPO('population', 1e-4), 'T sec. 4.1, NANO'),
  'method.policy_loss': (Reinforce(), 'NANO'),
  **_NANO,
}

_VERL = {'method.advantage': (VERL_GRPO, 'VERL')}

_MINI = {'train.mini_batches': (4, 'SDPO: 32 questions, 8 an update')}

_BALANCED = {
  'divergence': ForwardKL(),
  'pooling': SequenceMixture(),
  'teacher_temperature': 0.5,
  'demonstrations.strategy': Balanced(),
  'demonstrations.count': 3,
}

_SD: Values = {
  'sdsd_paper': _SDSD,
  'sdsd_k3_paper': {
    **_SDSD,
    'method.demonstrations.count': (3, 'T sec. 4.2'),
    'method.pooling': (MeanLoss(), 'T sec. 4.2'),
  },
  'sdsd_mixture': {
    **_SDSD,
    'method.demonstrations.count': (3, OURS),
    'method.pooling': (Mixture(), OURS),
  },
  'balanced': {f'method.{k}': (value, OURS) for k, value in _BALANCED.items()},
  'sdpo': _SDPO,
  'sdpo_rich_feedback': {
    **_SDPO,
    'method.divergence': (ReverseKL(), 'SDPO table 13'),
    'method.support': (TopK(20), 'SDPO table 13'),
    'method.teacher': (EMA(0.01), 'SDPO table 13'),
    'method.demonstrations.feedback': ('without_peer', 'SDPO-c'),
    'train.mini_batches': (32, 'SDPO table 13: one question an update'),
    'optimizer.learning_rate': (1e-6, 'SDPO table 13'),
    'optimizer.warmup_steps': (0, 'SDPO table 13'),
  },
  'sdpo_trl': {
    'method.divergence': (ReverseKL(), 'TRL'),
    'method.support': (SampledToken(), 'TRL'),
    'method.importance_clip': (2.0, 'TRL'),
    'method.teacher': (EMA(0.05), 'TRL'),
    'method.demonstrations.strategy': (First(), 'TRL'),
    # trl divides by rollouts without a target as well; sdjax does not.
    'loss.aggregation': ('sequence_mean', 'TRL'),
    'rollout.num_samples': (8, 'TRL'),
  },
  'sc_sdpo': {
    **_SDPO,
    'method.success_exponent': (0.5, 'SC'),
  },
  'opsd': {
    'method.divergence': (ForwardKL(0.05), 'OPSD; clip: RLCSD-c, d-OPSD-c'),
    'method.importance_clip': (0.0, 'OPSD has none'),
    'method.teacher': (Frozen(), 'OPSD'),
    'method.demonstrations.strategy': (Reference(), 'OPSD'),
    'loss.aggregation': ('token_mean', 'OPSD-c'),
    'model.lora.rank': (64, 'OPSD'),
    'model.lora.alpha': (128.0, 'OPSD'),
    'optimizer.learning_rate': (2e-4, 'OPSD-c'),
    'rollout.num_questions': (32, 'OPSD'),
    'rollout.num_samples': (1, 'OPSD'),
    'rollout.temperature': (1.1, 'OPSD'),
    'rollout.top_p': (0.95, 'OPSD'),
    'rollout.top_k': (20, 'OPSD'),
  },
  'sdft': {
    'method.divergence': (ForwardKL(), 'SDFT-c'),
    'method.importance_clip': (0.0, 'SDFT has none'),
    'method.teacher': (EMA(0.01), 'SDFT'),
    'method.demonstrations.strategy': (Reference(), 'SDFT'),
    'loss.skip_tokens': (3, 'SDFT'),
    'optimizer.learning_rate': (1e-5, 'SDFT'),
    'rollout.num_questions': (32, 'SDFT'),
    'rollout.num_samples': (1, 'SDFT'),
  },
  'distil': {
    'method.divergence': (CrossEntropy(), 'DISTIL'),
    'method.credit_discount': (1.0, 'DISTIL'),
    'method.importance_clip': (0.0, OURS),
    'method.teacher': (Current(), 'DISTIL'),
  },
  'beta_opsd': {
    'method.divergence': (ReverseKL(), 'BETA'),
    'method.support': (SampledToken(), 'BETA'),
    'method.importance_clip': (0.0, OURS),
    'method.credit_discount': (1.0, OURS),
    'method.teacher': (Frozen(), 'OPSD'),
    'method.anchor': (Tempered(2.0, 100), f'BETA; its values: {OURS}'),
    'method.demonstrations.strategy': (Reference(), 'OPSD'),
  },
}

_RL: Values = {
  'reinforce': {
    'method.advantage': (RewardItself(), 'Williams 1992'),
    'method.policy_loss': (Reinforce(), 'Williams 1992'),
  },
  'rloo': {
    'method.advantage': (RLOO(), 'RLOO'),
    'method.policy_loss': (Reinforce(), 'RLOO'),
    'loss.aggregation': ('sequence_sum', 'RLOO'),
  },
  'grpo': {
    'method.advantage': (GRPO(), 'GRPO'),
    'method.policy_loss': (Clip(), 'GRPO'),
    'loss.aggregation': ('sequence_mean', 'GRPO'),
    'loss.kl': (K3(0.04), 'GRPO'),
    'optimizer.learning_rate': (1e-6, 'GRPO'),
  },
  'dr_grpo': {
    'method.advantage': (DrGRPO(), 'DR'),
    'method.policy_loss': (Clip(), 'DR'),
    'loss.aggregation': ('sequence_sum_norm', 'DR'),
    'optimizer.learning_rate': (1e-6, 'DR'),
  },
  'grpo_paper': _GRPO_PAPER,
  'grpo_diversity_paper': {
    **_GRPO_PAPER,
    'method.diversity': (Bonus(0.5), f'T sec. 4.1; weight, of: {OURS}'),
  },
  'dapo': {
    'method.policy_loss': (Clip(0.2, 0.28), 'DAPO'),
    'method.overlong_share': (0.2, 'DAPO: 4,096 of 20,480 tokens'),
    'loss.aggregation': ('token_mean', 'DAPO'),
    'rollout.resample': (3, OURS),
    'optimizer.learning_rate': (1e-6, 'DAPO'),
    **_VERL,
    **_MINI,
  },
  'cispo': {
    # ACPO's variant: high .45, drop_low .2 and drop_high .2.
    'method.policy_loss': (
      CISPO(1.0, 0.2),
      'CISPO: no lower clip, VERL: 10, the same; high: VERL',
    ),
    'loss.aggregation': ('token_mean', 'CISPO'),
    'optimizer.learning_rate': (1e-6, 'VERL'),
    **_VERL,
    'train.mini_batches': (4, 'VERL: 1024 questions, 256 an update'),
  },
  'gspo': {
    'method.policy_loss': (GSPO(3e-4, 4e-4), 'GSPO'),
    'loss.aggregation': ('sequence_mean', 'GSPO'),
    **_VERL,
    **_MINI,
  },
  'acpo': {
    'method.policy_loss': (AdaptiveClip(3.0), 'ACPO; dual: ACPO-c'),
    'loss.aggregation': ('sequence_mean', 'ACPO-c'),
    'optimizer.learning_rate': (1e-6, 'ACPO'),
    **_VERL,
    'train.mini_batches': (2, 'ACPO: 128 questions, 64 an update'),
  },
  'pass_at_k': {
    'method.advantage': (PassAtK(4), 'PASSK'),
    'rollout.num_samples': (8, OURS),
    'loss.aggregation': ('token_mean', 'PASSK'),
  },
  'rosa': {
    'method.advantage': (ROSA(), 'ROSA'),
    'method.policy_loss': (Reinforce(), 'ROSA'),
  },
  'darling': {
    'method.advantage': (GRPO(), OURS),
    # Theirs is learned; here the task says which solutions are the same.
    'method.diversity': (Scale(1.0, 'solution'), f'DARLING; by: {OURS}'),
  },
}

_MIX: Values = {
  'balanced_rl': {
    'method.rule': (Losses(0.5), OURS),
    **{f'method.sd.{k}': (value, OURS) for k, value in _BALANCED.items()},
  },
  **MIXED,
}

PRESETS = {
  name: Preset(kind, values)
  for kind, some in (('sd', _SD), ('rl', _RL), ('mix', _MIX))
  for name, values in some.items()
}
"""Preset name to its options."""


def apply(config: Config, name: str, recipe: bool = False) -> Config:
  """Gives a config of training the method of a preset.

  What shapes its loss, and how often its rollouts are used, is replaced with
  the method; the width of the teacher's contexts stays. With `recipe` it also
  takes over how the method was run: optimizer, sampling, sizes and adapter.
  They suit models of billions of weights.

  Raises:
    ConfigError: for a name that is no key of `PRESETS`.
  """
  if name not in PRESETS:
    raise ConfigError(
      f'preset {name!r} does not exist{nearest(name, PRESETS)}; choose one of '
      f'{", ".join(PRESETS)}.'
    )
  preset = PRESETS[name]
  taught, _ = parts(config)
  assert config.loss
  config = dataclasses.replace(
    config, method=METHODS[preset.kind](), loss=Loss(chunk=config.loss.chunk)
  )
  once = 'train.epochs', 'train.mini_batches'
  changes: dict[str, Any] = dict.fromkeys(once, 1) | {'rollout.resample': 0}
  if recipe:
    changes |= {'rollout.top_p': 1.0, 'rollout.top_k': 0, 'rollout.min_p': 0.0}
  changes |= {
    option: value
    for option, (value, _) in preset.values.items()
    if recipe or not option.startswith(RECIPE)
  }
  if taught:
    for path, _ in sections(config):
      if path.endswith('demonstrations.'):
        changes[f'{path}max_context'] = taught.demonstrations.max_context
  config = replace(
    config, **{k.replace('.', '__'): v for k, v in changes.items()}
  )
  assert config.rollout
  mini = min(config.train.mini_batches, config.rollout.num_questions)
  # Fewer questions an update need fewer parts; that changes nothing else.
  share = config.rollout.num_questions // mini
  micro = math.gcd(config.train.micro_batches, share)
  return replace(config, train__mini_batches=mini, train__micro_batches=micro)
