"""Pictures of runs: pass@k, diversity over training, training curves.

Each method keeps its colour and marker in every picture, the model that all
runs started from is grey and dashed, and a band spans the smallest to the
largest of a method's seeds. Nothing here keeps state or needs a display;
matplotlib is imported when the first picture is drawn.
"""

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sdjax.evaluate import measures as measures_lib
from sdjax.report import runs as runs_lib
from sdjax.report.looks import THEMES, styles
from sdjax.report.runs import BASE
from sdjax.report.tables import MEASURES, twins

DASHED = (0, (4, 3))
"""How the line of the base model is drawn."""


def pass_at_k(groups: runs_lib.Groups, theme: str = 'light') -> bytes | None:
  """Draws pass@k of the trained models, a panel for each evaluation set."""
  names = runs_lib.sets_of(groups)
  sets = {name: runs_lib.curve_points(groups, name) for name in names}
  sets = {name: points for name, points in sets.items() if points}
  if not sets:
    return None
  figure, axes = grid(1, len(sets), theme)
  for axis, (name, points) in zip(axes.flat, sets.items(), strict=True):
    for one, stage, style in _lines(groups, theme):
      columns = {k: one.values(f'{stage}/{name}/pass@{k}') for k in points}
      shown = {k: column for k, column in columns.items() if column.size}
      if shown:
        _draw(axis, list(shown), list(shown.values()), style)
    curve_axis(axis, points, name)
  axes.flat[0].set_ylabel('pass@k')
  return _png(figure, groups, theme)


_DIVERSITY = {
  name: one.axis for name, one in measures_lib.MEASURES.items() if one.axis
}
"""The measures that are drawn, and the labels of their axes."""


def diversity(groups: runs_lib.Groups, theme: str = 'light') -> bytes | None:
  """Draws diversity over training: a row a measure, a column a set."""
  keys = runs_lib.logged(groups, 'eval/')
  same = twins(groups)
  measures = [
    m
    for m in _DIVERSITY
    if m not in same and any(k.endswith(f'/{m}') for k in keys)
  ]
  seen = {key.split('/')[1] for key in keys if key.count('/') >= 2}
  names = [name for name in runs_lib.sets_of(groups) if name in seen]
  names += sorted(seen - set(names))
  if not measures or not names:
    return None
  figure, axes = grid(len(measures), len(names), theme, height=2.15)
  for row, measure in enumerate(measures):
    for column, name in enumerate(names):
      axis = axes[row, column]
      for one, stage, style in _lines(groups, theme):
        if stage == BASE:
          values = one.values(f'{BASE}/{name}/{measure}')
          if values.size:
            axis.axhline(values.mean(), **style)
          continue
        steps, values_RS = one.band(f'eval/{name}/{measure}')
        if steps.size:
          _draw(axis, steps, values_RS.T, style)
      axis.margins(y=0.12)
      if row == 0:
        title(axis, name.replace('_', ' '))
      if row == len(measures) - 1:
        axis.set_xlabel('step')
      if column == 0:
        others = [MEASURES[m] for m, first in same.items() if first == measure]
        axis.set_ylabel('\n= '.join([_DIVERSITY[measure], *others]))
    # The row shares its axis: a limit set earlier would cut later panels.
    axes[row, 0].set_ylim(bottom=0)
  figure.align_ylabels(list(axes[:, 0]))
  return _png(figure, groups, theme)


# Names of what a step reports, in the order they are worth a panel.
_TRAINING = (
  'train/reward',
  'train/loss',
  'train/kl_ref',
  'train/entropy',
  'train/length',
  'train/grad_norm',
  'train/correct',
)


