"""Compares runs: `python -m sdjax.report runs/sd runs/rl ... --out=report`.

Writes into the folder `--out` index.html, one self-contained page; table.md,
its table of results; and its pictures as pass_at_k.png, diversity.png and
training.png. A missing or broken file of a run costs its part of the report
and is named in it.
"""

import argparse
import base64
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sdjax.config import convert
from sdjax.config.schema import METHODS
from sdjax.report import (
  alarms,
  browser,
  credit,
  ending,
  forecast,
  page,
  plane,
  plots,
  provenance,
)
from sdjax.report import runs as runs_lib
from sdjax.report import tables as tables_lib
from sdjax.report.looks import looks as looks_of


class ReportError(Exception):
  """There is nothing to report on."""


def write_report(
  workdirs: Sequence[Path],
  out: Path,
  title: str = 'Runs compared',
  resamples: int = 1000,
  shown_questions: int | None = None,
  forecasts: Sequence[Path] = (),
) -> runs_lib.Notes:
  """Writes the report on some runs' folders into a folder, made if need be.

  There are so many resamples of each bootstrap interval, 0: no intervals.
  `shown_questions` of the first and of the last logged step of a run can be
  browsed, None: all logged. `forecasts` are folders with a forecast, or its
  file, for runs that have none of their own.

  Returns notes on what was missing or odd, which are in the page too. Raises
  ReportError when no run can be read, naming what each one lacks.
  """
  notes: runs_lib.Notes = []
  found, sources = [], []
  workdirs = list(dict.fromkeys(Path(path) for path in workdirs))
  for path in dict.fromkeys([*workdirs, *map(Path, forecasts)]):
    source, its_notes = forecast.read(path)
    notes += its_notes
    if source:
      sources.append(source)
    elif path not in workdirs and not its_notes:
      notes.append(f'{path}: no {forecast.FILE} there.')
  for workdir in workdirs:
    run, its_notes = runs_lib.load(workdir)
    if run is None and any(s.folder == workdir for s in sources):
      continue  # only a forecast
    notes += its_notes
    if run is not None:
      found.append(run)
      notes += tables_lib.inconsistencies(run)
  if not found:
    raise ReportError('\n'.join(['no run can be read:', *notes]))
  groups, group_notes = runs_lib.group(found)
  notes += group_notes
  starts = {run.options.get('model.path') for run in found}
  if len(starts - {None}) > 1:
    notes.append(
      'the runs started from different models, so the row and line `base` '
      f'are a mean over them: {", ".join(sorted(map(str, starts)))}.'
    )
  out.mkdir(parents=True, exist_ok=True)
  tables = tables_lib.tables_of(groups, resamples)
  pictures = {
    name: {theme: draw(groups, theme) for theme in plots.THEMES}
    for name, draw in plots.FIGURES.items()
  }
  for name, by_theme in pictures.items():
    path = out / f'{name}.png'
    if by_theme['light'] is not None:
      path.write_bytes(by_theme['light'])
    else:
      # A picture of an earlier report would pass for one of these runs.
      path.unlink(missing_ok=True)
      notes.append(f'{name}.png is not drawn: no run has the numbers for it.')
  words = plane.markdown(plane.planes_of(tables)) + tables_lib.markdown(tables)
  # Half of a surrogate pair, which loggers leave of a text cut within one, has
  # no bytes in UTF-8: a question mark stands for it.
  write = functools.partial(Path.write_text, encoding='utf-8', errors='replace')
  write(out / 'table.md', words)
  pairs = forecast.compare(groups, sources)
  text = _page(title, groups, tables, pictures, pairs, notes, shown_questions)
  write(out / 'index.html', text)
  return notes


def defaults() -> dict[str, dict[str, Any]]:
  """Returns each method's options at their defaults, as in `config.json`."""
  return {name: convert.to_json(kind()) for name, kind in METHODS.items()}


