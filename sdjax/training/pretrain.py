"""Making a small base model from nothing: supervised next-token training.

The result is a Hugging Face checkpoint folder, which training starts from
through the very code path that any other checkpoint takes.
"""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from sdjax import rng
from sdjax.config import convert as config_dict
from sdjax.config import schema as config_lib
from sdjax.data.context import encode_context
from sdjax.data.json_files import write_json_atomic
from sdjax.data.prompts import encode_prompts, pad_contexts
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
from sdjax.tasks.base import Question
from sdjax.tasks.concept_graph.documents import (
  Document,
  sample_document,
  validate_shares,
)
from sdjax.tasks.concept_graph.graph import mended
from sdjax.tasks.concept_graph.rendering import render_answer, render_question
from sdjax.tasks.concept_graph.vocabulary import compact_words
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.evaluator import Evaluator, full_batches
from sdjax.training.interrupt import Interrupted, Interrupts, interrupts
from sdjax.training.log import Progress
from sdjax.training.optim import learning_rate, make_optimizer
from sdjax.training.run_folder import Workdir, check_folder
from sdjax.types import ApplyFn, Params, Prompts, TrainState, length_mask

VOCABULARY_MULTIPLE = 8  # so that a mesh can split the embedding


def pretrain_step(
  state: TrainState,
  prompts: Prompts,
  ids_QGT: jax.Array,
  length_QG: jax.Array,
  *,
  apply_fn: ApplyFn,
  optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One supervised update.

  Args:
    state: before the update.
    prompts: contexts of Q documents.
    ids_QGT: int32, their answers, right-padded.
    length_QG: int32, tokens that count in each.
    apply_fn: the model.
    optimizer: what turns gradients into updates.

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


def careful(method: config_lib.Pretraining) -> config_lib.Pretraining:
  """The author who is always right and has no favourite route."""
  return dataclasses.replace(
    method,
    correct_share=1.0,
    easy_share=0.5,
    demonstration_easy_share=0.5,
    slip_share=0.0,
  )


def encode(
  documents: list[Document],
  tokenizer: Any,
  templates: tuple[str, str],
  max_context: int,
  max_new_tokens: int,
) -> tuple[Prompts, np.ndarray, np.ndarray]:
  """Turns documents into arrays.

  Args:
    documents: Q of them.
    tokenizer: of the model.
    templates: the student's, and the teacher's (with a demonstration).
    max_context: C.
    max_new_tokens: T.

  Returns:
    Contexts, answers int32 [Q, 1, T] with an end-of-sequence token, and
    their lengths int32 [Q, 1].
  """
  contexts = [
    encode_context(
      tokenizer,
      templates[d.demonstration is not None],
      d.question,
      d.demonstration,
      max_context,
    )[0]
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


def target_routes(question: Question) -> list[str]:
  """The answers along the targets' chains, the easy target's first."""
  graph = question.payload
  return [
    render_answer(graph, chain, 'compact')
    for chain in graph.chains
    if graph.names[chain[-1]] == graph.target
  ]


def demonstration_use(
  evaluator: Evaluator, params: Params, num_questions: int = 64
) -> dict[str, float]:
  """Measures what a correct answer in the context does to the answers.

  Args:
    evaluator: of the in-distribution questions.
    params: weights.
    num_questions: questions, each with both targets' routes shown in turn.

  Returns:
    Shares of samples: `demonstration/correct`, and `/copied`, the same route
    as shown, over all and for the `easy` and `other` target apart.
  """
  task, model = evaluator.task, evaluator.model
  source = task.questions('in_distribution')
  options = evaluator.config.eval
  num_questions = min(num_questions, options.num_questions)
  counts: dict[str, list[float]] = {'correct': []}
  for route in (0, -1):
    found: dict[str, list[float]] = {'correct': [], 'copied': []}
    for places in full_batches(num_questions, options.batch_questions):
      questions = [source[i] for i in places]
      shown = [target_routes(q)[route] for q in questions]
      contexts = [
        encode_context(
          model.tokenizer, task.teacher_template, q.text, text, 2**31
        )[0]
        for q, text in zip(questions, shown, strict=True)
      ]
      prompts = pad_contexts(
        contexts,
        [q.question_id for q in questions],
        options.max_context + options.max_new_tokens,
      )
      graded, _ = evaluator.sample_prompts(
        params, prompts, questions, 'demonstration'
      )
      found['correct'] += graded.correct.mean(axis=1).tolist()
      found['copied'] += [
        float(np.mean([a == text for a in answers]))
        for text, answers in zip(shown, graded.answers, strict=True)
      ]
    name = {0: 'easy', -1: 'other'}[route]
    counts['correct'] += found['correct'][:num_questions]
    counts[f'copied_{name}'] = found['copied'][:num_questions]
  return {f'demonstration/{k}': float(np.mean(v)) for k, v in counts.items()}


def cut_use(
  evaluator: Evaluator, params: Params, num_questions: int = 64
) -> dict[str, float]:
  """Measures whether a missing edge keeps the model from a route.

  Args:
    evaluator: of the `harder` questions, whose easy target is cut.
    params: weights.
    num_questions: questions, each asked with the cut and without it.

  Returns:
    Shares of samples that walk the easy target's chain, `cut/with` and
    `cut/without`. A model that does not see the cut has the same in both.
  """
  task, model = evaluator.task, evaluator.model
  source = task.questions('harder')
  options = evaluator.config.eval
  num_questions = min(num_questions, options.num_questions)
  counts: dict[str, list[float]] = {'with': [], 'without': []}
  for start in range(0, num_questions, options.batch_questions):
    questions = [
      source[i] for i in range(start, start + options.batch_questions)
    ]
    for name, found in counts.items():
      graphs = [
        q.payload if name == 'with' else mended(q.payload) for q in questions
      ]
      prompts = encode_prompts(
        model.tokenizer,
        [render_question(graph, 'compact') for graph in graphs],
        [q.question_id for q in questions],
        options.max_context,
        task.student_template,
      )
      graded, _ = evaluator.sample_prompts(params, prompts, questions, 'cut')
      for question, answers in zip(questions, graded.answers, strict=True):
        easy = target_routes(question)[0]
        found.append(float(np.mean([a == easy for a in answers])))
  return {f'cut/{k}': float(np.mean(v)) for k, v in counts.items()}


def habits(evaluator: Evaluator, params: Params) -> dict[str, float]:
  """What the model does with a demonstration, and with a missing edge."""
  return demonstration_use(evaluator, params) | cut_use(evaluator, params)


def _in_brief(flat: dict[str, float]) -> str:
  return ', '.join(
    f'{k} {v:.3f}'
    for k, v in flat.items()
    if k.endswith(('pass@1', 'pass@64', 'concepts_correct'))
    or k.startswith(('demonstration/', 'cut/'))
  )


def pretrain(config: config_lib.Config, path: str) -> None:
  """Trains a base model and writes it as a Hugging Face folder.

  Args:
    config: a checked config of mode `pretrain`.
    path: the run's folder; the checkpoint goes to `method.out`, or to
      `model/` inside it.

  Raises:
    ConfigError: the task has no documents to train on.
  """
  config_dict.check(config, 'pretrain')
  check_folder(path, config)
  with interrupts() as ended:
    _pretrain(config, path, ended)


def _pretrain(config: config_lib.Config, path: str, ended: Interrupts) -> None:
  method = config.method
  assert isinstance(method, config_lib.Pretraining)
  if config.task.rendering != 'compact':
    raise config_lib.ConfigError(
      f'task.rendering={config.task.rendering!r}: documents exist for '
      "'compact' only; chat models bring their own pretraining."
    )
  validate_shares(method)
  task = make_task(config.task)
  tokenizer = word_tokenizer(compact_words(config.task))
  multiple = VOCABULARY_MULTIPLE
  cfg = TransformerConfig(
    vocab_size=-(-len(tokenizer) // multiple) * multiple,
    width=method.width,
    num_layers=method.num_layers,
    num_heads=method.num_heads,
    num_kv_heads=method.num_kv_heads,
    head_dim=method.head_dim,
    ffn_width=method.ffn_width,
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
  templates = (task.student_template, task.teacher_template)
  # From here on the folder is this run's.
  workdir = Workdir(path, config)
  checkpoints = Checkpoints(
    workdir.path / 'checkpoints', config.train.keep_checkpoints
  )
  done = saved = checkpoints.latest_step() or 0
  if done:
    state, extra = checkpoints.restore(done, with_sharding(state, mesh))
    workdir.rewind(extra['log'])
  else:
    workdir.rewind(None)
  progress = Progress(total, label='pretrain')

  def batch(number: int):
    author = careful(method) if number < method.careful_steps else method
    draw = np.random.default_rng([config.seed, number])
    documents = [
      sample_document(draw, config.task, author)
      for _ in range(method.batch_size)
    ]
    arrays = encode(
      documents,
      tokenizer,
      templates,
      method.max_context,
      config.eval.max_new_tokens,
    )
    return shard_batch(arrays, mesh)

  every = config.train.eval_every
  evaluated = max(
    (
      record['step']
      for record in workdir.history()
      if any(name.startswith('eval/') for name in record)
    ),
    default=0,
  )
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
        flat |= habits(evaluator, state.params)
        evaluated = done
        workdir.metrics.write(done, {f'eval/{k}': v for k, v in flat.items()})
        progress.note(f'step {done}: {_in_brief(flat)}')
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
    flat |= habits(evaluator, state.params)
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
