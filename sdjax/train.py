"""Training a model on its own rollouts: the pipeline, host side.

The loop reads as the data flows; everything it calls on a device is a pure
function from `sdjax.steps`.

Steps are counted from 1 in all logs. Step n of `rollouts.jsonl`, of
`credit.jsonl` and of `train/` in `metrics.jsonl` are the same rollouts, sampled
by the weights of n - 1 steps; `eval/` at n is of the weights after it, and the
model before training is at 0.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sdjax import config as config_lib
from sdjax import config_dict, grading
from sdjax.alarm import Alert, Watch
from sdjax.best import FOLDER as BEST_FOLDER
from sdjax.best import BestCheckpoint
from sdjax.checkpoint import Checkpoints
from sdjax.compilations import Compilations
from sdjax.credit_map import CreditMap
from sdjax.data.context import check_thinking
from sdjax.data.prompts import PromptIterator
from sdjax.eval.runs import read_json_lines
from sdjax.evaluate import Evaluator, check_keep_best
from sdjax.grading import Graded
from sdjax.interrupt import Interrupted, Interrupts, interrupts
from sdjax.language_model import fingerprint, load_from_config
from sdjax.lora import adapt
from sdjax.methods import Method
from sdjax.metrics import Progress, write_json_lines_atomic
from sdjax.plots import plot_run
from sdjax.reports import ending
from sdjax.reports import origin as origin_lib
from sdjax.sharding import make_mesh, with_sharding
from sdjax.tasks import make_task
from sdjax.trainer import Sampled, Trainer
from sdjax.types import Gathered, Params
from sdjax.workdir import Origin, Workdir, check_folder, measured


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

  Nothing is written before all that may fail is built. On SIGINT and SIGTERM
  the step is finished and saved; in a notebook, where nobody asked for the
  process to end, a second Ctrl-C does not wait for that. Evaluations and
  compilations are left at once.

  Args:
    config: of mode `train`; checked as the command line's is.
    path: the run's folder.
    method: as `METHODS` has them; None: the one that the config names. A run
      goes on with the one it began with.

  Raises:
    ConfigError, ValueError: a mistake in the config, or in what it names.
    WorkdirError: the folder is of another run.
    Interrupted: (a `KeyboardInterrupt`) a signal ended it; it says what is
      saved.
  """
  config_dict.check(config, 'train')
  check_keep_best(config)
  check_folder(path, config)
  with interrupts() as ended, contextlib.ExitStack() as stack:
    _train(config, path, method, ended, stack)
  print(ending.result(Path(path), config.alarm.action != 'off'))


def _train(
  config: config_lib.Config,
  path: str,
  method: Callable[..., Method] | None,
  ended: Interrupts,
  stack: contextlib.ExitStack,
) -> None:
  assert config.rollout
  compilations = Compilations()
  trainer = Trainer(config, method)
  ended.check()
  questions = PromptIterator(
    trainer.questions, config.rollout.num_questions, config.seed, trainer.fits
  )
  origin = Origin(trainer.fingerprint, full_name(method) if method else '')
  workdir = Workdir(path, config, origin)
  stack.callback(workdir.close)
  checkpoints = Checkpoints(
    workdir.path / 'checkpoints', config.train.keep_checkpoints
  )
  stack.callback(checkpoints.close)
  best = None
  if config.train.keep_best:
    best = BestCheckpoint(
      workdir.path,
      config.train.keep_best,
      measured(config_dict.to_json(config)),
    )
    stack.callback(best.close)
  total = config.train.num_steps
  progress = Progress(total)
  for note in trainer.notes:
    progress.note(note)
  credit = CreditMap(trainer)
  # The step whose state the trainer has, and the newest that is saved.
  done = saved = checkpoints.latest_step()

  def keep_credit(step: int, batch: Sampled) -> None:
    for record in credit.records(batch, step):
      workdir.credit.append(record)

  def save(step: int) -> None:
    nonlocal saved
    if best:
      best.wait()  # What the log says was best must be there to resume with.
    older = checkpoints.latest_step()
    extra = {'data': questions.get_state(), 'log': workdir.position()}
    checkpoints.save(step, trainer.state, extra)
    saved = step
    if best and older is not None:
      best.forget(older)

  try:
    start = saved
    if start is None or not workdir.has_eval('base'):
      progress.note('evaluating the model before training')
      measure(workdir, trainer.evaluator, trainer.student(), 'base', progress)
    with ended.held():
      if start is None:
        workdir.rewind(None)
        start = done = 0
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
    every = config.train.eval_every
    evaluated = max(
      record['step']
      for record in workdir.history()
      if record['step'] == 0 or any(k.startswith('eval/') for k in record)
    )
    end = start if watch.stops else total
    if start < end:
      # What a shorter run ended with.
      workdir.drop_eval('final')
      workdir.drop_eval('best')
      trainer.warm_up(
        credit.warm_up if any(step > start for step in credited) else None
      )
      ended.check()
      if every:
        trainer.evaluator.warm_up(trainer.student())
      ended.check()
      origin_lib.record(workdir.path)
      progress.note(
        f'{compilations.count} compilations in {compilations.seconds:.0f} s'
      )
    done = start
    while True:
      # One that a signal kept from coming about is made up for.
      if every and done % every == 0 and evaluated < done < total:
        flat, _ = trainer.evaluator(
          trainer.student(), config.eval.during, tell=progress.evaluated
        )
        with ended.held():
          evaluated = done
          record = workdir.metrics.write(
            done, {f'eval/{k}': v for k, v in flat.items()}
          )
          watch.add(record)
          if best:
            best.offer(record, trainer.state)
      due = done % config.train.checkpoint_every == 0
      if done != saved and (due or done == total or watch.stops):
        with ended.held():
          save(done)
      if done >= end or watch.stops:
        break
      with ended.held():
        began, compiled = time.monotonic(), compilations.seconds
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
        progress.leave_out(compilations.seconds - compiled)
        progress.update(
          done,
          int(metrics['length'] * graded.correct.size),
          reward=metrics['reward'],
          loss=metrics['loss'],
        )
        watch.add(record)
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
      measure(workdir, trainer.evaluator, trainer.student(), 'final', progress)
    watch.add(workdir.final_record(done))
    if best:
      best.offer(workdir.final_record(done), trainer.state)
      best.forget(done)
      if workdir.read_eval().get('best_step') != best.step:
        workdir.drop_eval('best')
      if best.step is not None and not workdir.has_eval('best'):
        progress.note(f'evaluating the best model, of step {best.step}')
        trainer.state = best.restore(with_sharding(trainer.state, trainer.mesh))
        measure(
          workdir,
          trainer.evaluator,
          trainer.student(),
          'best',
          progress,
          best.step,
        )
    progress.finish()
    plot_run(workdir.path)
  except Interrupted as error:
    progress.finish()
    if done is None:
      raise
    # In the middle of a step nothing is fit to be saved.
    if done != saved and not error.at_once:
      save(done)
    checkpoints.wait()
    raise Interrupted(
      error.signal,
      f'{path} is saved at step {saved} of {total}; the same command goes on '
      'from there.',
    ) from None


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


