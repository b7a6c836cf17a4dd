import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sdjax.data import json_files
from sdjax.evaluate import diversity
from sdjax.evaluate.bootstrap import bootstrap_interval
from sdjax.evaluate.samples import Samples
from sdjax.report import build as report
from sdjax.report import plots, runs, tables
from sdjax.training import log as metrics

EVIL = '<script>alert("x")</script> & co'
SETS = ('in_distribution', 'harder')


@pytest.fixture
def no_pictures(monkeypatch):
  """Drawing takes most of a report's time; it is tested once."""
  monkeypatch.setattr(
    plots, 'FIGURES', dict.fromkeys(plots.FIGURES, lambda *_: None)
  )


def make_run(
  workdir: Path,
  seed: int = 0,
  method: dict | None = None,
  correct: np.ndarray | None = None,
  answer: str = 'start plum triangle',
) -> Path:
  """Writes a run's folder with the writers a run uses."""
  method = method or {'name': 'sd', 'demonstrations': {'count': 1}}
  if correct is None:
    correct = np.array([[1, 1, 1, 0], [0, 0, 0, 0], [1, 0, 0, 0]], bool)
  size = correct.shape[1]
  samples = [
    Samples(
      correct=row.tolist(),
      strategies=[('fruit',)] * size,
      solutions=[f'0-{g % 2}' for g in range(size)],
      entropies=[2.0] * size,
      lengths=[4] * size,
    )
    for row in correct
  ]
  flat, per_question = diversity.summarize(samples)
  stages = [f'{stage}/{name}' for stage in ('base', 'final') for name in SETS]
  config = {'seed': seed, 'model': {'path': 'builtin:x'}, 'method': method}
  json_files.write_json_atomic(workdir / 'config.json', config)
  json_files.write_json_atomic(
    workdir / 'eval.json',
    {f'{key}/{name}': v for key in stages for name, v in flat.items()},
  )
  json_files.write_json_atomic(
    workdir / 'eval_questions.json',
    {key: per_question for key in stages},
    indent=None,
  )
  with metrics.MetricsLog(workdir / 'metrics.jsonl') as log:
    for step in range(1, 5):
      log.write(step, {'train/loss': 1 / step, 'train/reward': 0.1 * step})
      if step == 2:
        log.write(
          step, {f'eval/in_distribution/{k}': 2 * v for k, v in flat.items()}
        )
  with json_files.JsonLines(workdir / 'rollouts.jsonl') as log:
    for step in (1, 2, 3):
      log.append(
        {
          'step': step,
          'question_id': 5,
          'sample': 0,
          'question': f'question of step {step}',
          'answer': answer,
          'correct': False,
          'reason': 'wrong_end',
          'reward': 0.0,
          'concepts': ['fruit'],
          'solution': '',
          'demonstrations': ['start fig square'],
        }
      )
  return workdir


def group(label, *members, variant='sd'):
  return runs.Group(label, variant, members)


def load(workdir):
  run, _ = runs.load(workdir)
  assert run is not None
  return run


def write_lines(path, records):
  path.write_text(''.join(json.dumps(r) + '\n' for r in records))


def estimate(value, interval=None, seeds=None):
  return tables.Estimate(value, interval, seeds)


@pytest.mark.parametrize(
  ('folder', 'label'),
  [
    ('runs/sd', 'sd'),
    ('runs/sd_s1', 'sd'),
    ('runs/sd-seed12', 'sd'),
    ('runs/rl_diversity_seed_3', 'rl_diversity'),
    ('runs/sd_k3', 'sd_k3'),
    ('runs/sd/seed2', 'sd'),
    ('runs/models1', 'models1'),
  ],
)
def test_label_is_the_name_without_the_seed(folder, label):
  assert runs.label_of(Path(folder)) == label


