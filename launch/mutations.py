# pyright: reportAttributeAccessIssue=false, reportOptionalSubscript=false, reportPossiblyUnboundVariable=false
"""Do the tests notice a broken formula? Breaks them one by one and looks.

  python launch/mutations.py --sample=200 --out=runs/mutations.jsonl

draws 200 of all mutants of the formulas (`TESTS` lists the modules), runs the
tests of the module on each, and prints the share that a test caught. A mutant
differs in one place:

  + - * / flipped; one term of a sum dropped; a comparison flipped or moved by
  one; a number raised by 1, 0 and 1 exchanged; True and False exchanged; two
  neighbouring arguments swapped; min and max, & and |, `and` and `or`
  exchanged; a minus, a `~` or a `not` removed; a `stop_gradient` removed.

Docstrings, annotations, assertions and whatever is raised stay as they are.
A mutant whose tests fail, or take four times the processor's time that they
need, is killed, another one has survived.
Those in `mutations_equivalent.json` compute the same by another way, and are
not drawn; each has its reason there.

Results are a JSON object a line. Started again with the same --out it goes on
where it was; --again runs those that survived once more, after a test was
added. The same seed draws the same mutants while the sources stay the same.

The tests run in copies of the tree, in processes forked from one that has
imported jax and nothing of sdjax: a mutant costs its tests and no imports.
Exit code 1 when the share killed is below --least.
"""

import argparse
import ast
import collections
import copy
import dataclasses
import hashlib
import importlib
import importlib.util
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
EQUIVALENT = Path(__file__).with_name('mutations_equivalent.json')

OBJECTIVES, STEPS, EVAL = 'sdjax/objectives/', 'sdjax/steps/', 'sdjax/evaluate/'
TESTS: dict[str, tuple[str, ...]] = {
  'sdjax/feedback/rewards.py': ('rewards', 'mirror', 'choices'),
  'sdjax/feedback/demonstrations.py': ('demonstrations', 'choices'),
  'sdjax/feedback/strategies.py': ('demonstrations', 'choices'),
  'sdjax/report/runs.py': ('report', 'reports', 'ending'),
  'sdjax/report/tables.py': ('eval_by_hand', 'report', 'reports'),
  f'{OBJECTIVES}advantages.py': ('advantage', 'rewards'),
  f'{OBJECTIVES}anchor.py': ('support', 'sd', 'mix_by_hand'),
  f'{OBJECTIVES}credit.py': ('credit',),
  f'{OBJECTIVES}divergence.py': ('divergence',),
  f'{OBJECTIVES}diversity_reward.py': ('rewards', 'advantage', 'choices'),
  f'{OBJECTIVES}mixing.py': ('credit', 'mix_by_hand', 'mix'),
  f'{OBJECTIVES}policy_loss.py': ('policy_gradient', 'steps_by_hand', 'rl'),
  f'{OBJECTIVES}pooling.py': ('steps_by_hand', 'support'),
  f'{OBJECTIVES}reduce.py': ('reduce',),
  f'{OBJECTIVES}reference_kl.py': ('reference_kl', 'rl'),
  f'{OBJECTIVES}schedule.py': ('schedule',),
  f'{OBJECTIVES}support.py': ('support',),
  f'{STEPS}mix.py': ('defaults', 'mix_by_hand', 'mix'),
  f'{STEPS}rl.py': ('defaults', 'steps_by_hand', 'rl', 'mix'),
  f'{STEPS}rollout.py': ('defaults', 'sampling', 'rollout'),
  f'{STEPS}sampling.py': ('sampling',),
  f'{STEPS}score.py': ('defaults', 'score'),
  f'{STEPS}sd.py': ('defaults', 'steps_by_hand', 'sd', 'mix'),
  f'{STEPS}teacher.py': ('defaults', 'steps_by_hand', 'sd', 'mix'),
  f'{STEPS}update.py': ('defaults', 'update'),
  f'{STEPS}student.py': ('defaults', 'steps_by_hand', 'rl', 'sd', 'mix'),
  f'{EVAL}bootstrap.py': (
    *('eval_by_hand', 'solutions', 'diversity', 'score_file'),
  ),
  f'{EVAL}diversity.py': ('eval_by_hand', 'diversity', 'measures'),
  f'{EVAL}distribution.py': ('eval_by_hand',),
  f'{EVAL}measures.py': (
    *('measures', 'diversity', 'eval_by_hand', 'solutions', 'text_metrics'),
    'score_file',
  ),
  f'{EVAL}ngrams.py': ('text_metrics',),
  f'{EVAL}pass_at_k.py': ('pass_at_k', 'diversity'),
  f'{EVAL}rollout_file.py': ('eval_by_hand', 'score_file'),
  f'{EVAL}samples.py': ('diversity', 'measures'),
  f'{EVAL}score_file.py': ('eval_by_hand', 'score_file'),
  f'{EVAL}selection.py': ('selection',),
  f'{EVAL}self_bleu.py': ('text_metrics',),
  f'{EVAL}sentence_encoder.py': ('sentence_encoder',),
  f'{EVAL}table.py': ('measures', 'diversity'),
  f'{EVAL}text.py': ('eval_by_hand', 'text_metrics'),
  f'{EVAL}vendi.py': ('eval_by_hand', 'text_metrics'),
}
"""Module to the files `tests/test_*.py` that cover it, quickest first."""

