"""The table and the picture of a forecast."""

from collections.abc import Mapping
from typing import Any

from sdjax.report import plots

METHODS = {
  'base': 'base',
  'rl': 'rl',
  'sd_once': 'sd, one step',
  'sd_fixed': 'sd, teacher fixed',
  'sd': 'sd',
}
"""Distributions in the order they are shown, and what they are called."""

SAMPLED = {'distinct_solutions': 'distinct_paths'}
"""What an evaluation calls differently than a forecast."""

DEFINITIONS = (
  'Forecast from the base model alone, over the answers it was found to give, '
  'with 95% bootstrap intervals over questions.',
  '`base, as sampled`: what an evaluation counts in the samples that the '
  'answers were found in. `base`: the same answers by their probabilities, '
  'scaled to sum to 1; the two differ by chance, and where mass is below 1.',
  '`rl`: the KL-RL optimum. `sd, one step`: the self-distillation optimum with '
  "the base's demonstrations. `sd, teacher fixed`: demonstrations follow the "
  "student. `sd`: the teacher follows too, as the run's does.",
  'mass: base probability of those answers. self-PCMI: nats a solution gains '
  'from being shown itself rather than another one; the more literally a '
  "model copies, the larger. favourite's gap: nats one step pulls the base's "
  'favourite solution above the others; RL: 0.',
  'effective: exp of the entropy over correct solutions. distinct, concepts: '
  'solutions and concepts expected among the correct answers of n samples. '
  'Each set is forecast as if training had been on its own questions.',
)


def sets_of(flat: Mapping[str, float]) -> list[str]:
  """Returns the evaluation sets of a forecast, in order."""
  return list(dict.fromkeys(name.split('/')[0] for name in flat))


def ks_of(flat: Mapping[str, float], name: str) -> list[int]:
  """Returns the k of a set's pass@k, rising."""
  start = f'{name}/base/pass@'
  return [
    int(key.removeprefix(start))
    for key in flat
    if key.startswith(start) and key.count('/') == 2
  ]


def table(flat: Mapping[str, float]) -> str:
  """Writes a forecast as Markdown: a table a set, and what its words mean."""
  parts = []
  for name in sets_of(flat):
    last = ks_of(flat, name)[-1]
    columns = {
      'pass@1': 'pass@1',
      f'pass@{last}': f'pass@{last}',
      'effective_solutions': 'effective',
      'distinct_solutions': 'distinct',
      'concepts_correct': 'concepts',
    }
    lines = [
      f'### {name.replace("_", " ")}',
      '',
      f'| | {" | ".join(columns.values())} |',
      f'|---|{"--:|" * len(columns)}',
    ]
    keys = {
      'base, as sampled': [f'sampled/{SAMPLED.get(m, m)}' for m in columns]
    }
    for method, label in METHODS.items():
      keys[label] = [f'{method}/{metric}' for metric in columns]
    for label, row in keys.items():
      cells = [_cell(flat, f'{name}/{key}') for key in row]
      lines.append(f'| {label} | {" | ".join(cells)} |')
    lines += [
      '',
      f'mass {_cell(flat, f"{name}/mass")}, '
      f'solutions found {_cell(flat, f"{name}/solutions")}, '
      f'self-PCMI {_cell(flat, f"{name}/self_pcmi")}, '
      f"favourite's gap {_cell(flat, f'{name}/favourite_gap')}",
    ]
    parts.append('\n'.join(lines))
  return '\n\n'.join([*parts, *DEFINITIONS])


def agreement(
  flat: Mapping[str, float],
  evals: Mapping[str, float],
  options: Mapping[str, Any],
  own: Mapping[str, Any],
) -> str:
  """Says whether a forecast and a run's evaluation saw the same samples.

  Of the contents of `forecast.json` and `eval.json`, and the section `eval` of
  the forecast's config and of the run's own. '' if there is no number to
  compare.
  """
  names = [name for name in sets_of(flat) if f'base/{name}/pass@1' in evals]
  here = {name: flat[f'{name}/sampled/pass@1'] for name in names}
  there = {name: evals[f'base/{name}/pass@1'] for name in names}
  if not names:
    return ''
  if here == there:
    return 'The base, as sampled, is that of eval.json.\n'
  name = next(name for name in names if here[name] != there[name])
  differs = [
    f'eval.{name}={options[name]!r}, {own[name]!r} there'
    for name in options
    if name in own and options[name] != own[name]
  ]
  reason = '; '.join(differs) or (
    'the options agree, so one of the two was sampled with other arithmetic, '
    'weights or software'
  )
  return (
    f'The base, as sampled, is not that of eval.json ({name}/pass@1: '
    f'{here[name]:.4g} here, {there[name]:.4g} there): {reason}.\n'
  )


def figure(flat: Mapping[str, float], theme: str = 'light') -> bytes:
  """Draws pass@k and effective solutions of each method, a column a set."""
  look = plots.THEMES[theme]
  colours = dict(
    zip(
      METHODS,
      (look.faint, look.methods[2], look.methods[1], *look.methods[4::-4]),
      strict=True,
    )
  )
  names = sets_of(flat)
  sheet, axes = plots.grid(2, len(names), theme, height=2.9)
  for column, name in enumerate(names):
    curves, bars = axes[:, column]
    ks = ks_of(flat, name)
    for method, label in METHODS.items():
      curves.plot(
        ks,
        [flat[f'{name}/{method}/pass@{k}'] for k in ks],
        color=colours[method],
        marker='' if method == 'base' else 'o',
        linestyle=plots.DASHED if method == 'base' else '-',
        label=label,
      )
    plots.curve_axis(curves, ks, name)
    keys = [f'{name}/{method}/effective_solutions' for method in METHODS]
    values = [flat[key] for key in keys]
    bars.bar(
      range(len(METHODS)),
      values,
      0.62,
      color=list(colours.values()),
      yerr=[
        [v - flat[f'{key}/low'] for v, key in zip(values, keys, strict=True)],
        [flat[f'{key}/high'] - v for v, key in zip(values, keys, strict=True)],
      ],
      error_kw={'ecolor': look.ink, 'elinewidth': 1.1, 'capsize': 2.5},
    )
    bars.set_xticks([])  # the legend names the colours
  # The row shares its axis: a limit set earlier would cut later panels.
  axes[1, 0].set_ylim(bottom=0)
  axes[0, 0].set_ylabel('forecast pass@k')
  axes[1, 0].set_ylabel('effective correct\nsolutions')
  handles, labels = axes[0, 0].get_legend_handles_labels()
  ncols = len(METHODS) if len(names) > 2 else 3  # as there is room for
  plots.legend(sheet, theme, ncols, handles=handles, labels=labels)
  return plots.to_png(sheet)


def _cell(flat: Mapping[str, float], key: str) -> str:
  if key not in flat:
    return '-'
  if f'{key}/low' not in flat:
    return f'{flat[key]:.2f}'
  low, high = flat[f'{key}/low'], flat[f'{key}/high']
  return f'{flat[key]:.2f} [{low:.2f}, {high:.2f}]'
