"""A run's folder: its config, its logs, and going back to a checkpoint."""

import dataclasses
import json
import os
import weakref
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any

from sdjax.config import check as config_check
from sdjax.config import convert as config_dict
from sdjax.config import schema as config_lib
from sdjax.data.json_files import JsonLines, read_json_lines, write_json_atomic
from sdjax.training import folder_lock
from sdjax.training.log import MetricsLog

FREE_TO_CHANGE = (
  'print',
  'mode',
  'model.path',
  'model.remat',
  'data.over_length',
  'reward.workers',
  'rollout.max_context',
  'rollout.context_buckets',
  'loss.chunk',
  'train.num_steps',
  'train.micro_batches',
  'train.eval_every',
  'train.checkpoint_every',
  'train.keep_checkpoints',
  'train.compilation_cache',
  'mesh.',
  'eval.',
  'alarm.',
)
"""Options, or whole sections, a run may be continued with other values of.

None of them enters the mathematics of a step. Widths, chunks, micro-batches,
what is recomputed and the mesh enter its rounding: sums are taken in another
order, so that a run which goes on with other ones is no longer the same to the
last bit.

Not free are the number of steps under a schedule that depends on it, and ever
below those that are done; the width, and what becomes of longer questions, in
a run that skips or truncates them; and weights other than those that the run
began with, wherever they lie.
"""

EVALUATED = ('seed', 'model', 'task', 'data', 'eval')
"""What an evaluation of a run depends on; the rest may be anything."""

NOT_MEASURED = ('during', 'batch_questions', 'save_samples')
"""Options of `eval` that say nothing of how samples are drawn and counted.

Evaluations of steps, which `metrics.jsonl` logs, stay as they were drawn.
"""


class WorkdirError(ValueError):
  """A folder that this run cannot use."""


ORIGIN = 'origin.json'


def full_name(function: Callable[..., Any]) -> str:
  """Returns the module and the name of a function, or of what is called."""
  inner = getattr(function, 'func', function)  # of a functools.partial
  name = getattr(inner, '__qualname__', type(inner).__qualname__)
  return f'{inner.__module__}.{name}'


@dataclasses.dataclass(frozen=True)
class Origin:
  """What a run is begun with and its config does not hold.

  The fingerprint of the weights, and the full name of the method that `train`
  was given; empty: the config names one.
  """

  weights: str = ''
  method: str = ''


