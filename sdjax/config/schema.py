"""The schema of a run: frozen dataclasses with their defaults and bounds.

`sdjax.config.convert` turns them into what flags can override and back;
`sdjax.config.check` says which sections make sense together. The options of
each method are those of its step.
"""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt

from sdjax.feedback.reward_source import Reward
from sdjax.feedback.strategies import Demonstrations as Demonstrations
from sdjax.models.load import Model
from sdjax.models.sharding import MeshSizes as Mesh
from sdjax.options import (
  ConfigError,
  Count,
  NonNegative,
  Section,
  Share,
  Size,
  refuse,
)
from sdjax.steps import mix, rl, sd
from sdjax.steps.sampling import Sampling
from sdjax.steps.student import Loss
from sdjax.tasks.concept_graph.author import Pretraining
from sdjax.tasks.concept_graph.options import ConceptGraph
from sdjax.tasks.options import TaskOptions


@dataclass(frozen=True)
class Rollout(Section):
  """How completions are sampled while training.

  Attributes:
    num_questions: Q, questions a step.
    num_samples: G, rollouts a question.
    max_context: widest context in tokens; for longer questions see
      `Data.over_length`.
    max_new_tokens: T, where a completion is cut off.
    temperature: divides the logits; 0 is greedy.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the smallest set of tokens with this mass; 1 keeps all.
    min_p: drop tokens below this share of the most likely one's probability.
    context_buckets: widths a batch of contexts is padded to, rising; the
      last must be `max_context`. Each costs one compilation.
    resample: most further batches that may be sampled in a step to replace
      questions that teach nothing (all rollouts rewarded alike; no rollout
      with a demonstration).
  """

  num_questions: Size = 16
  num_samples: Size = 8
  max_context: Size = 28
  max_new_tokens: Size = 9
  temperature: NonNegative = 1.0
  top_k: Count = 0
  top_p: Annotated[float, Gt(0), Le(1)] = 1.0
  min_p: Annotated[float, Ge(0), Lt(1)] = 0.0
  context_buckets: tuple[int, ...] = (28,)
  resample: Count = 0

  def __post_init__(self):
    """Refuses widths that do not rise to the widest."""
    super().__post_init__()
    buckets = self.context_buckets
    if not buckets or list(buckets) != sorted(set(buckets)):
      raise ConfigError(f'context_buckets={buckets} must be rising widths.')
    if buckets[-1] != self.max_context:
      raise ConfigError(
        f'the last of context_buckets={buckets} must equal max_context='
        f'{self.max_context}.'
      )

  @property
  def sampling(self) -> Sampling:
    """How each token is drawn."""
    return Sampling(self.temperature, self.top_k, self.top_p, self.min_p)


@dataclass(frozen=True)
class Data(Section):
  """What becomes of questions that are too long for their contexts.

  Lengths are checked before a run starts: those of the evaluation questions,
  and of 20,000 training questions spread evenly, or of all if there are no
  more. A question must fit into `rollout.max_context`, and with an empty
  demonstration into that of `method.demonstrations`.

  Attributes:
    over_length: `error` refuses to start; `skip` leaves such questions out
      (the next ones take their place); `truncate_question` drops tokens from
      the beginning of the question until it fits, for student and teacher.
  """

  over_length: Literal['error', 'skip', 'truncate_question'] = 'error'


@dataclass(frozen=True)
class Optimizer(Section):
  """AdamW with a global-norm clip.

  Attributes:
    learning_rate: after the warm-up.
    warmup_steps: updates of linear warm-up from 0.
    schedule: `constant` or `cosine` (to a tenth, over the run's updates).
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled weight decay.
    clip_norm: largest global gradient norm; 0: no clip.
  """

  learning_rate: NonNegative = 3e-4
  warmup_steps: Count = 0
  schedule: Literal['constant', 'cosine'] = 'constant'
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: NonNegative = 0.0
  clip_norm: NonNegative = 1.0


@dataclass(frozen=True)
class Train(Section):
  """Length of a run and what it writes while it runs.

  Attributes:
    num_steps: steps, each with fresh rollouts.
    epochs: passes over a step's rollouts.
    mini_batches: updates in a pass, each from its share of the questions.
    micro_batches: parts a mini-batch is split into for the gradient; they
      change nothing but memory.
    eval_every: steps between evaluations; 0: only before and after.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: newest checkpoints kept.
    keep_best: `SET/METRIC` of the evaluations during training, e.g.
      `harder/pass@64`; the checkpoint at its highest value is kept besides,
      in checkpoints_best/, and measured at the end. With a `-` in front:
      at its lowest. Empty: none is. The last step counts where `eval.sets`
      has the set.
    logged_questions: questions a step whose rollouts go to rollouts.jsonl.
    credit_questions: questions of the first and of the last step whose tokens
      go to credit.jsonl, with what a teacher and what RL credit them with; 0:
      none.
    compilation_cache: whether compiled code is kept for the next run on this
      machine, in `$SDJAX_CACHE/compilations` or `~/.cache/sdjax/compilations`;
      JAX_COMPILATION_CACHE_DIR comes first.
  """

  num_steps: Size = 150
  epochs: Size = 1
  mini_batches: Size = 1
  micro_batches: Size = 1
  eval_every: Count = 25
  checkpoint_every: Size = 25
  keep_checkpoints: Size = 2
  keep_best: str = ''
  logged_questions: Count = 4
  credit_questions: Count = 2
  compilation_cache: bool = True


