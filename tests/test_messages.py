"""What a user's mistake on the command line ends in: one line, code 2."""

import json
import os
import subprocess
import sys

import pytest

# One process imports everything; each command line is then tried in a fork.
DRIVER = """
import json, os, sys
from absl import app
from sdjax import main
from sdjax.training import loop as train

def incomplete(config, path):
  import no_such_package

train.evaluate = incomplete
tried = []
for number, arguments in enumerate(json.loads(sys.argv[1])):
  child = os.fork()
  if not child:
    file = os.open(f'{number}.log', os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1), os.dup2(file, 2)
    sys.argv = ['main', *arguments]
    app.run(main.main, flags_parser=main.parse)
  code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  tried.append((code, open(f'{number}.log').read()))
print(json.dumps(tried))
"""

CONFIG = """
from ml_collections import ConfigDict
from sdjax import config

def get_config(what):
  if what == 'number':
    return 3
  if what == 'broken':
    return {}['key']
  method = {'sd': config.SelfDistillation, 'rl': config.PolicyGradient}[what]
  return config.to_config_dict(config.Config(method=method()))
"""

OLD = '{"mode": "train", "method": {"name": "sd", "ema_rate": 0.1}}'

REWARD = '--config=own.py:rl --config.reward.name=function'
CASES = {
  'misspelt': (
    '--config=own.py:sd --config.train.num_step=3',
    "unknown option train.num_step (did you mean 'num_steps'?); train has",
  ),
  'of another method': (
    '--config=own.py:sd --config.method.overlong_share=0.5',
    "unknown option method.overlong_share, which is one of method 'rl'; ",
  ),
  'spelled as it was': (
    '--config=own.py:sd --config.method.jsd_alpha=0.3',
    "option method.jsd_alpha (it is divergence='jsd(alpha=0.5)' now); ",
  ),
  'of the teacher, spelled as it was': (
    '--config=own.py:sd --config.method.demonstrations.exclude_self=False',
    "self (it is strategy='uniform(exclude_self=False)' now); ",
  ),
  'of the loss, spelled as it was': (
    '--config=own.py:sd --config.loss.kl_coef=0.1',
    "unknown option loss.kl_coef (it is kl='k3(coef=...)' now); ",
  ),
  'a value spelled as it was': (
    '--config=own.py:sd --config.method.support=student_top_k',
    "method.support='student_top_k': 'student_top_k' is not one of full, ",
  ),
  'an option of a value, by its path': (
    '--config=own.py:sd --config.method.teacher.rate=0.1',
    'method.teacher is one text, with its options in brackets: '
    "--config.method.teacher='NAME(rate=0.1)'.",
  ),
  'a value with an option it lacks': (
    '--config=own.py:sd --config.method.divergence=jsd(alhpa=0.3)',
    "jsd has no option 'alhpa' (did you mean 'alpha'?); it has alpha, ",
  ),
  'a value out of bounds': (
    '--config=own.py:sd --config.method.divergence=jsd(alpha=1.5)',
    "divergence='jsd(alpha=1.5)': jsd(alpha=1.5) must be below 1.",
  ),
  'a run whose options are spelled as they were': (
    '--config=own.py:sd --workdir=old',
    "unknown option method.ema_rate (it is teacher='ema(rate=0.05)' now); ",
  ),
  'no such section': (
    '--config=own.py:sd --config.trian.num_steps=3',
    'no such section of options: \'trian\' Did you mean "train"',
  ),
  'no such flag': ('--config=own.py:sd --workdirr=x', 'Did you mean: workdir'),
  'no number': (
    '--config=own.py:sd --config.train.num_steps=abc',
    "--config.train.num_steps=abc: invalid literal for int() with base 10: 'a",
  ),
  'not allowed': (
    '--config=own.py:sd --config.train.num_steps=0',
    'train.num_steps=0 must be at least 1',
  ),
  'no option': ('--config=own.py:sd seed=3', "unknown arguments: ['seed=3']"),
  'no config': ('--workdir=run', '--config is missing: name a file'),
  'no file': (
    '--config=nope.py:sd',
    "--config=nope.py:sd: there is no file 'nope.py'.",
  ),
  'no file, with options': (
    '--config=nope.py:sd --config.seed=1',
    "--config=nope.py:sd: there is no file 'nope.py'.",
  ),
  'no such method': (
    '--config=configs/concept_graph.py:nope',
    'configs/concept_graph.py:nope does not exist; choose one of sd, ',
  ),
  'a config that fails': (
    '--config=own.py:broken',
    "--config=own.py:broken fails in line 9: KeyError: 'key'",
  ),
  'a config that cannot be read': (
    '--config=syntax.py',
    "--config=syntax.py cannot be read: SyntaxError: unmatched ')'",
  ),
  'a config that is none': (
    '--config=own.py:number',
    'cannot be read: TypeError: get_config() gives no ConfigDict',
  ),
  'no workdir': ('--config=own.py:sd', '--workdir is missing: name a folder.'),
  'no model': (
    '--config=own.py:sd --config.model.path=/nope/model --workdir=run',
    "no checkpoint '/nope/model'; give a folder",
  ),
  'no package': (
    '--config=own.py:sd --config.mode=eval --workdir=run',
    'the package no_such_package is missing: pip install no_such_package.',
  ),
  'a reward function that is nowhere': (
    f'{REWARD} --config.reward.function=none.py:f --workdir=run',
    "reward function 'none.py:f': there is no file 'none.py'",
  ),
  'a reward function of another name': (
    f'{REWARD} --config.reward.function=reward.py:f --workdir=run',
    "reward function 'reward.py:f' cannot be imported: ValueError: boom (/",
  ),
}


@pytest.fixture(scope='module')
def tried(tmp_path_factory):
  """Exit code and output of each case, and the folder they ran in."""
  folder = tmp_path_factory.mktemp('messages')
  (folder / 'own.py').write_text(CONFIG)
  (folder / 'syntax.py').write_text('def get_config)')
  (folder / 'old').mkdir()
  (folder / 'old' / 'config.json').write_text(OLD)
  (folder / 'reward.py').write_text("\nraise ValueError('boom')")
  (folder / 'configs').symlink_to(os.path.abspath('configs'))
  lines = [arguments.split() for arguments, _ in CASES.values()]
  ended = subprocess.run(
    [sys.executable, '-c', DRIVER, json.dumps(lines)],
    cwd=folder,
    env={
      **os.environ,
      'PYTHONPATH': os.getcwd(),
      'SDJAX_CACHE': str(folder / 'cache'),
    },
    capture_output=True,
    text=True,
    check=True,
  )
  return dict(zip(CASES, json.loads(ended.stdout), strict=True)), folder


@pytest.mark.parametrize('name', CASES)
def test_a_mistake_ends_in_one_line(tried, name):
  code, said = tried[0][name]
  assert code == 2
  assert said.startswith('error: ') and CASES[name][1] in said
  first, *rest = said.splitlines()
  assert rest == ['(SDJAX_TRACEBACK=1 shows where)']


def test_a_mistake_leaves_the_folder_alone(tried):
  assert not (tried[1] / 'run').exists()
  assert [x.name for x in (tried[1] / 'old').iterdir()] == ['config.json']
  assert (tried[1] / 'old' / 'config.json').read_text() == OLD
