"""A run's folder: its config, its logs, and going back to a checkpoint."""

import errno
import fcntl
import json
import os
import weakref
from collections.abc import Container
from pathlib import Path
from typing import Any, TextIO

from sdjax import config as config_lib
from sdjax import config_check, config_dict
from sdjax.eval.runs import read_json_lines
from sdjax.metrics import JsonLines, MetricsLog, write_json_atomic

FREE_TO_CHANGE = (
  'print',
  'mode',
  'train.num_steps',
  'mesh.',
  'eval.',
  'alarm.',
)
"""Options a run may be continued with other values of.

The number of steps is not free under a schedule that depends on it, and never
below those that are done.
"""

NOT_MEASURED = ('during', 'batch_questions', 'save_samples')
"""Options of `eval` that say nothing of how samples are drawn and counted.

Evaluations of steps, which `metrics.jsonl` logs, stay as they were drawn.
"""


class WorkdirError(ValueError):
  """A folder that this run cannot use."""


class Workdir:
  """Opens a run's folder, or refuses it before anything is touched.

  Attributes:
    path: the folder.
    metrics: `metrics.jsonl`.
    rollouts: `rollouts.jsonl`.
    alarms: `alarms.jsonl`.
    credit: `credit.jsonl`.
  """

  def __init__(self, path: str, config: config_lib.Config):
    """Makes the folder, or checks that it belongs to the same run.

    Args:
      path: the folder; it and its parents are made when missing.
      config: the run's config.

    Raises:
      WorkdirError: the folder cannot be written, holds a run of another
        config or of more steps, or another process is at work in it.
    """
    self.path = Path(path)
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise WorkdirError(
        f'--workdir={path} cannot be made: {error}. Choose a folder you may '
        'write to.'
      ) from error
    if not os.access(self.path, os.W_OK | os.X_OK):
      raise WorkdirError(
        f'--workdir={path} cannot be written to. Choose another folder or '
        'change its permissions.'
      )
    resolved = config_dict.to_json(config)
    file = self.path / 'config.json'
    old = _check_same_run(file, resolved) if file.exists() else None
    if config.mode in ('train', 'pretrain'):
      _check_steps(self.path, config.train.num_steps)
    lock = (self.path / '.lock').resolve()
    _lock(lock)
    self._unlock = weakref.finalize(self, _unlock, lock)
    if old is None:
      write_json_atomic(file, resolved)
    elif config.mode != 'forecast':
      if measured(old) != measured(resolved):
        # They would stand beside others that were sampled otherwise.
        for when in ('base', 'final', 'best'):
          self.drop_eval(when)
      if config.mode == 'eval':
        resolved = {**old, 'eval': resolved['eval']}
      write_json_atomic(file, resolved)
    self.metrics = MetricsLog(self.path / 'metrics.jsonl')
    self.rollouts = JsonLines(self.path / 'rollouts.jsonl')
    self.alarms = JsonLines(self.path / 'alarms.jsonl')
    self.credit = JsonLines(self.path / 'credit.jsonl')

  def position(self) -> dict[str, int]:
    """Returns the sizes of the logs, once they are on the disk."""
    return {
      'metrics': self.metrics.offset(),
      'rollouts': self.rollouts.offset(),
      'alarms': self.alarms.offset(),
    }

  def rewind(self, position: dict[str, int] | None) -> None:
    """Drops what was logged after a checkpoint.

    Args:
      position: as the checkpoint holds it; None: drop everything.
    """
    position = position or {'metrics': 0, 'rollouts': 0}
    self.metrics.truncate(position['metrics'])
    self.rollouts.truncate(position['rollouts'])
    # Checkpoints from before there were alarms do not know of them.
    self.alarms.truncate(position.get('alarms', 0))

  def history(self) -> list[dict[str, Any]]:
    """Returns the records of the run so far, by step.

    The evaluation before training comes first, as that of step 0, under the
    names that the later ones have in `metrics.jsonl`.
    """
    base = _evaluation(self.read_eval(), 'base')
    return [{'step': 0, **base}, *read_json_lines(self.metrics.path)]

  def final_record(self, step: int) -> dict[str, Any]:
    """Returns the evaluation after training in the form of `history`.

    Args:
      step: the last one.
    """
    return {'step': step, **_evaluation(self.read_eval(), 'final')}

  def read_eval(self) -> dict[str, Any]:
    """Returns what `eval.json` holds; empty when there is none."""
    file = self.path / 'eval.json'
    return json.loads(file.read_text()) if file.exists() else {}

  def has_eval(self, when: str) -> bool:
    """Tells whether `eval.json` holds the evaluation of that moment."""
    return any(name.startswith(f'{when}/') for name in self.read_eval())

  def add_eval(
    self,
    when: str,
    flat: dict[str, float],
    questions: dict[str, Any],
    step: int | None = None,
  ) -> None:
    """Adds one evaluation to `eval.json` and `eval_questions.json`.

    Args:
      when: `base`, `final` or `best`.
      flat: `SET/METRIC` to number.
      questions: set to its values per question.
      step: written as `WHEN_step`, where it is not plain.
    """
    detail = self.path / 'eval_questions.json'
    old = json.loads(detail.read_text()) if detail.exists() else {}
    new = {f'{when}/{name}': value for name, value in questions.items()}
    # The detail first: eval.json says that an evaluation is complete.
    write_json_atomic(detail, _without(old, when) | new, indent=None)
    new = {f'{when}/{name}': value for name, value in flat.items()}
    if step is not None:
      new[f'{when}_step'] = step
    write_json_atomic(
      self.path / 'eval.json', _without(self.read_eval(), when) | new
    )

  def drop_eval(self, when: str) -> None:
    """Removes an evaluation that no longer holds, if it is there.

    Args:
      when: as for `add_eval`.
    """
    if self.has_eval(when):
      write_json_atomic(
        self.path / 'eval.json', _without(self.read_eval(), when)
      )

  def rewind_credit(self, steps: Container[int]) -> None:
    """Cuts `credit.jsonl` off at the first record of another step.

    Not by position: what a shorter run saw at its last step is in its
    checkpoint's past, but not in that of the longer one it becomes.

    Args:
      steps: whose records are kept.
    """
    kept = 0
    with open(self.credit.path, 'rb') as file:
      for line in file:
        if json.loads(line)['step'] not in steps:
          break
        kept += len(line)
    self.credit.truncate(kept)

  def close(self) -> None:
    """Closes the logs."""
    self.metrics.close()
    self.rollouts.close()
    self.alarms.close()
    self.credit.close()
    self._unlock()


