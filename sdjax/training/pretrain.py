"""Making a small base model from nothing: supervised next-token training.

The result is a Hugging Face checkpoint folder, which training starts from
through the very code path that any other checkpoint takes.
"""

import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdjax import rng
from sdjax.config import convert as config_dict
from sdjax.config import schema as config_lib
from sdjax.data.context import NO_LIMIT, encode_context
from sdjax.data.json_files import write_json_atomic
from sdjax.data.prompts import pad_contexts
from sdjax.models import hf
from sdjax.models.load import LanguageModel
from sdjax.models.sharding import (
  make_mesh,
  shard_batch,
  state_sharding,
  with_sharding,
)
from sdjax.models.tokenizer import word_tokenizer
from sdjax.models.transformer import (
  TransformerConfig,
  init_params,
  make_apply_fn,
)
from sdjax.steps.score import student_hidden, token_logp
from sdjax.tasks import make_task
from sdjax.tasks.base import Task
from sdjax.tasks.corpus import Document, Probe
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.compilations import keep_compilations
from sdjax.training.evaluator import Evaluator, full_batches
from sdjax.training.interrupt import Interrupted, Interrupts, interrupts
from sdjax.training.log import Progress
from sdjax.training.optim import learning_rate, make_optimizer
from sdjax.training.run_folder import Workdir, check_folder
from sdjax.types import ApplyFn, Params, Prompts, TrainState, length_mask

VOCABULARY_MULTIPLE = 8  # so that a mesh can split the embedding

BRIEFLY = 'pass@1', 'pass@64', 'concepts_correct'
"""Metrics that are shown while it trains."""