PRELOADED = (
  'pytest',
  'jax',
  'jax.numpy',
  'jax.extend.core',
  'flax.linen',
  'flax.struct',
  'optax',
  'ml_collections',
  'scipy.stats',
  'matplotlib.figure',
  'transformers',
)
"""Imported once, before the forks. None of them may start a JAX backend."""

ASLEEP = 3600
"""Seconds on the clock after which tests are ended in any case."""

FLIPPED = {
  ast.Add: ast.Sub,
  ast.Sub: ast.Add,
  ast.Mult: ast.Div,
  ast.Div: ast.Mult,
  ast.FloorDiv: ast.Mult,
  ast.Pow: ast.Mult,
  ast.BitAnd: ast.BitOr,
  ast.BitOr: ast.BitAnd,
}
COMPARED = {
  ast.Lt: (ast.LtE, ast.GtE),
  ast.LtE: (ast.Lt, ast.Gt),
  ast.Gt: (ast.GtE, ast.LtE),
  ast.GtE: (ast.Gt, ast.Lt),
  ast.Eq: (ast.NotEq,),
  ast.NotEq: (ast.Eq,),
  ast.Is: (ast.IsNot,),
  ast.IsNot: (ast.Is,),
  ast.In: (ast.NotIn,),
  ast.NotIn: (ast.In,),
}
OPPOSITE = {'min': 'max', 'minimum': 'maximum', 'argmin': 'argmax'}
OPPOSITE |= {v: k for k, v in OPPOSITE.items()}
COMMUTATIVE = {*OPPOSITE, 'add', 'logaddexp', 'gcd', 'isdisjoint'}


@dataclasses.dataclass(frozen=True)
class Mutant:
  """One place of one module, changed.

  Attributes:
    path: of the module, from the root.
    line: where the change begins, from 1.
    column: likewise, from 0, without the line's indentation.
    code: the line, stripped.
    before: what is changed, in one line.
    after: to what.
    source: of the whole module, changed.
    digest: names the module's source before the change.
  """

  path: str
  line: int
  column: int
  code: str
  before: str
  after: str
  source: str = dataclasses.field(repr=False)
  digest: str = ''

  @property
  def place(self) -> tuple[str, str, int, str, str]:
    """What names the change, wherever in the module it has moved to."""
    return self.path, self.code, self.column, self.before, self.after


def expressions(tree: ast.AST) -> Iterator[ast.AST]:
  """Yields the nodes that compute: no annotation, message or assertion."""
  if isinstance(tree, ast.Raise | ast.Assert | ast.JoinedStr | ast.Import):
    return
  yield tree
  left_out = {'annotation', 'returns', 'decorator_list'}
  for name, value in ast.iter_fields(tree):
    if name in left_out:
      continue
    for child in value if isinstance(value, list) else [value]:
      if isinstance(child, ast.AST):
        yield from expressions(child)


def is_text(node: ast.AST) -> bool:
  """Whether an operand is text: there `+` joins."""
  if isinstance(node, ast.Constant):
    return isinstance(node.value, str)
  return isinstance(node, ast.JoinedStr)


def changed(node: ast.AST, **fields: object) -> ast.AST:
  """Returns a copy of a node with other fields."""
  new = copy.copy(node)
  for name, value in fields.items():
    setattr(new, name, value)
  return new


