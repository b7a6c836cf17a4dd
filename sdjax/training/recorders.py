"""What every run logs, shows and draws, as hooks."""

from collections.abc import Iterator
from typing import Any

from sdjax.feedback import grading
from sdjax.feedback.grading import Graded
from sdjax.report.plots import plot_run
from sdjax.training.compilations import Compilations
from sdjax.training.hooks import Hook, Run
from sdjax.types import Gathered


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


class RolloutLog(Hook):
  """Writes `rollouts.jsonl`, before an update that may fail on them."""

  def on_rollouts(self, run: Run) -> None:
    """Logs the first questions of the batch."""
    assert run.batch
    for record in records(
      run.batch.graded,
      run.batch.gathered,
      run.step,
      run.trainer.config.train.logged_questions,
    ):
      run.folder.rollouts.append(record)


class ProgressLine(Hook):
  """Shows each step on the progress line."""

  def __init__(self, compilations: Compilations):
    """Shows nothing yet.

    Args:
      compilations: counts what is no part of a step's time.
    """
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
