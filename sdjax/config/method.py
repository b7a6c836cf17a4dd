"""The options of each method: the section `method` of a config."""

import dataclasses

PEER_STRATEGIES = ('uniform', 'first', 'most_different', 'balanced')
"""Ways to choose demonstrations among the correct rollouts of a question."""

GIVEN_STRATEGIES = ('external', 'reference')
"""Demonstrations that are there whatever the rollouts are."""

TOP_K_SUPPORTS = ('student_top_k', 'teacher_top_k')
"""Supports of a divergence that leave tokens out."""

PLAIN_ADVANTAGES = ('grpo', 'dr_grpo', 'rloo', 'reinforce')
"""Advantages that are functions of the rewards alone."""

CLIPPED_LOSSES = ('clip', 'gspo', 'cispo')
"""Policy losses with a ratio that is clipped."""

ADVANTAGE_RULES = ('advantage', 'debiased', 'rlsd', 'antisd', 'rlcsd')
"""Rules of a mix that hear the teacher in the advantage."""

LOSS_RULES = ('loss', 'srpo', 'sdpg')
"""Rules of a mix that add the teacher's loss to that of rewards."""


@dataclasses.dataclass(frozen=True)
class Demonstrations:
  """What the teacher is shown that the student is not.

  Attributes:
    strategy: `uniform` (a random correct peer), `first` (the first correct
      peer in the group), `most_different` (the correct peer that shares the
      fewest words with the rollout), `balanced` (a random solution among
      those the correct peers found, however many found it), `external` (from
      `file`), `reference`
      (the task's own answer, whether or not a peer is correct) or `none`
      (feedback alone).
    count: K, demonstrations a rollout, each its own teacher.
    exclude_self: whether a correct rollout is never its own demonstration.
    exclude_same_text: whether a rollout is shown no peer with its own text
      either, which is what most correct rollouts are shown where a question
      has few right texts (`train/shown_own_text`).
    contrast: wrong peers each rollout is shown as well, each in a context of
      its own, for the rule `rlcsd`.
    feedback: whether the teacher is shown what the verifier says of a failed
      rollout: `never`, `without_peer` (where there is no demonstration) or
      `always`.
    template: the teacher's question; `{question}` and `{demonstration}` are
      replaced, once each. Empty: the task's own.
    feedback_template: likewise with `{question}` and `{feedback}`.
    both_template: likewise with all three.
    max_context: widest teacher context in tokens; when a context is longer,
      feedback and demonstration are cut, never the question or the
      instruction.
    file: JSONL with `question_id` and `answer`, for `external`; lines that
      say `"correct": false` are left out, so the `samples_final.jsonl` of
      `eval.save_samples` will do.
    file_draw: how `external` draws among a question's answers: by
      `frequency`, each line being equally likely, so that what the author
      says often is shown often; or `distinct`, each text being equally likely
      however many lines hold it.
  """

  strategy: str = 'uniform'
  count: int = 1
  exclude_self: bool = True
  exclude_same_text: bool = False
  contrast: int = 0
  feedback: str = 'never'
  template: str = ''
  feedback_template: str = ''
  both_template: str = ''
  max_context: int = 36
  file: str = ''
  file_draw: str = 'frequency'


