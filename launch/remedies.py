"""Which remedy keeps variety, and at what price?

  python launch/remedies.py --out=runs/remedies

trains the shipped model by every method of `configs/concept_graph_remedies.py`
with three seeds, and writes a report that ranks them by accuracy and variety.
A run that is complete is not repeated, an interrupted one goes on, one of
another method is refused; a run that fails does not stop the others, and is
named at the end. `--only=NAME,NAME` and `--seeds=0` do a part, and
`--only=sd_long,rl_diversity_long,balanced_rl_long` twice as many steps;
`--workers=2` runs two at once. `launch/temperature.py` samples what was
trained at another temperature.
"""

import argparse
import concurrent.futures
import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from sdjax.config import convert as config_dict

CONFIG = Path(__file__).parents[1] / 'configs' / 'concept_graph_remedies.py'


@functools.cache
def _configs() -> ModuleType:
  """Returns the config file as a module."""
  spec = importlib.util.spec_from_file_location('remedies', CONFIG)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def names() -> list[str]:
  """Returns the methods of the config file, in its order."""
  return list(_configs().NAMES)


def longer() -> list[str]:
  """Returns those that `--only` can ask for besides."""
  return list(_configs().LONGER)


def changes(seed: int, steps: int | None) -> dict[str, int]:
  """Returns the options of a run that differ from its method's config."""
  return {'seed': seed} | ({} if steps is None else {'train.num_steps': steps})


def resolved(name: str, seed: int, steps: int | None) -> dict[str, Any]:
  """Returns the `config.json` that a run is to have."""
  config = _configs().get_config(name)
  config.update_from_flattened_dict(changes(seed, steps))
  return config_dict.to_json(config_dict.from_config_dict(config))


def is_complete(folder: Path, config: dict[str, Any]) -> bool:
  """Tells whether a run of exactly this config has nothing left to do."""
  try:
    found = json.loads((folder / 'config.json').read_text())
    results = json.loads((folder / 'eval.json').read_text())
  except (OSError, ValueError):
    return False
  last = folder / 'checkpoints' / str(config['train']['num_steps'])
  measured = any(key.startswith('final/') for key in results)
  return found == config and last.is_dir() and measured


def train(folder: Path, name: str, seed: int, steps: int | None) -> bool:
  """Trains one method with one seed, its output going to a file beside it."""
  if is_complete(folder, resolved(name, seed, steps)):
    return True
  folder.parent.mkdir(parents=True, exist_ok=True)
  command = [
    sys.executable,
    *('-m', 'sdjax.main', f'--config={CONFIG}:{name}'),
    f'--workdir={folder}',
    *(f'--config.{k}={v}' for k, v in changes(seed, steps).items()),
  ]
  with open(folder.with_name(f'{folder.name}.log'), 'w') as log:
    done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT)
  print(f'{folder}: {"done" if done.returncode == 0 else "FAILED"}', flush=True)
  return done.returncode == 0


def main() -> int:
  """Runs what is missing of the grid, then reports on all of it."""
  known = names()
  parser = argparse.ArgumentParser(description='A grid of remedies.')
  parser.add_argument('--out', type=Path, required=True, help='folder')
  parser.add_argument('--only', default=','.join(known), help='of the methods')
  parser.add_argument('--seeds', default='0,1,2', help='comma-separated')
  parser.add_argument('--steps', type=int, help="default: the config's")
  parser.add_argument('--workers', type=int, default=1, help='runs at once')
  options = parser.parse_args()
  chosen = list(dict.fromkeys(options.only.split(',')))
  allowed = known + longer()
  if unknown := set(chosen) - set(allowed):
    parser.error(
      f'no method is named {unknown}; choose of {", ".join(allowed)}.'
    )
  runs = [
    (options.out / f'{name}_s{seed}', name, int(seed))
    for seed in dict.fromkeys(options.seeds.split(','))
    for name in chosen
  ]
  with concurrent.futures.ThreadPoolExecutor(options.workers) as pool:
    done = list(
      pool.map(lambda run: train(run[0], run[1], run[2], options.steps), runs)
    )
  folders = [str(run[0]) for run, ok in zip(runs, done, strict=True) if ok]
  if folders:
    subprocess.run(
      [
        sys.executable,
        *('-m', 'sdjax.report', *folders),
        f'--out={options.out / "report"}',
        '--title=Remedies for the loss of variety',
      ],
      check=True,
    )
  if failed := [str(r[0]) for r, ok in zip(runs, done, strict=True) if not ok]:
    print(f'failed, see the .log beside each: {", ".join(failed)}')
  return bool(failed)


if __name__ == '__main__':
  sys.exit(main())
