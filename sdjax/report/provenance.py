"""Which runs a report is on: of what options, when and of which code."""

from collections.abc import Mapping, Sequence
from typing import Any

from sdjax.config import convert as config_dict
from sdjax.config.schema import METHODS
from sdjax.report import runs as runs_lib
from sdjax.report import page

TOLD = ('seed', 'print', 'model.path', 'method.name', 'task.cache_dir')
"""Options with a column of their own, or without a meaning for the result."""

MOST = 24
"""Options that are listed of a run."""


def section(groups: Sequence[runs_lib.Group]) -> str:
  """Returns the table of runs as a part of the page."""
  runs = [(one.label, run) for one in groups for run in one.runs]
  differing = differences([run.config for _, run in runs])
  rows = []
  for (label, run), options in zip(runs, differing, strict=True):
    steps = max((record['step'] for record in run.metrics), default=None)
    model = runs_lib.flat_options(run.config).get('model.path') or ''
    cells = [label, run.variant, run.seed, steps]
    rows.append(
      [
        *(page.NONE if x in (None, '') else page.escape(x) for x in cells),
        _two_lines(*_start(run)),
        _two_lines(str(run.workdir), model),
        _options(options),
      ]
    )
  heads = (
    'label', 'method', 'seed', 'last step', 'started, commit',
    'folder, model', 'differs from other runs in',
  )  # fmt: skip
  return page.section(
    'runs',
    'Runs',
    'Options that are not the same in all runs, and those that only some have '
    'where they are not at their default. A <code>+</code> behind a commit: '
    'the code had changes that were not committed.',
    page.table('said', heads, rows),
  )


def differences(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Finds in what runs differ.

  Args:
    configs: of the runs, as `config.json` has them; {} when not known.

  Returns:
    Of each run, its values of the options that not all runs have alike. Of
    an option that only some have (those of a method), where it is not the
    default.
  """
  flats = [runs_lib.flat_options(dict(config)) for config in configs]
  known = [flat for flat in flats if flat]
  defaults = _defaults()
  shared = set.intersection(*map(set, known)) if known else set()
  alike = {
    key for key in shared if all(flat[key] == known[0][key] for flat in known)
  }
  found = []
  for flat in flats:
    usual = defaults.get(str(flat.get('method.name')), {})
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


def _defaults() -> dict[str, dict[str, Any]]:
  """Returns each method's options at their defaults, by dotted name."""
  return {
    name: runs_lib.flat_options({'method': config_dict.to_json(kind())})
    for name, kind in METHODS.items()
  }


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


def _two_lines(first: str, second: str) -> str:
  below = f'<small>{page.escape(second)}</small>' if second else ''
  return (page.escape(first) if first else page.NONE) + below


def _options(options: Mapping[str, Any]) -> str:
  lines = [f'{key} = {value!r}' for key, value in options.items()]
  if len(lines) > MOST:
    lines[MOST:] = [f'and {len(lines) - MOST} more']
  text = '\n'.join(lines)
  return f'<code>{page.escape(text)}</code>' if lines else page.NONE
