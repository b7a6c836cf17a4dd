"""Measuring a model: n samples a question, accuracy and variety together."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sdjax import rng
from sdjax.config import schema as config_lib
from sdjax.data.prompts import encode_prompts
from sdjax.evaluate.diversity import summarize
from sdjax.evaluate.samples import Samples
from sdjax.feedback.grading import Graded, grade
from sdjax.models.load import LanguageModel
from sdjax.models.sharding import shard_batch
from sdjax.options import nearest
from sdjax.steps.rollout import rollout_step
from sdjax.steps.sampling import Sampling
from sdjax.tasks.base import Question, Task
from sdjax.training import interrupt
from sdjax.training.lengths import evaluation_questions
from sdjax.training.programs import program
from sdjax.types import Params, Prompts, Rollout


def metric_names(num_samples: int) -> list[str]:
  """Returns what an evaluation set is always measured by.

  The shares of rejected answers by reason are not among them: which reasons
  come up is known only afterwards.

  Args:
    num_samples: samples a question.

  Returns:
    The names, e.g. `pass@1`.
  """
  n = num_samples
  blank = Samples(
    correct=[False] * n,
    texts=[''] * n,
    solutions=[''] * n,
    strategies=[()] * n,
    lengths=[1] * n,
    entropies=[0.0] * n,
    flags={'finished': [True] * n},
  )
  flat, _ = summarize([blank])
  return list(flat)


def full_batches(number: int, size: int) -> list[list[int]]:
  """Parts places into batches of one size.

  Args:
    number: places there are, at least 1.
    size: of a batch.

  Returns:
    0, 1 .. number - 1, and after them as many of the first again as the last
    batch lacks.
  """
  return [
    [place % number for place in range(start, start + size)]
    for start in range(0, number, size)
  ]


def check_keep_best(config: config_lib.Config) -> None:
  """Checks that `train.keep_best`, if set, names a metric that there is.

  Args:
    config: a checked config.

  Raises:
    ConfigError: naming the metrics that there are.
  """
  option = config.train.keep_best
  metric = option.partition('/')[2]
  known = metric_names(config.eval.num_samples)
  if option and metric not in known:
    raise config_lib.ConfigError(
      f'train.keep_best={option!r} names the metric {metric!r}, which is not '
      f'one of {", ".join(known)}{nearest(metric, known)}.'
    )


def sample_set(graded: Graded, stats: dict[str, Any]) -> list[Samples]:
  """Puts judged answers and what was measured of them together.

  Args:
    graded: Q questions, n answers each.
    stats: `length`, `entropy_sum` and `finished`, [Q, n].

  Returns:
    What `summarize` takes.
  """
  return [
    Samples(
      correct=[v.correct for v in verdicts],
      texts=graded.answers[q],
      solutions=[v.solution for v in verdicts],
      strategies=[v.strategies for v in verdicts],
      reasons=[v.reason for v in verdicts],
      lengths=stats['length'][q].tolist(),
      entropies=stats['entropy_sum'][q].tolist(),
      flags={'finished': stats['finished'][q].tolist()},
    )
    for q, verdicts in enumerate(graded.verdicts)
  ]


class Evaluator:
  """Samples and judges evaluation sets, compiled once.

  The noise depends on the seed and the set alone, so evaluations of one run
  differ by the weights only.

  Attributes:
    questions: of each set.
    notes: what a person should be told of them.
  """

  def __init__(
    self,
    config: config_lib.Config,
    model: LanguageModel,
    task: Task,
    mesh: Any,
  ):
    """Prepares the sampler.

    Args:
      config: the run's config; `config.eval` says what is measured.
      model: forward, tokenizer, end-of-sequence tokens.
      task: questions and verifier.
      mesh: devices.

    Raises:
      ConfigError: a set is not one of the task's, or too small, or a question
        is too long.
    """
    self.config, self.model, self.task, self.mesh = config, model, task, mesh
    self.questions: dict[str, Sequence[Question]] = {}
    self.notes: tuple[str, ...] = ()
    options = config.eval
    for name in dict.fromkeys(options.sets + options.during):
      if name not in task.splits:
        raise config_lib.ConfigError(
          f'eval.sets or eval.during names {name!r}, which is not a split of '
          f'{task.name}: {", ".join(task.splits)}.'
        )
      if len(task.questions(name)) < options.num_questions:
        raise config_lib.ConfigError(
          f'eval.num_questions={options.num_questions}, but the split {name} '
          f'has {len(task.questions(name))}; raise task.eval_size.'
        )
      self.questions[name], notes = evaluation_questions(
        config, task, name, model.tokenizer
      )
      self.notes += notes
    self._sample = program(
      'evaluation',
      functools.partial(
        rollout_step,
        model.apply_fn,
        num_samples=options.num_samples,
        max_new_tokens=options.max_new_tokens,
        eos_ids=model.eos_ids,
        sampling=Sampling(temperature=options.temperature, top_p=options.top_p),
      ),
    )

  def batches(self, name: str) -> Iterator[tuple[Prompts, list[Question]]]:
    """Yields a set's questions, with the contexts they are asked in.

    All batches are of one size, that one program samples them all on any
    number of devices: the last is filled up with the first questions again.
    Whoever joins the batches keeps the first `eval.num_questions`.

    Args:
      name: the set.

    Yields:
      Host arrays of `eval.batch_questions` contexts, and their questions.
    """
    options = self.config.eval
    source = self.questions[name]
    for places in full_batches(options.num_questions, options.batch_questions):
      questions = [source[i] for i in places]
      prompts = encode_prompts(
        self.model.tokenizer,
        [q.text for q in questions],
        [q.question_id for q in questions],
        options.max_context,
        self.task.student_template,
        thinking=bool(self.config.model and self.config.model.thinking),
      )
      yield prompts, questions

  def sample(
    self,
    params: Params,
    name: str,
    tell: Callable[[str, int, int], None] | None = None,
  ) -> tuple[Graded, dict[str, Any]]:
    """Samples one set and judges the answers.

    Args:
      params: weights.
      name: the set.
      tell: is given the name, how many questions are done, and of how many.

    Returns:
      The graded answers, and `length`, `entropy_sum` and `finished`, [Q, n].
    """
    parts, total = [], self.config.eval.num_questions
    for prompts, questions in self.batches(name):
      interrupt.check()
      parts.append(self.sample_prompts(params, prompts, questions, name))
      if tell:
        tell(name, min(len(parts) * len(questions), total), total)
    return self.join(parts)

  def join(
    self, parts: Sequence[tuple[Graded, dict[str, Any]]]
  ) -> tuple[Graded, dict[str, Any]]:
    """Puts the batches of a set together, without what filled up the last.

    Args:
      parts: of each of `batches`, as `sample` returns them.

    Returns:
      As `sample`.
    """
    num_q = self.config.eval.num_questions
    every = [graded for graded, _ in parts]
    graded = Graded(
      questions=[q for one in every for q in one.questions][:num_q],
      answers=[a for one in every for a in one.answers][:num_q],
      verdicts=[v for one in every for v in one.verdicts][:num_q],
      length=np.concatenate([one.length for one in every])[:num_q],
      finished=np.concatenate([one.finished for one in every])[:num_q],
    )
    return graded, {
      name: np.concatenate([stats[name] for _, stats in parts])[:num_q]
      for name in parts[0][1]
    }

  def sample_prompts(
    self,
    params: Params,
    prompts: Prompts,
    questions: Sequence[Question],
    name: str,
  ) -> tuple[Graded, dict[str, Any]]:
    """Samples contexts that are already encoded, and judges the answers.

    Args:
      params: weights.
      prompts: host arrays, Q contexts.
      questions: what the verifier judges them by.
      name: of the random stream.

    Returns:
      As `sample`.
    """
    return self.judge(self.rollout(params, prompts, name), questions)

  def judge(
    self, rollout: Rollout, questions: Sequence[Question]
  ) -> tuple[Graded, dict[str, Any]]:
    """Judges what was sampled.

    Args:
      rollout: host arrays.
      questions: what it answers.

    Returns:
      As `sample`.
    """
    graded = grade(self.task, self.model.tokenizer, questions, rollout)
    return graded, {
      'length': rollout.length,
      'entropy_sum': rollout.entropy.sum(axis=-1),
      'finished': rollout.finished,
    }

  def rollout(self, params: Params, prompts: Prompts, name: str) -> Rollout:
    """Samples contexts that are already encoded.

    Args:
      params: weights.
      prompts: host arrays, Q contexts.
      name: of the random stream.

    Returns:
      Host arrays, n samples a context.
    """
    key = rng.stream(self.config.seed, f'eval/{name}')
    return jax.device_get(
      self._sample(params, shard_batch(prompts, self.mesh), key)
    )

  def compile(self, params: Params) -> None:
    """Compiles what samples, in another thread; the first sampling waits.

    Args:
      params: weights, or others of their shapes.
    """
    options = self.config.eval
    blank = Prompts(
      ids=np.zeros((options.batch_questions, options.max_context), np.int32),
      length=np.ones(options.batch_questions, np.int32),
      question_id=np.zeros(options.batch_questions, np.int32),
    )
    key = rng.stream(self.config.seed, 'warm_up')
    self._sample.compile(params, shard_batch(blank, self.mesh), key)

  def __call__(
    self,
    params: Params,
    sets: Sequence[str],
    keep: Callable[[str, Graded], None] | None = None,
    tell: Callable[[str, int, int], None] | None = None,
  ) -> tuple[dict[str, float], dict[str, Any]]:
    """Measures some sets.

    Args:
      params: weights.
      sets: which.
      keep: is given the name and the graded answers of each set.
      tell: as for `sample`.

    Returns:
      `SET/METRIC` to number, and set to values per question; see
      `sdjax.evaluate.diversity.summarize`.
    """
    flat: dict[str, float] = {}
    questions: dict[str, Any] = {}
    for name in sets:
      graded, stats = self.sample(params, name, tell)
      if keep:
        keep(name, graded)
      numbers, questions[name] = summarize(sample_set(graded, stats))
      flat |= {f'{name}/{metric}': v for metric, v in numbers.items()}
    return flat, questions
