"""The experiments of `launch/`: what is run, skipped, and told of."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from sdjax.config.check import validate
from sdjax.config.convert import from_config_dict, replace
from sdjax.config.presets import PRESETS
from sdjax.config.schema import Mix, SelfDistillation
from sdjax.steps.teacher import EMA

ROOT = Path(__file__).parents[1]


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec and spec.loader
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


remedies = load(ROOT / 'launch' / 'remedies.py')
bases = load(ROOT / 'launch' / 'forecast_bases.py')
configs = load(ROOT / 'configs' / 'concept_graph_remedies.py')


twins = load(ROOT / 'configs' / 'concept_graph.py')


@pytest.mark.parametrize('name', configs.NAMES)
def test_the_documented_command_of_a_preset_is_the_run_of_the_table(name):
  """But for evaluations on the way, which change nothing of the result."""
  documented = from_config_dict(twins.get_config(name))
  assert documented.train.eval_every == 25
  table = from_config_dict(remedies.resolved(name, documented.seed, None))
  assert replace(documented, train__eval_every=75) == table


def test_no_preset_has_another_teacher_rate_than_the_twins():
  for name in PRESETS:
    method = from_config_dict(twins.get_config(name)).method
    teacher = method.sd if isinstance(method, Mix) else method
    if isinstance(teacher, SelfDistillation) and isinstance(
      teacher.teacher, EMA
    ):
      assert teacher.teacher == twins.TEACHER == EMA(0.01)


@pytest.mark.parametrize('name', configs.NAMES)
def test_every_remedy_is_a_run_that_differs_in_the_method_alone(name):
  config = from_config_dict(configs.get_config(name))
  validate(config)
  twin = from_config_dict(configs.get_config('sd'))
  # How often rollouts are used is part of a method whose ratios are clipped.
  updates = config.train.mini_batches
  assert updates == (4 if name == 'srpo' else 1)
  twin = replace(twin, train__mini_batches=updates)
  for part in ('model', 'optimizer', 'train', 'eval', 'rollout', 'task'):
    assert getattr(config, part) == getattr(twin, part), part
  method = config.method
  teacher = method.sd if isinstance(method, Mix) else method
  if isinstance(teacher, SelfDistillation) and isinstance(teacher.teacher, EMA):
    assert teacher.teacher.rate == 0.01


class Runs:
  """Stands for `subprocess.run`: trains nothing, fails where told to."""

  def __init__(self, failing=()):
    self.failing, self.commands = failing, []

  def __call__(self, command, check=False, stdout=None, stderr=None):
    self.commands.append(command)
    name = command[3].rpartition(':')[2]
    if name in self.failing:
      return subprocess.CompletedProcess(command, 1)
    if 'sdjax.main' in command:
      folder = Path(command[4].removeprefix('--workdir='))
      folder.mkdir(exist_ok=True)
      seed = int(command[5].removeprefix('--config.seed='))
      steps = int(command[6].removeprefix('--config.train.num_steps='))
      config = remedies.resolved(name, seed, steps)
      (folder / 'config.json').write_text(json.dumps(config))
      (folder / 'eval.json').write_text('{"final/s/pass@1": 1}')
      (folder / 'checkpoints' / '5').mkdir(parents=True, exist_ok=True)
    return subprocess.CompletedProcess(command, 0)

  def trained(self):
    return [
      Path(c[4].removeprefix('--workdir=')).name
      for c in self.commands
      if 'sdjax.main' in c
    ]


def launch(monkeypatch, out, *options, failing=()):
  runs = Runs(failing)
  monkeypatch.setattr(remedies.subprocess, 'run', runs)
  monkeypatch.setattr(
    sys, 'argv', ['remedies.py', f'--out={out}', '--steps=5', *options]
  )
  return remedies.main(), runs


def test_the_grid_goes_on_where_it_was(monkeypatch, tmp_path):
  code, runs = launch(monkeypatch, tmp_path, '--only=sd,rl', '--seeds=0')
  assert code == 0 and runs.trained() == ['sd_s0', 'rl_s0']
  assert '--config.seed=0' in runs.commands[0]
  # One more seed, and a run that was interrupted.
  (tmp_path / 'rl_s0' / 'eval.json').write_text('{"base/s/pass@1": 1}')
  code, runs = launch(monkeypatch, tmp_path, '--only=sd,rl', '--seeds=0,1')
  assert code == 0 and runs.trained() == ['rl_s0', 'sd_s1', 'rl_s1']
  report = runs.commands[-1]
  assert 'sdjax.report' in report
  for folder in ('sd_s0', 'rl_s0', 'sd_s1', 'rl_s1'):
    assert str(tmp_path / folder) in report


def test_what_counts_as_complete(tmp_path):
  def complete(steps: int | None = 5, seed: int = 0):
    config = remedies.resolved('sd', seed, steps)
    return remedies.is_complete(tmp_path, config)

  assert not complete()
  config = remedies.resolved('sd', 0, 5)
  (tmp_path / 'config.json').write_text(json.dumps(config))
  assert not complete()
  (tmp_path / 'eval.json').write_text('{"base/s/pass@1": 1}')
  assert not complete()
  (tmp_path / 'eval.json').write_text('{"final/s/pass@1": 1}')
  assert not complete()  # Measured, but before its last step.
  (tmp_path / 'checkpoints' / '5').mkdir(parents=True)
  assert complete()
  # A trial, or another seed, is not a run of the grid.
  assert not complete(steps=None) and not complete(seed=1)
  config['method']['ema_rate'] = 0.5
  for text in (json.dumps(config), '[]', '{'):
    (tmp_path / 'config.json').write_text(text)
    assert not complete()


def test_a_failing_run_is_named_and_stops_no_other(
  monkeypatch, tmp_path, capsys
):
  code, runs = launch(
    monkeypatch, tmp_path, '--only=sd,rl', '--seeds=0', failing=('sd',)
  )
  assert code == 1 and runs.trained() == ['sd_s0', 'rl_s0']
  assert 'sd_s0' in capsys.readouterr().out.splitlines()[-1]
  assert str(tmp_path / 'sd_s0') not in runs.commands[-1]


def test_a_method_that_does_not_exist(monkeypatch, tmp_path, capsys):
  with pytest.raises(SystemExit, match='2'):
    launch(monkeypatch, tmp_path, '--only=sdd')
  assert "no method is named {'sdd'}" in capsys.readouterr().err


def test_forecast_and_outcome_are_compared_by_their_ranks(tmp_path):
  # By hand: ranks 1, 2, 3, 4 and 1, 2.5, 2.5, 4, whose correlation is
  # 4.5 / sqrt(5 * 4.5); the size of a gap does not count.
  found = {
    name: {'base': x, 'outcome': y, 'pass@1': 0.5}
    for name, x, y in zip('abcd', (1, 2, 3, 90), (1, 5, 5, 6), strict=True)
  }
  assert bases.rank_correlation(found, 'base') == pytest.approx(0.9**0.5)
  found['e'] = {'outcome': 2, 'pass@1': 0.5}  # has no forecast
  assert bases.rank_correlation(found, 'base') == pytest.approx(0.9**0.5)
  assert (
    bases.table(found)
    .splitlines()[-1]
    .startswith('| Spearman with outcome | +0.95 | - |')
  )
  for name in 'abc':
    found[name]['self-PCMI'] = 1.0  # the same for all: no ranks
  assert '+0.95 | - | - | - | - | - | - |' in bases.table(found)
  bases.draw(
    {
      name: {**row, 'sd, one step': 1.5}
      for name, row in found.items()
      if 'base' in row
    },
    tmp_path / 'picture.png',
  )
  assert (tmp_path / 'picture.png').read_bytes().startswith(b'\x89PNG')
