"""What was forecast of runs, in a report's page."""

import pytest
from test_report import group, load, make_run

from sdjax.data import json_files
from sdjax.report import build as report
from sdjax.report import forecast, plots, runs


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
  """They are tested elsewhere."""
  monkeypatch.setattr(
    plots, 'FIGURES', dict.fromkeys(plots.FIGURES, lambda *_: None)
  )


def numbers(distribution, **values):
  flat = {}
  for name, value in values.items():
    at = f'harder/{distribution}/{name.replace("_at_", "@")}'
    flat |= {at: value, f'{at}/low': value - 0.1, f'{at}/high': value + 0.1}
  return flat


FORECAST = (
  numbers('base', pass_at_1=0.4, pass_at_4=0.7, concepts_correct=0.6)
  | numbers('rl', pass_at_1=1.0, pass_at_4=1.0, concepts_correct=1.7)
  | numbers('sd', pass_at_1=0.9, pass_at_8=0.95, concepts_correct=1.1)
)


def forecast_folder(path, **config):
  base = {'model': {'path': 'builtin:x'}, 'method': {'name': 'sd'}}
  json_files.write_json_atomic(path / 'forecast.json', FORECAST)
  json_files.write_json_atomic(path / 'config.json', base | config)
  return path


def test_forecasts_are_put_beside_what_was_measured(tmp_path):
  source, notes = forecast.read(forecast_folder(tmp_path / 'forecast'))
  assert source and not notes
  sd = group('mine', load(make_run(tmp_path / 'sd')))
  rl = group('rl', load(make_run(tmp_path / 'rl', method={'name': 'rl'})))
  pairs = {
    (p.label, p.distribution, p.metric): (p.forecast, p.measured)
    for p in forecast.compare([sd, rl], [source])
  }
  third = pytest.approx(1 / 3)
  assert pairs == {
    ('base', 'base', 'pass@1'): (0.4, third),
    ('base', 'base', 'reach'): (0.7, pytest.approx(2 / 3)),
    ('base', 'base', 'concepts_correct'): (0.6, pytest.approx(2 / 3)),
    # Of pass@k both have k = 1 only: the forecast's 8 was not measured.
    ('mine', 'sd', 'pass@1'): (0.9, third),
    ('mine', 'sd', 'reach'): (0.9, third),
    ('mine', 'sd', 'concepts_correct'): (1.1, pytest.approx(2 / 3)),
    ('rl', 'rl', 'pass@1'): (1.0, third),
    ('rl', 'rl', 'reach'): (1.0, pytest.approx(2 / 3)),
    ('rl', 'rl', 'concepts_correct'): (1.7, pytest.approx(2 / 3)),
  }


def test_a_mix_is_compared_with_both_forecasts(tmp_path):
  source, _ = forecast.read(forecast_folder(tmp_path / 'forecast'))
  assert source
  one = group('m', load(make_run(tmp_path / 'm', method={'name': 'mix'})))
  found = [
    p.distribution for p in forecast.compare([one], [source]) if p.label == 'm'
  ]
  assert set(found) == {'rl', 'sd'}


def test_the_most_fitting_forecast_is_taken(tmp_path):
  def of(name, path='builtin:x', kl=0.0, count=1):
    source, _ = forecast.read(
      forecast_folder(
        tmp_path / name,
        model={'path': path},
        loss={'kl_coef': kl},
        method={'name': 'sd', 'demonstrations': {'count': count}},
      )
    )
    assert source
    return source

  other, three, fits = of('other', 'y'), of('three', count=3), of('fits')
  run = load(make_run(tmp_path / 'sd'))
  assert forecast.choose([other], run, 'sd') is None
  assert forecast.choose([three, other, fits], run, 'sd') == (fits, [])
  differs = ['method.demonstrations.count']
  assert forecast.choose([other, three], run, 'sd') == (three, differs)
  # RL does not depend on what a teacher is shown.
  rl = load(make_run(tmp_path / 'rl', method={'name': 'rl'}))
  assert forecast.choose([three], rl, 'rl') == (three, [])
  json_files.write_json_atomic(run.workdir / 'forecast.json', FORECAST)
  own, _ = forecast.read(run.workdir)
  assert own and forecast.choose([fits, own], run, 'sd') == (own, [])
  # Less is known of one without a config than of one that differs.
  (tmp_path / 'fits' / 'config.json').unlink()
  nameless, _ = forecast.read(tmp_path / 'fits')
  assert nameless
  assert forecast.choose([nameless, three], run, 'sd') == (three, differs)
  unknown = forecast.choose([nameless], run, 'sd')
  assert unknown == (nameless, [forecast.UNKNOWN])