@dataclass(frozen=True)
class Eval(Section):
  """Evaluation before, during and after training.

  Attributes:
    sets: evaluation splits, before and after training.
    during: evaluation splits every `train.eval_every` steps.
    num_questions: questions of each split.
    num_samples: n, samples a question; pass@k for k = 1, 2, 4 ... n.
    batch_questions: questions sampled at once; what is sampled does not
      depend on it.
    max_context: widest context in tokens.
    max_new_tokens: where a sample is cut off.
    temperature: of the samples.
    top_p: of the samples.
    save_samples: whether the answers before and after training are written,
      to `samples_base.jsonl` and `samples_final.jsonl`.
  """

  sets: tuple[str, ...] = ('in_distribution', 'larger', 'harder')
  during: tuple[str, ...] = ('in_distribution', 'harder')
  num_questions: Size = 64
  num_samples: Size = 64
  batch_questions: Size = 16
  max_context: int = 40
  max_new_tokens: int = 9
  temperature: NonNegative = 1.0
  top_p: Annotated[float, Gt(0), Le(1)] = 1.0
  save_samples: bool = False


@dataclass(frozen=True)
class Alarm(Section):
  """When a run is said to go wrong; see `sdjax.training.alarm.judge`.

  Evaluations are compared with each other and with the one before training,
  training steps with the first ones. Small evaluation sets are noisy: 64
  questions with 64 samples each are enough for these defaults, 16 with 8 are
  not.

  Attributes:
    action: `warn` prints each kind of alarm once a set and writes it to
      alarms.jsonl; `stop` also ends the run at the first, after a checkpoint
      and the evaluation that ends every run; `off`.
    window: training steps that are averaged over.
    variety_drop: share that the effective number of solutions, or of concepts
      in correct answers, may lose without pass@1 having fallen; 1: all.
    success_drop: what pass@1 may lose of its best; 1: all.
    entropy_share: of the first steps' token entropy that must be left; 0:
      nothing.
    length_factor: by which rollouts may grow longer or shorter.
    idle_share: of the groups that may be all wrong, or all right, without
      the method learning from them; 1: all.
    finished_share: of the rollouts that must end by themselves; 0: none.
    finished_drop: what that share may lose of the first steps'; 1: all.
    reward_drop: what the mean reward of a window may lose of its best, as a
      share of the largest reward, in absolute value, that a step had; 1: all
      where rewards are not negative.
  """

  action: Literal['warn', 'stop', 'off'] = 'warn'
  window: Size = 5
  variety_drop: Share = 0.3
  success_drop: Share = 0.1
  entropy_share: Share = 0.2
  length_factor: Annotated[float, Ge(1)] = 3.0
  idle_share: Share = 0.9
  finished_share: Share = 0.1
  finished_drop: Share = 0.3
  reward_drop: Share = 0.3

  def __post_init__(self):
    """Refuses thresholds of alarms that are off."""
    super().__post_init__()
    if self.action == 'off':
      names = [field.name for field in dataclasses.fields(self)]
      refuse(self, [x for x in names if x != 'action'], "when action='off'.")


SelfDistillation = sd.Options
PolicyGradient = rl.Options
Mix = mix.Options
Method = sd.Options | rl.Options | mix.Options | Pretraining

METHODS: dict[str, type] = {
  'sd': sd.Options,
  'rl': rl.Options,
  'mix': mix.Options,
  'pretrain': Pretraining,
}
"""Method name to its section of options; a user's own may be added."""


@dataclass(frozen=True)
class Config:
  """One run.

  Attributes:
    mode: `train`, `eval` (only measures the model), `forecast` (tells from the
      model what training will do to variety) or `pretrain`.
    seed: of sampling, data order and initial weights.
    print: print the resolved configuration, the loss in words and one
      question as student and teacher are shown it, and stop.
    model: starting weights; absent when pretraining.
    task: questions and verifier.
    data: what becomes of questions that are too long.
    reward: where rewards come from.
    method: how the model learns; only the chosen method's options exist.
    rollout: sampling while training; absent when pretraining.
    loss: shared parts of the loss; absent when pretraining.
    optimizer: update rule.
    train: length and logging.
    eval: measurement.
    alarm: when a run is said to go wrong.
    mesh: devices.
  """

  mode: Literal['train', 'eval', 'forecast', 'pretrain'] = 'train'
  seed: int = 0
  print: bool = False
  model: Model | None = Model()
  task: TaskOptions = ConceptGraph()
  data: Data = Data()
  reward: Reward = Reward()
  method: Method = sd.Options()
  rollout: Rollout | None = Rollout()
  loss: Loss | None = Loss()
  optimizer: Optimizer = Optimizer()
  train: Train = Train()
  eval: Eval = Eval()
  alarm: Alarm = Alarm()
  mesh: Mesh = Mesh()