def replacements(node: ast.AST) -> Iterator[ast.AST]:
  """Yields what one expression may be replaced with."""
  match node:
    case ast.BinOp(left=left, op=op, right=right):
      if is_text(left) or is_text(right):
        return
      if type(op) in FLIPPED:
        yield changed(node, op=FLIPPED[type(op)]())
      if isinstance(op, ast.Add | ast.Sub):
        yield left
        if not isinstance(left, ast.BinOp):
          minus = isinstance(op, ast.Sub)
          yield ast.UnaryOp(ast.USub(), right) if minus else right
    case ast.AugAssign(op=op) if type(op) in FLIPPED:
      yield changed(node, op=FLIPPED[type(op)]())
    case ast.Compare(ops=ops):
      for i, op in enumerate(ops):
        for other in COMPARED[type(op)]:
          yield changed(node, ops=[*ops[:i], other(), *ops[i + 1 :]])
    case ast.BoolOp(op=op):
      other = ast.Or if isinstance(op, ast.And) else ast.And
      yield changed(node, op=other())
    case ast.UnaryOp(op=ast.USub() | ast.Not() | ast.Invert(), operand=operand):
      yield operand
    case ast.Constant(value=bool() as value):
      yield ast.Constant(not value)
    case ast.Constant(value=int() | float() as value):
      kind = type(value)
      yield ast.Constant(kind(0) if value == 1 else kind(value + 1))
    case ast.Name(id=name) if name in OPPOSITE:
      yield changed(node, id=OPPOSITE[name])
    case ast.Attribute(attr=name) if name in OPPOSITE:
      yield changed(node, attr=OPPOSITE[name])
    case ast.Call(func=func, args=args):
      name = getattr(func, 'attr', getattr(func, 'id', ''))
      if name == 'stop_gradient':
        yield args[0]
      if name in COMMUTATIVE:
        return
      for i, (a, b) in enumerate(zip(args, args[1:], strict=False)):
        starred = isinstance(a, ast.Starred) or isinstance(b, ast.Starred)
        if not starred and ast.dump(a) != ast.dump(b):
          yield changed(node, args=[*args[:i], b, a, *args[i + 2 :]])


def mutants_of(path: str) -> list[Mutant]:
  """Returns every mutant of a module, in order."""
  source = (ROOT / path).read_bytes()
  digest = hashlib.sha256(source).hexdigest()[:12]
  lines = source.splitlines(keepends=True)
  starts = [0]
  for line in lines:
    starts.append(starts[-1] + len(line))
  found = []
  for node in expressions(ast.parse(source)):
    for new in replacements(node):
      # Offsets of `ast` count bytes.
      start = starts[node.lineno - 1] + node.col_offset
      end = starts[node.end_lineno - 1] + node.end_col_offset
      text = ast.unparse(new)
      if not isinstance(new, ast.stmt):
        text = f'({text})'
      whole = source[:start] + text.encode() + source[end:]
      code = lines[node.lineno - 1].decode()
      found.append(
        Mutant(
          path=path,
          line=node.lineno,
          column=node.col_offset - (len(code) - len(code.lstrip())),
          code=code.strip(),
          before=ast.unparse(node),
          after=ast.unparse(new),
          source=whole.decode(),
          digest=digest,
        )
      )
  return found


def modules(only: str) -> list[str]:
  """Returns the modules whose path begins with or holds `only`."""
  found = sorted(
    str(path.relative_to(ROOT))
    for part in ('objectives', 'steps', 'evaluate')
    for path in (ROOT / 'sdjax' / part).glob('*.py')
    if not path.name.startswith('__')
  )
  found += [path for path in TESTS if path not in found]
  unlisted = [path for path in found if path not in TESTS]
  if unlisted:
    sys.exit(f'{unlisted}: say in TESTS which test files cover it.')
  chosen = [path for path in found if only in path]
  if not chosen:
    sys.exit(f'--only={only} is in none of {", ".join(found)}.')
  return chosen


def test_files(path: str) -> list[str]:
  """Returns the test files of a module; those that do not exist are named."""
  files = [f'tests/test_{name}.py' for name in TESTS[path]]
  missing = [file for file in files if not (ROOT / file).exists()]
  if missing:
    sys.exit(f'{path}: {missing} in TESTS do not exist.')
  return files


def new_tree(folder: Path) -> Path:
  """Copies the files that git knows or would take, and compiles them."""
  listed = subprocess.run(
    ['git', 'ls-files', '-co', '--exclude-standard', '-z'],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  )
  for name in filter(None, listed.stdout.split('\0')):
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(ROOT / name, folder / name)
  # A module that is changed and changed back within a second must not be
  # taken for the one compiled before: compiled files go by the source's hash.
  subprocess.run(
    [
      *(sys.executable, '-m', 'compileall', '-q'),
      *('--invalidation-mode', 'checked-hash', str(folder / 'sdjax')),
    ],
    check=True,
  )
  return folder


