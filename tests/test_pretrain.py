"""Pretraining: the recipe's mechanics, at a size that learns nothing."""

import json

import jax
import numpy as np
import pytest
from models import one_device

from sdjax.config import schema as c
from sdjax.config.convert import from_config_dict, replace
from sdjax.models import hf
from sdjax.models.load import load
from sdjax.training import pretrain as pretrain_lib

TINY = c.Config(
  mode='pretrain',
  model=None,
  rollout=None,
  loss=None,
  method=c.Pretraining(
    num_layers=1,
    width=16,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    ffn_width=16,
    batch_size=8,
    careful_steps=2,
  ),
  train=c.Train(num_steps=4, eval_every=2, checkpoint_every=2),
  eval=c.Eval(
    sets=('in_distribution',),
    during=('in_distribution',),
    num_questions=2,
    num_samples=2,
    batch_questions=2,
  ),
)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  root = tmp_path_factory.mktemp('pretrain')
  config = replace(TINY, task__cache_dir=str(root / 'data'))
  whole, stopped = root / 'whole', root / 'stopped'
  with one_device():
    pretrain_lib.pretrain(config, str(whole))
    pretrain_lib.pretrain(replace(config, train__num_steps=2), str(stopped))
    pretrain_lib.pretrain(config, str(stopped))
  return whole, stopped


def test_stopped_and_resumed_it_writes_the_same_bytes(runs):
  whole, stopped = (run / 'model' / 'model.safetensors' for run in runs)
  assert whole.read_bytes() == stopped.read_bytes()


def test_the_folder_loads_like_any_checkpoint(runs):
  folder = runs[0] / 'model'
  model = load(str(folder))
  assert model.config.num_layers == 1 and model.config.vocab_size % 8 == 0
  ids = model.tokenizer.encode('start')
  assert model.tokenizer.decode(ids) == 'start'
  logits = model.apply_fn(model.params, np.array([ids]))
  assert np.isfinite(logits).all()
  recipe = json.loads((folder / 'recipe.json').read_text())
  method = from_config_dict(recipe).method
  assert isinstance(method, c.Pretraining) and method.careful_steps == 2
  evaluation = json.loads((folder / 'eval.json').read_text())
  assert {'in_distribution/pass@1', 'demonstration/correct', 'cut/with'} <= set(
    evaluation
  )


def test_only_the_compact_rendering_has_documents(tmp_path):
  config = replace(TINY, task__rendering='text')
  with pytest.raises(c.ConfigError, match="'text'.*'compact'"):
    pretrain_lib.pretrain(config, str(tmp_path))


def test_the_careful_author_is_right_and_even_handed():
  careful = c.Pretraining().careful()
  assert (careful.correct_share, careful.easy_share) == (1.0, 0.5)
  assert careful.copy_share == c.Pretraining().copy_share


def test_the_shipped_model_is_what_its_papers_say():
  folder = hf.resolve('builtin:concept_graph_base')
  size = sum(f.stat().st_size for f in folder.iterdir())
  assert size <= 2 * 1024 * 1024
  recipe = from_config_dict(json.loads((folder / 'recipe.json').read_text()))
  model = load(str(folder))
  assert isinstance(recipe.method, c.Pretraining)
  assert model.config.width == recipe.method.width
  evaluation = json.loads((folder / 'eval.json').read_text())
  # Right only part of the time, prefers the easy route, uses a demonstration.
  assert 0.1 < evaluation['in_distribution/pass@1'] < 0.7
  assert evaluation['harder/pass@1'] < evaluation['in_distribution/pass@1']
  assert evaluation['demonstration/correct'] > 0.9
  # It sees a missing edge: it takes the favourite route far less often.
  assert evaluation['cut/with'] < evaluation['cut/without'] / 3
  assert len(jax.tree.leaves(model.params)) == 13
