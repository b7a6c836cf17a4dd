"""The schema of a run: frozen dataclasses with their defaults.

`sdjax.config.convert` turns them into what flags can override and back;
`sdjax.config.check` says which values make sense together.
"""

import dataclasses

from sdjax.config.method import Demonstrations as Demonstrations
from sdjax.config.method import Mix as Mix
from sdjax.config.method import PolicyGradient as PolicyGradient
from sdjax.config.method import Pretraining as Pretraining
from sdjax.config.method import Schedule as Schedule
from sdjax.config.method import SelfDistillation as SelfDistillation
from sdjax.options import ConfigError as ConfigError


@dataclasses.dataclass(frozen=True)
class Lora:
  """Training a low-rank adapter instead of the weights.

  The teacher that is an average is then one of the adapter, the frozen
  teacher and the reference are the model without it.

  Attributes:
    rank: columns of the factors; 0 trains the weights themselves.
    alpha: the adapter is scaled by alpha / rank.
    targets: regex searched in the paths of the layers' matrices, which are
      `layers/attn/{q,k,v,o}/kernel` and `layers/{gate,up,down}/kernel`.
  """

  rank: int = 0
  alpha: float = 32.0
  targets: str = 'kernel'


@dataclasses.dataclass(frozen=True)
class Model:
  """Which weights to start from and how to run them.

  Attributes:
    path: a Hugging Face checkpoint folder, `owner/model` for one on the hub,
      or `builtin:NAME` for a model shipped inside the package.
    dtype: what matrix products run in; norms, softmax and losses are float32.
    param_dtype: what the trained weights are stored in.
    remat: what the backward pass recomputes: `none` (keep everything),
      `dots` (keep matrix products only), `full` (keep layer inputs only).
    lora: an adapter to train in their place.
    thinking: whether a chat template that has the choice (`enable_thinking`)
      lets the model think before it answers. Either way student and teacher
      get the same, and demonstrations are shown without the thinking.
  """

  path: str = 'builtin:concept_graph_base'
  dtype: str = 'float32'
  param_dtype: str = 'float32'
  remat: str = 'none'
  thinking: bool = False
  lora: Lora = Lora()


@dataclasses.dataclass(frozen=True)
class ConceptGraph:
  """The concept-graph task (arXiv 2606.26091 sec. 4.1; gaps filled by us).

  Path lengths count nodes, `start` and the endpoint included.

  Attributes:
    name: selects this task.
    rendering: `text` (node list, edge list, boxed answer: for chat models) or
      `compact` (a few dozen tokens: for the shipped model).
    short: path length of the easy target in training.
    long: path length of the other target in training.
    larger: length of every path in the split `larger`.
    larger_15: length of every path in the split `larger_15`.
    harder: length of every path in the split `harder`.
    subchains: parallel chains from `start` to each endpoint.
    num_concepts: concepts the four chains are drawn from.
    names_per_concept: names each concept has.
    template: what the student is asked; `{question}` is replaced, once.
      Empty: the rendering's own.
    shuffle_ends: whether targets and distractors come in random order; the
      target listed first is the easy one either way.
    harder_cut: which target's chains lose an edge in `harder`: `easy` or
      `random`.
    part: which graphs the evaluation splits hold: `dev`, for choosing
      settings by, or `test`, which no setting was chosen on, for reporting.
    reference_route: which right route is the task's own answer, as `opsd` and
      others show it: `any` (each whole chain to a target is equally likely,
      and a question always gets the same) or `easy` (the easy target's, the
      other's where that is cut; a student shown nothing else loses the other
      route, whatever the method).
    train_size: graphs in the split `train`.
    eval_size: graphs in each evaluation split.
    data_seed: seed of the graphs.
    cache_dir: where the built data set is kept; empty: `$SDJAX_CACHE`, else
      `~/.cache/sdjax`.
  """

  name: str = 'concept_graph'
  rendering: str = 'compact'
  template: str = ''
  short: int = 4
  long: int = 6
  larger: int = 8
  larger_15: int = 7
  harder: int = 5
  subchains: int = 1
  num_concepts: int = 6
  names_per_concept: int = 8
  shuffle_ends: bool = True
  harder_cut: str = 'easy'
  part: str = 'test'
  reference_route: str = 'any'
  train_size: int = 4000
  eval_size: int = 128
  data_seed: int = 0
  cache_dir: str = ''


@dataclasses.dataclass(frozen=True)
class Rollout:
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

  num_questions: int = 16
  num_samples: int = 8
  max_context: int = 28
  max_new_tokens: int = 9
  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  min_p: float = 0.0
  context_buckets: tuple[int, ...] = (28,)
  resample: int = 0


@dataclasses.dataclass(frozen=True)
class Data:
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

  over_length: str = 'error'


