"""The checkpoint of a run at its best evaluation, kept beside the newest ones.

It goes back with the run: when a killed run resumes from an older checkpoint,
the best one is what it was there. So a best checkpoint that another one has
superseded is deleted only when the run can no longer go back to before, which
Orbax's `BestN` would not wait for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdjax.models.sharding import with_sharding
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.evaluator import measure
from sdjax.training.hooks import Hook, Run

FOLDER = 'checkpoints_best'


class BestCheckpoint(Hook):
  """Saves the state whenever an evaluation is better than all before it."""

  def __init__(
    self,
    workdir: str | Path,
    metric: str,
    measured: Mapping[str, Any] | None = None,
  ):
    """Opens the folder; highest is best, or with a `-` before it lowest.

    What is kept is never compared with, and so never replaced by, what was
    `measured` otherwise, which are JSON values.

    Raises:
      CheckpointError: if the folder cannot be used.
    """
    self._key = f'eval/{metric.removeprefix("-")}'
    self._sign = -1 if metric.startswith('-') else 1
    self._checkpoints = Checkpoints(Path(workdir) / FOLDER, keep=None)
    self._best: float | None = None
    self._measured = dict(measured or {})
    self._comparable = True

  def on_start(self, run: Run) -> None:
    """Goes back to what was best at the step the run goes on from."""
    self.rewind(run.step)

  def on_evaluation(self, run: Run) -> None:
    """Keeps the state if it is the best."""
    self.offer(run.record, run.trainer.state)

  def on_checkpoint(self, run: Run) -> None:
    """Makes sure that what the log says was best is there to resume with."""
    self.wait()
    if run.saved is not None:
      self.forget(run.saved)

  def on_end(self, run: Run) -> None:
    """Measures the best state, which the trainer then has."""
    trainer, folder = run.trainer, run.folder
    self.offer(run.record, trainer.state)
    self.forget(run.step)
    if folder.read_eval().get('best_step') != self.step:
      folder.drop_eval('best')
    if self.step is not None and not folder.has_eval('best'):
      run.progress.note(f'evaluating the best model, of step {self.step}')
      trainer.state = self.restore(with_sharding(trainer.state, trainer.mesh))
      measure(
        folder,
        trainer.evaluator,
        trainer.student(),
        'best',
        run.progress,
        self.step,
      )

  @property
  def step(self) -> int | None:
    """The step of the best evaluation so far; None: there was none."""
    return self._checkpoints.latest_step()

  def rewind(self, step: int) -> None:
    """Goes back to what was best at a checkpoint that the run resumes from.

    Raises:
      CheckpointError: if the best checkpoint is damaged.
    """
    for later in self._checkpoints.steps():
      if later > step:
        self._checkpoints.delete(later)
    self._best, self._comparable = None, True
    if self.step is not None:
      kept = self._checkpoints.extra(self.step)
      self._best = self._sign * kept['value']
      # Of a release that did not store it: taken to be the same.
      self._comparable = kept.get('measured', self._measured) == self._measured
    self.forget(step)

  def offer(self, record: Mapping[str, Any], state: Any) -> None:
    """Saves the state if its evaluation is better than all before.

    A record without the metric, of the step that is kept, or not comparable
    with it, changes nothing.
    """
    if (
      self._key not in record
      or record['step'] == self.step
      or not self._comparable
    ):
      return
    value = self._sign * record[self._key]
    if self._best is None or value > self._best:
      self._best = value
      extra = {
        'metric': self._key,
        'value': record[self._key],
        'measured': self._measured,
      }
      self._checkpoints.save(record['step'], state, extra)

  def forget(self, step: int) -> None:
    """Deletes what a step on disk, which the run keeps, has superseded."""
    self.wait()
    done = [one for one in self._checkpoints.steps() if one <= step]
    for superseded in done[:-1]:
      self._checkpoints.delete(superseded)

  def restore(self, abstract_state: Any) -> Any:
    """Reads the state of the best evaluation, as `Checkpoints.restore`."""
    state, _ = self._checkpoints.restore(self.step or 0, abstract_state)
    return state

  def wait(self) -> None:
    """Blocks until the save in progress is on disk."""
    self._checkpoints.wait()

  def close(self) -> None:
    """Finishes the save in progress."""
    self._checkpoints.close()
