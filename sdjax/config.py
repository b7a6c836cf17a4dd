"""The schema of a run: frozen dataclasses with their defaults.

`sdjax.config_dict` turns them into what flags can override and back;
`sdjax.config_check` says which values make sense together.
"""

import dataclasses


class ConfigError(ValueError):
  """A configuration that cannot mean what its author wanted."""


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
    max_context: widest context in tokens; a longer question is an error.
    max_new_tokens: T, where a completion is cut off.
    temperature: divides the logits; 0 is greedy.
    top_k: keep the k most likely tokens; 0 keeps all.
    top_p: keep the smallest set of tokens with this mass; 1 keeps all.
    min_p: drop tokens below this share of the most likely one's probability.
    context_buckets: widths a batch of contexts is padded to, rising; the
      last must be `max_context`. Each costs one compilation.
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


@dataclasses.dataclass(frozen=True)
class Demonstrations:
  """Which correct answers a rollout is shown, and how.

  Attributes:
    strategy: `uniform` (a random correct peer), `first` (the first correct
      peer in the group), `most_different` (the correct peer that shares the
      fewest words with the rollout), `external` (from `file`) or `reference`
      (the task's own answer, whether or not a peer is correct).
    count: K, demonstrations a rollout, each its own teacher.
    template: the teacher's question; `{question}` and `{demonstration}` are
      replaced, once each. Empty: the task's own.
    max_context: widest teacher context in tokens; when a context is longer,
      the demonstration is cut, never the question or the instruction.
    file: JSONL with `question_id` and `answer`, for `external`.
  """

  strategy: str = 'uniform'
  count: int = 1
  template: str = ''
  max_context: int = 36
  file: str = ''


@dataclasses.dataclass(frozen=True)
class SelfDistillation:
  """The student is pulled towards itself, shown a correct answer.

  Attributes:
    name: selects this method.
    objective: `reverse_kl` = KL(student||teacher), `forward_kl` =
      KL(teacher||student), or `jsd`, the generalised Jensen-Shannon
      divergence.
    jsd_alpha: the teacher's share of the mixture of `jsd`, in (0, 1).
    support: `full` vocabulary or the `sampled` token only.
    teacher: `ema` (moving average of the student), `current` (the student's
      own weights) or `frozen` (the weights the run began with).
    ema_rate: share of the student's weights that enters the average a step.
    demonstrations: what the teacher is shown.
  """

  name: str = 'sd'
  objective: str = 'reverse_kl'
  jsd_alpha: float = 0.5
  support: str = 'full'
  teacher: str = 'ema'
  ema_rate: float = 0.05
  demonstrations: Demonstrations = Demonstrations()


@dataclasses.dataclass(frozen=True)
class PolicyGradient:
  """The student is pushed by the group-normalised reward (GRPO).

  Attributes:
    name: selects this method.
    advantage: `grpo`, (reward - group mean) / (group std + 1e-4).
    clip_low: the ratio to the behaviour policy is clipped below at 1 - this.
    clip_high: and above at 1 + this.
    diversity_weight: weight of the share of the group's other rollouts whose
      concepts are disjoint from a rollout's own, added to its reward.
    diversity_for: `correct` (only correct rollouts earn it) or `all`.
  """

  name: str = 'rl'
  advantage: str = 'grpo'
  clip_low: float = 0.2
  clip_high: float = 0.2
  diversity_weight: float = 0.0
  diversity_for: str = 'correct'


