"""What training will do to diversity, told from the base model before it.

`--config.mode=forecast` samples the evaluation sets once, with the model that
training would start from, and scores the answers it finds with and without
each correct one as demonstration. The closed forms of
`sdjax.forecast.dynamics` then say which distribution over those answers each
method leads to, and so its pass@k and its diversity:

  base     the model itself
  rl       RL with the run's KL, in the limit of a small one without
  sd_once  self-distillation with demonstrations of the base (Prop. 2)
  sd_fixed the same with demonstrations of the student, the teacher fixed
  sd       the same with a teacher that follows as the run's does
  sampled  the counts of the samples that the forecast is made from

Distributions are over the DISTINCT answers found, to which the base gives
`mass`; far below 1 the forecast is about little. A solution spelt in several
ways has the probability of the one sampled most often, and one that was not
sampled cannot be forecast to come back. Truncation of the sampler is left out,
and what is learnt on other questions: to take the first route, say, which
`harder` cuts. `sampled` equals `base` of the run's `eval.json` for one seed and
the same options of `eval`; `base` does not: it weighs the same answers by their
probabilities.

For ranking base models take `sd_once`: over ten of them its diversity and the
one measured after training had a rank correlation of 0.91, `sd_fixed` 0.83,
`sd` 0.60 (`launch/forecast_bases.py`).

Source: arXiv 2606.26091, Props. 1 and 2 and Remark 1; the rest is ours.
"""

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sdjax.config import convert as config_dict
from sdjax.config import schema as config_lib
from sdjax.data.context import check_thinking, encode_context, opens_thinking
from sdjax.data.json_files import write_json_atomic
from sdjax.evaluate import diversity
from sdjax.feedback.demonstrations import Shown, context_buckets
from sdjax.forecast import tables as forecast_report
from sdjax.forecast.summary import Answers, collect, summarize
from sdjax.methods import check_example, teacher_templates
from sdjax.models.load import LanguageModel, fingerprint, load_from_config
from sdjax.models.sharding import make_mesh, shard_batch
from sdjax.models.tokenizer import strip_thinking
from sdjax.steps.score import completion_hidden, token_logp
from sdjax.tasks import make_task
from sdjax.tasks.base import Task
from sdjax.training.compilations import keep_compilations
from sdjax.training.evaluator import Evaluator, sample_set
from sdjax.training.run_folder import Origin, Workdir, check_folder
from sdjax.types import ApplyFn, Params, Prompts, length_mask


def answer_logp(
  apply_fn: ApplyFn,
  params: Params,
  context_ids_QC: jax.Array,
  context_length_Q: jax.Array,
  ids_QYT: jax.Array,
  length_QY: jax.Array,
  *,
  temperature: float = 1.0,
  chunk: int = 16,
) -> jax.Array:
  """Log-probabilities of whole answers, the context read once.

  Contexts are left-padded, answers right-padded; `length_QY` are the tokens
  that count, 0 for padding. The temperature divides the logits, of which those
  of `chunk` tokens exist at once. Returns float32 [Q, Y], nats, summed over
  tokens.
  """
  hidden = completion_hidden(
    apply_fn,
    params,
    context_ids_QC[:, None],
    context_length_Q[:, None],
    ids_QYT,
  )
  logp_QYT = token_logp(
    apply_fn, params, hidden, ids_QYT, temperature=temperature, chunk=chunk
  )
  mask_QYT = length_mask(length_QY, ids_QYT.shape[-1])
  return jnp.where(mask_QYT, logp_QYT, 0).sum(axis=-1)


