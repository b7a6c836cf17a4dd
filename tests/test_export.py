"""What a run leaves, opened by the tools people serve models with."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy
from models import one_device
from test_train import SMALL

from sdjax import export
from sdjax.config.convert import replace
from sdjax.models import hf
from sdjax.models import load as language_model
from sdjax.models.lora import merge
from sdjax.training import loop as train_lib

pytestmark = pytest.mark.slow

IDS = np.arange(2, 40)[None] % 50


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of two updates of an adapter, and its restored trainer."""
  root = tmp_path_factory.mktemp('export')
  config = replace(
    SMALL,
    task__cache_dir=str(root / 'data'),
    model__lora__rank=4,
    model__lora__targets='(q|v|down)/kernel',
    optimizer__learning_rate=0.01,
    train__num_steps=2,
    train__eval_every=0,
    eval__sets=('in_distribution',),
    method__teacher='ema(rate=0.5)',
  )
  with one_device():
    train_lib.train(config, str(root / 'run'))
    restored = export.restore(root / 'run')
  assert restored.step == 2
  return root / 'run', restored


def tree_equal(tree, other):
  jax.tree.map(np.testing.assert_array_equal, tree, other)


def test_only_the_adapter_is_trained_and_kept(run):
  _, restored = run
  names = {'a', 'b'}
  assert restored.trained.keys() == {'student', 'teacher'}
  for tree in restored.trained.values():
    down = tree['layers']['down']['kernel']
    assert down.keys() == names and tree.keys() == {'layers'}
    assert np.abs(down['b']).max() > 0
  tree_equal(
    restored.start.params,
    language_model.load('builtin:concept_graph_base').params,
  )


@pytest.mark.parametrize('weights', export.WEIGHTS)
def test_the_merged_model_loads_and_answers_as_trained(run, tmp_path, weights):
  _, restored = run
  export.export_model(restored, tmp_path, weights, None)
  loaded = language_model.load(str(tmp_path))
  tree = export.trained_tree(restored, weights)
  tree_equal(loaded.params, merge(restored.start.params, tree, 32 / 4))
  plain = language_model.load('builtin:concept_graph_base')
  gap = np.abs(
    language_model.logits(loaded, IDS) - language_model.logits(plain, IDS)
  )
  assert gap.max() > 0.01


def test_the_adapter_opens_in_peft(run, tmp_path):
  torch = pytest.importorskip('torch')
  peft = pytest.importorskip('peft')
  import transformers

  _, restored = run
  export.export_adapter(restored, tmp_path / 'adapter', 'student')
  export.export_model(restored, tmp_path / 'merged', 'student', None)
  folder = hf.resolve('builtin:concept_graph_base')
  base = transformers.AutoModelForCausalLM.from_pretrained(folder)
  model = peft.PeftModel.from_pretrained(base, tmp_path / 'adapter').eval()
  with torch.no_grad():
    theirs = model(torch.asarray(IDS)).logits.numpy()
  merged = language_model.load(str(tmp_path / 'merged'))
  np.testing.assert_allclose(
    language_model.logits(merged, IDS), theirs, rtol=0, atol=2e-4
  )


def test_adapter_layout_by_hand(run, tmp_path):
  _, restored = run
  export.export_adapter(restored, tmp_path, 'teacher')
  tensors = safetensors.numpy.load_file(tmp_path / export.ADAPTER_WEIGHTS)
  name = 'base_model.model.model.layers.2.mlp.down_proj.lora_A.weight'
  pair = restored.trained['teacher']['layers']['down']['kernel']
  np.testing.assert_array_equal(tensors[name], pair['a'][2].T)
  assert len(tensors) == 3 * 3 * 2
  raw = json.loads((tmp_path / export.ADAPTER_CONFIG).read_text())
  assert raw['r'] == 4 and raw['lora_alpha'] == 32
  assert raw['target_modules'] == ['down_proj', 'q_proj', 'v_proj']


def test_what_cannot_be_exported_is_named(run, tmp_path, capsys):
  folder, _ = run
  for arguments, words in (
    (['--workdir', str(tmp_path)], 'must name the folder of a run'),
    (['--workdir', str(folder), '--step', '7'], 'no checkpoint 7'),
  ):
    with pytest.raises(SystemExit) as error, one_device():
      export.main([*arguments, '--out', str(tmp_path / 'out')])
    assert error.value.code == 2
    assert words in capsys.readouterr().err
  assert not (tmp_path / 'out').exists()