@dataclasses.dataclass(frozen=True)
class Pretraining:
  """Supervised next-token training of a small model from nothing.

  The documents are answers to the task's training graphs, written by an
  imperfect author: half of them follow a demonstration in their context.

  Attributes:
    name: selects this method.
    out: folder the Hugging Face checkpoint is written to.
    num_layers: decoder layers.
    width: D.
    num_heads: N.
    num_kv_heads: M.
    head_dim: H.
    ffn_width: F.
    batch_size: documents a step.
    max_context: width of a document's context in tokens.
    careful_steps: steps at the start whose documents come from an author who
      is always right and takes either route equally often. What an author
      who is right half the time cannot teach (which chains end in the
      target) is learned here; the imperfect author then sets the habits.
    correct_share: share of documents without a demonstration that are right.
    easy_share: share of right ones that take the easy route.
    demonstration_share: share of documents with a correct demonstration.
    demonstration_easy_share: share of demonstrations on the easy route.
    copy_share: share of those documents that repeat the demonstration.
    slip_share: share of those documents that are wrong.
    cut_share: share of documents with a cut chain; their author does not
      look for missing edges.
    varied_share: share of documents whose chain lengths are all random.
  """

  name: str = 'pretrain'
  out: str = ''
  num_layers: int = 3
  width: int = 64
  num_heads: int = 4
  num_kv_heads: int = 2
  head_dim: int = 16
  ffn_width: int = 192
  batch_size: int = 128
  max_context: int = 48
  careful_steps: int = 1750
  correct_share: float = 0.6
  easy_share: float = 0.95
  demonstration_share: float = 0.5
  demonstration_easy_share: float = 0.6
  copy_share: float = 0.98
  slip_share: float = 0.02
  cut_share: float = 0.1
  varied_share: float = 0.3


@dataclasses.dataclass(frozen=True)
class Loss:
  """What both methods share in the loss.

  Attributes:
    aggregation: `token_mean` over all counted tokens of the batch, or
      `sequence_mean` (mean over each rollout's tokens, then over rollouts).
    kl_coef: weight of KL(student||reference) in nats per token (k3
      estimator); the reference is the model the run began with. 0: none.
    chunk: completion tokens whose vocabulary logits exist at once.
  """

  aggregation: str = 'token_mean'
  kl_coef: float = 0.0
  chunk: int = 16


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """AdamW with a global-norm clip.

  Attributes:
    learning_rate: after the warm-up.
    warmup_steps: steps of linear warm-up from 0.
    schedule: `constant` or `cosine` (to a tenth, over the run's steps).
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
    num_steps: updates.
    micro_batches: parts a step's questions are split into for the gradient.
    eval_every: steps between evaluations; 0: only before and after.
    checkpoint_every: steps between checkpoints.
    keep_checkpoints: newest checkpoints kept.
    logged_questions: questions a step whose rollouts go to rollouts.jsonl.
  """

  num_steps: int = 150
  micro_batches: int = 1
  eval_every: int = 25
  checkpoint_every: int = 25
  keep_checkpoints: int = 2
  logged_questions: int = 4


@dataclasses.dataclass(frozen=True)
class Eval:
  """Evaluation before, during and after training.

  Attributes:
    sets: evaluation splits, before and after training.
    during: evaluation splits every `train.eval_every` steps.
    num_questions: questions of each split.
    num_samples: n, samples a question; pass@k for k = 1, 2, 4 ... n.
    batch_questions: questions sampled at once.
    max_context: widest context in tokens.
    max_new_tokens: where a sample is cut off.
    temperature: of the samples.
    top_p: of the samples.
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


@dataclasses.dataclass(frozen=True)
class Mesh:
  """Devices: `data` splits the batch and the weights, `model` each tensor.

  Attributes:
    data: size of the axis; -1 takes what is left.
    model: size of the axis.
  """

  data: int = -1
  model: int = 1


Method = SelfDistillation | PolicyGradient | Pretraining


@dataclasses.dataclass(frozen=True)
class Config:
  """One run.

  Attributes:
    mode: `train`, `eval` (only measures the model) or `pretrain`.
    seed: of sampling, data order and initial weights.
    print: print the resolved configuration, the loss in words and one
      question as student and teacher are shown it, and stop.
    model: starting weights; absent when pretraining.
    task: questions and verifier.
    method: how the model learns; only the chosen method's options exist.
    rollout: sampling while training; absent when pretraining.
    loss: shared parts of the loss; absent when pretraining.
    optimizer: update rule.
    train: length and logging.
    eval: measurement.
    mesh: devices.
  """

  mode: str = 'train'
  seed: int = 0
  print: bool = False
  model: Model | None = Model()
  task: ConceptGraph = ConceptGraph()
  method: Method = SelfDistillation()
  rollout: Rollout | None = Rollout()
  loss: Loss | None = Loss()
  optimizer: Optimizer = Optimizer()
  train: Train = Train()
  eval: Eval = Eval()
  mesh: Mesh = Mesh()
