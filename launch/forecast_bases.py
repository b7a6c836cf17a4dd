"""Does the forecast hold? Bases of different habits, forecast and trained.

  python launch/forecast_bases.py --out=runs/forecast_bases

makes base models that differ in how often they take the easy route and how
literally they copy a demonstration, forecasts each (`--config.mode=forecast`),
trains each with self-distillation, and compares forecast and outcome by their
Spearman rank correlation over the bases. The base's own variety stands beside
it: a forecast is worth its cost only where it does better than that.

All bases share the careful part of the pretraining, which is the longest: the
first base is made whole, the others branch off its checkpoint. Whatever is
complete is not repeated; started again it goes on. In full it takes an hour or
two on two cores; `--only=NAME,NAME` does a part.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import rankdata

CONFIG = Path(__file__).parents[1] / 'configs' / 'concept_graph.py'
SET = 'in_distribution'
MEASURE = 'concepts_correct'

TRUNK = 'shipped'
BASES: dict[str, dict[str, float]] = {
  TRUNK: {},
  'easy80': {'easy_share': 0.8},
  'even': {'easy_share': 0.5},
  'copy80': {'copy_share': 0.8},
  'copy65': {'copy_share': 0.65},
  'copy50': {'copy_share': 0.5},
  'copy30': {'copy_share': 0.3},
  'even_copy65': {'easy_share': 0.5, 'copy_share': 0.65},
  'easy80_copy80': {'easy_share': 0.8, 'copy_share': 0.8},
  'shown_easy': {'demonstration_easy_share': 0.95},
}
"""Where each base's recipe differs from that of the shipped model."""

PREDICTORS = {
  'base': f'base/{MEASURE}',
  'rl': f'rl/{MEASURE}',
  'sd, one step': f'sd_once/{MEASURE}',
  'sd, teacher fixed': f'sd_fixed/{MEASURE}',
  'sd': f'sd/{MEASURE}',
  'self-PCMI': 'self_pcmi',
  "favourite's gap": 'favourite_gap',
}
"""What may tell the outcome, by its name in `forecast.json`."""


def run(method: str, workdir: Path, **options: object) -> None:
  """Runs `sdjax.main` on a method of the config, with changed options."""
  command = [
    sys.executable,
    *('-m', 'sdjax.main', f'--config={CONFIG}:{method}'),
    f'--workdir={workdir}',
    *(f'--config.{k.replace("__", ".")}={v}' for k, v in options.items()),
  ]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def branch(trunk: Path, base: Path, careful: int) -> None:
  """Puts the checkpoint after the careful part of one base into another."""
  if base.exists():
    return
  # In one rename, or an interrupted copy would pass for a checkpoint.
  part = base.with_name(f'{base.name}.part')
  shutil.rmtree(part, ignore_errors=True)
  shutil.copytree(
    trunk / 'checkpoints' / str(careful), part / 'checkpoints' / str(careful)
  )
  for name in ('metrics.jsonl', 'rollouts.jsonl'):
    shutil.copy(trunk / name, part / name)
  part.rename(base)


def make_base(out: Path, name: str, careful: int, habits: int) -> Path:
  """Pretrains a base, or finds it made.

  Args:
    out: folder of all bases.
    name: key of `BASES`.
    careful: steps that all bases share.
    habits: steps of the base's own.

  Returns:
    The model's folder.
  """
  base = out / name / 'base'
  model = base / 'model'
  if (model / 'eval.json').exists():  # the last file that is written
    recipe = json.loads((model / 'recipe.json').read_text())
    made = recipe['method']['careful_steps'], recipe['train']['num_steps']
    if made == (careful, careful + habits):
      return model
  if name != TRUNK:
    make_base(out, TRUNK, careful, habits)
    base.parent.mkdir(parents=True, exist_ok=True)
    branch(out / TRUNK / 'base', base, careful)
  changes = {f'method__{k}': v for k, v in BASES[name].items()}
  run(
    'pretrain',
    base,
    method__careful_steps=careful,
    train__num_steps=careful + habits,
    train__eval_every=0,
    train__checkpoint_every=250 if careful % 250 == 0 else careful,
    train__keep_checkpoints=100,
    optimizer__warmup_steps=min(100, careful),
    **changes,
  )
  return model


