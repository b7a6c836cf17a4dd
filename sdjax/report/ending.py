"""What a run that ends says of itself: its result in a few lines."""

import shlex
from pathlib import Path

from sdjax.report import runs as runs_lib

COLUMNS = {
  'concepts_correct': 'concepts',
  'distinct_paths': 'solutions',
}
"""Measures beside pass@k, and what they are called."""


def result(workdir: Path, watched: bool = True) -> str:
  """Says what a run reached.

  Args:
    workdir: its folder, with the evaluations before and after training.
    watched: whether alarms were on.

  Returns:
    A table, base -> final by evaluation set; each alarm in a line; and the
    command that makes the report. A number that is missing is a `?`.
  """
  run, _ = runs_lib.load(workdir)
  lines = []
  if run is not None:
    lines += _table(run)
    step = run.evals.get('best_step')
    if step is not None:
      lines.append(f'best step: {step:.0f}, kept in checkpoints_best/')
  alarms = run.alarms if run is not None else []
  lines += [
    f'ALARM at step {alarm.get("step")}: '
    f'{_line(alarm.get("cause", alarm.get("text", "")))}'
    for alarm in alarms
  ] or [f'alarms: {"none" if watched else "off"}']
  if alarms:
    lines.append(f'what to try: {workdir / "alarms.jsonl"}')
  return '\n'.join([*lines, f'report: {command(workdir)}'])


def command(workdir: Path) -> str:
  """Returns what to type for the report on a run."""
  folder, out = map(shlex.quote, (str(workdir), str(workdir / 'report')))
  return f'python -m sdjax.report {folder} --out={out}'


def _table(run: runs_lib.Run) -> list[str]:
  one = runs_lib.Group(run.label, run.variant, (run,))
  names = runs_lib.sets_of([one])
  points = [k for n in names for k in runs_lib.curve_points([one], n)]
  ends = [f'pass@{k}' for k in (1, *points[-1:])]
  metrics = dict(zip(ends, ends, strict=True)) | COLUMNS
  rows = [['base -> final', *metrics.values()]]
  rows += [[n, *(_change(run, n, metric) for metric in metrics)] for n in names]
  if len(rows) == 1:
    return []
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return [
    '  '.join(
      cell.ljust(width) for cell, width in zip(row, widths, strict=True)
    ).rstrip()
    for row in rows
  ]


def _change(run: runs_lib.Run, name: str, metric: str) -> str:
  stages = 'base', 'final'
  values = (run.evals.get(f'{stage}/{name}/{metric}') for stage in stages)
  return ' -> '.join('?' if v is None else f'{v:.2f}' for v in values)


def _line(text: object) -> str:
  return ' '.join(str(text).split())
