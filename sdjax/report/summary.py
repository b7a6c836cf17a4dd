"""Each method in one line: where it began and where it ended."""

from collections.abc import Sequence

from sdjax.report import runs as runs_lib
from sdjax.report.tables import Table
from sdjax.report import marks
from sdjax.report import page
from sdjax.report import plane

TO = '&rarr;'


def section(groups: Sequence[runs_lib.Group], tables: Sequence[Table]) -> str:
  """Returns the lines as HTML, to stand below the title; '' without numbers.

  Args:
    groups: the methods.
    tables: of `sdjax.report.tables.tables_of`.
  """
  if not tables or not tables[0].points:
    return ''
  first, last = tables[0], plane.last_of(tables)
  accuracy = f'pass@{first.points[0]}'
  wanted = [
    (first.name, accuracy, ''),
    (first.name, 'concepts_correct', 'concepts '),
  ]
  read = f'{accuracy} and concepts in correct answers, {page.words(first.name)}'
  if last.points:
    reach = f'pass@{last.points[-1]}'
    wanted.append((last.name, reach, f'{page.words(last.name)} {reach} '))
  labels = marks.labels(groups)
  items = ''.join(
    f'<li>{labels[one.label]}: '
    f'{"; ".join(name + _change(one, at, m) for at, m, name in wanted)}'
    f'{_seeds(one)}</li>'
    for one in groups
  )
  return (
    f'<ul class="short">{items}</ul><p>Before {TO} after training: {read}.</p>'
  )


def _change(one: runs_lib.Group, name: str, metric: str) -> str:
  ends = []
  for stage in ('base', 'final'):
    values = one.values(f'{stage}/{name}/{metric}')
    ends.append(f'{values.mean():.2f}' if values.size else '?')
  return f' {TO} '.join(ends)


def _seeds(one: runs_lib.Group) -> str:
  number = len(one.runs)
  return f' (mean of {page.count(number, "seed")})' if number > 1 else ''
