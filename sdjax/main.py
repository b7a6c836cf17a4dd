"""The command line: `python -m sdjax.main --config=FILE.py --workdir=DIR`.

Exit codes: 0, done; 2, a mistake in the options, the config file, a path or
what they name, told in one line (with SDJAX_TRACEBACK=1 where it was found);
130 and 143, ended by SIGINT (Ctrl-C) and SIGTERM. A training run then first
finishes its step and saves (evaluations and compilations are left), and one
line says that the same command goes on from there. A second signal ends it at
once. Any other failure is a traceback and 1.
"""

import atexit
import os
import re
import sys
import traceback
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from sdjax.config import check as config_check
from sdjax.config import convert as config_dict
from sdjax.config import schema as config_lib
from sdjax.feedback.reward_worker import RewardError
from sdjax.training.describe import contexts_in_words, loss_in_words
from sdjax.training.interrupt import Interrupted, interrupts

# What does not exist is let through: `config_dict` says what does.
_CONFIG = config_flags.DEFINE_config_file(
  'config',
  None,
  'Config file, e.g. configs/concept_graph.py:sd.',
  lock_config=False,
  accept_new_attributes=True,
)
# The library takes no text where the config file has a section.
_TASK = re.compile(r'--?config\.task=')
_WORKDIR = flags.DEFINE_string('workdir', None, 'The folder of the run.')

MISTAKES = (
  ValueError,
  OSError,
  FloatingPointError,
  ImportError,
  RewardError,
)
"""What a user can mend: options, files, packages, a learning rate."""


def run(config: config_lib.Config, workdir: str) -> None:
  """Does what the config's mode says."""
  # Imported here: they pull in what `--config.print` does not need.
  from sdjax.forecast import run as forecast
  from sdjax.training import loop as train
  from sdjax.training import pretrain

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
  from sdjax.models.tokenizer import load_tokenizer
  from sdjax.tasks import make_task

  if config.model is None:
    return 'pretraining begins without a tokenizer: there is no context yet.'
  try:
    tokenizer = load_tokenizer(config.model.path)
    check_thinking(tokenizer, config.model.thinking)
    return contexts_in_words(config, make_task(config.task), tokenizer)
  except (ValueError, OSError) as error:
    return f'no context can be shown: {" ".join(str(error).split())}'


def parse(argv: list[str]) -> list[str]:
  """Reads the command line and the config file it names.

  Returns what is no flag, the program first.
  """
  try:
    tasks = [arg for arg in argv if _TASK.match(arg)]
    rest = flags.FLAGS([arg for arg in argv if arg not in tasks])
    if _CONFIG.value is None:
      raise config_lib.ConfigError(
        '--config is missing: name a file, e.g. configs/concept_graph.py:sd.'
      )
    if not isinstance(_CONFIG.value, ConfigDict):
      raise TypeError('get_config() gives no ConfigDict')
    for arg in tasks:
      if any(re.match(r'--?config\.task\.', other) for other in argv):
        raise config_lib.ConfigError(
          f'{arg} and --config.task.OPTION exclude each other: a task in words '
          'has its options in brackets.'
        )
      with _CONFIG.value.ignore_type():
        _CONFIG.value.task = arg.partition('=')[2]
    return rest
  # A config file is a program, and fails as programs do.
  except Exception as error:
    fail(error, why_not_parsed(error, argv))


def why_not_parsed(error: Exception, argv: list[str]) -> str:
  """Says what is wrong with a command line, or with its config file."""
  causes: list[BaseException] = [error]
  while deeper := causes[-1].__cause__ or causes[-1].__context__:
    causes.append(deeper)
  for cause in reversed(causes):
    if isinstance(cause, config_lib.ConfigError):
      return str(cause)
  flag = next((x for x in argv if x.lstrip('-').startswith('config=')), '')
  path = flag.partition('=')[2].partition(':')[0]
  if flag and not os.path.isfile(path):
    return f'{flag}: there is no file {path!r}.'
  first = f'{type(causes[-1]).__name__}: {causes[-1]}'
  frames = traceback.extract_tb(causes[-1].__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == path]
  if path and lines:
    return f'{flag} fails in line {lines[-1]}: {first}'
  if isinstance(causes[-1], TypeError):  # text has no options to reach into
    for arg in argv:
      reach = re.match(r'--?config\.((?:\w+\.)*(\w+))\.(\w+)=(.*)', arg)
      if reach and reach[2] in config_dict.given_as_text():
        option, _, name, value = reach.groups()
        return (
          f'{arg}: {option} is one text, with its options in brackets: '
          f"--config.{option}='NAME({name}={value})'."
        )
  # One kind of the library's own errors holds a whole traceback.
  parsing = 'Error whilst parsing config file' in str(error)
  if isinstance(error, flags.Error) and not parsing:
    return str(error)
  if isinstance(error, KeyError):
    return f'there is no such section of options: {error.args[0]}'
  return f'{flag} cannot be read: {first}'


def why(error: BaseException) -> str:
  """Says in words what can be done about an error that a user can mend."""
  if isinstance(error, ModuleNotFoundError) and error.name:
    return f'the package {error.name} is missing: pip install {error.name}.'
  return str(error)


def leave(code: int) -> NoReturn:
  """Ends the process where it stands, after what is registered with `atexit`.

  A device may still be at what a signal cut short, and XLA's threads end in a
  segmentation fault if Python takes its client down under them.

  Args:
    code: of the process.
  """
  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def fail(error: BaseException, text: str) -> NoReturn:
  """Ends the process with one line and exit code 2.

  With `$SDJAX_TRACEBACK` set the error is raised again instead.
  """
  if os.environ.get('SDJAX_TRACEBACK'):
    raise error
  print(f'error: {" ".join(text.split())}', file=sys.stderr)
  print('(SDJAX_TRACEBACK=1 shows where)', file=sys.stderr)
  sys.exit(2)


def main(argv: list[str]) -> None:
  """Does what the parsed flags say; see the module for exit codes."""
  if not flags.FLAGS['verbosity'].present:
    # Orbax and JAX tell at length what they do; errors still come through.
    logging.set_verbosity(logging.WARNING)
  try:
    if len(argv) > 1:
      raise config_lib.ConfigError(
        f'unknown arguments: {argv[1:]}; options are --config.NAME=VALUE.'
      )
    config = config_dict.from_config_dict(_CONFIG.value)
    if config.print:
      print(show(config))
      print(f'\n{show_contexts(config)}')
      return
    if not _WORKDIR.value:
      raise config_lib.ConfigError('--workdir is missing: name a folder.')
    with interrupts(exits=True):
      run(config, _WORKDIR.value)
  except Interrupted as error:
    print(error, file=sys.stderr)
    leave(error.exit_code)
  except MISTAKES as error:
    # What cannot be imported from this package is a mistake of its own.
    if isinstance(error, ImportError):
      if (error.name or '').partition('.')[0] == 'sdjax':
        raise
    fail(error, why(error))


if __name__ == '__main__':
  app.run(main, flags_parser=parse)