def pretrain_step(
  state: TrainState,
  prompts: Prompts,
  ids_QGT: jax.Array,
  length_QG: jax.Array,
  *,
  apply_fn: ApplyFn,
  optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One supervised update on the answers to the contexts of Q documents.

  Answers are int32, right-padded; so many tokens count in each.

  Returns:
    The state after the update, and scalar metrics: `loss` is the mean of
    -log p over answer tokens, in nats.
  """
  mask_QGT = length_mask(length_QG, ids_QGT.shape[-1])

  def loss(params: Params) -> jax.Array:
    hidden = student_hidden(apply_fn, params, prompts, ids_QGT)
    logp = token_logp(
      apply_fn, params, hidden, ids_QGT, chunk=ids_QGT.shape[-1]
    )
    return -jnp.sum(jnp.where(mask_QGT, logp, 0)) / mask_QGT.sum()

  value, grads = jax.value_and_grad(loss)(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  state = dataclasses.replace(
    state,
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
  )
  return state, {'loss': value, 'grad_norm': optax.tree.norm(grads)}


def encode(
  documents: Sequence[Document],
  tokenizer: Any,
  task: Task,
  max_context: int,
  max_new_tokens: int,
) -> tuple[Prompts, np.ndarray, np.ndarray]:
  """Puts Q documents into a task's templates, in arrays.

  Returns:
    Contexts, answers int32 [Q, 1, T] with an end-of-sequence token, and
    their lengths int32 [Q, 1].
  """
  contexts = [
    _context(tokenizer, task, d.question, d.demonstration, max_context)
    for d in documents
  ]
  prompts = pad_contexts(contexts, range(len(documents)), max_context)
  ids_Q1T = np.zeros((len(documents), 1, max_new_tokens), np.int32)
  length_Q1 = np.zeros((len(documents), 1), np.int32)
  for q, document in enumerate(documents):
    ids = tokenizer.encode(document.answer, add_special_tokens=False)
    ids = [*ids, tokenizer.eos_token_id]
    ids_Q1T[q, 0, : len(ids)] = ids
    length_Q1[q] = len(ids)
  return prompts, ids_Q1T, length_Q1


def habits(
  evaluator: Evaluator,
  params: Params,
  probes: Sequence[Probe],
  num_questions: int = 64,
) -> dict[str, float]:
  """Measures what the model does when it is asked as some probes ask.

  Each asks `num_questions`, or as many as evaluations have. Returned are
  shares of samples by name.
  """
  task, model = evaluator.task, evaluator.model
  options = evaluator.config.eval
  num_questions = min(num_questions, options.num_questions)
  shares: dict[str, list[float]] = {}
  for probe in probes:
    source = task.questions(probe.split)
    rows: list[dict[str, float]] = []
    for places in full_batches(num_questions, options.batch_questions):
      questions = [source[i] for i in places]
      asked = [probe.ask(question) for question in questions]
      contexts = [
        _context(model.tokenizer, task, text, shown, NO_LIMIT)
        for text, shown in asked
      ]
      # A demonstration is as long as an answer.
      room = options.max_new_tokens * any(shown for _, shown in asked)
      prompts = pad_contexts(
        contexts,
        [question.question_id for question in questions],
        options.max_context + room,
      )
      rollout = evaluator.rollout(params, prompts, probe.stream)
      graded, _ = evaluator.judge(rollout, questions)
      for question, answers, correct_G in zip(
        questions, graded.answers, graded.correct, strict=True
      ):
        found = [
          probe.found(question, answer, bool(correct))
          for answer, correct in zip(answers, correct_G, strict=True)
        ]
        rows.append(
          {k: float(np.mean([x[k] for x in found])) for k in found[0]}
        )
    for name in rows[0]:
      shares.setdefault(name, []).extend(x[name] for x in rows[:num_questions])
  return {name: float(np.mean(values)) for name, values in shares.items()}


def _context(
  tokenizer: Any, task: Task, question: str, shown: str | None, limit: int
) -> list[int]:
  template = task.student_template if shown is None else task.teacher_template
  return encode_context(tokenizer, template, question, shown, limit)[0]


def pretrain(config: config_lib.Config, path: str) -> None:
  """Trains a base model and writes it as a Hugging Face folder.

  It goes to `method.out`, or to `model/` inside the run's folder `path`.

  Raises:
    ConfigError: the task has no documents to train on.
  """
  config_dict.check(config, 'pretrain')
  check_folder(path, config)
  keep_compilations(config.train.compilation_cache)
  with interrupts() as ended:
    _pretrain(config, path, ended)


def _pretrain(config: config_lib.Config, path: str, ended: Interrupts) -> None:
  method = config.method
  assert isinstance(method, config_lib.Pretraining)
  task = make_task(config.task)
  corpus = task.corpus(method)
  tokenizer = word_tokenizer(corpus.words)
  multiple = VOCABULARY_MULTIPLE
  sizes = 'width num_layers num_heads num_kv_heads head_dim ffn_width'.split()
  cfg = TransformerConfig(
    vocab_size=-(-len(tokenizer) // multiple) * multiple,
    **{name: getattr(method, name) for name in sizes},
  )
  model = LanguageModel(
    config=cfg,
    apply_fn=make_apply_fn(cfg),
    params=None,
    tokenizer=tokenizer,
    eos_ids=(tokenizer.eos_token_id,),
  )
  mesh = make_mesh(config.mesh)
  total = config.train.num_steps
  optimizer = make_optimizer(config.optimizer, total)
  rate = learning_rate(config.optimizer, total)

  def begin(key: jax.Array) -> TrainState:
    params = init_params(cfg, key)
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      opt_state=optimizer.init(params),
    )

  key = rng.stream(config.seed, 'init')
  shardings = state_sharding(jax.eval_shape(begin, key), mesh)
  state = jax.jit(begin, out_shardings=shardings)(key)
  step_fn = jax.jit(
    functools.partial(
      pretrain_step, apply_fn=model.apply_fn, optimizer=optimizer
    ),
    donate_argnums=0,
  )
  evaluator = Evaluator(config, model, task, mesh)
  # From here on the folder is this run's.
  workdir = Workdir(path, config)
  checkpoints = Checkpoints(
    workdir.path / 'checkpoints', config.train.keep_checkpoints
  )
  done = saved = checkpoints.latest_step() or 0
  log = None
  if done:
    state, extra = checkpoints.restore(done, with_sharding(state, mesh))
    log = extra['log']
  workdir.rewind(log)
  progress = Progress(total, label='pretrain')

  def batch(number: int):
    draw = np.random.default_rng([config.seed, number])
    documents = [corpus.draw(draw, number) for _ in range(method.batch_size)]
    widths = method.max_context, config.eval.max_new_tokens
    return shard_batch(encode(documents, tokenizer, task, *widths), mesh)

  every = config.train.eval_every
  evaluated = workdir.evaluated()
  try:
    if done < total:
      step_fn.lower(state, *batch(done)).compile()
      progress.note('compiled')
    while True:
      # One that a signal kept from coming about is made up for.
      if every and done % every == 0 and evaluated < done < total:
        flat, _ = evaluator(
          state.params, config.eval.during, tell=progress.evaluated
        )
        shares = habits(evaluator, state.params, corpus.probes)
        flat |= shares
        evaluated = done
        workdir.metrics.write(done, {f'eval/{k}': v for k, v in flat.items()})
        told = ', '.join(
          f'{name} {value:.3f}'
          for name, value in flat.items()
          if name in shares or name.endswith(BRIEFLY)
        )
        progress.note(f'step {done}: {told}')
      if done != saved and (
        done % config.train.checkpoint_every == 0 or done == total
      ):
        with ended.held():
          checkpoints.save(done, state, {'log': workdir.position()})
          saved = done
      if done == total:
        break
      with ended.held():
        state, metrics = step_fn(state, *batch(done))
        values = {f'train/{k}': v for k, v in jax.device_get(metrics).items()}
        values['train/learning_rate'] = rate(done)
        done += 1
        workdir.metrics.write(done, values)
        progress.update(
          done,
          method.batch_size * (method.max_context + config.eval.max_new_tokens),
          loss=float(values['train/loss']),
        )
    progress.finish()
    flat, questions = evaluator(
      state.params, config.eval.sets, tell=progress.evaluated
    )
    flat |= habits(evaluator, state.params, corpus.probes)
    workdir.add_eval('final', flat, questions)
    progress.finish()
  except Interrupted as error:
    progress.finish()
    if done != saved and not error.at_once:
      checkpoints.save(done, state, {'log': workdir.position()})
      saved = done
    checkpoints.close()
    raise Interrupted(
      error.signal,
      f'{path} is saved at step {saved} of {total}; the same command goes on '
      'from there.',
    ) from None
  out = Path(method.out) if method.out else workdir.path / 'model'
  hf.save_checkpoint(
    out, cfg, jax.device_get(state.params), tokenizer, model.eos_ids, 'float32'
  )
  recipe = config_dict.to_dict(config)
  recipe['method']['out'] = ''
  write_json_atomic(out / 'recipe.json', recipe)
  write_json_atomic(out / 'eval.json', flat)
  print(json.dumps(flat, indent=1))
  print(f'written to {out}')
  checkpoints.close()
  workdir.close()