def measure(out: Path, name: str, model: Path, steps: int) -> dict[str, float]:
  """Forecasts and trains one base.

  Args:
    out: folder of all bases.
    name: of the base.
    model: its folder.
    steps: of self-distillation.

  Returns:
    What each of `PREDICTORS` says, and the `outcome`; a predictor that has
    no value (no question with two solutions) is left out.
  """
  folder = out / name / 'sd'
  forecast_folder = out / name / f'forecast_{steps}'  # depends on the steps
  options = {
    'model__path': model,
    'train__num_steps': steps,
    'train__eval_every': 0,
    'eval__sets': f'("{SET}",)',
  }
  file = forecast_folder / 'forecast.json'
  if not file.exists():
    run('sd', forecast_folder, mode='forecast', **options)
  run('sd', folder, **options)  # which itself knows when it is complete
  forecast = json.loads(file.read_text())
  results = json.loads((folder / 'eval.json').read_text())
  found = {
    label: forecast[f'{SET}/{key}']
    for label, key in PREDICTORS.items()
    if f'{SET}/{key}' in forecast
  }
  outcome = results[f'final/{SET}/{MEASURE}']
  return {**found, 'outcome': outcome, 'pass@1': results[f'final/{SET}/pass@1']}


def rank_correlation(found: dict[str, dict[str, float]], column: str) -> float:
  """Spearman's, over the bases, of a predictor with the outcome.

  Args:
    found: what `measure` says of each base.
    column: of `PREDICTORS`; bases without a value are left out.

  Returns:
    In -1..1; NaN with fewer than three bases, or where one does not vary.
  """
  both = np.array(
    [(row[column], row['outcome']) for row in found.values() if column in row]
  ).reshape(-1, 2)
  if len(both) < 3 or np.ptp(both, axis=0).min() == 0:
    return float('nan')
  return float(np.corrcoef(rankdata(both, axis=0), rowvar=False)[0, 1])


def table(found: dict[str, dict[str, float]]) -> str:
  """Writes forecasts and outcomes as Markdown, with their correlations."""
  columns = [*PREDICTORS, 'outcome', 'pass@1']
  lines = [f'| | {" | ".join(columns)} |', f'|---|{"--:|" * len(columns)}']
  for name, row in found.items():
    cells = [f'{row[c]:.2f}' if c in row else '-' for c in columns]
    lines.append(f'| {name} | {" | ".join(cells)} |')
  ranks = [rank_correlation(found, column) for column in PREDICTORS]
  cells = ['-' if np.isnan(rank) else f'{rank:+.2f}' for rank in ranks]
  lines.append(f'| Spearman with outcome | {" | ".join(cells)} | | |')
  return '\n'.join(lines)


def draw(found: dict[str, dict[str, float]], file: Path) -> None:
  """Draws the outcome against two of the predictors, a point a base."""
  figure = Figure(figsize=(9, 4.2), layout='constrained')
  axes = figure.subplots(1, 2, sharey=True)
  names = {
    'base': 'concepts, base model',
    'sd, one step': 'concepts, forecast (one step)',
  }
  for axis, (column, name) in zip(axes, names.items(), strict=True):
    # From below, left and right of its point in turn: names seldom collide.
    order = sorted(found, key=lambda label: found[label]['outcome'])
    for i, label in enumerate(order):
      place = found[label][column], found[label]['outcome']
      axis.scatter(*place, color='#2a78d6')
      axis.annotate(
        label,
        place,
        xytext=(6 if i % 2 else -6, -3),
        textcoords='offset points',
        ha='left' if i % 2 else 'right',
        fontsize=8,
      )
    axis.plot([1, 2], [1, 2], color='#c3c2b7', zorder=0)
    axis.set(
      xlabel=name,
      xlim=(1, 2.15),
      ylim=(1, 2),
      title=f'rank correlation {rank_correlation(found, column):+.2f}',
    )
    axis.spines[['top', 'right']].set_visible(False)
  axes[0].set_ylabel('concepts after self-distillation')
  figure.savefig(file, dpi=130)


def main() -> None:
  """Makes, forecasts and trains the bases, printing after each."""
  parser = argparse.ArgumentParser(
    description='Forecasts of base models, and what training makes of them.'
  )
  parser.add_argument('--out', type=Path, required=True, help='folder')
  parser.add_argument(
    '--only', default=','.join(BASES), help='names of bases, comma-separated'
  )
  parser.add_argument('--careful', type=int, default=1750, help='shared steps')
  parser.add_argument('--habits', type=int, default=850, help='own steps')
  parser.add_argument('--steps', type=int, default=150, help='steps of sd')
  options = parser.parse_args()
  names = list(dict.fromkeys(options.only.split(',')))
  if unknown := set(names) - set(BASES):
    parser.error(f'no base is named {unknown}; choose of {", ".join(BASES)}.')
  found: dict[str, dict[str, float]] = {}
  for name in names:
    model = make_base(options.out, name, options.careful, options.habits)
    found[name] = measure(options.out, name, model, options.steps)
    print(f'{table(found)}\n', flush=True)
  (options.out / 'forecast_bases.md').write_text(table(found) + '\n')
  draw(found, options.out / 'forecast_bases.png')


if __name__ == '__main__':
  main()