@pytest.mark.parametrize(
  ('method', 'variant'),
  [
    ({'name': 'sd', 'demonstrations': {'count': 1}}, 'sd'),
    ({'name': 'sd', 'demonstrations': {'count': 3}}, 'sd_k3'),
    ({'name': 'rl', 'diversity_weight': 0.0}, 'rl'),
    ({'name': 'rl', 'diversity_weight': 0.5}, 'rl_diversity'),
    ({'name': 'rl', 'diversity': 'none'}, 'rl'),
    ({'name': 'rl', 'diversity': 'add(weight=0.1)'}, 'rl_diversity'),
    (None, ''),
  ],
)
def test_variant_is_told_by_the_options(method, variant):
  assert runs.variant_of({'method': method}) == variant


def test_a_half_written_last_line_is_skipped_and_a_broken_one_named(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1}\n{"step": 2')
  assert list(json_files.read_json_lines(path)) == [{'step': 1}]
  path.write_text('{"step": 1}\n{"step": 2\n{"step": 3}\n')
  with pytest.raises(ValueError, match='line 2 is not JSON'):
    list(json_files.read_json_lines(path))


def test_seeds_are_merged_as_mean_and_band(tmp_path):
  right = np.ones((3, 4), bool)
  for seed, correct in ((1, right), (2, ~right)):
    make_run(tmp_path / f'sd_s{seed}', seed, correct=correct)
  loaded = [runs.load(tmp_path / f'sd_s{seed}') for seed in (1, 2)]
  assert [notes for _, notes in loaded] == [[], []]
  (one,), notes = runs.group([run for run, _ in loaded if run])
  assert (one.label, one.variant, notes) == ('sd', 'sd', [])
  found = tables.estimate(one, 'final', 'harder', 'pass@1')
  assert found is not None
  assert (found.value, found.seeds) == (0.5, (0.0, 1.0))
  # Each question's mean over the seeds is 1/2: no spread over questions.
  assert found.interval == (0.5, 0.5)
  steps, values = one.band('train/reward')
  assert steps.tolist() == [1, 2, 3, 4]
  assert values[1].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_a_bands_steps_are_those_all_seeds_have(tmp_path):
  members = []
  for seed, last in ((1, 3), (2, 5)):
    members.append(
      runs.Run(
        tmp_path / str(seed),
        'sd',
        metrics=[{'step': s, 'train/loss': s * seed} for s in range(last)],
      )
    )
  steps, values = runs.Group('sd', 'sd', tuple(members)).band('train/loss')
  assert steps.tolist() == [0, 1, 2]
  assert values.tolist() == [[0, 1, 2], [0, 2, 4]]


def test_evaluations_before_and_after_join_those_during(tmp_path):
  run, _ = runs.load(make_run(tmp_path / 'sd'))
  assert run is not None
  # 4 of 12 are correct; the middle value was written as twice that.
  assert run.evaluations('in_distribution', 'pass@1') == pytest.approx(
    {0: 1 / 3, 2: 2 / 3, 4: 1 / 3}
  )
  assert run.evaluations('harder', 'pass@1') == {}
  one = runs.Group('sd', 'sd', (run,))
  assert one.band('eval/in_distribution/pass@1')[0].tolist() == [0, 2, 4]
  assert one.band('eval/harder/pass@1')[0].size == 0


def test_intervals_resample_questions(tmp_path):
  run, _ = runs.load(make_run(tmp_path / 'sd'))
  assert run is not None
  one = runs.Group('sd', 'sd', (run,))
  values = {
    'pass@1': [0.75, 0, 0.25],
    'pass@4': [1.0, 0, 1.0],
    'pass_gain': [0.25, 0, 0.75],
    'distinct_paths': [2, 0, 1],
  }
  for metric, per_question in values.items():
    found = tables.estimate(one, 'final', 'harder', metric)
    assert found is not None
    assert found.value == pytest.approx(np.mean(per_question))
    assert found.interval == pytest.approx(bootstrap_interval(per_question))
    assert found.seeds is None
  entropy = tables.estimate(one, 'final', 'harder', 'token_entropy')
  assert entropy is not None and entropy.interval == (0.5, 0.5)
  assert tables.estimate(one, 'final', 'larger', 'pass@1') is None


def test_same_label_and_seed_are_different_experiments(tmp_path):
  loaded = [runs.load(make_run(tmp_path / parent / 'sd'))[0] for parent in 'ab']
  groups, notes = runs.group([run for run in loaded if run])
  assert [one.label for one in groups] == ['a/sd', 'b/sd'] and not notes


def test_seeds_that_differ_in_more_than_the_seed_are_noted(tmp_path):
  loaded = [
    runs.load(
      make_run(
        tmp_path / f'rl_s{seed}',
        seed,
        {'name': 'rl', 'diversity_weight': float(seed)},
      )
    )[0]
    for seed in (0, 1)
  ]
  _, notes = runs.group([run for run in loaded if run])
  assert len(notes) == 1 and 'method.diversity_weight' in notes[0]


def test_two_files_of_different_evaluations_are_noted(tmp_path):
  workdir = make_run(tmp_path / 'sd')
  flat = json.loads((workdir / 'eval.json').read_text())
  flat['final/harder/pass@1'] += 0.1
  json_files.write_json_atomic(workdir / 'eval.json', flat)
  run, _ = runs.load(workdir)
  assert run is not None
  notes = tables.inconsistencies(run)
  assert len(notes) == 1 and 'final/harder/pass@1' in notes[0]


def test_report_is_one_self_contained_page(tmp_path):
  out = tmp_path / 'report'
  notes = report.write_report(
    [
      make_run(tmp_path / 'sd_s1', 1),
      make_run(tmp_path / 'sd_s2', 2),
      make_run(tmp_path / 'rl', 1, {'name': 'rl', 'diversity_weight': 0}),
    ],
    out,
    resamples=20,
  )
  assert notes == []
  names = {path.name for path in out.iterdir()}
  assert names == {
    'index.html',
    'table.md',
    'pass_at_k.png',
    'diversity.png',
    'training.png',
  }
  page = (out / 'index.html').read_text()
  sources = re.findall(r'(?:src|srcset|href)="([^"#]{1,22})', page)
  assert len(sources) == 6  # three pictures, each light and dark
  assert set(sources) == {'data:image/png;base64,'}
  assert 'http' not in page
  assert 'prefers-color-scheme: dark' in page
  assert 'start fig square' in page and 'wrong_end' in page
  assert 'question of step 1' in page and 'question of step 3' in page
  assert 'question of step 2' not in page
  for path in out.glob('*.png'):
    assert path.read_bytes().startswith(b'\x89PNG')


@pytest.mark.usefixtures('no_pictures')
def test_markdown_table_by_hand(tmp_path):
  report.write_report([make_run(tmp_path / 'sd')], tmp_path, resamples=0)
  lines = (tmp_path / 'table.md').read_text().splitlines()
  assert lines[:2] == ['**in_distribution**', '']
  assert lines[2].startswith('| method | pass@1 | pass@4 | gain |')
  assert lines[4].startswith('| `base` |')
  # pass@4 = 2/3; 1, 0, 1 concepts; 2, 0, 1 paths; 2 nats over 4 tokens
  assert lines[5].replace(' ', '') == (
    '|`sd`|0.33|0.67|0.33|0.67|1.00|1.00|0.500|'
  )


@pytest.mark.usefixtures('no_pictures')
def test_everything_from_a_run_is_escaped(tmp_path):
  workdir = make_run(tmp_path / 'a<b>', answer=EVIL, method={'name': EVIL})
  report.write_report([workdir], tmp_path / 'out', title=EVIL, resamples=2)
  page = (tmp_path / 'out' / 'index.html').read_text()
  # Those of the page itself: the rollouts, and what filters them.
  assert page.count('<script') == page.count('</script>') == 2
  assert 'alert("x")' not in page and 'a<b>' not in page
  assert page.count('&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;') >= 3


@pytest.mark.parametrize(
  'name',
  [
    'config.json',
    'metrics.jsonl',
    'eval.json',
    'eval_questions.json',
    'rollouts.jsonl',
  ],
)
@pytest.mark.usefixtures('no_pictures')
@pytest.mark.parametrize('damage', ['missing', 'empty', 'broken', 'list'])
def test_a_lost_file_costs_only_its_part(tmp_path, name, damage):
  workdir = make_run(tmp_path / 'sd')
  content = {'empty': '', 'broken': '{"a\n{}\n', 'list': '[1]\n'}
  (workdir / name).unlink()
  if damage != 'missing':
    (workdir / name).write_text(content[damage])
  run, notes = runs.load(workdir)
  assert run is not None
  assert any(f'{workdir}: {name}' in note for note in notes)
  if damage == 'missing':
    assert report.write_report([workdir], tmp_path / 'out', resamples=2)
    page = (tmp_path / 'out' / 'index.html').read_text()
    assert f'{name} is missing' in page


def test_a_picture_without_numbers_does_not_stay_from_an_earlier_report(
  tmp_path, no_pictures
):
  workdir = make_run(tmp_path / 'sd')
  (workdir / 'metrics.jsonl').write_text('')
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'training.png').write_text('old')
  notes = report.write_report([workdir], out, resamples=2)
  assert not (out / 'training.png').exists()
  assert any('training.png is not drawn' in note for note in notes)