_locks: dict[Path, tuple[TextIO, int]] = {}
"""The locks of this process: the open file, and how many hold it."""


def _lock(path: Path) -> None:
  """Locks a file for this process: two in one folder would mix their logs.

  For the process, not for the caller: a notebook whose run was interrupted may
  go on with it. The file is opened once, because a lock of POSIX ends when ANY
  descriptor of its file is closed.
  """
  if path in _locks:
    file, holders = _locks[path]
    _locks[path] = file, holders + 1
    return
  file = open(path, 'a+', encoding='utf-8')
  try:
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    # Other errors: a file system without locks.
    if error.errno in (errno.EACCES, errno.EAGAIN):
      file.seek(0)
      owner = file.read().strip()
      file.close()
      raise WorkdirError(
        f'--workdir={path.parent} is in use: process {owner} is running in '
        'it. Wait for it, end it, or choose another folder.'
      ) from None
  file.truncate(0)
  file.write(f'{os.getpid()}\n')
  file.flush()
  _locks[path] = file, 1


def _unlock(path: Path) -> None:
  file, holders = _locks.pop(path)
  if holders > 1:
    _locks[path] = file, holders - 1
  else:
    file.close()


def _evaluation(values: dict[str, Any], when: str) -> dict[str, Any]:
  return {
    f'eval/{name.removeprefix(f"{when}/")}': value
    for name, value in values.items()
    if name.startswith(f'{when}/')
  }


def _without(values: dict[str, Any], when: str) -> dict[str, Any]:
  mine = f'{when}/', f'{when}_step'
  return {k: v for k, v in values.items() if not k.startswith(mine)}


def measured(resolved: dict[str, Any]) -> dict[str, Any]:
  """Returns what the numbers of an evaluation depend on.

  Args:
    resolved: a config as it stands in `config.json`.
  """
  return {k: v for k, v in resolved['eval'].items() if k not in NOT_MEASURED}


def _check_steps(path: Path, num_steps: int) -> None:
  """Raises when the folder's run is already longer than it is to be."""
  names = (step.name for step in (path / 'checkpoints').glob('*'))
  done = max((int(name) for name in names if name.isdigit()), default=0)
  if done > num_steps:
    raise WorkdirError(
      f'--workdir={path} has trained {done} steps, train.num_steps is '
      f'{num_steps}. Choose {done} or more, or another folder.'
    )


def _check_same_run(file: Path, resolved: dict[str, Any]) -> dict[str, Any]:
  """Returns the folder's config if it agrees in all that matters."""
  try:
    old = config_dict.from_config_dict(json.loads(file.read_text()))
  except ValueError as error:
    raise WorkdirError(
      f'{file} is not readable as a config ({error}). It says which run the '
      'folder holds: restore it, or choose another --workdir.'
    ) from error
  # With the defaults of options that are newer than the folder.
  old = config_dict.to_json(old)
  new_flat, old_flat = map(config_check.flatten, (resolved, old))
  fixed = set()
  if new_flat.get('optimizer.schedule') == 'cosine':
    fixed.add('train.num_steps')
  differing = [
    f'{name}: {old_flat.get(name)!r} there, {new_flat.get(name)!r} now'
    for name in sorted(old_flat.keys() | new_flat.keys())
    if (name in fixed or not name.startswith(FREE_TO_CHANGE))
    and old_flat.get(name) != new_flat.get(name)
  ]
  if differing:
    raise WorkdirError(
      f'--workdir={file.parent} holds a run of another config '
      f'({"; ".join(differing)}). Choose another folder, or give the options '
      'the run was started with.'
    )
  return old