def training(
  groups: runs_lib.Groups, theme: str = 'light', panels: int = 6
) -> bytes | None:
  """Draws the metrics of the training steps, smoothed, in so many panels.

  The losses of different methods are different quantities, so each kind of
  method has a panel of its own for its loss.
  """
  found = runs_lib.logged(groups, 'train/')
  others = [key for key in found if key not in _TRAINING]
  wanted: list[tuple[str, str, list[runs_lib.Group]]] = []
  for key in (*_TRAINING, *others):
    members = [one for one in groups if one.band(key)[0].size]
    text = key.removeprefix('train/').replace('_', ' ')
    kinds: dict[str, list[runs_lib.Group]] = {}
    for one in members:
      kinds.setdefault(one.variant.split('_')[0], []).append(one)
    if key == 'train/loss' and len(kinds) > 1:
      wanted += [
        (key, f'{text} of {kind or "others"}', own)
        for kind, own in kinds.items()
      ]
    elif members:
      wanted.append((key, text, members))
  wanted = wanted[:panels]
  if not wanted:
    return None
  columns = min(3, len(wanted))
  rows = -(-len(wanted) // columns)
  figure, axes = grid(rows, columns, theme, height=2.5, share=False)
  by_label = styles(groups, theme)
  for axis, (key, text, members) in zip(axes.flat, wanted, strict=False):
    for one in members:
      steps, values_RS = one.band(key)
      style = {'color': by_label[one.label]['color']}
      if len(one.runs) == 1:
        axis.plot(steps, values_RS[0], alpha=0.22, linewidth=0.9, **style)
      smooth = [_smooth(row_S) for row_S in values_RS]
      _draw(axis, steps, np.transpose(smooth), style)
    title(axis, text)
    axis.set_xlabel('step')
  for axis in axes.flat[len(wanted) :]:
    axis.set_visible(False)
  return _png(figure, groups, theme, base=False)


FIGURES: dict[str, Callable[..., bytes | None]] = {
  'pass_at_k': pass_at_k,
  'diversity': diversity,
  'training': training,
}


def plot_run(workdir: str | os.PathLike[str]) -> list[Path]:
  """Draws one run's pictures into its folder's `plots/`.

  What the folder does not hold yet is not drawn. Returns the PNGs written.
  """
  workdir = Path(workdir)
  run, _ = runs_lib.load(workdir)
  if run is None:
    return []
  groups = [runs_lib.Group(run.variant or run.label, run.variant, (run,))]
  written = []
  for name, draw in FIGURES.items():
    png = draw(groups)
    if png is not None:
      path = workdir / 'plots' / f'{name}.png'
      path.parent.mkdir(exist_ok=True)
      path.write_bytes(png)
      written.append(path)
  return written


def _lines(groups: runs_lib.Groups, theme: str):
  """Yields what to draw: (runs, stage, style), the base model first."""
  style = {'color': THEMES[theme].faint, 'linestyle': DASHED, 'linewidth': 1.6}
  yield runs_lib.everyone(groups), BASE, style
  for one, style in zip(groups, styles(groups, theme).values(), strict=True):
    yield one, 'final', style


def _draw(axis, x, columns, style: dict[str, Any]) -> None:
  """Draws the mean over runs, and the band of their extremes."""
  means = [np.mean(column) for column in columns]
  axis.plot(x, means, **style)
  if style.get('linestyle') is None and any(len(c) > 1 for c in columns):
    low = [np.min(column) for column in columns]
    high = [np.max(column) for column in columns]
    axis.fill_between(
      x, low, high, color=style['color'], alpha=0.18, linewidth=0
    )


def _smooth(values_S: np.ndarray) -> np.ndarray:
  """Trailing mean over a twentieth of the steps; shorter at the start."""
  width = max(1, len(values_S) // 20)
  sums = np.cumsum(np.concatenate([[0.0], values_S]))
  ends = np.arange(1, len(values_S) + 1)
  starts = np.maximum(0, ends - width)
  return (sums[ends] - sums[starts]) / (ends - starts)


def title(axis: Any, text: str) -> None:
  """Writes above a panel."""
  axis.set_title(text, fontsize=10.5, fontweight='bold', pad=8)


def curve_axis(axis: Any, points: Sequence[int], name: str) -> None:
  """Makes of a panel one of pass@k, of an evaluation set."""
  axis.set_xscale('log', base=2)
  axis.set_xticks(points, [str(k) for k in points])
  axis.minorticks_off()
  axis.set_ylim(-0.03, 1.03)
  axis.set_xlabel('k, samples drawn')
  title(axis, name.replace('_', ' '))


def legend(figure: Any, theme: str, ncols: int, **entries: Any) -> None:
  """Puts a legend above all panels."""
  figure.legend(
    loc='outside upper center',
    ncols=ncols,
    frameon=False,
    fontsize=10,
    labelcolor=THEMES[theme].ink,
    handlelength=2.4,
    **entries,
  )


def grid(
  rows: int,
  columns: int,
  theme: str,
  height: float = 3.3,
  share: bool = True,
):
  """Makes a figure of equal panels without chart junk.

  A panel's height is in inches; `share`: whether a row's panels share their y
  axis. Returns matplotlib's figure, and its axes [rows, columns].
  """
  from matplotlib.figure import Figure
  from matplotlib.layout_engine import ConstrainedLayoutEngine

  look = THEMES[theme]
  width = max(4.6, 3.5 * columns)
  figure = Figure(
    figsize=(width, height * rows + 0.55),
    dpi=150,
    layout=ConstrainedLayoutEngine(w_pad=0.09, h_pad=0.09),
    facecolor=look.page,
  )
  axes = figure.subplots(
    rows, columns, squeeze=False, sharey='row' if share else False
  )
  for axis in axes.flat:
    axis.set_facecolor(look.page)
    axis.spines[['top', 'right']].set_visible(False)
    axis.spines[['left', 'bottom']].set_color(look.faint)
    axis.tick_params(colors=look.ink, labelsize=9, length=3)
    axis.grid(axis='y', color=look.grid, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.set_prop_cycle(markersize=[4.5], linewidth=[1.9])
    for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
      text.set_color(look.ink)
      text.set_fontsize(10)
  return figure, axes


def _png(figure, groups, theme: str, base: bool = True) -> bytes:
  from matplotlib.lines import Line2D

  entries = [(g.label, styles(groups, theme)[g.label]) for g in groups]
  if base:
    entries.append((BASE, next(_lines(groups, theme))[2]))
  handles = [
    Line2D([], [], label=label, **{'linewidth': 1.9, 'markersize': 5, **style})
    for label, style in entries
  ]
  width = 0.75 + max(len(label) for label, _ in entries) / 12
  # As many as there is room for: a letter is a dozenth of an inch.
  ncols = max(1, min(len(handles), 6, int(figure.get_figwidth() / width)))
  legend(figure, theme, ncols, handles=handles)
  return to_png(figure)


def to_png(figure: Any) -> bytes:
  """Returns a figure of `grid` as the bytes of a PNG, with a palette."""
  from PIL import Image

  drawn, packed = io.BytesIO(), io.BytesIO()
  figure.savefig(drawn, format='png')
  # A quarter of the bytes; many of them stand in one page.
  image = Image.open(drawn).convert('RGB')
  image.quantize(160, dither=Image.Dither.NONE).save(
    packed, format='png', optimize=True
  )
  return packed.getvalue()
