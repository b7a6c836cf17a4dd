"""Measuring a model: n samples a question, accuracy and variety together.

`python -m sdjax.evaluate --rollouts=FILE --out=OUT.json` measures answers
that any system gave and judged; `sdjax.eval.rollout_file` has their format.
"""

import argparse
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from sdjax import config as config_lib
from sdjax import interrupt, rng
from sdjax.config_check import nearest
from sdjax.data.prompts import encode_prompts
from sdjax.eval.diversity import SampleSet, summarize
from sdjax.eval.rollout_file import read_answers
from sdjax.eval.score_file import describe, score
from sdjax.grading import Graded, grade
from sdjax.language_model import LanguageModel
from sdjax.lengths import evaluation_questions
from sdjax.metrics import write_json_atomic
from sdjax.sentence_encoder import PACKAGES, SentenceEncoder
from sdjax.sharding import shard_batch
from sdjax.steps.rollout import rollout_step
from sdjax.steps.sampling import Sampling
from sdjax.tasks.base import Question, Task
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
  shape = (1, num_samples)
  flat, _ = summarize(
    SampleSet(
      correct=np.zeros(shape, bool),
      concepts=[[()] * num_samples],
      solutions=[[''] * num_samples],
      entropy_sum=np.zeros(shape),
      length=np.ones(shape, int),
      flags={'finished': np.ones(shape, bool)},
    )
  )
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


def sample_set(graded: Graded, stats: dict[str, Any]) -> SampleSet:
  """Puts judged answers and what was measured of them together.

  Args:
    graded: Q questions, n answers each.
    stats: `length`, `entropy_sum` and `finished`, [Q, n].

  Returns:
    What `summarize` takes.
  """
  return SampleSet(
    correct=graded.correct,
    concepts=[[v.concepts for v in row] for row in graded.verdicts],
    solutions=[[v.solution for v in row] for row in graded.verdicts],
    reason=[[v.reason for v in row] for row in graded.verdicts],
    entropy_sum=stats['entropy_sum'],
    length=stats['length'],
    flags={'finished': stats['finished']},
  )


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
    self._sample: Any = jax.jit(
      functools.partial(
        rollout_step,
        model.apply_fn,
        num_samples=options.num_samples,
        max_new_tokens=options.max_new_tokens,
        eos_ids=model.eos_ids,
        sampling=Sampling(temperature=options.temperature, top_p=options.top_p),
      )
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

  def warm_up(self, params: Params) -> None:
    """Compiles what samples, so that the first evaluation need not.

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
    prompts = shard_batch(blank, self.mesh)
    self._sample.lower(params, prompts, key).compile()

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
      `sdjax.eval.diversity.summarize`.
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


def main(argv: Sequence[str] | None = None) -> int:
  """Scores a file of answers; a user's mistake ends in one line, code 2."""
  parser = argparse.ArgumentParser(
    prog='python -m sdjax.evaluate',
    description='Success and variety of judged answers, one JSON line each.',
  )
  parser.add_argument('--rollouts', required=True, help='file to score')
  parser.add_argument('--out', required=True, help='JSON file to write')
  parser.add_argument(
    '--k', help='the k of pass@k, e.g. 1,8,64; by default 1,2,4,...'
  )
  parser.add_argument(
    '--step', type=int, help='only lines of this training step'
  )
  parser.add_argument(
    '--embedder',
    help='sentence encoder for embedding_diversity, e.g. '
    f'{", ".join(PACKAGES)}, a folder, or owner/model; by default none',
  )
  options = parser.parse_args(argv)
  try:
    ks = None if options.k is None else [int(k) for k in options.k.split(',')]
  except ValueError:
    parser.error(f'--k is {options.k!r}; give whole numbers, e.g. 1,8,64.')
  try:
    embed, named = None, {}
    if options.embedder is not None:
      embed = SentenceEncoder(options.embedder)
      named = {'embedder': embed.name}
    answers = read_answers(options.rollouts, options.step)
    flat = score(answers, ks, embed)
    write_json_atomic(options.out, flat | named)
  except (ValueError, OSError) as error:
    if os.environ.get('SDJAX_TRACEBACK'):
      raise
    print(f'error: {error}', file=sys.stderr)
    return 2
  if len(answers.steps) > 1:
    first, last = answers.steps[0], answers.steps[-1]
    print(
      f'answers of {len(answers.steps)} steps of training, {first} to {last}, '
      f'are scored together; --step={last} takes one of them',
      file=sys.stderr,
    )
  print(f'{describe(flat)}\n{options.out}')
  return 0


if __name__ == '__main__':
  sys.exit(main())
