"""What went wrong in the runs, and what each was at its best."""

from sdjax.report import page
from sdjax.report import runs as runs_lib
from sdjax.report.looks import looks as looks_of


def section(groups: runs_lib.Groups) -> str:
  """Returns what the runs said of their history; no alarms are said as well."""
  looks = looks_of(groups)
  rows = [
    [
      looks[one.label],
      run.seed,
      alarm.get('step'),
      *(page.words(str(alarm.get(key, ''))) for key in ('kind', 'where')),
      alarm.get('text', ''),
    ]
    for one in groups
    for run in one.runs
    for alarm in run.alarms
  ]
  off = sum(
    run.options.get('alarm.action') == 'off'
    for run in runs_lib.everyone(groups).runs
  )
  return page.render('alarms.html', rows=rows, methods=len(groups), off=off)


def best(groups: runs_lib.Groups) -> str:
  """Returns the best checkpoints as a part of the page; '' without any."""
  looks, rows = looks_of(groups), []
  for one in groups:
    for run in one.runs:
      step = run.evals.get('best_step')
      for name in runs_lib.sets_of([one]):
        points = runs_lib.curve_points([one], name) or [1]
        ends = f'pass@{points[0]}', f'pass@{points[-1]}'
        cells = [
          _cell(run, name, metric)
          for metric in (*ends, 'pass_gain', 'concepts_correct')
        ]
        if any(cells):
          at = None if step is None else int(step)
          head = looks[one.label], run.seed, at, page.words(name), points[-1]
          rows.append([*head, *cells])
  return page.render('best.html', rows=rows) if rows else ''


def _cell(run: runs_lib.Run, name: str, metric: str) -> page.Cell | None:
  best, final = (
    run.evals.get(f'{when}/{name}/{metric}') for when in ('best', 'final')
  )
  if best is None:
    return None
  small = () if final is None else (f'last {final:.3f}',)
  return page.Cell(f'{best:.3f}', small)