@dataclasses.dataclass(frozen=True)
class SelfDistillation:
  """The student is pulled towards itself, shown a correct answer.

  Attributes:
    name: selects this method.
    objective: `reverse_kl` = KL(student||teacher), `forward_kl` =
      KL(teacher||student), `jsd` (generalised Jensen-Shannon divergence),
      `cross_entropy` of the student under the teacher, or `score_weighted`
      (likelihood of the rollouts, weighted by their score under the teacher).
    jsd_alpha: the teacher's share of the mixture of `jsd`, in (0, 1).
    jsd_normalised: divide `jsd` by alpha (1 - alpha), so that its scale does
      not depend on alpha.
    support: `full` vocabulary, `student_top_k` or `teacher_top_k` (the
      likeliest tokens of either), or the `sampled` token only.
    top_k: k of the two.
    tail: whether the other tokens are one more event of the two; else the k
      probabilities are scaled to sum to 1.
    pointwise_clip: no token of the vocabulary adds more nats than this to the
      divergence; 0: no clip.
    pooling: with several demonstrations, average the `loss` under each
      teacher, or distil from the `mixture` of their next-token laws, or from
      the `sequence_mixture` of their laws of whole answers.
    teacher_temperature: the target is the teachers' law, pooled, to the power
      of 1 over this; below 1 it is sharper than the teachers are.
    importance_clip: cap of each token's importance weight, its ratio to the
      policy that sampled it; 0: no weight.
    credit_discount: each token also bears the losses behind it, discounted by
      this a token; 0: only its own, 1: all in full.
    success_exponent: a question weighs (p (1 - p))^this, p its pass rate.
    teacher: `ema` (moving average of the student), `current` (the student's
      own weights), `frozen` (the weights the run began with), `snapshot` (a
      copy of the student, renewed now and then) or `trust_region` (the
      current weights' law mixed geometrically with the reference's).
    ema_rate: share of the student's weights that enters the average a step.
    snapshot_every: steps between two snapshots.
    trust_region: the current weights' share in the mixture.
    anchor_beta: the target is the teacher's law to the power 1/beta times the
      reference's to the power 1 - 1/beta, the reference being asked without
      demonstration; 1: the teacher's law itself.
    anchor_steps: steps over which 1/beta rises to 1; 0: it stays.
    demonstrations: what the teacher is shown.
  """

  name: str = 'sd'
  objective: str = 'reverse_kl'
  jsd_alpha: float = 0.5
  jsd_normalised: bool = False
  support: str = 'full'
  top_k: int = 100
  tail: bool = True
  pointwise_clip: float = 0.0
  pooling: str = 'loss'
  teacher_temperature: float = 1.0
  importance_clip: float = 2.0
  credit_discount: float = 0.0
  success_exponent: float = 0.0
  teacher: str = 'ema'
  ema_rate: float = 0.05
  snapshot_every: int = 10
  trust_region: float = 0.05
  anchor_beta: float = 1.0
  anchor_steps: int = 0
  demonstrations: Demonstrations = Demonstrations()


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
  """The student is pushed by rewards.

  Attributes:
    name: selects this method.
    advantage: of a reward within its question's group of rollouts: `grpo`
      (less the mean, over the standard deviation), `dr_grpo` (less the mean),
      `rloo` (less the mean of the others), `reinforce` (the reward itself),
      `pass_at_k` (what a rollout adds to the success of k) or `rosa` (what
      it adds to the set's best reward when any one concept may be the one
      that counts).
    pass_k: k of `pass_at_k`.
    std: of `grpo`: the standard deviation of the group as a `population`
      (squares over G) or as a `sample` (over G - 1).
    std_epsilon: of `grpo`: added to the standard deviation.
    policy_loss: `clip` (clipped ratio, token by token), `gspo` (the
      sequence's ratio), `cispo` (clipped ratio as a constant weight) or
      `reinforce` (no ratio).
    clip_low: the ratio to the behaviour policy is clipped below at 1 - this.
    clip_high: and above at 1 + this.
    dual_clip: bound of the loss of tokens with negative advantage, in units
      of the advantage; 0: none.
    drop_low: of `cispo`: tokens with a negative advantage and a ratio below
      1 - this, which `clip` would leave without a gradient, have no loss; 0:
      none are dropped.
    drop_high: likewise with a positive advantage and a ratio above 1 + this.
    adaptive_clip: clip widths from the spread of ratios among tokens of
      similar probability (ACPO), in place of the two above.
    diversity_weight: weight of a rollout's diversity, the share of the
      group's other rollouts that are unlike it.
    diversity_how: `add` it to the reward, or `multiply` the reward by
      1 - weight + weight * diversity / the group's largest.
    diversity_by: two rollouts are unlike if they share no `concepts`, or if
      their `solution` differs.
    diversity_for: `correct` (only correct rollouts earn it) or `all`.
    overlong_share: a rollout loses up to 1 of its reward, linearly, over this
      last share of `rollout.max_new_tokens`, and 1 when cut off; 0: nothing.
  """

  name: str = 'rl'
  advantage: str = 'grpo'
  pass_k: int = 4
  std: str = 'population'
  std_epsilon: float = 1e-4
  policy_loss: str = 'clip'
  clip_low: float = 0.2
  clip_high: float = 0.2
  dual_clip: float = 0.0
  drop_low: float = 0.0
  drop_high: float = 0.0
  adaptive_clip: bool = False
  diversity_weight: float = 0.0
  diversity_how: str = 'add'
  diversity_by: str = 'concepts'
  diversity_for: str = 'correct'
  overlong_share: float = 0.0


@dataclasses.dataclass(frozen=True)
class Schedule:
  """How a weight moves over the steps: 0, then up, 1, and down to 0 again.

  Attributes:
    delay: steps at 0.
    rise: steps of linear rise.
    hold: steps at 1, before a fall.
    fall: steps of linear fall to 0; 0: it stays at 1.
  """

  delay: int = 0
  rise: int = 0
  hold: int = 0
  fall: int = 0


@dataclasses.dataclass(frozen=True)
class Mix:
  """Rewards and a teacher together; `sdjax.steps.mix` has the formulas.

  Attributes:
    name: selects this method.
    rule: on the advantage: `advantage`, `debiased`, `rlsd`, `antisd`,
      `rlcsd`; on the loss: `loss`, `srpo`, `sdpg`.
    weight: of rewards in `advantage`, `debiased` and `loss`, in 0..1;
      elsewhere of the teacher, 0 being rewards alone.
    schedule: what the weight is multiplied by over the steps.
    ratio_clip: of `rlsd`: how far from 1 its factor may be.
    entropy_floor: of `antisd`: nats of the teacher's median entropy below
      which the teacher is not heard.
    entropy_exponent: of `srpo`: a distilled token weighs exp(-this * the
      teacher's entropy).
    positive_only: of `sdpg`: distil only where the advantage is above 0.
    contrast_temperature: of `rlcsd`, nats.
    contrast_clip: of `rlcsd`: bound of what is added to an advantage.
    contrast_threshold: of `rlcsd`: less than this is not added.
    touched_weight: of `rlcsd`: weight of the mean over changed tokens.
    sd: the teacher; what shapes a distillation LOSS acts only in rules on
      the loss.
    rl: the rewards.
  """

  name: str = 'mix'
  rule: str = 'advantage'
  weight: float = 0.5
  schedule: Schedule = Schedule()
  ratio_clip: float = 0.2
  entropy_floor: float = 0.0
  entropy_exponent: float = 1.0
  positive_only: bool = False
  contrast_temperature: float = 0.02
  contrast_clip: float = 2.0
  contrast_threshold: float = 0.02
  touched_weight: float = 1.0
  sd: SelfDistillation = SelfDistillation()
  rl: PolicyGradient = PolicyGradient()
