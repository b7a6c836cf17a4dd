"""Reads what runs left in their folders, and merges the seeds of a method."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.data.json_files import parse, read_json_lines

_SEED = re.compile(r'(?P<label>.*?)[-_.](?:seed|s)[-_]?\d+')
_ONLY_SEED = re.compile(r'(?:seed|s)[-_]?\d+')

ORIGIN = 'run.json'
"""When a run was started, and of which code; see `sdjax.report.origin`."""

BASE = 'base'
"""Label of the model before training, in every table and picture."""

Notes = list[str]
"""What was missing or odd; shown to the user, never fatal by itself."""


@dataclasses.dataclass(frozen=True)
class Run:
  """One run's folder; a file of it that is missing is empty here.

  `label` is its name without a trailing seed, see `label_of`; `variant` the
  method by its options, see `variant_of`. `evals` and `questions` are
  `eval.json` and `eval_questions.json`, `starts` what `run.json` says of when
  the run began and went on; the others are the files of their names, of
  `rollouts` only the records of the first and the last step.
  """

  workdir: Path
  label: str
  variant: str = ''
  seed: int | None = None
  config: dict[str, Any] = dataclasses.field(default_factory=dict)
  metrics: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  evals: dict[str, float] = dataclasses.field(default_factory=dict)
  questions: dict[str, Any] = dataclasses.field(default_factory=dict)
  rollouts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  alarms: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  credit: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  starts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

  @property
  def options(self) -> dict[str, Any]:
    """The configuration by dotted names."""
    return flat_options(self.config)

  def series(self, key: str) -> dict[int, float]:
    """Returns a metric's value at each step that has one; the last counts."""
    return {
      record['step']: record[key]
      for record in self.metrics
      if isinstance(record.get(key), (int, float))
    }

  def evaluations(self, name: str, measure: str) -> dict[int, float]:
    """Returns a measure of an evaluation set at the steps it was taken.

    The evaluations before and after training belong to it: they stand in
    `eval.json` and are put at step 0 and at the last step of `metrics.jsonl`.
    """
    series = self.series(f'eval/{name}/{measure}')
    steps = [record['step'] for record in self.metrics]
    ends = {0: 'base', max(steps, default=0): 'final'}
    for step, stage in ends.items():
      value = self.evals.get(f'{stage}/{name}/{measure}')
      if series and value is not None:
        series.setdefault(step, value)
    return series


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of one label, at least one: one method under several seeds.

  The variant is that of its runs, for its colour.
  """

  label: str
  variant: str
  runs: tuple[Run, ...]

  def band(self, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns a metric over training, over the steps that all seeds have.

    Of a metric such as `train/reward` or `eval/SET/MEASURE`: int [S], the
    steps, rising, and float64 [runs, S], the values; S is 0 when a run does
    not have the metric.
    """
    stage, _, rest = key.partition('/')
    name, _, measure = rest.partition('/')
    series = [
      run.evaluations(name, measure) if stage == 'eval' else run.series(key)
      for run in self.runs
    ]
    steps = sorted(set.intersection(*(set(one) for one in series)))
    values = [[one[step] for step in steps] for one in series]
    return np.asarray(steps, int), np.asarray(values, np.float64)

  def values(self, key: str) -> np.ndarray:
    """Returns a value of `eval.json` in each run that has it."""
    found = (run.evals.get(key) for run in self.runs)
    return np.asarray([value for value in found if value is not None])


Groups = Sequence[Group]
"""The methods that are compared."""


def label_of(workdir: Path) -> str:
  """Returns a folder's name without its seed, which is the same for all seeds.

  A trailing `_s1`, `-s1`, `_seed1`, `-seed-1` (and the like after a dot) is
  dropped; a folder that is called only `s1` or `seed1` takes its parent's
  name.
  """
  name = workdir.resolve().name
  if _ONLY_SEED.fullmatch(name):
    return workdir.resolve().parent.name or name
  match = _SEED.fullmatch(name)
  return match['label'] if match and match['label'] else name


