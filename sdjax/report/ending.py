"""What runs came to, in a few lines: as one ends, and on top of a report."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from sdjax.report import page, plane
from sdjax.report import runs as runs_lib
from sdjax.report.looks import looks as looks_of
from sdjax.report.tables import Table

COLUMNS = {
  'concepts_correct': 'concepts',
  'distinct_paths': 'solutions',
}
"""Measures beside pass@k, and what they are called."""


def result(workdir: Path, watched: bool = True) -> str:
  """Says what a run reached; a number that is missing is a `?`.

  Returns a table of its evaluations, base -> final by set; each alarm in a
  line, where alarms were on; and the command that makes the report.
  """
  run = runs_lib.load(workdir)[0] or runs_lib.Run(workdir, '')
  lines = _table(run)
  if (step := run.evals.get('best_step')) is not None:
    lines.append(f'best step: {step:.0f}, kept in checkpoints_best/')
  lines += [
    f'ALARM at step {alarm.get("step")}: '
    f'{_line(alarm.get("cause", alarm.get("text", "")))}'
    for alarm in run.alarms
  ] or [f'alarms: {"none" if watched else "off"}']
  if run.alarms:
    lines.append(f'what to try: {workdir / "alarms.jsonl"}')
  return '\n'.join([*lines, f'report: {command(workdir)}'])


def command(workdir: Path) -> str:
  """Returns what to type for the report on a run."""
  folder, out = map(shlex.quote, (str(workdir), str(workdir / 'report')))
  return f'python -m sdjax.report {folder} --out={out}'


def section(groups: runs_lib.Groups, tables: Sequence[Table]) -> str:
  """Returns a line a method, to stand below the title; '' without numbers."""
  if not tables or not tables[0].points:
    return ''
  first, last = tables[0], plane.last_of(tables)
  accuracy = f'pass@{first.points[0]}'
  wanted = [
    (first.name, accuracy, ''),
    (first.name, 'concepts_correct', 'concepts '),
  ]
  if last.points:
    reach = f'pass@{last.points[-1]}'
    wanted.append((last.name, reach, f'{page.words(last.name)} {reach} '))
  looks = looks_of(groups)
  lines = [
    (
      looks[one.label],
      [(words, *_ends(one, name, metric)) for name, metric, words in wanted],
      len(one.runs),
    )
    for one in groups
  ]
  return page.render(
    'summary.html', lines=lines, accuracy=accuracy, set=first.name
  )


def _table(run: runs_lib.Run) -> list[str]:
  one = runs_lib.Group(run.label, run.variant, (run,))
  names = runs_lib.sets_of([one])
  points = [k for n in names for k in runs_lib.curve_points([one], n)]
  ends = [f'pass@{k}' for k in (1, *points[-1:])]
  metrics = dict(zip(ends, ends, strict=True)) | COLUMNS
  rows = [['base -> final', *metrics.values()]]
  rows += [
    [name, *(' -> '.join(_ends(one, name, metric)) for metric in metrics)]
    for name in names
  ]
  if len(rows) == 1:
    return []
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _ends(one: runs_lib.Group, name: str, metric: str) -> list[str]:
  """Returns a number before and after training, over the seeds."""
  ends = []
  for stage in ('base', 'final'):
    values = one.values(f'{stage}/{name}/{metric}')
    ends.append(f'{values.mean():.2f}' if values.size else '?')
  return ends


def _line(text: object) -> str:
  return ' '.join(str(text).split())
