"""A run in progress: its state, its folder, and whom it tells what happens."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

from sdjax.config import convert as config_dict
from sdjax.config import schema as config_lib
from sdjax.data.prompts import PromptIterator
from sdjax.methods import Method
from sdjax.models.sharding import with_sharding
from sdjax.report import origin as origin_lib
from sdjax.tasks.base import Task
from sdjax.training.best import BestCheckpoint
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.compilations import Compilations
from sdjax.training.credit_map import CreditMap
from sdjax.training.evaluator import measure
from sdjax.training.hooks import Hook, HookError, Run
from sdjax.training.interrupt import Interrupted, Interrupts
from sdjax.training.log import Progress
from sdjax.training.programs import finish_compiling, stop_compiling
from sdjax.training.recorders import Plots, ProgressLine, RolloutLog
from sdjax.training.run_folder import Origin, Workdir, full_name, measured
from sdjax.training.trainer import Trainer
from sdjax.training.watch import Alarms


class Session:
  """What `train` does, in the order in which it does it.

  `done` steps have their update in the state; None: that is not known yet.
  `saved` is the newest step that has a checkpoint.
  """

  def __init__(
    self,
    config: config_lib.Config,
    path: str,
    method: Callable[..., Method] | None,
    task: Task | None,
    hooks: Sequence[Hook],
    ended: Interrupts,
  ):
    """Builds all that may fail, then opens the folder; see `train`."""
    assert config.rollout
    self._config, self._path, self._ended = config, path, ended
    self._compilations = Compilations()
    self.trainer = Trainer(config, method, task)
    ended.check()
    self.questions = PromptIterator(
      self.trainer.questions,
      config.rollout.num_questions,
      config.seed,
      self.trainer.fits,
    )
    origin = Origin(
      self.trainer.fingerprint, full_name(method) if method else ''
    )
    with contextlib.ExitStack() as stack:
      self.folder = Workdir(path, config, origin)
      stack.callback(self.folder.close)
      self._checkpoints = Checkpoints(
        self.folder.path / 'checkpoints', config.train.keep_checkpoints
      )
      stack.callback(self._checkpoints.close)
      best: list[Hook] = []
      if metric := config.train.keep_best:
        numbers = measured(config_dict.to_json(config))
        keeper = BestCheckpoint(self.folder.path, metric, numbers)
        stack.callback(keeper.close)
        best = [keeper]
      self.close = stack.pop_all().close
    self.total = config.train.num_steps
    self.progress = Progress(self.total)
    for note in self.trainer.notes:
      self.progress.note(note)
    # Alarms first: they may say that there is nothing left to do.
    self._own = [
      RolloutLog(),
      ProgressLine(self._compilations),
      Alarms(),
      CreditMap(self.trainer),
      *best,
      Plots(),
    ]
    self._users = list(hooks)
    self._failed: tuple[str, Exception] | None = None
    self._stopped = ''
    self.done = self.saved = self._checkpoints.latest_step()

  def tell(self, moment: str, done: int, **seen: Any) -> None:
    """Calls every hook's `moment`; a user's error is kept for the run's end."""
    for hook in [*self._own, *self._users]:
      run = Run(
        trainer=self.trainer,
        folder=self.folder,
        progress=self.progress,
        step=done,
        total=self.total,
        saved=self.saved,
        stopped=self._stopped,
        stop=self._stop,
        **seen,
      )
      try:
        getattr(hook, moment)(run)
      except Exception as error:
        if hook in self._own:
          raise
        where = f'{type(hook).__name__}.{moment} at step {done}'
        self._failed = self._failed or (where, error)

  def _stop(self, why: str) -> None:
    self._stopped = self._stopped or why

  @property
  def is_over(self) -> bool:
    """Whether no further step is to be made."""
    return self.done == self.total or bool(self._stopped or self._failed)

  def begin(self) -> None:
    """Measures the model, or goes back to the newest checkpoint; compiles."""
    trainer, folder, start = self.trainer, self.folder, self.saved
    if start is None or not folder.has_eval('base'):
      trainer.evaluator.compile(trainer.student())
      self.progress.note('evaluating the model before training')
      self._measure('base')
    with self._ended.held():
      if start is None:
        folder.rewind(None)
        start = self.done = 0
        self._save()
      else:
        trainer.state, extra = self._checkpoints.restore(
          start, with_sharding(trainer.state, trainer.mesh)
        )
        self.questions.set_state(extra['data'])
        folder.rewind(extra['log'])
        self.progress.note(f'resuming after step {start} of {self.total}')
    self._start = start
    self._evaluated = folder.evaluated()
    self.tell('on_start', start)
    if self.is_over:
      return
    # What a shorter run ended with.
    folder.drop_eval('final')
    folder.drop_eval('best')
    trainer.compile()
    if self._config.train.eval_every:
      trainer.evaluator.compile(trainer.student())
    finish_compiling()
    origin_lib.record(folder.path)
    seen = self._compilations
    self._ended.check()
    self.progress.note(f'{seen.count} compilations in {seen.seconds:.0f} s')

  def evaluate_if_due(self) -> None:
    """Evaluates; an evaluation that a signal ended is made up for."""
    config, done, trainer = self._config, self.done, self.trainer
    assert done is not None
    every = config.train.eval_every
    if not every or done % every or self._failed:
      return
    if not self._evaluated < done < self.total:
      return
    flat, _ = trainer.evaluator(
      trainer.student(), config.eval.during, tell=self.progress.evaluated
    )
    with self._ended.held():
      self._evaluated = done
      record = self.folder.metrics.write(
        done, {f'eval/{k}': v for k, v in flat.items()}
      )
      self.tell('on_evaluation', done, record=record)

  def save_if_due(self) -> None:
    """Writes a checkpoint, also where the run ends."""
    assert self.done is not None
    due = self.done % self._config.train.checkpoint_every == 0
    if self.done != self.saved and (due or self.is_over):
      with self._ended.held():
        self.save()

  def save(self) -> None:
    """Writes a checkpoint of the state, and tells the hooks before."""
    assert self.done is not None
    self._checkpoints.wait()
    self.tell('on_checkpoint', self.done)
    self._save()

  def _save(self) -> None:
    assert self.done is not None
    extra = {'data': self.questions.get_state(), 'log': self.folder.position()}
    self._checkpoints.save(self.done, self.trainer.state, extra)
    self.saved = self.done

  def step(self) -> None:
    """Samples, grades, scores and updates once; a signal waits for its end."""
    assert self.done is not None
    with self._ended.held():
      began, number = time.monotonic(), self.done + 1
      batch, drawn = self.trainer.sample(
        next(self.questions), self.done, functools.partial(next, self.questions)
      )
      self.tell('on_rollouts', number, batch=batch)
      metrics = self.trainer.update(batch, self.done) | drawn
      self.done = number
      record = self.folder.metrics.write(
        number,
        {f'train/{name}': value for name, value in metrics.items()}
        | {
          'time/step': time.monotonic() - began,
          'time/compilations': self._compilations.count,
        },
      )
      self.tell('on_step', number, record=record, batch=batch)

  def finish(self) -> None:
    """Measures the trained model, unless a hook failed.

    Raises:
      HookError: a user's hook raised at some moment.
    """
    done, note = self.done, self.progress.note
    assert done is not None
    self.progress.finish()
    self._checkpoints.wait()
    if not self._failed:
      if self._stopped and done < self.total:
        note(
          f'{self._path} is stopped at step {done} of {self.total} by '
          f'{self._stopped}'
        )
      elif self._start == done and self.folder.has_eval('final'):
        note(f'{self._path} is complete: {self.total} steps')
      if self._start < done or not self.folder.has_eval('final'):
        note('evaluating the trained model')
        self._measure('final')
      self.tell('on_end', done, record=self.folder.final_record(done))
    if self._failed:
      where, error = self._failed
      raise HookError(
        f'the hook {where} raised {type(error).__name__}: {error}. '
        f'{self._path} is saved at step {self.saved} of {self.total}; mend '
        'the hook, and the same command goes on from there.'
      ) from error

  def interrupted(self, error: Interrupted) -> Interrupted:
    """Saves what is fit to be saved; returns the error to end with."""
    stop_compiling()
    self.progress.finish()
    if self.done is None:
      return error
    # In the middle of a step nothing is fit to be saved.
    if self.done != self.saved and not error.at_once:
      self.save()
    self._checkpoints.wait()
    return Interrupted(
      error.signal,
      f'{self._path} is saved at step {self.saved} of {self.total}; the same '
      'command goes on from there.',
    )

  def _measure(self, when: str) -> None:
    trainer = self.trainer
    measure(
      self.folder, trainer.evaluator, trainer.student(), when, self.progress
    )
