"""Checkpoints of a run as folders that other tools open.

`python -m sdjax.export --workdir=RUN --out=FOLDER` writes the model that a
run trained as a Hugging Face folder, with the tokenizer, the chat template
and the configuration it came with. With `--adapter` a run of an adapter
writes a folder for the package `peft` instead.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import safetensors.numpy

from sdjax.config import convert as config_dict
from sdjax.config import schema as config_lib
from sdjax.data.json_files import write_json_atomic
from sdjax.models import hf
from sdjax.models.families import FAMILIES
from sdjax.models.load import LanguageModel, load_from_config
from sdjax.models.lora import factors, merge
from sdjax.models.sharding import make_mesh
from sdjax.training.best import FOLDER
from sdjax.training.checkpoint import Checkpoints
from sdjax.types import Params

WEIGHTS = ('student', 'teacher')
ADAPTER_CONFIG = 'adapter_config.json'
ADAPTER_WEIGHTS = 'adapter_model.safetensors'


class ExportError(ValueError):
  """A run that cannot be exported as asked."""


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a run trained: the checkpoint of a step, and what it began with.

  `trained` has `student`, and `teacher` where the run keeps an average:
  weights, or adapters, under which those of `start` are needed.
  """

  options: config_lib.Model
  start: LanguageModel
  trained: Mapping[str, Params]
  step: int


def read_options(workdir: str | Path) -> tuple[config_lib.Model, str]:
  """Reads `model` and `train.keep_best` of a run's `config.json`.

  Its task, method and rewards may be known nowhere but in the program that
  trained it.

  Raises:
    ExportError: if the folder is not one of a training run.
  """
  file = Path(workdir) / 'config.json'
  if not file.is_file():
    raise ExportError(
      f'{file} is missing: --workdir must name the folder of a run, as '
      '`python -m sdjax.main --workdir=...` makes it.'
    )
  found = json.loads(file.read_text())
  if found.get('model') is None:
    raise ExportError(
      f'{workdir} is a pretraining run; its model is in {workdir}/model.'
    )
  known = config_lib.Config()
  options = config_dict.read_section(found['model'], known.model, 'model')
  train = config_dict.read_section(found['train'], known.train, 'train')
  return options, train.keep_best


def restore(
  workdir: str | Path, step: int | None = None, best: bool = False
) -> Restored:
  """Brings what a run trained back, from a checkpoint and its beginning.

  The newest checkpoint, or that of a step; or, and then the step is not read,
  the best one, which `train.keep_best` kept.

  Raises:
    ExportError: if there is no checkpoint.
  """
  options, keep_best = read_options(workdir)
  if best and not keep_best:
    raise ExportError(
      f'{workdir} keeps no best checkpoint: its train.keep_best is empty. '
      'Export a --step or the newest one.'
    )
  folder = Path(workdir) / (FOLDER if best else 'checkpoints')
  if not folder.is_dir():
    raise ExportError(f'{folder} is missing: the run has no checkpoint yet.')
  mesh = make_mesh(config_lib.Mesh())
  # Only a run deletes its checkpoints.
  with contextlib.closing(Checkpoints(folder, keep=None)) as checkpoints:
    step = checkpoints.latest_step() if step is None or best else step
    if step is None:
      raise ExportError(f'{folder} holds no complete checkpoint.')
    found = checkpoints.weights(step, mesh)
  start = load_from_config(options, mesh)
  if not options.lora.rank:
    start = dataclasses.replace(start, params=None)
  names = {'student': 'params', 'teacher': 'teacher_params'}
  trained = {k: found[v] for k, v in names.items() if v in found}
  return Restored(options, start, trained, step)


def trained_tree(restored: Restored, weights: str) -> Params:
  """Picks the trained weights or adapter: `student`, or `teacher`'s average.

  Raises:
    ExportError: if the run keeps no moving average.
  """
  if weights not in restored.trained:
    raise ExportError(
      "--weights=teacher needs a run with method.teacher='ema'; this one "
      'keeps no average.'
    )
  return restored.trained[weights]


