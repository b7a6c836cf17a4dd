"""Training a model on its own rollouts: the pipeline, host side.

The loop reads as the data flows; everything it calls on a device is a pure
function from `sdjax.steps`, and what else it does hangs on hooks.

Steps are counted from 1 in all logs. Step n of `rollouts.jsonl`, of
`credit.jsonl` and of `train/` in `metrics.jsonl` are the same rollouts, sampled
by the weights of n - 1 steps; `eval/` at n is of the weights after it, and the
model before training is at 0.
"""

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

from sdjax.config import convert as config_dict
from sdjax.config import schema as config_lib
from sdjax.data.context import check_thinking
from sdjax.methods import Method
from sdjax.models.load import fingerprint, load_from_config
from sdjax.models.lora import adapt
from sdjax.models.sharding import make_mesh
from sdjax.report import ending
from sdjax.tasks import make_task
from sdjax.tasks.base import Task
from sdjax.training.best import FOLDER as BEST_FOLDER
from sdjax.training.checkpoint import Checkpoints
from sdjax.training.compilations import keep_compilations
from sdjax.training.evaluator import Evaluator, check_keep_best, measure
from sdjax.training.hooks import Hook
from sdjax.training.interrupt import Interrupted, interrupts
from sdjax.training.log import Progress
from sdjax.training.run_folder import Origin, Workdir, check_folder
from sdjax.training.session import Session


def train(
  config: config_lib.Config,
  path: str,
  method: Callable[..., Method] | None = None,
  task: Task | None = None,
  hooks: Sequence[Hook] = (),
) -> None:
  """Runs, or goes on with, the run of a folder.

  Nothing is written before all that may fail is built. On SIGINT and SIGTERM
  the step is finished and saved; in a notebook, where nobody asked for the
  process to end, a second Ctrl-C does not wait for that. Evaluations and
  compilations are left at once.

  Args:
    config: of mode `train`; checked as the command line's is.
    path: the run's folder.
    method: as `METHODS` has them; None: the one that the config names. A run
      goes on with the one it began with.
    task: questions and a verifier; None: the one that `config.task` selects.
    hooks: called at the moments of the run, after its own.

  Raises:
    ConfigError, ValueError: a mistake in the config, or in what it names.
    WorkdirError: the folder is of another run.
    Interrupted: (a `KeyboardInterrupt`) a signal ended it; it says what is
      saved.
    HookError: a hook raised; what the run did until then is saved.
  """
  config_dict.check(config, 'train')
  check_keep_best(config)
  check_folder(path, config)
  keep_compilations(config.train.compilation_cache)
  with interrupts() as ended:
    run = Session(config, path, method, task, hooks, ended)
    with contextlib.closing(run):
      try:
        run.begin()
        while True:
          run.evaluate_if_due()
          run.save_if_due()
          if run.is_over:
            break
          run.step()
        run.finish()
      except Interrupted as error:
        raise run.interrupted(error) from None
  print(ending.result(Path(path), config.alarm.action != 'off'))


def evaluate(config: config_lib.Config, path: str) -> None:
  """Measures the model a config names, and a run's newest checkpoint.

  How the run was trained does not matter: neither its method nor its rewards
  need to be known here. Its task does. In a folder with the checkpoints of a
  run the starting weights are measured as `base`, the newest checkpoint as
  `final`, and the best one, if there is one, as `best`.

  Raises:
    ConfigError, ValueError: a mistake in the config, or in what it names.
    WorkdirError: the folder is of a run of another model, task or seed.
  """
  config_dict.check(config, 'eval')
  check_folder(path, config)
  keep_compilations(config.train.compilation_cache)
  assert config.model
  mesh, lora = make_mesh(config.mesh), config.model.lora
  model = load_from_config(config.model, mesh)
  check_thinking(model.tokenizer, config.model.thinking)
  evaluator = Evaluator(config, model, make_task(config.task), mesh)
  progress = Progress(1)
  for note in evaluator.notes:
    progress.note(note)
  workdir = Workdir(path, config, Origin(fingerprint(model.params)))

  with contextlib.closing(workdir):
    measure(workdir, evaluator, model.params, 'base', progress)
    for when, name in (('final', 'checkpoints'), ('best', BEST_FOLDER)):
      if not (folder := workdir.path / name).is_dir():
        continue
      with contextlib.closing(Checkpoints(folder, keep=None)) as checkpoints:
        step = checkpoints.latest_step()
        if step is None:
          continue
        params = checkpoints.weights(step, mesh)['params']
      if lora.rank:
        params = adapt(model.params, params, lora.alpha / lora.rank)
      best = step if when == 'best' else None
      measure(workdir, evaluator, params, when, progress, best)
    progress.finish()
    for name, value in workdir.read_eval().items():
      print(f'{name} {value:.4g}')