def full_name(function: Callable[..., Any]) -> str:
  """Returns the module and the name of a function, or of what is called."""
  inner = getattr(function, 'func', function)  # of a functools.partial
  name = getattr(inner, '__qualname__', type(inner).__qualname__)
  return f'{inner.__module__}.{name}'


def measure(
  workdir: Workdir,
  evaluator: Evaluator,
  params: Params,
  when: str,
  progress: Progress,
  step: int | None = None,
) -> None:
  """Measures weights, and leaves the numbers in the folder.

  Args:
    workdir: of the run; with `eval.save_samples` the answers go to
      `samples_WHEN.jsonl`.
    evaluator: of the run.
    params: the weights, an adapter applied.
    when: `base`, `final` or `best`; the latter also by the sets that are
      measured during training, by one of which it was chosen: there it looks
      better than it is, on the others not.
    progress: shows how far it is.
    step: of the best.
  """
  options = evaluator.config.eval
  sets = options.sets
  if when == 'best':
    sets = tuple(dict.fromkeys(sets + options.during))
  lines: list[dict[str, Any]] | None = [] if options.save_samples else None

  def keep(name: str, graded: Graded) -> None:
    if lines is not None:
      lines.extend({'set': name, **line} for line in grading.records(graded))

  flat, questions = evaluator(params, sets, keep, progress.evaluated)
  if lines is not None:
    write_json_lines_atomic(workdir.path / f'samples_{when}.jsonl', lines)
  workdir.add_eval(when, flat, questions, step)


def evaluate(config: config_lib.Config, path: str) -> None:
  """Measures the model a config names, and a run's newest checkpoint.

  How the run was trained does not matter: neither its method nor its rewards
  need to be known here. Its task does.

  Args:
    config: of mode `eval`; checked as the command line's is.
    path: a folder; with the checkpoints of a run in it, the newest one is
      measured as `final`, the best one, if there is one, as `best`, and the
      starting weights as `base`.

  Raises:
    ConfigError, ValueError: a mistake in the config, or in what it names.
    WorkdirError: the folder is of a run of another model, task or seed.
  """
  config_dict.check(config, 'eval')
  check_folder(path, config)
  assert config.model
  mesh, lora = make_mesh(config.mesh), config.model.lora
  model = load_from_config(config.model, mesh)
  check_thinking(model.tokenizer, config.model.thinking)
  evaluator = Evaluator(config, model, make_task(config.task), mesh)
  progress = Progress(1)
  for note in evaluator.notes:
    progress.note(note)
  workdir = Workdir(path, config, Origin(fingerprint(model.params)))

  def measure_saved(when: str, folder: Path) -> None:
    if not folder.is_dir():
      return
    with contextlib.closing(Checkpoints(folder, keep=None)) as checkpoints:
      step = checkpoints.latest_step()
      if step is None:
        return
      params = checkpoints.weights(step, mesh)['params']
    if lora.rank:
      params = adapt(model.params, params, lora.alpha / lora.rank)
    best = step if when == 'best' else None
    measure(workdir, evaluator, params, when, progress, best)

  with contextlib.closing(workdir):
    measure(workdir, evaluator, model.params, 'base', progress)
    measure_saved('final', workdir.path / 'checkpoints')
    measure_saved('best', workdir.path / BEST_FOLDER)
    progress.finish()
    for name, value in workdir.read_eval().items():
      print(f'{name} {value:.4g}')
