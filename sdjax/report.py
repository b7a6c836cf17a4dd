"""Compares runs: `python -m sdjax.report runs/sd runs/rl ... --out=report`.

Writes into the folder `--out`

  index.html   one self-contained page: tables, pictures, samples
  table.md     the table of results in Markdown
  *.png        the pictures: pass_at_k, diversity, training

from what each run left in its folder: `config.json`, `metrics.jsonl`,
`eval.json`, `eval_questions.json`, `rollouts.jsonl`. A missing or broken file
costs its part of the report and is named in it.
"""

import argparse
import base64
import html
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdjax import plots
from sdjax.eval import runs as runs_lib
from sdjax.eval import tables as tables_lib

_CAPTIONS = {
  'pass_at_k': (
    'Pass@k after training',
    'A flat line says that more samples bring no new answers. Bands span '
    'the seeds.',
  ),
  'diversity': (
    'Diversity over training',
    'Per question, at each evaluation. The dashed line is the model that '
    'training started from.',
  ),
  'training': (
    'Training',
    'Trailing means over a twentieth of the steps. The losses of '
    'self-distillation and of reinforcement learning are different '
    'quantities.',
  ),
}

_LONGEST_TEXT = 4000


class ReportError(Exception):
  """There is nothing to report on."""


def write_report(
  workdirs: Sequence[Path],
  out: Path,
  title: str = 'Runs compared',
  resamples: int = 1000,
  shown_questions: int = 2,
) -> runs_lib.Notes:
  """Writes the report on some runs.

  Args:
    workdirs: the runs' folders; seeds of a method are told by their names.
    out: folder of the report, made if need be.
    title: heading of the page.
    resamples: of each bootstrap interval; 0: no intervals.
    shown_questions: questions of a step whose samples are shown, for the
      first and the last logged step of the first seed of each method.

  Returns:
    Notes on what was missing or odd; they are in the page too.

  Raises:
    ReportError: when no run can be read, naming what each one lacks.
  """
  notes: runs_lib.Notes = []
  found = []
  for workdir in dict.fromkeys(Path(path) for path in workdirs):
    run, its_notes = runs_lib.load(workdir)
    notes += its_notes
    if run is not None:
      found.append(run)
      notes += tables_lib.inconsistencies(run)
  if not found:
    raise ReportError('\n'.join(['no run can be read:', *notes]))
  groups, group_notes = runs_lib.group(found)
  notes += group_notes
  starts = {
    runs_lib.flat_options(run.config).get('model.path') for run in found
  }
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
  (out / 'table.md').write_text(tables_lib.markdown(tables), encoding='utf-8')
  page = _page(title, groups, tables, pictures, notes, shown_questions)
  (out / 'index.html').write_text(page, encoding='utf-8')
  return notes


def _page(
  title: str,
  groups: Sequence[runs_lib.Group],
  tables: Sequence[tables_lib.Table],
  pictures: dict[str, dict[str, bytes | None]],
  notes: runs_lib.Notes,
  shown_questions: int,
) -> str:
  count = sum(len(one.runs) for one in groups)
  parts = [
    f'<header><h1>{_e(title)}</h1><p>{_count(count, "run")} of '
    f'{_count(len(groups), "method")}: '
    f'{", ".join(f"<b>{_e(one.label)}</b>" for one in groups)}.</p></header>'
  ]
  if notes:
    items = ''.join(f'<li>{_e(note)}</li>' for note in notes)
    heading = _count(len(notes), 'note')
    parts.append(
      f'<section class="notes"><h2>{heading} on these runs</h2>'
      f'<ul>{items}</ul></section>'
    )
  if tables:
    parts.append('<section><h2>Results</h2>')
    parts += [_table(t, t.columns, groups) for t in tables]
    terms = ''.join(
      f'<dt>{_e(name)}</dt><dd>{_e(text)}</dd>'
      for name, text in tables_lib.DEFINITIONS
    )
    parts.append(
      f'<details><summary>What is measured</summary><dl>{terms}</dl></details>'
    )
    if any(len(table.points) > 2 for table in tables):
      parts.append('<details><summary>Pass@k at every k</summary>')
      parts += [
        _table(t, {f'pass@{k}': f'k = {k}' for k in t.points}, groups)
        for t in tables
      ]
      parts.append('</details>')
    parts.append('</section>')
  for name, (heading, caption) in _CAPTIONS.items():
    light = pictures[name]['light']
    by_theme = {
      theme: f'data:image/png;base64,{base64.b64encode(png).decode()}'
      for theme, png in pictures[name].items()
      if png is not None
    }
    if light is not None:
      # All pictures at one scale: a PNG's bytes 16 to 19 are its width.
      width = round(int.from_bytes(light[16:20]) / 1.4)
      parts.append(
        f'<section><h2>{_e(heading)}</h2><p>{_e(caption)}</p><picture>'
        '<source media="(prefers-color-scheme: dark)" '
        f'srcset="{by_theme["dark"]}">'
        f'<img alt="{_e(heading)}" width="{width}" '
        f'src="{by_theme["light"]}"></picture>'
        '</section>'
      )
  samples = ''.join(_samples(one, shown_questions) for one in groups)
  if samples:
    parts.append(f'<section><h2>Samples from training</h2>{samples}</section>')
  parts.append(_provenance(groups))
  body = '\n'.join(parts)
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark">'
    f'<title>{_e(title)}</title><style>{_CSS}</style></head>\n'
    f'<body><main>{body}</main></body></html>\n'
  )


