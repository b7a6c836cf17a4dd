"""What every run logs, shows and draws, as hooks."""

from sdjax.feedback import grading
from sdjax.report.plots import plot_run
from sdjax.training.compilations import Compilations
from sdjax.training.hooks import Hook, Run


class RolloutLog(Hook):
  """Writes `rollouts.jsonl`, before an update that may fail on them."""

  def on_rollouts(self, run: Run) -> None:
    """Logs the first questions of the batch, a record a rollout."""
    assert run.batch
    number = run.trainer.config.train.logged_questions
    shown = [cell for row in run.batch.gathered.shown[:number] for cell in row]
    records = grading.records(run.batch.graded)
    for record, cell in zip(records, shown, strict=False):
      run.folder.rollouts.append(
        {'step': run.step, **record, 'demonstrations': list(cell)}
      )


class ProgressLine(Hook):
  """Shows each step on the progress line."""

  def __init__(self, compilations: Compilations):
    self._compilations = compilations
    self._before = 0.0

  def on_rollouts(self, run: Run) -> None:
    """Notes what was compiled until the first step."""
    del run
    self._before = self._before or self._compilations.seconds

  def on_step(self, run: Run) -> None:
    """Shows the step."""
    assert run.batch
    before, self._before = self._before, self._compilations.seconds
    run.progress.leave_out(self._before - before)
    run.progress.update(
      run.step,
      int(run.record['train/length'] * run.batch.graded.correct.size),
      reward=run.record['train/reward'],
      loss=run.record['train/loss'],
    )


class Plots(Hook):
  """Draws a finished run."""

  def on_end(self, run: Run) -> None:
    """Draws `plots/`."""
    run.progress.finish()
    plot_run(run.folder.path)
