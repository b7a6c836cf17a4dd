"""Which runs a report is on: of what options, when and of which code."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.report import page
from sdjax.report import runs as runs_lib

TOLD = ('seed', 'print', 'model.path', 'method.name', 'task.cache_dir')
"""Options with a column of their own, or without a meaning for the result."""

MOST = 24
"""Options that are listed of a run."""

Defaults = Mapping[str, Mapping[str, Any]]
"""By method, its section of `config.json` with every option at its default."""


def section(groups: runs_lib.Groups, defaults: Defaults) -> str:
  """Returns the table of runs as a part of the page."""
  runs = [(one.label, run) for one in groups for run in one.runs]
  differing = differences([run.config for _, run in runs], defaults)
  rows = []
  for (label, run), options in zip(runs, differing, strict=True):
    model = run.options.get('model.path') or ''
    rows.append(
      [
        label,
        run.variant,
        run.seed,
        max((record['step'] for record in run.metrics), default=None),
        _two_lines(*_start(run)),
        _two_lines(str(run.workdir), str(model)),
        _options(options),
      ]
    )
  return page.render('runs.html', rows=rows)


def differences(
  configs: Sequence[Mapping[str, Any]], defaults: Defaults
) -> list[dict[str, Any]]:
  """Finds in what runs differ, by their `config.json`; {} when not known.

  Returns of each run its values of the options that not all runs have alike.
  Of an option that only some have (those of a method), where it is not the
  default; what is not among the defaults is listed.
  """
  flats = [runs_lib.flat_options(dict(config)) for config in configs]
  known = [flat for flat in flats if flat]
  shared = set.intersection(*map(set, known)) if known else set()
  alike = {
    key for key in shared if all(flat[key] == known[0][key] for flat in known)
  }
  found = []
  for flat in flats:
    own = defaults.get(str(flat.get('method.name')), {})
    usual = runs_lib.flat_options({'method': own})
    found.append(
      {
        key: value
        for key, value in sorted(flat.items())
        if key not in TOLD
        and key not in alike
        and (key in shared or key not in usual or usual[key] != value)
      }
    )
  return found


def _start(run: runs_lib.Run) -> tuple[str, str]:
  """Returns when a run began, and of which commits it was made."""
  if not run.starts:
    return '', ''
  # Without seconds and zone.
  date = str(run.starts[0].get('date') or '')[:16].replace('T', ' ')
  commits = dict.fromkeys(
    f'{str(start["commit"])[:10]}{"+" if start.get("changed") else ""}'
    for start in run.starts
    if start.get('commit')
  )
  return date, ', '.join(commits)


def _two_lines(first: str, second: str) -> page.Cell:
  return page.Cell(first, (second,) if second else (), tag='')


def _options(options: Mapping[str, Any]) -> page.Cell:
  lines = [f'{key} = {value!r}' for key, value in options.items()]
  if len(lines) > MOST:
    lines[MOST:] = [f'and {len(lines) - MOST} more']
  return page.Cell('\n'.join(lines), tag='code')
