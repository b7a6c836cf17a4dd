"""The tables of results: what has a column."""

import json

from test_report import group, load, make_run

from sdjax.data import json_files
from sdjax.report import runs, tables
from sdjax.training import log as metrics


def alike(workdir, **changes):
  """A run whose correct answers each name one concept of their own."""
  make_run(workdir)
  evals = json.loads((workdir / 'eval.json').read_text())
  questions = json.loads((workdir / 'eval_questions.json').read_text())
  for name in list(evals):
    if name.endswith('/distinct_paths'):
      other = name.replace('distinct_paths', 'concepts_correct')
      evals[name] = evals[other]
  for entry in questions.values():
    entry['distinct_paths'] = entry['concepts_correct']
  json_files.write_json_atomic(workdir / 'eval.json', evals | changes)
  json_files.write_json_atomic(workdir / 'eval_questions.json', questions)
  path = workdir / 'metrics.jsonl'
  records = [json.loads(line) for line in path.read_text().splitlines()]
  for record in records:
    at = 'eval/in_distribution/'
    if f'{at}distinct_paths' in record:
      record[f'{at}distinct_paths'] = record[f'{at}concepts_correct']
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))
  return workdir


def test_a_measure_that_equals_another_everywhere_is_shown_once(tmp_path):
  one = group('sd', load(alike(tmp_path / 'sd')))
  assert tables.twins([one]) == {'distinct_paths': 'concepts_correct'}
  for table in tables.tables_of([one], 0):
    assert list(table.columns.values()) == [
      'pass@1',
      'pass@4',
      'gain',
      'concepts, correct = distinct paths',
      'concepts, all',
      'token entropy',
    ]
  # One number, one question or one step that is not the same is enough.
  other = group('rl', load(make_run(tmp_path / 'rl')))
  assert tables.twins([one, other]) == {}
  changed = alike(tmp_path / 'a', **{'final/harder/distinct_paths': 9.0})
  assert tables.twins([group('a', load(changed))]) == {}
  changed = alike(tmp_path / 'b')
  questions = json.loads((changed / 'eval_questions.json').read_text())
  questions['base/harder']['distinct_paths'] = [1, 1, 0]
  json_files.write_json_atomic(changed / 'eval_questions.json', questions)
  assert tables.twins([group('b', load(changed))]) == {}
  changed = alike(tmp_path / 'c')
  with metrics.MetricsLog(changed / 'metrics.jsonl') as log:
    log.write(9, {'eval/x/distinct_paths': 1, 'eval/x/concepts_correct': 2})
  assert tables.twins([group('c', load(changed))]) == {}
  nothing = runs.Run(tmp_path, 'x')
  assert tables.twins([group('x', nothing)]) == {}