class Workdir:
  """Opens a run's folder and its logs, or refuses it before it is touched."""

  def __init__(
    self,
    path: str | Path,
    config: config_lib.Config,
    origin: Origin | None = None,
  ):
    """Makes the folder, or checks that it belongs to the same run.

    From here on it belongs to this run: whoever has something to build that
    may fail does that before, and `check_folder` before that.

    Raises:
      WorkdirError: the folder cannot be written, or holds a run of another
        config, from other weights or of more steps.
      InUseError: another process is at work in it.
    """
    self.path = Path(path)
    try:
      self.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise WorkdirError(
        f'--workdir={path} cannot be made: {error}. Choose a folder you may '
        'write to.'
      ) from error
    old = check_folder(self.path, config, origin)
    lock = (self.path / '.lock').resolve()
    folder_lock.lock(lock)
    self._unlock = weakref.finalize(self, folder_lock.unlock, lock)
    resolved, file = config_dict.to_json(config), self.path / 'config.json'
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
    if origin is not None:
      begun = dataclasses.asdict(origin)
      if config.mode != 'train':
        del begun['method']
      write_json_atomic(self.path / ORIGIN, begun | _read(self.path / ORIGIN))
    self.metrics = MetricsLog(self.path / 'metrics.jsonl')
    self.rollouts = JsonLines(self.path / 'rollouts.jsonl')
    self.alarms = JsonLines(self.path / 'alarms.jsonl')
    self.credit = JsonLines(self.path / 'credit.jsonl')

  def position(self) -> dict[str, int]:
    """Returns the sizes of the logs, once they are on the disk."""
    names = 'metrics', 'rollouts', 'alarms'
    return {name: getattr(self, name).offset() for name in names}

  def rewind(self, position: dict[str, int] | None) -> None:
    """Drops what was logged after a checkpoint's position; None: everything."""
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

  def evaluated(self) -> int:
    """Returns the step of the newest evaluation in `history`."""
    return max(
      record['step']
      for record in self.history()
      if record['step'] == 0 or any(k.startswith('eval/') for k in record)
    )

  def final_record(self, step: int) -> dict[str, Any]:
    """Returns the evaluation after training, the last step, as `history`."""
    return {'step': step, **_evaluation(self.read_eval(), 'final')}

  def read_eval(self) -> dict[str, Any]:
    """Returns what `eval.json` holds; empty when there is none."""
    return _read(self.path / 'eval.json')

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
    """Adds the evaluation `base`, `final` or `best` to the folder's two files.

    A step is written as `WHEN_step`, where it is not plain.
    """
    detail = self.path / 'eval_questions.json'
    new = {f'{when}/{name}': value for name, value in questions.items()}
    # The detail first: eval.json says that an evaluation is complete.
    write_json_atomic(detail, _without(_read(detail), when) | new, indent=None)
    new = {f'{when}/{name}': value for name, value in flat.items()}
    if step is not None:
      new[f'{when}_step'] = step
    write_json_atomic(
      self.path / 'eval.json', _without(self.read_eval(), when) | new
    )

  def drop_eval(self, when: str) -> None:
    """Removes an evaluation that no longer holds, if it is there."""
    if self.has_eval(when):
      write_json_atomic(
        self.path / 'eval.json', _without(self.read_eval(), when)
      )

  def rewind_credit(self, steps: Container[int]) -> None:
    """Cuts `credit.jsonl` off at the first record of a step not among these.

    Not by position: what a shorter run saw at its last step is in its
    checkpoint's past, but not in that of the longer one it becomes.
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
    for log in (self.metrics, self.rollouts, self.alarms, self.credit):
      log.close()
    self._unlock()


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
  """Returns what an evaluation depends on, of what `config.json` holds."""
  numbers = {k: v for k, v in resolved['eval'].items() if k not in NOT_MEASURED}
  # Of a release that had no such section: too long a question was an error.
  over_length = resolved.get('data', {}).get('over_length', 'error')
  if over_length == 'error':
    numbers.pop('max_context')
    return numbers
  return numbers | {'over_length': over_length}


def check_folder(
  path: str | Path,
  config: config_lib.Config,
  origin: Origin | None = None,
) -> dict[str, Any] | None:
  """Refuses a folder that a run cannot use, and touches nothing.

  What the run begins with is None where it is not known yet. Returns the
  config of the run in the folder; None where there is none.

  Raises:
    WorkdirError: as `Workdir`.
  """
  path = Path(path)
  there = next(
    (x for x in (path, *path.absolute().parents) if x.exists()), path
  )
  if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
    what = 'is no folder' if not there.is_dir() else 'cannot be written to'
    if there != path:
      what = f'cannot be made: {there} {what}'
    raise WorkdirError(
      f'--workdir={path} {what}. Choose another folder or change its '
      'permissions.'
    )
  file = path / 'config.json'
  if not file.exists():
    return None
  old = _check_same_run(file, config)
  if config.mode in ('train', 'pretrain'):
    _check_steps(path, config.train.num_steps)
  if origin is not None:
    _check_origin(path, config, origin, old)
  return old


def _check_steps(path: Path, num_steps: int) -> None:
  names = (step.name for step in (path / 'checkpoints').glob('*'))
  done = max((int(name) for name in names if name.isdigit()), default=0)
  if done > num_steps:
    raise WorkdirError(
      f'--workdir={path} has trained {done} steps, train.num_steps is '
      f'{num_steps}. Choose {done} or more, or another folder.'
    )


def _check_same_run(file: Path, config: config_lib.Config) -> dict[str, Any]:
  """Returns the folder's config if it agrees in all that matters."""
  new, evaluates = config_dict.to_json(config), config.mode == 'eval'
  names = EVALUATED if evaluates else tuple(new)
  try:
    found = json.loads(file.read_text())
    # With the defaults of options that are newer than the folder. An
    # evaluation leaves alone what it does not need: a method, say, that only
    # the program knows which trained by it.
    old = found | config_dict.read_like(found, config, names)
  except ValueError as error:
    raise WorkdirError(
      f'{file} is not readable as a config ({error}). It says which run the '
      'folder holds: restore it, or choose another --workdir. A run begun by '
      'an earlier version of sdjax, which spelt options otherwise, goes on '
      'with that version only.'
    ) from error
  new_flat, old_flat = (
    config_check.flatten({k: v for k, v in x.items() if k in names})
    for x in (new, old)
  )
  # An evaluation leaves the options of the training as they are.
  fixed = _fixed(old) | ({'data.over_length'} if evaluates else set())
  differing = [
    f'{name}: {old_flat.get(name)!r} there, {new_flat.get(name)!r} now'
    for name in sorted(old_flat.keys() | new_flat.keys())
    if (name in fixed or not _is_free(name))
    and old_flat.get(name) != new_flat.get(name)
  ]
  if differing:
    raise WorkdirError(
      f'--workdir={file.parent} holds a run of another config '
      f'({"; ".join(differing)}). Choose another folder, or give the options '
      'the run was started with.'
    )
  return old


def _is_free(name: str) -> bool:
  section = name.partition('.')[0] + '.'
  return name in FREE_TO_CHANGE or section in FREE_TO_CHANGE


def _fixed(old: dict[str, Any]) -> set[str]:
  """Options that are free in other runs, but not in this one."""
  fixed = set()
  if old.get('optimizer', {}).get('schedule') == 'cosine':
    fixed.add('train.num_steps')
  if old.get('data', {}).get('over_length', 'error') != 'error':
    fixed |= {'data.over_length', 'rollout.max_context'}
  return fixed


def _read(file: Path) -> dict[str, Any]:
  return json.loads(file.read_text()) if file.exists() else {}


def _check_origin(
  path: Path,
  config: config_lib.Config,
  origin: Origin,
  old: dict[str, Any],
) -> None:
  known = _read(path / ORIGIN)
  was = (old.get('model') or {}).get('path')
  now = config.model.path if config.model else None
  # A folder of a release that kept no fingerprint is known by the path alone.
  if known.get('weights', origin.weights) != origin.weights or (
    'weights' not in known and was != now
  ):
    raise WorkdirError(
      f'--workdir={path} holds a run that began from other weights than '
      f'model.path={now!r} has (it had them from {was!r}). Give the weights '
      'it began with, or choose another folder.'
    )
  method = known.get('method', origin.method)
  if config.mode == 'train' and method != origin.method:
    there, here = (
      f'method={x}' if x else 'the method of its config'
      for x in (method, origin.method)
    )
    raise WorkdirError(
      f'--workdir={path} holds a run that was trained by {there}, and is now '
      f'asked to go on by {here}. Call sdjax.train with the method it was '
      'started with, or choose another folder.'
    )