def test_a_forecast_for_other_options_is_marked(tmp_path):
  folder = forecast_folder(
    tmp_path / 'f', method={'name': 'sd', 'demonstrations': {'count': 3}}
  )
  source, _ = forecast.read(folder)
  assert source
  one = group('sd', load(make_run(tmp_path / 'sd')))
  text = forecast.section([one], forecast.compare([one], [source]))
  assert '<td>sd*</td>' in text and 'demonstrations.count' in text
  assert forecast.section([one], []) == ''


def test_a_forecast_knows_its_own_options_in_the_folder_of_a_run(tmp_path):
  folder = forecast_folder(tmp_path, train={'num_steps': 150})
  longer = {'model': {'path': 'builtin:x'}, 'train': {'num_steps': 600}}
  json_files.write_json_atomic(folder / 'forecast_config.json', longer)
  source, _ = forecast.read(folder)
  assert source and source.options['train.num_steps'] == 600


@pytest.mark.parametrize(
  'distribution, method, change, differs',
  [
    ('sd', {'name': 'sd'}, {}, []),
    ('sd', {'name': 'sd'}, {'train': {'num_steps': 9}}, ['train.num_steps']),
    ('rl', {'name': 'rl'}, {'train': {'num_steps': 9}}, []),
    ('rl', {'name': 'rl', 'advantage': 'rloo'}, {}, []),
    ('rl', {'name': 'rl', 'advantage': 'rosa'}, {}, ['method.advantage']),
    (
      'rl',
      {'name': 'rl', 'diversity_weight': 0.5},
      {},
      ['method.diversity_weight'],
    ),
    ('rl', {'name': 'rl', 'advantage': 'grpo(std=sample)'}, {}, []),
    ('rl', {'name': 'rl', 'diversity': 'none'}, {}, []),
    (
      'rl',
      {'name': 'rl', 'diversity': 'add', 'advantage': 'pass_at_k(k=4)'},
      {},
      ['method.diversity', 'method.advantage'],
    ),
    ('rl', {'name': 'mix'}, {}, ['method.name']),
    ('base', {'name': 'rl'}, {'eval': {'temperature': 1.0}}, []),
    (
      'base',
      {'name': 'rl'},
      {'eval': {'temperature': 0.3, 'num_samples': 4}},
      ['eval.num_samples', 'eval.temperature'],
    ),
  ],
)
def test_in_what_a_forecast_is_of_another_run(
  tmp_path, distribution, method, change, differs
):
  known = {
    'model': {'path': 'builtin:x'},
    'train': {'num_steps': 150},
    'eval': {'temperature': 1.0, 'num_samples': 64},
  }
  source = forecast.Source(
    tmp_path,
    runs.flat_options(known | {'method': {'name': 'sd'}} | change),
    {},
  )
  run = runs.Run(tmp_path, 'run', config=known | {'method': method})
  assert forecast.differing(source, run, distribution) == differs


@pytest.mark.parametrize('content', ['', '[1]', '{"a": '])
def test_a_broken_forecast_is_noted(tmp_path, content):
  (tmp_path / 'forecast.json').write_text(content)
  source, notes = forecast.read(tmp_path)
  assert source is None and len(notes) == 1 and 'cannot be read' in notes[0]


def test_the_command_finds_forecasts(tmp_path, capsys):
  run = make_run(tmp_path / 'sd')
  folder, out = forecast_folder(tmp_path / 'forecast'), tmp_path / 'out'
  options = [f'--out={out}', '--resamples=0']
  for argv in ([str(folder)], [f'--forecast={folder}']):
    assert report.main([str(run), *argv, *options]) == 0
    assert 'id="forecast"' in (out / 'index.html').read_text()
    errors = capsys.readouterr().err
    # It is no run, and is not said to be a broken one.
    assert 'left out' not in errors and str(folder) not in errors
  report.main([str(run), f'--forecast={tmp_path / "no"}', *options])
  assert 'no forecast.json there' in capsys.readouterr().err
  assert 'id="forecast"' not in (out / 'index.html').read_text()
