"""What does sampling at a lower temperature do to accuracy and variety?

  python launch/temperature.py --runs=runs/remedies --temperature=0.8

measures the last checkpoint of every run in a folder of `launch/remedies.py`
once more, with samples of another temperature, beside each run's folder, and
prints means over seeds at both. Nothing is trained; what is measured already
is not measured again. `--only=NAME,NAME` does a part.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONFIG = Path(__file__).parents[1] / 'configs' / 'concept_graph_remedies.py'

MEASURES = {
  'pass@1': 'in_distribution/pass@1',
  'concepts': 'in_distribution/concepts_correct',
  'harder pass@64': 'harder/pass@64',
}
"""Column to its name in `eval.json`."""


def measured(run: Path, temperature: float) -> dict[str, Any]:
  """Measures a run at a temperature, or finds it measured.

  Args:
    run: a complete run's folder.
    temperature: of the samples.

  Returns:
    `SET/METRIC` to number.
  """
  folder = run.with_name(f'{run.name}_t{temperature:g}')
  file = folder / 'eval.json'
  if not file.exists():
    model = run / 'model'
    if not (model / 'config.json').exists():
      command = ['sdjax.export', f'--workdir={run}', f'--out={model}']
      subprocess.run([sys.executable, '-m', *command], check=True)
    command = [
      *('sdjax.main', f'--config={CONFIG}:{run.name.rpartition("_s")[0]}'),
      *(f'--workdir={folder}', '--config.mode=eval'),
      *(f'--config.model.path={model}', '--config.eval.during=()'),
      f'--config.eval.temperature={temperature}',
    ]
    subprocess.run(
      [sys.executable, '-m', *command], check=True, stdout=subprocess.DEVNULL
    )
  return _values(file, 'base')  # of the exported model, which is the trained


def _values(file: Path, when: str) -> dict[str, Any]:
  start = f'{when}/'
  values = json.loads(file.read_text())
  return {
    name.removeprefix(start): value
    for name, value in values.items()
    if name.startswith(start)
  }


def table(
  rows: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]],
  temperature: float,
) -> str:
  """Writes means over seeds as Markdown.

  Args:
    rows: method to, for each seed, what was measured at 1 and at the other.
    temperature: the other.
  """
  heads = [
    f'{name}, at {t}' for name in MEASURES for t in ('1', f'{temperature:g}')
  ]
  lines = [
    f'| | seeds | {" | ".join(heads)} |',
    f'|---|--:|{"--:|" * len(heads)}',
  ]
  for name, pairs in rows.items():
    cells = [f'`{name}`', str(len(pairs))]
    for key in MEASURES.values():
      for side in (0, 1):
        values = [pair[side][key] for pair in pairs]
        cells.append(f'{sum(values) / len(values):.3f}')
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """Measures what is missing and prints the table."""
  parser = argparse.ArgumentParser(description='Another temperature.')
  parser.add_argument('--runs', type=Path, required=True, help='folder')
  parser.add_argument('--temperature', type=float, default=0.8)
  parser.add_argument('--only', default='', help='of the methods')
  options = parser.parse_args(argv)
  only = set(filter(None, options.only.split(',')))
  rows: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
  for file in sorted(options.runs.glob('*_s*/eval.json')):
    run = file.parent
    name = run.name.rpartition('_s')[0]
    own = _values(file, 'final')
    if '_t' in run.name.rpartition('_s')[2] or not own:
      continue
    if only and name not in only:
      continue
    both = own, measured(run, options.temperature)
    rows.setdefault(name, []).append(both)
  if not rows:
    parser.error(f'--runs={options.runs} holds no complete run of these names.')
  print(table(rows, options.temperature))


if __name__ == '__main__':
  main()