def variant_of(config: dict[str, Any]) -> str:
  """Names a run's method by the options that set it apart.

  `sd`, `sd_k3` (three demonstrations a rollout), `rl`, `rl_diversity`, or
  another method's name; '' when the configuration does not tell.
  """
  options = flat_options(config)
  name = options.get('method.name')
  count = options.get('method.demonstrations.count', 1)
  if name == 'sd' and count != 1:
    return f'sd_k{count}'
  # Before `diversity` had options, its weight was one of the method's.
  weight = options.get('method.diversity_weight')
  if name == 'rl' and (
    weight or options.get('method.diversity', 'none') != 'none'
  ):
    return 'rl_diversity'
  return '' if name is None else str(name)


def flat_options(config: dict[str, Any], prefix: str = '') -> dict[str, Any]:
  """Returns a nested configuration by dotted names, `train.num_steps`."""
  flat = {}
  for key, value in config.items():
    if isinstance(value, dict):
      flat |= flat_options(value, f'{prefix}{key}.')
    else:
      flat[prefix + key] = value
  return flat


def load(workdir: Path) -> tuple[Run | None, Notes]:
  """Reads a run's folder.

  Returns the run, None when it has neither metrics nor an evaluation, and a
  note on every file that is missing or cannot be read; alarms and credit may
  be missing.
  """
  if not workdir.is_dir():
    return None, [f'{workdir}: no such folder; the run is left out.']
  notes: Notes = []

  def read(
    name: str,
    lost: str,
    reader: Any = read_json_lines,
    optional: bool = False,
  ) -> Any:
    try:
      found = reader(workdir / name)
      value = found if reader is read_object else list(found)
      if value or optional or value == {}:
        return value
      problem = 'is empty'
    except FileNotFoundError:
      problem = '' if optional else 'is missing'
    except (OSError, ValueError) as error:
      problem = f'cannot be read ({error})'
    if problem:
      notes.append(f'{workdir}: {name} {problem}; {lost}.')
    return {} if reader is read_object else []

  def sound(path: Path) -> Iterator[dict]:
    odd = 0
    for record in read_json_lines(path):
      if _is_rollout(record):
        yield record
      else:
        odd += 1
    if odd:
      notes.append(
        f'{workdir}: {odd} lines of {path.name} have fields of another kind '
        'than a rollout has; they are not shown.'
      )

  lost = 'its method and seed are not known'
  config = read('config.json', lost, read_object)
  records = read('metrics.jsonl', 'its training is not shown')
  metrics = [r for r in records if isinstance(r.get('step'), int)]
  evals = read('eval.json', 'it has no row in the tables', read_object)
  if not metrics and not evals:
    return None, [*notes, f'{workdir}: nothing to show; the run is left out.']
  lost = 'its numbers have no intervals'
  questions = read('eval_questions.json', lost, read_object)
  missing = sorted(name for name, value in evals.items() if value is None)
  if missing:
    notes.append(f'{workdir}: eval.json has no number for {missing[0]}.')
  seed = config.get('seed')
  run = Run(
    workdir=workdir,
    label=label_of(workdir),
    variant=variant_of(config),
    seed=seed if isinstance(seed, int) else None,
    config=config,
    metrics=metrics,
    evals={k: v for k, v in evals.items() if isinstance(v, (int, float))},
    questions={k: v for k, v in questions.items() if isinstance(v, dict)},
    rollouts=read(
      'rollouts.jsonl',
      'no samples of it are shown',
      lambda path: _first_and_last_step(sound(path)),
    ),
    alarms=read('alarms.jsonl', 'its alarms are not shown', optional=True),
    credit=read('credit.jsonl', 'no credit is shown', sound, optional=True),
    starts=starts(workdir),
  )
  return run, notes


