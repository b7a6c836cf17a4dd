"""What went wrong in the runs, and what each was at its best."""

from collections.abc import Sequence

from sdjax.report import runs as runs_lib
from sdjax.report import marks
from sdjax.report import page


def section(groups: Sequence[runs_lib.Group]) -> str:
  """Returns what the runs said of their history as a part of the page.

  Args:
    groups: the methods; that there are no alarms is said as well.
  """
  off = sum(
    runs_lib.flat_options(run.config).get('alarm.action') == 'off'
    for one in groups
    for run in one.runs
  )
  note = ''
  if off:
    note = f'<p>{page.count(off, "run")} had no alarms on.</p>'
  return page.section(
    'alarms',
    'Alarms',
    'What the runs themselves said of their history.',
    (_alarms(groups) or '<p>None.</p>') + note,
  )


def best(groups: Sequence[runs_lib.Group]) -> str:
  """Returns the best checkpoints as a part of the page; '' without any."""
  body = _best(groups)
  if not body:
    return ''
  return page.section(
    'best',
    'Best checkpoints',
    'How runs stood at the evaluation that their <code>keep_best</code> '
    'chose. On the set it was chosen by, a best checkpoint looks better than '
    'it is.',
    body,
  )


def _alarms(groups: Sequence[runs_lib.Group]) -> str:
  labels = marks.labels(groups)
  rows = [
    [
      labels[one.label],
      _or_none(run.seed),
      _or_none(alarm.get('step')),
      page.words(str(alarm.get('kind', ''))),
      page.words(str(alarm.get('where', ''))),
      page.escape(alarm.get('text', '')),
    ]
    for one in groups
    for run in one.runs
    for alarm in run.alarms
  ]
  if not rows:
    return ''
  heads = ['', 'seed', 'step', 'alarm', 'where', 'cause, and what to try']
  table = page.table('said', heads, rows)
  if len(rows) <= 8:
    return table
  loud = len({row[0] for row in rows})
  return (
    f'<details><summary>{page.count(len(rows), "alarm")} in '
    f'{loud} of {page.count(len(groups), "method")}</summary>'
    f'{table}</details>'
  )


def _best(groups: Sequence[runs_lib.Group]) -> str:
  labels, rows = marks.labels(groups), []
  for one in groups:
    for run in one.runs:
      for name in runs_lib.sets_of([one]):
        points = runs_lib.curve_points([one], name) or [1]
        metrics = (
          f'pass@{points[0]}',
          f'pass@{points[-1]}',
          'pass_gain',
          'concepts_correct',
        )
        values = [
          [run.evals.get(f'{when}/{name}/{m}') for when in ('best', 'final')]
          for m in metrics
        ]
        if any(best is not None for best, _ in values):
          rows.append(
            [
              labels[one.label],
              _or_none(run.seed),
              _or_none(_whole(run.evals.get('best_step'))),
              page.words(name),
              _or_none(points[-1]),
              *(_two(*pair) for pair in values),
            ]
          )
  if not rows:
    return ''
  heads = [
    '', 'seed', 'best step', 'set', 'k', 'pass@1', 'pass@k', 'gain',
    'concepts, correct',
  ]  # fmt: skip
  return page.table('best', heads, rows, 'at the best step, and at the last')


def _two(best: float | None, final: float | None) -> str:
  if best is None:
    return page.NONE
  text = f'<b>{best:.3f}</b>'
  return text + ('' if final is None else f'<small>last {final:.3f}</small>')


def _whole(value: float | None) -> int | None:
  return None if value is None else int(value)


def _or_none(value: object) -> str:
  return page.NONE if value in (None, '') else page.escape(value)