def preload(tree: Path) -> None:
  """Imports what every test needs, and sets the flags of `conftest.py`."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  # Before jax is imported, as in a test.
  path = tree / 'tests' / 'conftest.py'
  spec = importlib.util.spec_from_file_location('flags', path)
  assert spec and spec.loader
  spec.loader.exec_module(importlib.util.module_from_spec(spec))
  for name in PRELOADED:
    importlib.import_module(name)
  if 'sdjax' in sys.modules:
    sys.exit('sdjax is imported before the forks: no mutant would be seen.')
  # They warn of a fork; no backend, and so no thread of XLA's, exists yet.
  warnings.filterwarnings('ignore', message='.*os.fork')
  warnings.filterwarnings('ignore', category=DeprecationWarning)


def start(tree: Path, files: list[str], log: Path, limit: int) -> int:
  """Runs test files in a forked process; its exit code is that of pytest.

  Args:
    tree: where they are.
    files: to be run, in this order.
    log: what they print.
    limit: seconds of the processor, after which the process is ended; time on
      the clock would say how busy the machine is.

  Returns:
    The process.
  """
  pid = os.fork()
  if pid:
    return pid
  code = 70
  try:
    os.setsid()
    sink = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    os.chdir(tree)
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
    sys.dont_write_bytecode = True
    sys.path[0] = str(tree)
    import pytest

    options = ['-x', '-q', '-m', 'not slow', '-o', 'addopts=', '--tb=no']
    options += [f'-pno:{name}' for name in ('xdist', 'cacheprovider')]
    code = int(pytest.main([*options, *files]))
    sys.stdout.flush()
  finally:
    os._exit(code)


class Slot:
  """A copy of the tree, and the tests that run in it now, if any."""

  def __init__(self, folder: Path):
    """Copies the tree into `folder`."""
    self.tree = new_tree(folder / 'tree')
    self.log = folder / 'log'
    self.pid = 0

  def launch(self, path: str, source: str | None, limit: int) -> None:
    """Starts the tests of a module on another source of it, or on its own."""
    self.path, self.original = path, (self.tree / path).read_text()
    (self.tree / path).write_text(source or self.original)
    self.began = time.monotonic()
    self.pid = start(self.tree, test_files(path), self.log, limit)

  def poll(self) -> dict[str, object] | None:
    """Returns how the tests ended, or None while they run."""
    pid, status, usage = os.wait4(self.pid, os.WNOHANG)
    asleep = time.monotonic() - self.began > ASLEEP
    if not pid and not asleep:
      return None
    if not pid:  # it waits for what never comes, and uses no processor
      os.killpg(self.pid, signal.SIGKILL)
      _, status, usage = os.wait4(self.pid, 0)
    self.pid = 0
    (self.tree / self.path).write_text(self.original)
    code = os.waitstatus_to_exitcode(status)
    text = self.log.read_text(errors='replace')
    if code in (4, 5, 70):  # of pytest: bad usage, no test; of ours
      sys.exit(f'{self.path}: no tests ran:\n{text}')
    named = re.findall(r'^(?:FAILED|ERROR) (\S+)', text, re.M)
    clock = code in (-signal.SIGXCPU, -signal.SIGKILL)
    return {
      'outcome': 'killed' if code else 'survived',
      'by': 'time' if clock else (named or [f'exit code {code}'])[0],
      'seconds': round(usage.ru_utime + usage.ru_stime, 1),
    }

  def wait(self) -> dict[str, object]:
    """Returns how the tests ended."""
    while (end := self.poll()) is None:
      time.sleep(0.02)
    return end


def read_results(out: Path) -> dict[tuple[object, ...], dict[str, object]]:
  """Returns what a file holds so far, the last result of each mutant."""
  if not out.exists():
    return {}
  results = {}
  for line in out.read_text().splitlines():
    try:
      record = json.loads(line)
    except json.JSONDecodeError:
      continue  # cut off when it was stopped
    results[key(record)] = record
  return results


def key(record: dict[str, object]) -> tuple[object, ...]:
  """Returns what tells a result's mutant from others."""
  names = ('path', 'digest', 'line', 'column', 'before', 'after')
  return tuple(record[name] for name in names)


def as_record(mutant: Mutant) -> dict[str, object]:
  """Returns a mutant without its source."""
  record = dataclasses.asdict(mutant)
  del record['source']
  return record