class Forecaster:
  """Samples and scores evaluation sets with the base model, compiled once."""

  def __init__(
    self,
    config: config_lib.Config,
    model: LanguageModel,
    task: Task,
    mesh: Any,
  ):
    """Prepares sampler and scorer of a checked config of mode `forecast`.

    Raises ConfigError as `Evaluator`, and where teacher and student are not
    asked for an answer alike.
    """
    assert config.rollout and config.loss and config.model
    assert isinstance(config.method, config_lib.SelfDistillation)
    check_example(config, task, model.tokenizer)
    self.config, self.model, self.task, self.mesh = config, model, task, mesh
    self.evaluator = Evaluator(config, model, task, mesh)
    self.shown = config.method.demonstrations
    thinking = config.model.thinking
    # Questions of a set may be longer than those of training: demonstrations
    # get the room beside them that they have there.
    longer = config.eval.max_context - config.rollout.max_context
    self.width = self.shown.max_context + max(longer, 0)
    self._encode = functools.partial(
      encode_context,
      model.tokenizer,
      teacher_templates(self.shown, task).of(Shown('')),
      max_tokens=self.width,
      thinking=thinking,
    )
    self._opened = opens_thinking(
      model.tokenizer, task.student_template, thinking
    )
    self._score: Callable[..., jax.Array] = jax.jit(
      functools.partial(
        answer_logp,
        model.apply_fn,
        temperature=config.rollout.temperature,
        chunk=config.loss.chunk,
      )
    )

  def measure(
    self, name: str
  ) -> tuple[list[Answers], list[dict[str, Any]], dict[str, float]]:
    """Samples one set and scores what is found.

    Returns the answers to each question; of each question `logp` [Y] and
    `logp_given` [Y, C], nats, not renormalised; and what an evaluation makes of
    the samples.
    """
    answers, scores, judged = [], [], []
    for prompts, questions in self.evaluator.batches(name):
      rollout = self.evaluator.rollout(self.model.params, prompts, name)
      graded, stats = self.evaluator.judge(rollout, questions)
      judged.append((graded, stats))
      batch = []
      for q, question in enumerate(questions):
        ids = [
          tuple(row[:length].tolist())
          for row, length in zip(rollout.ids[q], rollout.length[q], strict=True)
        ]
        batch.append(
          collect(question, ids, graded.answers[q], graded.verdicts[q])
        )
      answers += batch
      scores += self._score_batch(prompts, batch)
    counted, _ = diversity.summarize(sample_set(*self.evaluator.join(judged)))
    # What filled up the last batch is left out.
    num_q = self.config.eval.num_questions
    return answers[:num_q], scores[:num_q], counted

  def _score_batch(
    self, prompts: Prompts, batch: Sequence[Answers]
  ) -> list[dict[str, Any]]:
    num_q, widest = len(batch), max(len(a.ids) for a in batch)
    # A power of two, so that few shapes compile.
    size = context_buckets(widest)[-1]
    ids_QYT = np.zeros((num_q, size, self.config.eval.max_new_tokens), np.int32)
    length_QY = np.zeros((num_q, size), np.int32)
    for q, answers in enumerate(batch):
      for y, ids in enumerate(answers.ids):
        ids_QYT[q, y, : len(ids)] = ids
        length_QY[q, y] = len(ids)
    completions = shard_batch((ids_QYT, length_QY), self.mesh)

    def score(ids_QC, length_Q):
      contexts = shard_batch((ids_QC, length_Q), self.mesh)
      return np.asarray(
        self._score(self.model.params, *contexts, *completions), np.float64
      )

    plain_QY = score(prompts.ids, prompts.length)
    most = max(answers.num_correct for answers in batch)
    # One demonstration of every question at a time bounds the memory.
    given = [score(*self._contexts(batch, c)) for c in range(most)]
    given_CQY = np.reshape(given, (most, *plain_QY.shape))
    return [
      {
        'logp': plain_QY[q, : len(answers.ids)],
        'logp_given': given_CQY[: answers.num_correct, q, : len(answers.ids)].T,
      }
      for q, answers in enumerate(batch)
    ]

  def _contexts(
    self, batch: Sequence[Answers], c: int
  ) -> tuple[np.ndarray, np.ndarray]:
    """Contexts that show correct answer c, one blank token without one."""
    ids_QC = np.zeros((len(batch), self.width), np.int32)
    length_Q = np.ones(len(batch), np.int32)
    for q, answers in enumerate(batch):
      if c < answers.num_correct:
        text = strip_thinking(answers.texts[c], self._opened)
        ids, _ = self._encode(answers.question.text, text)
        ids_QC[q, -len(ids) :] = ids
        length_Q[q] = len(ids)
    return ids_QC, length_Q


def forecast(config: config_lib.Config, path: str) -> None:
  """Forecasts a run and writes `forecast.json`, `.md` and a picture.

  The folder is new or of the run that is forecast. `forecast_config.json` says
  what of: the folder's `config.json` is the run's, which may have been
  forecast otherwise.
  """
  config_dict.check(config, 'forecast')
  check_folder(path, config)
  keep_compilations(config.train.compilation_cache)
  assert config.model
  mesh = make_mesh(config.mesh)
  model = load_from_config(config.model, mesh)
  check_thinking(model.tokenizer, config.model.thinking)
  forecaster = Forecaster(config, model, make_task(config.task), mesh)
  workdir = Workdir(path, config, Origin(fingerprint(model.params)))
  flat: dict[str, float] = {}
  for name in config.eval.sets:
    answers, judged, counted = forecaster.measure(name)
    numbers = summarize(answers, judged, config)
    flat |= {f'{name}/{metric}': value for metric, value in numbers.items()}
    flat |= {f'{name}/sampled/{k}': value for k, value in counted.items()}
  text = forecast_report.table(flat)
  options = config_dict.to_json(config)
  own = json.loads((workdir.path / 'config.json').read_text())
  said = forecast_report.agreement(
    flat, workdir.read_eval(), options['eval'], own['eval']
  )
  write_json_atomic(workdir.path / 'forecast_config.json', options)
  write_json_atomic(workdir.path / 'forecast.json', flat)
  (workdir.path / 'forecast.md').write_text(text + '\n', encoding='utf-8')
  picture = workdir.path / 'plots' / 'forecast.png'
  picture.parent.mkdir(exist_ok=True)
  picture.write_bytes(forecast_report.figure(flat))
  workdir.close()
  print(f'{text}\n\n{said}Written to {workdir.path}.')