def starts(workdir: Path) -> list[dict[str, Any]]:
  """Reads when a run began and went on; [] where `run.json` does not tell."""
  try:
    listed = read_object(workdir / ORIGIN).get('starts')
  except (OSError, ValueError):
    return []
  listed = listed if isinstance(listed, list) else []
  return [start for start in listed if isinstance(start, dict)]


def read_object(path: Path) -> dict[str, Any]:
  """Reads a file that holds one JSON object; ValueError for anything else."""
  value = parse(path.read_text(encoding='utf-8'))
  if not isinstance(value, dict):
    raise ValueError(f'it holds a {type(value).__name__}, not an object')
  return value


def group(runs: Sequence[Run]) -> tuple[list[Group], Notes]:
  """Merges runs of the same label, in the order given.

  Runs that share label AND seed are not seeds of one method but different
  experiments: they are told apart by their parent folder's name. Returns the
  groups, and notes on runs that do not belong together.
  """
  by_label: dict[str, list[Run]] = {}
  for run in runs:
    # The model before training is called `base` everywhere.
    label = 'base (run)' if run.label == BASE else run.label
    by_label.setdefault(label, []).append(run)
  for label, members in list(by_label.items()):
    if _seed_twice(members):
      del by_label[label]
      for run in members:
        name = f'{run.workdir.resolve().parent.name}/{label}'
        by_label.setdefault(name, []).append(run)
  groups, notes = [], []
  for label, members in by_label.items():
    groups.append(Group(label, members[0].variant, tuple(members)))
    first = members[0].options
    for run in members[1:]:
      other = run.options
      differs = [
        key
        for key in sorted(first | other)
        if first.get(key) != other.get(key) and key != 'seed'
      ]
      if first and other and differs:
        notes.append(
          f'{run.workdir} is merged with {members[0].workdir} as {label!r}, '
          f'but differs in {", ".join(differs[:6])}.'
        )
    if seeds := _seed_twice(members):
      notes.append(f'{label!r} has a seed twice: {seeds}.')
  return groups, notes


def _seed_twice(runs: Sequence[Run]) -> list[int]:
  """The runs' seeds if one is there twice, else []."""
  seeds = [run.seed for run in runs if run.seed is not None]
  return seeds if len(set(seeds)) < len(seeds) else []


def everyone(groups: Groups) -> Group:
  """Returns all runs as those of the model before training."""
  return Group(BASE, BASE, tuple(run for one in groups for run in one.runs))


def logged(groups: Groups, start: str) -> list[str]:
  """Returns the names of metrics that begin so, in order of appearance."""
  records = (r for run in everyone(groups).runs for r in run.metrics)
  keys = dict.fromkeys(key for record in records for key in record)
  return [key for key in keys if key.startswith(start)]


def sets_of(groups: Groups) -> list[str]:
  """Returns the names of the evaluation sets, in order of appearance."""
  keys = (key for run in everyone(groups).runs for key in run.evals)
  return list(
    dict.fromkeys(key.split('/')[1] for key in keys if key.count('/') >= 2)
  )


def curve_points(groups: Groups, name: str) -> list[int]:
  """Returns the k for which a set has a pass@k, rising."""
  pattern = re.compile(rf'[^/]+/{re.escape(name)}/pass@(\d+)')
  keys = (key for run in everyone(groups).runs for key in run.evals)
  return sorted({int(m[1]) for m in map(pattern.fullmatch, keys) if m})


def _is_rollout(record: dict[str, Any]) -> bool:
  kinds = {
    'step': int,
    'question_id': str | int,
    'concepts': list,
    'demonstrations': list,
  }
  return all(
    isinstance(record.get(name), kind | None) for name, kind in kinds.items()
  )


def _first_and_last_step(records: Iterator[dict]) -> list[dict]:
  # A long run's file is large: only what is shown is kept while reading.
  first: list[dict] = []
  last: list[dict] = []
  for record in records:
    if not first or record.get('step') == first[0].get('step'):
      first.append(record)
    elif last and record.get('step') == last[0].get('step'):
      last.append(record)
    else:
      last = [record]
  return first + last
