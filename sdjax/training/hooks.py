"""Hooks: what watches a run, or acts on it, at the moments of its loop.

All that a run does besides training hangs on this: alarms, the best
checkpoint, the credit map, the logs and the progress line. A user's own are
given to `sdjax.train(config, folder, hooks=[...])`, and are called after them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from sdjax.training.log import Progress
  from sdjax.training.run_folder import Workdir
  from sdjax.training.trainer import Sampled, Trainer


@dataclasses.dataclass(frozen=True)
class Run:
  """A run, as a hook sees it at one moment.

  Attributes:
    trainer: has the config, the task, the method, the mesh, and the state
      (`trainer.state`), whose buffers the next update takes: copy what is to
      be kept.
    folder: the run's folder and its logs.
    progress: `progress.note(text)` prints a line above the live one.
    step: steps made so far; in `on_rollouts` the one that is being made.
    total: steps the run is to make.
    saved: the step of the newest checkpoint on the disk; None: there is none.
    stopped: why the run ends before its last step; empty: it does not.
    stop: `stop(why)` ends the run once the step is saved; `why` ends the
      sentence `FOLDER is stopped at step 3 of 9 by ...`.
    record: the line of `metrics.jsonl` that was just written, in `on_step`
      and `on_evaluation`; in `on_end` the evaluation after training in the
      same form. Else empty.
    batch: the step's questions, rollouts, verdicts and what the method
      gathered, in `on_rollouts` and `on_step`. Else None.
  """

  trainer: 'Trainer'
  folder: 'Workdir'
  progress: 'Progress'
  step: int
  total: int
  saved: int | None
  stopped: str
  stop: Callable[[str], None]
  record: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  batch: 'Sampled | None' = None


class Hook:
  """Does nothing at every moment of a run; a subclass overrides some.

  A killed run goes back to its newest checkpoint: what a hook has noted since
  is to be forgotten in `on_start`, whose `run.step` says how far back it is.

  When a user's hook raises an `Exception`, the run ends once the step it is in
  is finished and saved, with a `HookError` that names the hook; its other
  hooks are still called. The same command goes on from there.
  """

  def on_start(self, run: Run) -> None:
    """The state is the one to go on with, nothing is compiled yet."""

  def on_rollouts(self, run: Run) -> None:
    """`run.batch` is sampled and graded; the weights are still its own."""

  def on_step(self, run: Run) -> None:
    """The update is made and `run.record` logged."""

  def on_evaluation(self, run: Run) -> None:
    """The state was evaluated during training, and `run.record` logged."""

  def on_checkpoint(self, run: Run) -> None:
    """The state is about to be saved as checkpoint `run.step`.

    `run.saved` is the one before. What the hook needs to go on from this one
    is to be on the disk when it returns.
    """

  def on_end(self, run: Run) -> None:
    """The last step is saved, and the trained model evaluated.

    Also called when a run that is complete is started again.
    """


class HookError(RuntimeError):
  """A user's hook raised; what the run did until then is saved."""