def _table(
  table: tables_lib.Table,
  columns: dict[str, str],
  groups: Sequence[runs_lib.Group],
) -> str:
  head = ''.join(f'<th scope="col">{_e(v)}</th>' for v in columns.values())
  swatches = {
    label: f'<i style="background:{style["color"]}"></i>'
    for label, style in plots.styles(groups).items()
  }
  swatches[tables_lib.BASE] = '<i class="base"></i>'
  rows = []
  for label, row in table.rows.items():
    cells = ''.join(
      f'<td>{_cell(row[metric], tables_lib.digits(metric))}</td>'
      for metric in columns
    )
    rows.append(
      f'<tr><th scope="row">{swatches[label]}{_e(label)}</th>{cells}</tr>'
    )
  name = _e(table.name.replace('_', ' '))
  return (
    f'<div class="wide"><table class="results"><caption>{name}</caption>'
    f'<thead><tr><th></th>{head}</tr></thead>'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def _cell(cell: tables_lib.Estimate | None, digits: int) -> str:
  if cell is None:
    return '<span class="none">&ndash;</span>'
  text = f'<b>{cell.value:.3f}</b>'
  for name, ends in (('', cell.interval), ('seeds ', cell.seeds)):
    if ends is not None and not (name and ends[0] == ends[1]):
      low, high = (f'{end:.{digits}f}' for end in ends)
      text += f'<small>{name}{low}&ndash;{high}</small>'
  return text


def _samples(one: runs_lib.Group, shown_questions: int) -> str:
  """Renders a few questions of a method's first seed with their samples."""
  run = one.runs[0]
  by_question: dict[tuple[Any, Any], list[dict[str, Any]]] = {}
  for record in run.rollouts:
    key = (record.get('step'), record.get('question_id'))
    by_question.setdefault(key, []).append(record)
  shown: list[str] = []
  counts: dict[Any, int] = {}
  for (step, question), records in by_question.items():
    counts[step] = counts.get(step, 0) + 1
    if counts[step] > shown_questions:
      continue
    right = sum(bool(record.get('correct')) for record in records)
    answers = ''.join(_sample(record) for record in records)
    shown.append(
      f'<details><summary>step {_e(step)}, question {_e(question)}: '
      f'{right} of {len(records)} correct</summary>'
      f'<pre>{_e(records[0].get("question", ""))}</pre><ol>{answers}</ol>'
      '</details>'
    )
  if not shown:
    return ''
  return f'<h3>{_e(one.label)}</h3>{"".join(shown)}'


def _sample(record: dict[str, Any]) -> str:
  correct = bool(record.get('correct'))
  verdict = 'correct' if correct else str(record.get('reason') or 'wrong')
  reward = record.get('reward')
  facts = [] if reward is None else [f'reward {reward}']
  facts += [str(concept) for concept in record.get('concepts') or ()]
  demonstrations = ''.join(
    f'<p class="demo"><span>shown to the teacher</span> {_e(text)}</p>'
    for text in record.get('demonstrations') or ()
  )
  return (
    f'<li><span class="{"right" if correct else "wrong"}">{_e(verdict)}</span>'
    f' <code>{_e(record.get("answer", ""))}</code>'
    f' <small>{_e(" · ".join(facts))}</small>{demonstrations}</li>'
  )


def _provenance(groups: Sequence[runs_lib.Group]) -> str:
  rows = []
  for one in groups:
    for run in one.runs:
      steps = max((record['step'] for record in run.metrics), default=None)
      model = runs_lib.flat_options(run.config).get('model.path')
      cells = [one.label, run.variant, run.seed, steps, model, run.workdir]
      rows.append(
        '<tr>'
        + ''.join(
          f'<td>{"&ndash;" if cell in (None, "") else _e(cell)}</td>'
          for cell in cells
        )
        + '</tr>'
      )
  heads = ('label', 'method', 'seed', 'last step', 'model', 'folder')
  head = ''.join(f'<th scope="col">{text}</th>' for text in heads)
  return (
    '<section><h2>Runs</h2><div class="wide"><table class="runs"><thead><tr>'
    f'{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div></section>'
  )


def _e(value: Any) -> str:
  """Escapes anything that came from a run, and cuts what is too long."""
  text = str(value)
  if len(text) > _LONGEST_TEXT:
    left = len(text) - _LONGEST_TEXT
    text = f'{text[:_LONGEST_TEXT]} ... ({left} more characters)'
  return html.escape(text)


def _count(number: int, noun: str) -> str:
  return f'{number} {noun}{"" if number == 1 else "s"}'


_CSS = """
:root{--page:#fff;--ink:#1d2430;--soft:#5b6575;--line:#e3e7ed;--panel:#f6f7f9;
--right:#12724f;--wrong:#b3263d;--warn:#fff6e0}
@media(prefers-color-scheme:dark){:root{--page:#161a22;--ink:#e4e8ef;
--soft:#9aa5b6;--line:#2c3340;--panel:#1d222c;--right:#4fd1a5;--wrong:#ff8593;
--warn:#2e281a}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif}
main{max-width:76rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:2rem;line-height:1.2;margin:0 0 .3rem;letter-spacing:-.01em}
h2{font-size:1.25rem;margin:0 0 .3rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
header p,section>p{color:var(--soft);margin:0 0 1rem;max-width:46rem}
section{margin-top:2.75rem}
.notes{background:var(--warn);border-radius:.5rem;padding:1rem 1.25rem}
.notes ul{margin:.4rem 0 0;padding-left:1.2rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin:0 0 1.5rem;
font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.6rem 0 .3rem}
th,td{padding:.45rem .6rem;text-align:right;vertical-align:top;
border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:500;font-size:.85rem;
vertical-align:bottom}
tbody th{font-weight:500}
th:first-child,td:first-child{text-align:left;padding-left:0}
td b{font-weight:600}
td small{display:block;color:var(--soft);font-size:.75rem;line-height:1.4}
.results{table-layout:fixed;min-width:58rem}
.results th:first-child{width:11rem;overflow:hidden;text-overflow:ellipsis}
.none{color:var(--soft)}
.runs td,.runs th{text-align:left;font-size:.88rem}
th i{display:inline-block;width:.7rem;height:.7rem;border-radius:50%;
margin-right:.5rem}
th i.base{height:0;border-radius:0;border-top:2px dashed #7a8494;
vertical-align:middle}
picture,img{display:block;max-width:100%;height:auto}
details{border:1px solid var(--line);border-radius:.5rem;margin:.5rem 0;
padding:.5rem .9rem}
summary{cursor:pointer;font-weight:500}
dt{font-weight:600;margin-top:.6rem}
dd{margin:0;color:var(--soft);max-width:46rem}
pre,code{font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
white-space:pre-wrap;overflow-wrap:anywhere}
pre{background:var(--panel);border-radius:.4rem;padding:.7rem .9rem;
max-height:20rem;overflow:auto}
ol{padding-left:1.6rem;margin:.5rem 0}
li{margin:.3rem 0}
li small{color:var(--soft)}
.right,.wrong{font-size:.78rem;font-weight:600}
.right{color:var(--right)}
.wrong{color:var(--wrong)}
.demo{margin:.1rem 0 .1rem 1rem;color:var(--soft);font-size:.85rem;
overflow-wrap:anywhere}
.demo span{font-style:italic}
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line.

  Args:
    argv: arguments; None: the process's own.

  Returns:
    0: written (notes, if any, on standard error); 1: no run can be read or
    the report cannot be written. Wrong usage exits with 2.
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
  parser.add_argument(
    '--out', type=Path, default=Path('report'), help='default: %(default)s'
  )
  parser.add_argument(
    '--title', default='Runs compared', help='default: %(default)s'
  )
  parser.add_argument(
    '--resamples',
    type=int,
    default=1000,
    help='of the bootstrap intervals; 0: no intervals; default: %(default)s',
  )
  parser.add_argument(
    '--questions',
    type=int,
    default=2,
    help='questions shown of the first and of the last logged step of a '
    'method; default: %(default)s',
  )
  args = parser.parse_args(argv)
  for name in ('resamples', 'questions'):
    if getattr(args, name) < 0:
      parser.error(f'--{name} is {getattr(args, name)}; it must be at least 0')
  try:
    notes = write_report(
      args.workdir, args.out, args.title, args.resamples, args.questions
    )
  except ReportError as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  except OSError as error:
    print(f'error: cannot write the report: {error}', file=sys.stderr)
    return 1
  for note in notes:
    print(f'note: {note}', file=sys.stderr)
  print(args.out / 'index.html')
  return 0


if __name__ == '__main__':
  sys.exit(main())