@dataclasses.dataclass(frozen=True)
class Reward:
  """Where the rewards of training come from.

  Evaluations go by the task's verifier in any case.

  Attributes:
    name: the task's `verifier`, a `function` of yours, or a reward `model`.
    function: `path/to/file.py:name` or `package.module:name`, called as
      `name(question, answer)` in worker processes; it gives a number. An
      answer it fails on or is too slow for gets 0, and is counted.
    workers: processes that run it.
    timeout: seconds an answer may take before its process is killed.
    model: a Hugging Face folder with a sequence classifier of one label.
    max_tokens: longest question and answer the model is given, in tokens.
    judge: who says which answers are correct, and so may be demonstrations:
      the `verifier`, or the `reward`, by the threshold.
    threshold: an answer is correct if its reward is at least this.
  """

  name: str = 'verifier'
  function: str = ''
  workers: int = 2
  timeout: float = 10.0
  model: str = ''
  max_tokens: int = 4096
  judge: str = 'verifier'
  threshold: float = 0.5


@dataclasses.dataclass(frozen=True)
class Loss:
  """What all methods share in the loss.

  Attributes:
    aggregation: `token_mean` over all counted tokens of the batch; or the
      mean over rollouts of the mean over their tokens (`sequence_mean`), of
      their sum (`sequence_sum`) or of their sum over the longest length
      allowed (`sequence_sum_norm`).
    kl_coef: weight of KL(student||reference) in nats; the reference is the
      model the run began with. 0: none.
    kl_in: where it stands: in the `loss` of each token; or, for method `rl`,
      in the `reward`: a rollout's advantage loses the weight times the sum of
      log p - log r over its tokens, less the group's mean of that; or
      `reward_to_go`: each token loses the part of it that comes from it on,
      whose gradient has the same mean. In the reward it is the KL of whole
      answers: with `dr_grpo`, `rloo` or `reinforce` and an aggregation
      that does not divide by a rollout's own length, the optimum is the
      reference times exp(reward / weight). `grpo` divides the reward by its
      standard deviation in the group, s, so the weight counts s times itself.
      In the loss a token does not pay for those it makes likely behind it.
    kl_estimator: from the sampled token `k1`, `k2` or `k3` (see
      `sdjax.objectives.reference_kl` for what each one's slope is), or `full`
      for the sum over the vocabulary.
    skip_tokens: first tokens of each rollout that do not count.
    mask_truncated: rollouts that were cut off do not count.
    sampler_clip: cap of the weights that correct for a sampler whose law is
      not the model's (truncation, other arithmetic); 0: no weights.
    chunk: completion tokens whose vocabulary logits exist at once.
  """

  aggregation: str = 'token_mean'
  kl_coef: float = 0.0
  kl_in: str = 'loss'
  kl_estimator: str = 'k3'
  skip_tokens: int = 0
  mask_truncated: bool = False
  sampler_clip: float = 0.0
  chunk: int = 16


@dataclasses.dataclass(frozen=True)
class Optimizer:
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

  learning_rate: float = 3e-4
  warmup_steps: int = 0
  schedule: str = 'constant'
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.0
  clip_norm: float = 1.0


@dataclasses.dataclass(frozen=True)
class Train:
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

  num_steps: int = 150
  epochs: int = 1
  mini_batches: int = 1
  micro_batches: int = 1
  eval_every: int = 25
  checkpoint_every: int = 25
  keep_checkpoints: int = 2
  keep_best: str = ''
  logged_questions: int = 4
  credit_questions: int = 2
  compilation_cache: bool = True


@dataclasses.dataclass(frozen=True)
class Eval:
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
  num_questions: int = 64
  num_samples: int = 64
  batch_questions: int = 16
  max_context: int = 40
  max_new_tokens: int = 9
  temperature: float = 1.0
  top_p: float = 1.0
  save_samples: bool = False


@dataclasses.dataclass(frozen=True)
class Alarm:
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

  action: str = 'warn'
  window: int = 5
  variety_drop: float = 0.3
  success_drop: float = 0.1
  entropy_share: float = 0.2
  length_factor: float = 3.0
  idle_share: float = 0.9
  finished_share: float = 0.1
  finished_drop: float = 0.3
  reward_drop: float = 0.3


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices: `data` splits the batch and the weights, `model` each tensor.

  Attributes:
    data: size of the axis; -1 takes what is left.
    model: size of the axis.
  """

  data: int = -1
  model: int = 1


Method = SelfDistillation | PolicyGradient | Mix | Pretraining

METHODS: dict[str, type] = {
  kind.name: kind
  for kind in (SelfDistillation, PolicyGradient, Mix, Pretraining)
}
"""Method name to its section of options; a user's own may be added."""


@dataclasses.dataclass(frozen=True)
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

  mode: str = 'train'
  seed: int = 0
  print: bool = False
  model: Model | None = Model()
  task: ConceptGraph = ConceptGraph()
  data: Data = Data()
  reward: Reward = Reward()
  method: Method = SelfDistillation()
  rollout: Rollout | None = Rollout()
  loss: Loss | None = Loss()
  optimizer: Optimizer = Optimizer()
  train: Train = Train()
  eval: Eval = Eval()
  alarm: Alarm = Alarm()
  mesh: Mesh = Mesh()