def export_model(
  restored: Restored, out: str | Path, weights: str, dtype: str | None
) -> None:
  """Writes a Hugging Face folder, an adapter merged into its matrices.

  The weights, `student` or `teacher`, are stored as `dtype`; None: as the
  checkpoint has them that the run began with.
  """
  options, start = restored.options, restored.start
  source = hf.resolve(options.path)
  params = trained_tree(restored, weights)
  if options.lora.rank:
    params = merge(start.params, params, options.lora.alpha / options.lora.rank)
  raw = hf.raw_config(source)
  stored = str(raw.get('dtype') or raw.get('torch_dtype') or 'float32')
  hf.save_checkpoint(
    out,
    start.config,
    params,
    start.tokenizer,
    start.eos_ids,
    dtype or stored,
    source=source,
  )


def export_adapter(restored: Restored, out: str | Path, weights: str) -> None:
  """Writes the adapter of `student` or `teacher` as a folder of `peft`.

  Raises:
    ExportError: if the run trained the weights themselves.
  """
  options = restored.options
  if not options.lora.rank:
    raise ExportError(
      '--adapter needs a run with model.lora.rank above 0; this one trained '
      'the weights themselves: export it without --adapter.'
    )
  source = hf.resolve(options.path)
  names = FAMILIES[hf.raw_config(source)['model_type']].names
  tensors: dict[str, np.ndarray] = {}
  modules = set()
  for path, pair in factors(trained_tree(restored, weights)).items():
    # Theirs multiply from the other side.
    for letter, factor in (('A', pair['a']), ('B', pair['b'])):
      for layer, matrix in enumerate(np.asarray(factor, np.float32)):
        module = names[path].format(layer).removesuffix('.weight')
        modules.add(module.rpartition('.')[2])
        tensors[f'base_model.model.{module}.lora_{letter}.weight'] = (
          np.ascontiguousarray(matrix.T)
        )
  out = Path(out)
  out.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(
    tensors, out / ADAPTER_WEIGHTS, metadata={'format': 'pt'}
  )
  peft_config = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': options.path,
    'r': options.lora.rank,
    'lora_alpha': options.lora.alpha,
    'lora_dropout': 0.0,
    'target_modules': sorted(modules),
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    'use_rslora': False,
    'use_dora': False,
  }
  write_json_atomic(out / ADAPTER_CONFIG, peft_config)
  restored.start.tokenizer.save_pretrained(str(out))


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the command line and exports."""
  parser = argparse.ArgumentParser(
    prog='python -m sdjax.export', description=__doc__
  )
  parser.add_argument('--workdir', required=True, help='folder of the run')
  parser.add_argument('--out', required=True, help='folder to write')
  parser.add_argument('--step', type=int, help='checkpoint; default: newest')
  parser.add_argument(
    '--best',
    action='store_true',
    help='the checkpoint that train.keep_best kept',
  )
  parser.add_argument('--weights', choices=WEIGHTS, default='student')
  parser.add_argument(
    '--dtype',
    choices=hf.SAVED_DTYPES,
    help='of the stored weights; default: as in the starting checkpoint',
  )
  parser.add_argument(
    '--adapter', action='store_true', help='a peft folder, not merged'
  )
  options = parser.parse_args(argv)
  if options.adapter and options.dtype:
    parser.error('--dtype does nothing with --adapter: adapters are float32')
  if options.best and options.step is not None:
    parser.error('--best and --step name different checkpoints; give one')
  try:
    restored = restore(options.workdir, options.step, options.best)
    if options.adapter:
      export_adapter(restored, options.out, options.weights)
    else:
      export_model(restored, options.out, options.weights, options.dtype)
  except (ValueError, OSError, ImportError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  print(f'step {restored.step} of {options.workdir} written to {options.out}')


if __name__ == '__main__':
  main()