def _page(
  title: str,
  groups: runs_lib.Groups,
  tables: Sequence[tables_lib.Table],
  pictures: dict[str, dict[str, bytes | None]],
  pairs: Sequence[forecast.Pair],
  notes: runs_lib.Notes,
  shown_questions: int | None,
) -> str:
  head = page.render(
    'header.html',
    title=title,
    runs=len(runs_lib.everyone(groups).runs),
    labels=[one.label for one in groups],
    summary=ending.section(groups, tables),
  )
  return page.frame(
    title,
    head,
    {
      'notes': page.render('notes.html', notes=notes) if notes else '',
      'alarms': alarms.section(groups),
      'plane': plane.section(groups, tables),
      'results': _results(tables, groups),
      **{name: _picture(name, shown) for name, shown in pictures.items()},
      'best': alarms.best(groups),
      'forecast': forecast.section(groups, pairs),
      'credit': credit.section(groups),
      'rollouts': browser.section(groups, shown_questions),
      'runs': provenance.section(groups, defaults()),
    },
  )


def _results(
  tables: Sequence[tables_lib.Table], groups: runs_lib.Groups
) -> str:
  if not tables:
    return ''
  looks = looks_of(groups)

  def shown(table: tables_lib.Table, columns: dict[str, str]):
    rows = [
      [
        looks[label],
        *(page.estimate(row[m], tables_lib.digits(m)) for m in columns),
      ]
      for label, row in table.rows.items()
    ]
    return table.name, ['', *columns.values()], rows

  long = any(len(table.points) > 2 for table in tables)
  return page.render(
    'results.html',
    ends=[shown(table, table.columns) for table in tables],
    curves=[
      shown(table, {f'pass@{k}': f'k = {k}' for k in table.points})
      for table in tables
      if long
    ],
    definitions=tables_lib.DEFINITIONS,
  )


def _picture(name: str, by_theme: dict[str, bytes | None]) -> str:
  if not all(by_theme.values()):
    return ''
  links = {
    theme: Markup('data:image/png;base64,' + base64.b64encode(png).decode())
    for theme, png in by_theme.items()
    if png
  }
  # All pictures at one scale: a PNG's bytes 16 to 19 are its width.
  pixels = int.from_bytes((by_theme['light'] or b'')[16:20])
  width = round(pixels / 1.4)
  return page.render('picture.html', name=name, width=width, **links)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Returns 0: written (notes, if any, on standard error); 1: no run can be read
  or the report cannot be written. Wrong usage exits with 2.
  """
  parser = argparse.ArgumentParser(
    prog='python -m sdjax.report',
    description='Compares runs in one HTML page, PNGs and a Markdown table.',
    epilog=(
      'Folders whose names differ only in a trailing seed (sd_s1, sd-seed2, '
      'or sd/seed3) are merged as seeds of one method. A run without a file '
      'is shown without what stands in it. Exit status: 0 written, 1 no run '
      'can be read or nothing can be written, 2 wrong usage.'
    ),
  )
  parser.add_argument('workdir', nargs='+', type=Path, help="a run's folder")
  usual = 'default: %(default)s'
  parser.add_argument('--out', type=Path, default=Path('report'), help=usual)
  parser.add_argument('--title', default='Runs compared', help=usual)
  parser.add_argument(
    '--resamples',
    type=int,
    default=1000,
    help=f'of the bootstrap intervals; 0: no intervals; {usual}',
  )
  parser.add_argument(
    '--questions',
    type=int,
    help='questions of the first and of the last logged step of a run whose '
    'rollouts can be browsed; default: all that were logged',
  )
  parser.add_argument(
    '--forecast',
    action='append',
    default=[],
    type=Path,
    help='a folder with a forecast, for runs that have none; may be repeated',
  )
  args = parser.parse_args(argv)
  for name in ('resamples', 'questions'):
    if (getattr(args, name) or 0) < 0:
      parser.error(f'--{name} is {getattr(args, name)}; it must be at least 0')
  try:
    # The arguments are declared in the order of its parameters.
    notes = write_report(*vars(args).values())
  except (ReportError, OSError) as error:
    what = 'cannot write the report: ' * isinstance(error, OSError)
    print(f'error: {what}{error}', file=sys.stderr)
    return 1
  for note in notes:
    print(f'note: {note}', file=sys.stderr)
  print(args.out / 'index.html')
  return 0
