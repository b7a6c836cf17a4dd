"""Checkpoints of a run, written by Orbax while training goes on.

A checkpoint is a folder named after its step, with two items: `state`, the
arrays of a `TrainState`, and `extra`, a JSON object (position of the data
iterator, lengths of the log files, configuration). A folder appears under its
name only when everything in it is on disk, so a save that was killed leaves
no checkpoint behind, only a temporary folder that the next save removes.
"""

import contextlib
import gc
import json
import logging
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from sdjax.models.sharding import path_name, with_sharding

STATE, EXTRA = 'state', 'extra'
WEIGHTS = ('params', 'teacher_params')
_UNFINISHED = '*.orbax-checkpoint-tmp*'


class CheckpointError(ValueError):
  """A checkpoint that cannot be written, read, or does not fit the run."""


def _leaves(tree: Any) -> dict[str, tuple[tuple[int, ...], str]]:
  """Returns shape and dtype of each leaf by its path."""
  return {
    path_name(path): (tuple(leaf.shape), str(leaf.dtype))
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
  }


class _OrbaxFilter(logging.Filter):
  """Drops what Orbax logs below a level; a save alone logs 40 lines."""

  level = logging.WARNING

  def filter(self, record: logging.LogRecord) -> bool:
    """Returns whether a record is shown."""
    orbax = 'orbax' in Path(record.pathname).parts
    return not orbax or record.levelno >= self.level


