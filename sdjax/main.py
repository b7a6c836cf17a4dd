"""The command line: `python -m sdjax.main --config=FILE.py --workdir=DIR`."""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from sdjax import config as config_lib
from sdjax import config_check, config_dict
from sdjax.in_words import contexts_in_words, loss_in_words

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Config file, e.g. configs/concept_graph.py:sd.'
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')


def run(config: config_lib.Config, workdir: str) -> None:
  """Does what the config's mode says.

  Args:
    config: a checked config.
    workdir: the run's folder.
  """
  # Imported here: they pull in what `--config.print` does not need.
  from sdjax import forecast, pretrain, train

  {
    'train': train.train,
    'eval': train.evaluate,
    'forecast': forecast.forecast,
    'pretrain': pretrain.pretrain,
  }[config.mode](config, workdir)


def show(config: config_lib.Config) -> str:
  """Returns the resolved options, one a line, and the loss in words."""
  flat = config_check.flatten(config_dict.to_dict(config))
  lines = [f'{name} = {value!r}' for name, value in flat.items()]
  return '\n'.join([*lines, '', loss_in_words(config)])


def show_contexts(config: config_lib.Config) -> str:
  """Returns one question as the model is shown it, or why that cannot be.

  The tokenizer is loaded for it, the weights are not.
  """
  from sdjax.data.context import check_thinking
  from sdjax.data.tokenizer import load_tokenizer
  from sdjax.tasks import make_task

  if config.model is None:
    return 'pretraining begins without a tokenizer: there is no context yet.'
  try:
    tokenizer = load_tokenizer(config.model.path)
    check_thinking(tokenizer, config.model.thinking)
    return contexts_in_words(config, make_task(config.task), tokenizer)
  except (ValueError, OSError) as error:
    return f'no context can be shown: {" ".join(str(error).split())}'


def main(argv: list[str]) -> None:
  """Parses flags and runs; a user's mistake ends in one line, exit code 2."""
  if len(argv) > 1:
    raise app.UsageError(f'unknown arguments: {argv[1:]}')
  if not flags.FLAGS['verbosity'].present:
    # Orbax and JAX tell at length what they do; errors still come through.
    logging.set_verbosity(logging.WARNING)
  try:
    config = config_dict.from_config_dict(_CONFIG.value)
    if config.print:
      print(show(config))
      print(f'\n{show_contexts(config)}')
      return
    if not _WORKDIR.value:
      raise config_lib.ConfigError('--workdir is missing: name a folder.')
    run(config, _WORKDIR.value)
  except (ValueError, OSError, FloatingPointError) as error:
    if os.environ.get('SDJAX_TRACEBACK'):
      raise
    print(f'error: {error}', file=sys.stderr)
    print('(SDJAX_TRACEBACK=1 shows where)', file=sys.stderr)
    sys.exit(2)


if __name__ == '__main__':
  flags.mark_flag_as_required('config')
  app.run(main)
