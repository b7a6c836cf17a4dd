"""Checkpoints of a run as folders that other tools open.

`python -m sdjax.export --workdir=RUN --out=FOLDER` writes the model that a
run trained as a Hugging Face folder, with the tokenizer, the chat template
and the configuration it came with. With `--adapter` a run of an adapter
writes a folder for the package `peft` instead.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from sdjax import config as config_lib
from sdjax import config_dict
from sdjax.best import FOLDER
from sdjax.checkpoint import Checkpoints
from sdjax.lora import factors, merge
from sdjax.metrics import write_json_atomic
from sdjax.models import hf
from sdjax.models.families import FAMILIES
from sdjax.sharding import with_sharding
from sdjax.trainer import Trainer
from sdjax.types import Params

WEIGHTS = ('student', 'teacher')
ADAPTER_CONFIG = 'adapter_config.json'
ADAPTER_WEIGHTS = 'adapter_model.safetensors'


class ExportError(ValueError):
  """A run that cannot be exported as asked."""


def read_config(workdir: str | Path) -> config_lib.Config:
  """Reads what a run was started with.

  Args:
    workdir: the run's folder.

  Returns:
    Its config.

  Raises:
    ExportError: if the folder is not one of a training run.
  """
  file = Path(workdir) / 'config.json'
  if not file.is_file():
    raise ExportError(
      f'{file} is missing: --workdir must name the folder of a run, as '
      '`python -m sdjax.main --workdir=...` makes it.'
    )
  config = config_dict.from_config_dict(json.loads(file.read_text()))
  if config.model is None:
    raise ExportError(
      f'{workdir} is a pretraining run; its model is in {workdir}/model.'
    )
  return config


def restore(
  config: config_lib.Config,
  workdir: str | Path,
  step: int | None,
  best: bool = False,
) -> tuple[Trainer, int]:
  """Brings a run's checkpoint back.

  Args:
    config: of the run.
    workdir: its folder.
    step: which checkpoint; None: the newest.
    best: take the one that `train.keep_best` kept; `step` is then not read.

  Returns:
    The trainer with the checkpoint's state, and the step.

  Raises:
    ExportError: if there is no checkpoint.
  """
  if best and not config.train.keep_best:
    raise ExportError(
      f'{workdir} keeps no best checkpoint: its train.keep_best is empty. '
      'Export a --step or the newest one.'
    )
  folder = Path(workdir) / (FOLDER if best else 'checkpoints')
  if not folder.is_dir():
    raise ExportError(f'{folder} is missing: the run has no checkpoint yet.')
  trainer = Trainer(config)
  # Only a run deletes its checkpoints.
  checkpoints = Checkpoints(folder, keep=None)
  try:
    step = checkpoints.latest_step() if step is None or best else step
    if step is None:
      raise ExportError(f'{folder} holds no complete checkpoint.')
    trainer.state, _ = checkpoints.restore(
      step, with_sharding(trainer.state, trainer.mesh)
    )
  finally:
    checkpoints.close()
  return trainer, step


def trained_tree(trainer: Trainer, weights: str) -> Params:
  """Picks the trained weights or adapter of a state.

  Args:
    trainer: with the state.
    weights: `student`, or `teacher` for the moving average.

  Returns:
    The tree.

  Raises:
    ExportError: if the run keeps no moving average.
  """
  if weights == 'student':
    return trainer.state.params
  if trainer.state.teacher_params is None:
    raise ExportError(
      "--weights=teacher needs a run with method.teacher='ema'; this one "
      f'keeps no average (teacher: {trainer.teacher}).'
    )
  return trainer.state.teacher_params


def export_model(
  trainer: Trainer, out: str | Path, weights: str, dtype: str | None
) -> None:
  """Writes a Hugging Face folder, an adapter merged into its matrices.

  Args:
    trainer: with the state to export.
    out: the folder.
    weights: `student` or `teacher`.
    dtype: of the stored weights; None: that of the checkpoint the run began
      with.
  """
  config = trainer.config.model
  assert config is not None
  source = hf.resolve(config.path)
  params = trained_tree(trainer, weights)
  if trainer.base is not None:
    params = merge(trainer.base, params, config.lora.alpha / config.lora.rank)
  raw = hf.raw_config(source)
  stored = str(raw.get('dtype') or raw.get('torch_dtype') or 'float32')
  hf.save_checkpoint(
    out,
    trainer.model.config,
    params,
    trainer.model.tokenizer,
    trainer.model.eos_ids,
    dtype or stored,
    source=source,
  )


def export_adapter(trainer: Trainer, out: str | Path, weights: str) -> None:
  """Writes an adapter as a folder of the package `peft`.

  Args:
    trainer: with the state to export.
    out: the folder.
    weights: `student` or `teacher`.

  Raises:
    ExportError: if the run trained the weights themselves.
  """
  config = trainer.config.model
  assert config is not None
  if trainer.base is None:
    raise ExportError(
      '--adapter needs a run with model.lora.rank above 0; this one trained '
      'the weights themselves: export it without --adapter.'
    )
  source = hf.resolve(config.path)
  names = FAMILIES[hf.raw_config(source)['model_type']].names
  tensors: dict[str, np.ndarray] = {}
  modules = set()
  for path, pair in factors(trained_tree(trainer, weights)).items():
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
  write_json_atomic(out / ADAPTER_CONFIG, _peft_config(config, modules))
  trainer.model.tokenizer.save_pretrained(str(out))


def _peft_config(config: config_lib.Model, modules: set[str]) -> dict[str, Any]:
  return {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': config.path,
    'r': config.lora.rank,
    'lora_alpha': config.lora.alpha,
    'lora_dropout': 0.0,
    'target_modules': sorted(modules),
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
    'use_rslora': False,
    'use_dora': False,
  }


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
    config = read_config(options.workdir)
    trainer, step = restore(config, options.workdir, options.step, options.best)
    if options.adapter:
      export_adapter(trainer, options.out, options.weights)
    else:
      export_model(trainer, options.out, options.weights, options.dtype)
  except (ValueError, OSError) as error:
    print(f'error: {error}', file=sys.stderr)
    sys.exit(2)
  print(f'step {step} of {options.workdir} written to {options.out}')


if __name__ == '__main__':
  main()
