"""Training a model on its own rollouts: the pipeline, host side.

The loop reads as the data flows; everything it calls on a device is a pure
function from `sdjax.steps`.

Steps are counted from 1 in all logs. Step n of `rollouts.jsonl`, of
`credit.jsonl` and of `train/` in `metrics.jsonl` are the same rollouts, sampled
by the weights of n - 1 steps; `eval/` at n is of the weights after it, and the
model before training is at 0.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

from sdjax import config as config_lib
from sdjax import config_dict, grading
from sdjax.alarm import Alert, Watch
from sdjax.best import FOLDER as BEST_FOLDER
from sdjax.best import BestCheckpoint
from sdjax.checkpoint import Checkpoints
from sdjax.credit_map import CreditMap
from sdjax.data.prompts import PromptIterator
from sdjax.eval.runs import read_json_lines
from sdjax.evaluate import check_keep_best
from sdjax.grading import Graded
from sdjax.methods import Method
from sdjax.metrics import Progress, write_json_lines_atomic
from sdjax.plots import plot_run
from sdjax.reports import ending, origin
from sdjax.sharding import (
  with_sharding,
)
from sdjax.trainer import Compilations, Sampled, Trainer
from sdjax.types import Gathered
from sdjax.workdir import Workdir, measured


def records(
  graded: Graded, gathered: Gathered, step: int, num_questions: int
) -> Iterator[dict[str, Any]]:
  """Yields the lines of `rollouts.jsonl` for one step.

  Args:
    graded: the graded rollouts.
    gathered: their demonstrations.
    step: in which they were sampled, counted from 1, as `metrics.jsonl` does.
    num_questions: how many questions of the batch to log.

  Yields:
    One record a rollout.
  """
  shown = [cell for row in gathered.shown[:num_questions] for cell in row]
  for record, cell in zip(grading.records(graded), shown, strict=False):
    yield {'step': step, **record, 'demonstrations': list(cell)}


def train(
  config: config_lib.Config,
  path: str,
  method: Callable[..., Method] | None = None,
) -> None:
  """Runs, or goes on with, the run of a folder.

  Args:
    config: a checked config of mode `train`.
    path: the run's folder.
    method: as `METHODS` has them; None: the one that the config names.
  """
  assert config.rollout
  check_keep_best(config)
  compilations = Compilations()
  workdir = Workdir(path, config)
  trainer = Trainer(config, method)
  questions = PromptIterator(
    trainer.task.questions('train'), config.rollout.num_questions, config.seed
  )
  checkpoints = Checkpoints(
    workdir.path / 'checkpoints', config.train.keep_checkpoints
  )
  best = None
  if config.train.keep_best:
    best = BestCheckpoint(
      workdir.path,
      config.train.keep_best,
      measured(config_dict.to_json(config)),
    )
  total = config.train.num_steps
  progress = Progress(total)
  for note in trainer.method.notes:
    progress.note(note)
  credit = CreditMap(trainer)

  def keep_credit(step: int, batch: Sampled) -> None:
    for record in credit.records(batch, step):
      workdir.credit.append(record)

  def save(step: int) -> None:
    if best:
      best.wait()  # What the log says was best must be there to resume with.
    older = checkpoints.latest_step()
    extra = {'data': questions.get_state(), 'log': workdir.position()}
    checkpoints.save(step, trainer.state, extra)
    if best and older is not None:
      best.forget(older)

  start = checkpoints.latest_step()
  if start is None or not workdir.has_eval('base'):
    progress.note('evaluating the model before training')
    measure(workdir, trainer, 'base')
  if start is None:
    workdir.rewind(None)
    start = 0
    save(start)
  else:
    trainer.state, extra = checkpoints.restore(
      start, with_sharding(trainer.state, trainer.mesh)
    )
    questions.set_state(extra['data'])
    workdir.rewind(extra['log'])
    progress.note(f'resuming after step {start} of {total}')
  credited = {1, total} if config.train.credit_questions else set()
  workdir.rewind_credit([step for step in credited if step <= start])
  if best:
    best.rewind(start)
  watch = follow(config, workdir, progress)
  end = start if watch.stops else total
  if start < end:
    # What a shorter run ended with.
    workdir.drop_eval('final')
    workdir.drop_eval('best')
    trainer.warm_up(
      [
        trainer.task.questions('train')[i]
        for i in range(config.rollout.num_questions)
      ]
    )
    origin.record(workdir.path)
    progress.note(
      f'{compilations.count} compilations in {compilations.seconds:.0f} s'
    )
  done = start
  while done < end and not watch.stops:
    began = time.monotonic()
    metrics, graded, gathered = trainer.step(
      next(questions),
      done,
      lambda: next(questions),
      functools.partial(keep_credit, done + 1)
      if done + 1 in credited
      else None,
    )
    done += 1
    for record in records(
      graded, gathered, done, config.train.logged_questions
    ):
      workdir.rollouts.append(record)
    record = workdir.metrics.write(
      done,
      {f'train/{name}': value for name, value in metrics.items()}
      | {
        'time/step': time.monotonic() - began,
        'time/compilations': compilations.count,
      },
    )
    progress.update(
      done,
      int(metrics['length'] * graded.correct.size),
      reward=metrics['reward'],
      loss=metrics['loss'],
    )
    watch.add(record)
    every = config.train.eval_every
    if every and done % every == 0 and done < total:
      flat, _ = trainer.evaluator(trainer.student(), config.eval.during)
      record = workdir.metrics.write(
        done, {f'eval/{k}': v for k, v in flat.items()}
      )
      watch.add(record)
      if best:
        best.offer(record, trainer.state)
    due = done % config.train.checkpoint_every == 0
    if due or done == total or watch.stops:
      save(done)
  progress.finish()
  checkpoints.wait()
  if watch.stops and done < total:
    progress.note(
      f'{path} is stopped at step {done} of {total} by its alarm of step '
      f'{watch.alerts[0].step}: {watch.alerts[0].cause} '
      "alarm.action='warn', or another threshold, lets it go on."
    )
  elif start == done and workdir.has_eval('final'):
    progress.note(f'{path} is complete: {total} steps')
  if start < done or not workdir.has_eval('final'):
    progress.note('evaluating the trained model')
    measure(workdir, trainer, 'final')
  watch.add(workdir.final_record(done))
  if best:
    best.offer(workdir.final_record(done), trainer.state)
    best.forget(done)
    if workdir.read_eval().get('best_step') != best.step:
      workdir.drop_eval('best')
    if best.step is not None and not workdir.has_eval('best'):
      progress.note(f'evaluating the best model, of step {best.step}')
      add_best(workdir, trainer, best)
    best.close()
  plot_run(workdir.path)
  checkpoints.close()
  workdir.close()
  print(ending.result(workdir.path, config.alarm.action != 'off'))


def follow(
  config: config_lib.Config, workdir: Workdir, progress: Progress
) -> Watch:
  """Judges the history of a run, and goes on to judge what is added.

  Args:
    config: of the run.
    workdir: its folder, gone back to where the run resumes; alarms that its
      log does not have yet are added to it.
    progress: shows them.

  Returns:
    The watch, which knows the history.
  """
  told = {
    (line['kind'], line['where'])
    for line in read_json_lines(workdir.alarms.path)
  }

  def tell(alert: Alert) -> None:
    if (alert.kind, alert.where) not in told:
      progress.note(f'ALARM at step {alert.step}: {alert.text}')
      workdir.alarms.append(alert.record())

  watch = Watch(config, tell)
  for record in workdir.history():
    watch.add(record)
  return watch


def add_best(workdir: Workdir, trainer: Trainer, best: BestCheckpoint) -> None:
  """Measures the best checkpoint of a run, which becomes the trainer's state.

  On the set it was chosen by it looks better than it is; on the others not.

  Args:
    workdir: of the run.
    trainer: of the run, with any state.
    best: not empty.
  """
  trainer.state = best.restore(with_sharding(trainer.state, trainer.mesh))
  measure(workdir, trainer, 'best', best.step)


def measure(
  workdir: Workdir, trainer: Trainer, when: str, step: int | None = None
) -> None:
  """Measures the trainer's state, and leaves the numbers in the folder.

  Args:
    workdir: of the run; with `eval.save_samples` the answers go to
      `samples_WHEN.jsonl`.
    trainer: of the run.
    when: `base`, `final` or `best`; the latter also by the sets that are
      measured during training, by one of which it was chosen.
    step: of the best.
  """
  options = trainer.config.eval
  sets = options.sets
  if when == 'best':
    sets = tuple(dict.fromkeys(sets + options.during))
  lines: list[dict[str, Any]] | None = [] if options.save_samples else None

  def keep(name: str, graded: Graded) -> None:
    if lines is not None:
      lines.extend({'set': name, **line} for line in grading.records(graded))

  flat, questions = trainer.evaluator(trainer.student(), sets, keep)
  if lines is not None:
    write_json_lines_atomic(workdir.path / f'samples_{when}.jsonl', lines)
  workdir.add_eval(when, flat, questions, step)


def evaluate(config: config_lib.Config, path: str) -> None:
  """Measures the model a config names, and a run's newest checkpoint.

  Args:
    config: a checked config of mode `eval`.
    path: a folder; with the checkpoints of a run in it, the newest one is
      measured as `final`, the best one, if there is one, as `best`, and the
      starting weights as `base`.
  """
  workdir = Workdir(path, config)
  trainer = Trainer(config)
  measure(workdir, trainer, 'base')
  folder = workdir.path / 'checkpoints'
  if folder.is_dir():
    checkpoints = Checkpoints(folder, config.train.keep_checkpoints)
    step = checkpoints.latest_step()
    if step is not None:
      state, _ = checkpoints.restore(
        step, with_sharding(trainer.state, trainer.mesh)
      )
      trainer.state = state
      measure(workdir, trainer, 'final')
    checkpoints.close()
  if config.train.keep_best and (workdir.path / BEST_FOLDER).is_dir():
    best = BestCheckpoint(workdir.path, config.train.keep_best)
    if best.step is not None:
      add_best(workdir, trainer, best)
    best.close()
  for name, value in workdir.read_eval().items():
    print(f'{name} {value:.4g}')
  workdir.close()
