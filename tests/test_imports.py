"""Who may import whom, and what `import sdjax` must not cost."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import sdjax.types

PACKAGE = Path(sdjax.types.__file__).parent

FLOORS = [
  {'options'},
  {'types', 'rng'},
  {'objectives', 'models', 'tasks'},
  {'data', 'evaluate'},
  {'feedback'},
  {'steps'},
  {'config'},
  {'methods', 'report'},
  {'training', 'forecast'},
  {'export', 'bench'},
  {'main'},
]
FLOOR = {name: i for i, names in enumerate(FLOORS) for name in names}
MAY_COMPILE = {
  'training/trainer.py',
  'training/programs.py',
  'training/pretrain.py',
  'bench.py',
  'forecast/run.py',
  'models/load.py',  # the plain forward of research scripts
  'feedback/reward_model.py',  # from texts to rewards
  'evaluate/sentence_encoder.py',  # and to vectors
}

FILES = sorted(
  path for path in PACKAGE.rglob('*.py') if path != PACKAGE / '__init__.py'
)


def tree_of(path):
  return ast.parse(path.read_text(), str(path))


def imported(tree):
  """Dotted names of what a module imports, wherever the statement stands."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, 'relative import'
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def room(path):
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def upward(name, dotted_names):
  """Those of the names that stand on a higher floor than room `name`."""
  wrong = []
  for dotted in dotted_names:
    parts = dotted.split('.')
    if parts[0] != 'sdjax' or len(parts) == 1:
      continue
    # What is no room (`from sdjax import rollout_step`) is an export of the
    # package itself, which lies above every room.
    if FLOOR.get(parts[1], len(FLOORS)) > FLOOR[name]:
      wrong.append(dotted)
  return wrong


def test_files_were_found():
  assert {'types', 'models', 'steps'} <= {room(path) for path in FILES}


def test_the_rule_can_fail():
  tree = ast.parse('def f():\n  from sdjax.steps import sd\nimport sdjax.rng')
  assert upward('models', imported(tree)) == ['sdjax.steps.sd']
  assert upward('steps', imported(tree)) == []


@pytest.mark.parametrize(
  'path', FILES, ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_imports_point_down(path):
  assert room(path) in FLOOR, f'{room(path)!r} has no floor in FLOORS'
  assert upward(room(path), imported(tree_of(path))) == []


def test_no_two_rooms_import_each_other():
  needs = {}
  for path in FILES:
    parts = [name.split('.') for name in imported(tree_of(path))]
    needs.setdefault(room(path), set()).update(
      p[1] for p in parts if p[0] == 'sdjax' and len(p) > 1
    )
    needs[room(path)].discard(room(path))
  graphlib.TopologicalSorter(needs).prepare()  # raises on a cycle


def mentions(tree, name):
  """Lines on which `jax.<name>` is used or imported."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Attribute) and node.attr == name:
      if isinstance(node.value, ast.Name) and node.value.id == 'jax':
        yield node.lineno
    elif isinstance(node, ast.ImportFrom) and (node.module or '') == 'jax':
      if any(alias.name == name for alias in node.names):
        yield node.lineno


def test_only_the_pipelines_compile():
  assert list(mentions(ast.parse('@jax.jit\ndef f(): pass'), 'jit')) == [1]
  found = {
    f'{path.relative_to(PACKAGE)}:{line}'
    for path in FILES
    for line in mentions(tree_of(path), 'jit')
    if str(path.relative_to(PACKAGE)) not in MAY_COMPILE
  }
  assert not found


def test_there_is_no_pmap():
  assert not [p for p in FILES if list(mentions(tree_of(p), 'pmap'))]


def test_flax_linen_stays_in_the_models():
  found = {
    room(path)
    for path in FILES
    if any(
      name.startswith(('flax.linen', 'flax.nnx'))
      for name in imported(tree_of(path))
    )
  }
  assert found == {'models'}


def test_no_room_for_odds_and_ends():
  names = {path.stem for path in FILES}
  assert not names & {'utils', 'util', 'common', 'helpers', 'misc'}


def test_importing_the_steps_is_light():
  code = (
    'import sys, sdjax\n'
    'import sdjax.steps.rollout, sdjax.steps.sd, sdjax.steps.rl\n'
    'import sdjax.steps.update\n'
    "heavy = {'tensorflow_datasets', 'tensorflow', 'orbax', 'matplotlib',"
    " 'transformers', 'grain'}\n"
    'print(sorted(heavy & set(sys.modules)))\n'
    "print('jax' in sys.modules)\n"
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert out.stdout.split('\n')[:2] == ['[]', 'True']