def test_no_readable_run_is_an_error_that_says_what_is_missing(
  tmp_path, capsys
):
  empty = tmp_path / 'empty'
  empty.mkdir()
  code = report.main(
    [str(empty), str(tmp_path / 'no'), f'--out={tmp_path / "out"}']
  )
  assert code == 1 and not (tmp_path / 'out').exists()
  message = capsys.readouterr().err
  for word in ('metrics.jsonl is missing', 'eval.json is missing', 'no such'):
    assert word in message


def test_command_line(tmp_path):
  workdir = make_run(tmp_path / 'sd')
  (workdir / 'metrics.jsonl').unlink()
  command = [sys.executable, '-m', 'sdjax.report', str(workdir)]
  out = tmp_path / 'out'
  done = subprocess.run(
    [*command, str(tmp_path / 'gone'), f'--out={out}', '--resamples=5'],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0
  assert done.stdout.strip() == str(out / 'index.html')
  assert 'note: ' in done.stderr and 'gone' in done.stderr


def test_wrong_usage_exits_with_2(capsys):
  for argv in ([], ['x', '--resamples=-1'], ['x', '--colour=red']):
    with pytest.raises(SystemExit) as caught:
      report.main(argv)
    assert caught.value.code == 2
  assert '--resamples' in capsys.readouterr().err


def test_an_unwritable_folder_is_an_error(tmp_path, capsys):
  file = tmp_path / 'file'
  file.write_text('')
  workdir = make_run(tmp_path / 'sd')
  assert report.main([str(workdir), f'--out={file / "out"}']) == 1
  assert 'cannot write' in capsys.readouterr().err


def test_plot_run_draws_what_there_is(tmp_path):
  workdir = make_run(tmp_path / 'anything')
  names = [path.name for path in plots.plot_run(workdir)]
  assert names == ['pass_at_k.png', 'diversity.png', 'training.png']
  assert all((workdir / 'plots' / name).stat().st_size for name in names)
  (workdir / 'eval.json').unlink()
  (workdir / 'metrics.jsonl').write_text('{"step": 1, "train/loss": 0.5}\n')
  assert [p.name for p in plots.plot_run(workdir)] == ['training.png']
  assert plots.plot_run(tmp_path / 'nowhere') == []


def test_a_method_keeps_its_colour(tmp_path):
  def group(label, variant=''):
    return runs.Group(label, variant, (runs.Run(tmp_path, label),))

  alone = plots.styles([group('rl')])['rl']
  others = [group('mine', 'rl'), group('x', 'rl'), group('sd'), group('rl')]
  together = plots.styles(others)
  assert together['rl'] == alone
  assert len({style['color'] for style in together.values()}) == 4
  assert plots.styles([group('mine', 'rl')])['mine'] == alone
  many = plots.styles([group(f'm{i}') for i in range(20)]).values()
  assert len({tuple(style.values()) for style in many}) == 20


def test_smoothing_by_hand():
  values = np.arange(40.0)  # windows of two
  np.testing.assert_allclose(
    plots._smooth(values), [0, *(values[1:] - 0.5)], atol=1e-12
  )