def equivalents() -> set[tuple[object, ...]]:
  """Returns the places that are listed as computing the same."""
  listed = json.loads(EQUIVALENT.read_text()) if EQUIVALENT.exists() else []
  names = ('path', 'code', 'column', 'before', 'after')
  return {tuple(item[name] for name in names) for item in listed}


def draw(only: str, sample: int, seed: int) -> list[Mutant]:
  """Returns the mutants to run: a sample, or all where it is 0."""
  same = equivalents()
  listed = [m for path in modules(only) for m in mutants_of(path)]
  kept = [m for m in listed if m.place not in same]
  print(f'{len(listed)} mutants, {len(listed) - len(kept)} of them equivalent')
  if not 0 < sample < len(kept):
    return kept
  drawn = set(random.Random(seed).sample(range(len(kept)), sample))
  # Those of a module together, in order.
  return [m for i, m in enumerate(kept) if i in drawn]


def run(
  mutants: list[Mutant], out: Path, workers: int, again: bool
) -> list[dict[str, object]]:
  """Runs the mutants without a result, and returns the results of all."""
  results = read_results(out)
  todo = collections.deque()
  for mutant in mutants:
    known = results.get(key(as_record(mutant)))
    if known is None or again and known['outcome'] == 'survived':
      todo.append(mutant)
  out.parent.mkdir(parents=True, exist_ok=True)
  if todo:
    with tempfile.TemporaryDirectory(prefix='mutations-') as folder:
      slots = []
      for i in range(workers):
        (Path(folder) / str(i)).mkdir()
        slots.append(Slot(Path(folder) / str(i)))
      preload(slots[0].tree)
      try:
        _run(todo, slots, out, results)
      finally:
        for slot in slots:
          if slot.pid:
            os.killpg(slot.pid, signal.SIGKILL)
            os.waitpid(slot.pid, 0)
  return [results[key(as_record(m))] for m in mutants]


def _run(todo, slots, out, results) -> None:
  """Keeps every slot busy until nothing is left to do."""
  limits: dict[str, int] = {}
  total, done = len(todo), 0
  running: dict[Slot, Mutant] = {}
  while todo or running:
    for slot in slots:
      if slot not in running and todo:
        mutant = todo.popleft()
        path = mutant.path
        if path not in limits:
          # Twice: the first run may compile what later ones find compiled.
          for _ in range(2):
            slot.launch(path, None, ASLEEP)
            end = slot.wait()
            if end['outcome'] != 'survived':
              sys.exit(
                f'{path}: its tests fail as it stands: {end["by"]}; mend that '
                'first.'
              )
          limits[path] = 20 + 4 * int(float(str(end['seconds'])))
          print(f'{path}: {end["seconds"]} s', flush=True)
        slot.launch(path, mutant.source, limits[path])
        running[slot] = mutant
    for slot, mutant in list(running.items()):
      end = slot.poll()
      if end is None:
        continue
      del running[slot]
      done += 1
      record = as_record(mutant) | end
      results[key(record)] = record
      with out.open('a') as file:
        file.write(json.dumps(record) + '\n')
      if end['outcome'] == 'survived':
        print(f'[{done}/{total}] survived: {told(record)}', flush=True)
    time.sleep(0.02)


def told(record: dict[str, object]) -> str:
  """Returns a mutant in a line."""
  before, after = (
    text if len(text) < 100 else f'{text[:60]} ... {text[-36:]}'
    for text in (str(record['before']), str(record['after']))
  )
  return f'{record["path"]}:{record["line"]}: {before}  ->  {after}'


def main() -> int:
  """Runs a sample and prints the share killed, by module and in all."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--sample', type=int, default=200, help='0: all')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--workers', type=int, default=1)
  parser.add_argument('--only', default='', help='part of a path')
  parser.add_argument('--out', type=Path, required=True)
  parser.add_argument('--again', action='store_true')
  parser.add_argument('--least', type=float, default=0.0)
  flags = parser.parse_args()
  mutants = draw(flags.only, flags.sample, flags.seed)
  results = run(mutants, flags.out, flags.workers, flags.again)
  counts = collections.defaultdict(collections.Counter)
  for record in results:
    counts[record['path']][record['outcome']] += 1
  for path, count in counts.items():
    print(f'{path}: {count["killed"]} of {count.total()} killed')
  for record in results:
    if record['outcome'] == 'survived':
      print('survived:', told(record))
  killed = sum(count['killed'] for count in counts.values())
  share = killed / max(len(results), 1)
  print(f'{killed} of {len(results)} killed: {share:.1%}')
  return int(share < flags.least)


if __name__ == '__main__':
  sys.exit(main())
