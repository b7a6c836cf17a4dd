"""The compiled steps of a run, and the host work between them."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdjax import rng
from sdjax.config import schema as config_lib
from sdjax.data.context import check_thinking
from sdjax.data.prompts import encode_prompts
from sdjax.evaluate.diversity import token_entropy
from sdjax.feedback.grading import Graded, grade, join
from sdjax.feedback.reward_source import make_source
from sdjax.methods import METHODS, Method, with_contexts
from sdjax.models.load import LanguageModel, fingerprint, load_from_config
from sdjax.models.lora import adapt, init_adapter
from sdjax.models.sharding import (
  batch_sharding,
  make_mesh,
  replicated,
  shard_batch,
  state_sharding,
)
from sdjax.steps.rollout import rollout_step
from sdjax.steps.update import Options as UpdateOptions
from sdjax.steps.update import update_step
from sdjax.tasks import make_task
from sdjax.tasks.base import Question, Task
from sdjax.training.evaluator import Evaluator
from sdjax.training.lengths import training_questions
from sdjax.training.optim import learning_rate, make_optimizer
from sdjax.training.programs import Program, batch_shapes
from sdjax.types import Gathered, Params, Prompts, Rollout, TrainState


def copy(params: Params, dtype: Any = None) -> Params:
  """Copies weights, so that donating the original leaves the copy alone."""
  return jax.tree.map(lambda x: jnp.array(x, dtype=dtype, copy=True), params)


def initial_state(
  params: Params, optimizer: Any, mesh: Any, with_ema: bool
) -> TrainState:
  """Places the state of a run that has not begun, sharded.

  The weights, or an adapter, become its own; no two leaves share a buffer.
  With `with_ema` the teacher is an average of the student.
  """
  params = jax.device_put(params, state_sharding(params, mesh))
  shapes = jax.eval_shape(optimizer.init, params)
  init = jax.jit(optimizer.init, out_shardings=state_sharding(shapes, mesh))
  return TrainState(
    step=jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh)),
    params=params,
    # Copied: jit may return one buffer for equal outputs.
    opt_state=copy(init(params)),
    teacher_params=copy(params, jnp.float32) if with_ema else None,
  )


class Sampled(NamedTuple):
  """A batch of questions with their rollouts, and what was made of them.

  The first two are on the devices, `host` has the same rollouts; `counts` is
  what the source of rewards counted while these were sampled.
  """

  prompts: Prompts
  rollout: Rollout
  host: Rollout
  graded: Graded
  gathered: Gathered
  counts: Mapping[str, float]


class Trainer:
  """The compiled steps of a run and the host work between them.

  It trains on those of `questions` that `fits`, if it is not None, holds for.
  `notes` are what a person should be told before the first step,
  `fingerprint` is of the weights that the run begins with.
  """

  def __init__(
    self,
    config: config_lib.Config,
    method: Callable[..., Method] | None = None,
    task: Task | None = None,
  ):
    """Loads model and task, builds the steps; nothing runs yet.

    Method and task, where they are None, are those that the config names.
    """
    assert config.model and config.rollout and config.loss
    self.config = config
    self.mesh = make_mesh(config.mesh)
    self.model: LanguageModel = load_from_config(config.model, self.mesh)
    check_thinking(self.model.tokenizer, config.model.thinking)
    self.task = task or make_task(config.task)
    make_method = method or METHODS[config.method.name]
    self.method = make_method(
      config, self.model.apply_fn, self.task, self.model.tokenizer
    )
    self.reward = make_source(config.reward, self.mesh)
    self.evaluator = Evaluator(config, self.model, self.task, self.mesh)
    self.questions, self.fits, notes = training_questions(
      config, self.task, self.model.tokenizer
    )
    self.notes = (*self.method.notes, *notes, *self.evaluator.notes)
    self.fingerprint = fingerprint(self.model.params)
    updates = config.train.epochs * config.train.mini_batches
    total = config.train.num_steps * updates
    self.optimizer = make_optimizer(config.optimizer, total)
    rate = learning_rate(config.optimizer, total)
    self.rate = jax.jit(lambda step: rate(step * updates))
    self.teacher = self.method.teacher
    self._taught_by = self.teacher.weights if self.teacher else ''
    trained, self.base = self.model.params, None
    if (lora := config.model.lora).rank:
      key, self.base = rng.stream(config.seed, 'adapter'), trained
      trained = init_adapter(trained, lora.rank, lora.targets, key)
    self.state = initial_state(
      trained, self.optimizer, self.mesh, self._taught_by == 'average'
    )
    # The state's buffers are donated: nobody else may hold them.
    self.model = dataclasses.replace(self.model, params=None)
    needed = self.method.reference or self._taught_by == 'initial'
    self.reference = copy(self.state.params) if needed else None
    self._reference = self.reference if self.method.reference else None
    self._build()

  def _weights(self, base: Params, params: Params) -> Params:
    """The weights a trained tree stands for: itself, or an adapted model."""
    if base is None or params is None:
      return params
    assert self.config.model
    lora = self.config.model.lora
    return adapt(base, params, lora.alpha / lora.rank)

  def _build(self) -> None:
    """Builds the steps as functions of the frozen weights and of the rest."""
    config, method, weights = self.config, self.method, self._weights
    assert config.rollout and config.loss
    sample = functools.partial(
      rollout_step,
      self.model.apply_fn,
      num_samples=config.rollout.num_samples,
      max_new_tokens=config.rollout.max_new_tokens,
      eos_ids=self.model.eos_ids,
      sampling=config.rollout.sampling,
    )
    step = functools.partial(
      update_step,
      optimizer=self.optimizer,
      options=UpdateOptions(
        aggregation=config.loss.aggregation,
        horizon=config.rollout.max_new_tokens,
        epochs=config.train.epochs,
        mini_batches=config.train.mini_batches,
        micro_batches=config.train.micro_batches,
        ema_rate=self.teacher.rate if self.teacher else 0.0,
        ema_every=self.teacher.every if self.teacher else 1,
      ),
    )

    def rollout(base, params, prompts, key):
      return sample(weights(base, params), prompts, key)

    def signal(base, params, teacher, reference, *batch):
      trees = (weights(base, x) for x in (params, teacher, reference))
      return method.signal(*trees, *batch)

    def update(base, state, teacher, reference, *batch):
      def loss(params, teacher, reference, *rest):
        trees = (weights(base, x) for x in (params, teacher, reference))
        return method.loss(*trees, *rest)

      def refresh(params, *rest):
        assert method.refresh
        return method.refresh(weights(base, params), *rest)

      refresh_fn = refresh if method.refresh else None
      trees = state, teacher, reference
      return step(*trees, *batch, loss_fn=loss, refresh_fn=refresh_fn)

    places = jax.tree.map(lambda x: x.sharding, self.state)
    # As of what is moved to the devices again after `resample`.
    place = batch_sharding(self.mesh)
    self._rollout = Program('rollout', rollout, out_shardings=place)
    self._signal = Program('signal', signal, out_shardings=place)
    self._update = Program(
      'update', update, donate_argnums=1, out_shardings=(places, None)
    )

  def student(self) -> Params:
    """Returns the weights that answer now, with the adapter if there is one."""
    return self._weights(self.base, self.state.params)

  def teacher_weights(self) -> Params | None:
    """Returns those of the method's teacher; None without one."""
    return self._weights(self.base, self._teacher_params)

  def encode(self, questions: Sequence[Question]) -> Prompts:
    """Turns questions into the student's contexts, on the devices."""
    assert self.config.model and self.config.rollout
    prompts = encode_prompts(
      self.model.tokenizer,
      [q.text for q in questions],
      [q.question_id for q in questions],
      self.config.rollout.context_buckets,
      self.task.student_template,
      thinking=self.config.model.thinking,
    )
    return shard_batch(prompts, self.mesh)

  def _signalled(self, *batch: Any) -> tuple[Any, ...]:
    """What the signal step is called with, of prompts, rollout, evidence."""
    params, teacher = self.state.params, self._teacher_params
    return self.base, params, teacher, self._reference, *batch

  def _updated(self, *batch: Any) -> tuple[Any, ...]:
    """What the update step is called with; it takes the state away."""
    frozen = self.reference if self._taught_by == 'initial' else None
    return self.base, self.state, frozen, self._reference, *batch

  @property
  def _teacher_params(self) -> Params | None:
    return {
      '': None,
      'average': self.state.teacher_params,
      'initial': self.reference,
      'current': self.state.params,
    }[self._taught_by]

  def _sample(
    self, questions: Sequence[Question], number: int, attempt: int = 0
  ) -> Sampled:
    """Samples, grades and gathers one batch of questions."""
    prompts = self.encode(questions)
    key = rng.stream(self.config.seed, 'rollout', number)
    if attempt:
      key = jax.random.fold_in(key, attempt)
    rollout = self._rollout(self.base, self.state.params, prompts, key)
    host: Rollout = jax.device_get(rollout)
    graded = grade(self.task, self.model.tokenizer, questions, host)
    graded, counts = self.reward(graded)
    gathered = self.method.gather(graded, number)
    return Sampled(prompts, rollout, host, graded, gathered, counts)

  def sample(
    self,
    questions: Sequence[Question],
    number: int,
    more: Callable[[], Sequence[Question]] | None = None,
  ) -> tuple[Sampled, dict[str, float]]:
    """Samples, grades and gathers the batch of the step after `number` others.

    Where the config resamples, questions that teach nothing are replaced by
    better ones of those that `more` gives, as far as these are found. Returned
    are the batch, and what is to be logged of how it was found.
    """
    assert self.config.rollout
    first, num_q = self._sample(questions, number), len(questions)
    resample = self.config.rollout.resample
    if not resample:
      return first, {}
    assert more, 'resampling needs somewhere to take questions from'
    graded, host, counts = first.graded, first.host, dict(first.counts)
    useful_Q, drawn = first.gathered.useful, num_q
    for attempt in range(1, resample + 1):
      idle = np.flatnonzero(~useful_Q)
      if not idle.size:
        break
      other = self._sample(more(), number, attempt)
      drawn += num_q
      better = np.flatnonzero(other.gathered.useful)[: idle.size]
      take = np.arange(num_q)
      take[idle[: better.size]] = num_q + better

      def chosen(a, b, take=take):
        return np.concatenate([a, b])[take]

      graded = join(graded, other.graded, take)
      host = jax.tree.map(chosen, host, other.host)
      useful_Q = chosen(useful_Q, other.gathered.useful)
      counts = {name: counts[name] + other.counts[name] for name in counts}
    if drawn > num_q:
      first = Sampled(
        self.encode(graded.questions),
        shard_batch(host, self.mesh),
        host,
        graded,
        self.method.gather(graded, number),
        counts,
      )
    return first, {'drawn_questions': drawn}

  def update(self, batch: Sampled, number: int) -> dict[str, Any]:
    """Scores a batch of the state's own weights, and updates the state.

    Among the metrics are the shares of questions whose rollouts are
    `all_wrong_groups`, `all_right_groups`, or `idle_groups`, from which the
    method learns nothing.
    """
    prompts, rollout, host, graded, gathered, counts = batch
    evidence = shard_batch(gathered.evidence, self.mesh)
    signal = self._signal(*self._signalled(prompts, rollout, evidence))
    self.state, update = self._update(*self._updated(prompts, rollout, signal))
    right_Q = graded.correct.mean(axis=1)
    return {
      'reward': graded.reward.mean(),
      'correct': graded.correct.mean(),
      'all_wrong_groups': (right_Q == 0).mean(),
      'all_right_groups': (right_Q == 1).mean(),
      'idle_groups': 1 - np.mean(gathered.useful),
      # Unlike `entropy`, over all tokens, whether they are learnt from or not.
      'token_entropy': token_entropy(host.entropy.sum(axis=-1), host.length),
      'length': host.length.mean(),
      'finished': host.finished.mean(),
      'learning_rate': float(self.rate(number)),
      **gathered.metrics,
      **counts,
      **jax.device_get(update),
    }

  def blank(self, width: int) -> Sampled:
    """Makes a batch of contexts of a width C, of the shapes of a real one.

    Its answers are empty, and wrong everywhere, so that nothing is drawn from
    them; no rollout was sampled, it stands there as its shapes.
    """
    assert self.config.rollout
    num_q = self.config.rollout.num_questions
    num_g = self.config.rollout.num_samples
    fitting = filter(self.fits or (lambda _: True), self.questions)
    questions = list(itertools.islice(fitting, num_q))
    graded = Graded(
      questions=questions,
      answers=[[''] * num_g] * num_q,
      verdicts=[[self.task.verify(q, '')] * num_g for q in questions],
      length=np.ones((num_q, num_g), int),
      finished=np.ones((num_q, num_g), bool),
    )
    prompts = shard_batch(
      Prompts(
        ids=np.zeros((num_q, width), np.int32),
        length=np.ones(num_q, np.int32),
        question_id=np.arange(num_q, dtype=np.int32),
      ),
      self.mesh,
    )
    key = rng.stream(self.config.seed, 'warm_up')
    shapes = self._rollout.compile(self.base, self.state.params, prompts, key)
    host = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    rollout = batch_shapes(shapes, self.mesh)
    gathered = self.method.gather(graded, 0)
    return Sampled(prompts, rollout, host, graded, gathered, {})

  def compile(self) -> None:
    """Begins to compile all that a step needs, for every shape it may meet.

    How many distinct demonstrations a question has is known only while
    training; without this, a rare number would compile in the middle.
    """
    assert self.config.rollout
    for width in self.config.rollout.context_buckets:
      prompts, rollout, _, _, gathered, _ = self.blank(width)
      for count in self.method.num_contexts or (0,):
        evidence = gathered.evidence
        if count:
          evidence = with_contexts(evidence, count)
        evidence = batch_shapes(evidence, self.mesh)
        shapes = self._signal.compile(
          *self._signalled(prompts, rollout, evidence)
        )
        signal = batch_shapes(shapes, self.mesh)
        self._update.compile(*self._updated(prompts, rollout, signal))
    self.rate(0)