_FILTER = _OrbaxFilter()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Keeps Orbax from printing what becomes one error of ours."""
  hook = sys.unraisablehook
  sys.unraisablehook = lambda _: None
  _FILTER.level = logging.CRITICAL + 1
  try:
    yield
  finally:
    sys.unraisablehook = hook
    _FILTER.level = logging.WARNING


def _cause(error: BaseException) -> str:
  """Returns the first line of the deepest cause, which may name the file."""
  while error.__cause__ or not error.__suppress_context__:
    deeper = error.__cause__ or error.__context__
    if deeper is None:
      break
    error = deeper
  text = str(error).partition(' [tensorstore_spec')[0]
  return f'{type(error).__name__}: {text.splitlines()[0] if text else ""}'


class Checkpoints:
  """The checkpoints of one run.

  One process trains and saves; any number may restore.
  """

  def __init__(self, directory: str | Path, keep: int | None = 2):
    """Opens a folder of checkpoints, made if it is not there.

    The `keep` newest checkpoints are kept; None: all, until `delete`.

    Raises:
      CheckpointError: if `keep` is below 1 or the folder cannot be used.
    """
    if keep is not None and keep < 1:
      raise CheckpointError(f'keep_checkpoints={keep} must be at least 1.')
    self._directory = Path(directory).absolute()
    self._saved_before = False
    absl_logging.get_absl_logger().addFilter(_FILTER)  # again: no effect
    try:
      self._directory.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(
        self._directory,
        options=ocp.CheckpointManagerOptions(max_to_keep=keep),
        item_handlers={
          STATE: ocp.StandardCheckpointHandler(),
          EXTRA: ocp.JsonCheckpointHandler(),
        },
      )
    except OSError as error:
      raise CheckpointError(
        f'cannot keep checkpoints in {self._directory}: {error}; choose '
        'another workdir.'
      ) from error

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    """Starts a checkpoint; the arrays may be donated once this returns.

    Blocks until the arrays are copied to the host and an earlier save has
    ended; the writing goes on in the background. `extra` is what else is needed
    to go on, JSON values only.

    Raises:
      CheckpointError: if `extra` is not JSON or the step not above the newest.
    """
    try:
      json.dumps(extra)
    except (TypeError, ValueError) as error:
      raise CheckpointError(
        f'extra of checkpoint {step} must hold JSON values only: {error}.'
      ) from error
    latest = self.latest_step()
    if latest is not None and step <= latest:
      raise CheckpointError(
        f'checkpoint {step} comes after checkpoint {latest} of '
        f'{self._directory}; restore that one and go on from it, or use '
        'another workdir.'
      )
    if not self._saved_before and jax.process_index() == 0:
      # Only a process that saves may remove these: to one that reads, they
      # can be the save in progress of another.
      for folder in self._directory.glob(_UNFINISHED):
        shutil.rmtree(folder, ignore_errors=True)
    self._saved_before = True
    args = {
      STATE: ocp.args.StandardSave(state),
      EXTRA: ocp.args.JsonSave(extra),
    }
    self._manager.save(step, args=ocp.args.Composite(**args))

  def latest_step(self) -> int | None:
    """Returns the newest complete checkpoint's step, or None."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Returns the steps of all complete checkpoints, rising."""
    return sorted(self._manager.all_steps())

  def delete(self, step: int) -> None:
    """Deletes the checkpoint of one of `steps`."""
    self._manager.delete(step)

  def restore(
    self, step: int, abstract_state: Any
  ) -> tuple[Any, dict[str, Any]]:
    """Reads a checkpoint: the state, and what was saved with it.

    The shardings of the abstract state, as `with_sharding` makes it, say where
    the arrays go, whatever mesh they were saved from; a leaf without one goes
    to the default device.

    Raises:
      CheckpointError: if the checkpoint is missing, damaged, or of another
        structure. Nothing is deleted.
    """
    self._check_structure(step, abstract_state)
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=getattr(x, 'sharding', None) or default
      ),
      abstract_state,
    )
    args = {
      STATE: ocp.args.StandardRestore(target),
      EXTRA: ocp.args.JsonRestore(),
    }
    restored = self._read(
      step,
      lambda step: self._manager.restore(step, args=ocp.args.Composite(**args)),
    )
    return restored[STATE], restored[EXTRA]

  def weights(self, step: int, mesh: Any) -> dict[str, Any]:
    """Reads the weights of a checkpoint, and nothing else of its state.

    Nothing has to be known of how they were trained. Returned are `params`,
    and `teacher_params` where the run keeps an average.

    Raises:
      CheckpointError: if they are missing or damaged. Nothing is deleted.
    """
    saved = self._saved_tree(step)
    wanted = {name: saved.get(name) for name in WEIGHTS if saved.get(name)}
    shapes = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted
    )
    target = with_sharding(shapes, mesh)
    args = ocp.args.PyTreeRestore(
      target,
      restore_args=ocp.checkpoint_utils.construct_restore_args(target),
      partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return self._read(
        step,
        lambda step: reader.restore(
          self._directory / str(step) / STATE, args=args
        ),
      )

  def extra(self, step: int) -> dict[str, Any]:
    """Reads what was saved beside the state of a checkpoint.

    Raises:
      CheckpointError: if it is missing or damaged. Nothing is deleted.
    """
    args = ocp.args.Composite(**{EXTRA: ocp.args.JsonRestore()})
    return self._read(
      step, lambda step: self._manager.restore(step, args=args)[EXTRA]
    )

  def wait(self) -> None:
    """Blocks until the save in progress is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes the save in progress and frees the manager's threads."""
    self._manager.close()

  def _saved_tree(self, step: int) -> Any:
    """What a checkpoint has, by its description."""
    if step not in self.steps():
      raise CheckpointError(
        f'{self._directory} has no checkpoint {step}; it has {self.steps()}.'
      )

    def read(step: int) -> Any:
      found = self._manager.item_metadata(step)[STATE]
      if found is None:
        file = f'{self._directory}/{step}/{STATE}/_METADATA'
        raise FileNotFoundError(f'no {file}')
      return found.tree

    return self._read(step, read)

  def _read(self, step: int, read: Callable[[int], Any]) -> Any:
    """Runs a read; whatever it raises becomes one error."""
    with _quiet():
      try:
        return read(step)
      # Orbax and TensorStore raise errors of a dozen types for a bad file.
      except Exception as error:
        cause = _cause(error)
      # Orbax leaves coroutines behind, each of which would print a page when
      # it is collected: do that here, where it is quiet.
      gc.collect()
    older = [x for x in self._manager.all_steps() if x < step]
    then = 'start the run anew (no older one is kept)'
    if older:
      then = f'go back to checkpoint {max(older)}'
    raise CheckpointError(
      f'checkpoint {step} cannot be read, a file of it is missing or damaged '
      f'({cause}). Nothing was changed: bring the file back, or delete the '
      f'folder {self._directory / str(step)} to {then}.'
    )

  def _check_structure(self, step: int, abstract_state: Any) -> None:
    saved = _leaves(self._saved_tree(step))
    wanted = _leaves(abstract_state)
    for name in [*wanted, *saved]:
      here, there = wanted.get(name), saved.get(name)
      if here != there:
        described = [
          f'{x[1]} of shape {x[0]}' if x else 'absent' for x in (there, here)
        ]
        raise CheckpointError(
          f'checkpoint {step} in {self._directory} is of another model, '
          f'optimizer or teacher: {name} is {described[0]} there and '
          f'{described[1]} in this run. Use the configuration the checkpoint '
          'was made with, or another workdir.'
        )
