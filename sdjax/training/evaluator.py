"""Measuring a model: n samples a question, accuracy and variety together."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sdjax import rng
from sdjax.config import schema as config_lib
from sdjax.data.json_files import write_json_lines_atomic
from sdjax.data.prompts import encode_prompts
from sdjax.evaluate.diversity import summarize
from sdjax.evaluate.samples import Samples
from sdjax.feedback.grading import Graded, grade, records
from sdjax.models.load import LanguageModel
from sdjax.models.sharding import shard_batch
from sdjax.options import nearest
from sdjax.steps.rollout import rollout_step
from sdjax.steps.sampling import Sampling
from sdjax.tasks.base import Question, Task
from sdjax.training import interrupt
from sdjax.training.lengths import evaluation_questions
from sdjax.training.log import Progress
from sdjax.training.programs import Program
from sdjax.training.run_folder import Workdir
from sdjax.types import Params, Prompts, Rollout

Tell = Callable[[str, int, int], None]
"""Is given the name of a set, how many questions are done, and of how many."""


def metric_names(num_samples: int) -> list[str]:
  """Returns what an evaluation set of n samples a question is measured by.

  The shares of rejected answers by reason are not among them: which reasons
  come up is known only afterwards.
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
  """Parts places 0 .. number - 1 into batches of one size.

  The last is filled up with as many of the first again as it lacks.
  """
  return [
    [place % number for place in range(start, start + size)]
    for start in range(0, number, size)
  ]


def check_keep_best(config: config_lib.Config) -> None:
  """Checks that `train.keep_best`, if set, names a metric that there is.

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
  """Puts judged answers and `entropy_sum` [Q, n] together, for `summarize`."""
  return [
    Samples(
      correct=[v.correct for v in verdicts],
      texts=graded.answers[q],
      solutions=[v.solution for v in verdicts],
      strategies=[v.strategies for v in verdicts],
      reasons=[v.reason for v in verdicts],
      lengths=graded.length[q].tolist(),
      entropies=stats['entropy_sum'][q].tolist(),
      flags={'finished': graded.finished[q].tolist()},
    )
    for q, verdicts in enumerate(graded.verdicts)
  ]


class Evaluator:
  """Samples and judges evaluation sets, compiled once.

  The noise depends on the seed and the set alone, so evaluations of one run
  differ by the weights only. `notes` are what a person should be told of the
  questions.
  """

  def __init__(
    self,
    config: config_lib.Config,
    model: LanguageModel,
    task: Task,
    mesh: Any,
  ):
    """Prepares the sampler of what `config.eval` says.

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
    self._sample = Program(
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
    """Yields a set's contexts as host arrays, and the questions in them.

    All batches are of one size, that one program samples them all on any
    number of devices: the last is filled up with the first questions again.
    Whoever joins the batches keeps the first `eval.num_questions`.
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
    self, params: Params, name: str, tell: Tell | None = None
  ) -> tuple[Graded, dict[str, Any]]:
    """Samples and judges one set; `tell` hears name, questions done, of all.

    Returns:
      The graded answers, and `entropy_sum` [Q, n].
    """
    parts, total = [], self.config.eval.num_questions
    for prompts, questions in self.batches(name):
      interrupt.check()
      rollout = self.rollout(params, prompts, name)
      parts.append(self.judge(rollout, questions))
      if tell:
        tell(name, min(len(parts) * len(questions), total), total)
    return self.join(parts)

  def join(
    self, parts: Sequence[tuple[Graded, dict[str, Any]]]
  ) -> tuple[Graded, dict[str, Any]]:
    """Joins what `judge` says of batches, without what filled up the last."""
    num_q = self.config.eval.num_questions
    every = [graded for graded, _ in parts]
    graded = Graded(
      questions=[q for one in every for q in one.questions][:num_q],
      answers=[a for one in every for a in one.answers][:num_q],
      verdicts=[v for one in every for v in one.verdicts][:num_q],
      length=np.concatenate([one.length for one in every])[:num_q],
      finished=np.concatenate([one.finished for one in every])[:num_q],
    )
    sums = np.concatenate([stats['entropy_sum'] for _, stats in parts])
    return graded, {'entropy_sum': sums[:num_q]}

  def judge(
    self, rollout: Rollout, questions: Sequence[Question]
  ) -> tuple[Graded, dict[str, Any]]:
    """Judges host arrays of rollouts, as `sample` returns it."""
    graded = grade(self.task, self.model.tokenizer, questions, rollout)
    return graded, {'entropy_sum': rollout.entropy.sum(axis=-1)}

  def rollout(self, params: Params, prompts: Prompts, name: str) -> Rollout:
    """Samples n answers to contexts on the host; `name` is of the noise."""
    key = rng.stream(self.config.seed, f'eval/{name}')
    return jax.device_get(
      self._sample(params, shard_batch(prompts, self.mesh), key)
    )

  def compile(self, params: Params) -> None:
    """Compiles what samples, in another thread; the first sampling waits."""
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
    tell: Tell | None = None,
  ) -> tuple[dict[str, float], dict[str, Any]]:
    """Measures some sets; `keep` is given the graded answers of each.

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


def measure(
  workdir: Workdir,
  evaluator: Evaluator,
  params: Params,
  when: str,
  progress: Progress,
  step: int | None = None,
) -> None:
  """Measures weights, an adapter applied, and leaves the numbers in the folder.

  With `eval.save_samples` the answers go to `samples_WHEN.jsonl`; `when` is
  `base`, `final` or `best`. The latter, of a `step`, is also measured by the
  sets that are measured during training, by one of which it was chosen: there
  it looks better than it is, on the others not.
  """
  options = evaluator.config.eval
  sets = options.sets
  if when == 'best':
    sets = tuple(dict.fromkeys(sets + options.during))
  lines: list[dict[str, Any]] = []

  def keep(name: str, graded: Graded) -> None:
    lines.extend({'set': name, **line} for line in records(graded))

  kept = keep if options.save_samples else None
  flat, questions = evaluator(params, sets, kept, progress.evaluated)
  if options.save_samples:
    write_json_lines_atomic(workdir.path / f'samples_{when}.jsonl', lines)
  workdir.add_eval(when, flat, questions, step)
