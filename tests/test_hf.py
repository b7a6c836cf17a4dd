"""Checkpoint folders: what is written is read, what is broken is named."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import PartitionSpec

from sdjax.config import schema as config
from sdjax.models import hf, sharding
from sdjax.models.families import CheckpointError
from sdjax.models.rope import Rope
from sdjax.models.tokenizer import word_tokenizer
from sdjax.models.transformer import (
  AttentionKind,
  TransformerConfig,
  init_params,
)

CFG = TransformerConfig(
  vocab_size=12,
  width=8,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_dim=4,
  ffn_width=10,
  attention=(AttentionKind(rope=Rope(theta=5000.0)),),
  norm_eps=1e-5,
)


def tokenizer_of(size=7):
  words = [';', ':', 'plum', 'fig', 'eel', 'cod']
  return word_tokenizer(words[: size - 3])


@pytest.fixture(scope='module')
def params():
  """Weights without a symmetry: every entry of every leaf differs."""
  shapes = jax.eval_shape(lambda: init_params(CFG, jax.random.key(0)))
  draw = np.random.default_rng(0).standard_normal
  return jax.tree.map(lambda x: jnp.asarray(draw(x.shape), x.dtype), shapes)


@pytest.fixture(scope='module')
def saved(params, tmp_path_factory):
  folder = tmp_path_factory.mktemp('model')
  hf.save_checkpoint(folder, CFG, params, tokenizer_of(), (1,))
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  """A copy that a test may break."""
  return shutil.copytree(saved, tmp_path / 'model')


def edit(folder, **fields):
  """Changes fields of config.json; None of `...` removes one."""
  path = folder / hf.CONFIG
  raw = json.loads(path.read_text()) | fields
  raw = {key: value for key, value in raw.items() if value is not ...}
  path.write_text(json.dumps(raw))


def edit_weights(folder, change):
  path = folder / hf.WEIGHTS
  tensors = safetensors.numpy.load_file(path)
  change(tensors)
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})


def assert_same(ours, theirs):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_layout_by_hand(saved, params):
  raw = safetensors.numpy.load_file(saved / hf.WEIGHTS)
  name = 'model.layers.2.self_attn.k_proj.weight'
  kernel = params['layers']['attn']['k']['kernel']
  assert raw[name].shape == (8, 8)
  assert raw[name][3, 5] == kernel[2, 5, 3]  # [out, in] there, [in, out] here
  assert raw['model.layers.0.mlp.down_proj.weight'].shape == (8, 10)
  assert raw['model.embed_tokens.weight'][7, 2] == params['embedding'][7, 2]
  assert 'lm_head.weight' not in raw
  with safetensors.safe_open(saved / hf.WEIGHTS, 'np') as file:
    assert file.metadata() == {'format': 'pt'}


def test_round_trip(saved, params):
  assert hf.load_config(saved) == CFG
  loaded = hf.load_params(saved, CFG)
  assert_same(loaded, params)
  assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(loaded))
  assert json.loads((saved / 'generation_config.json').read_text()) == {
    'bos_token_id': None,
    'eos_token_id': 1,
    'pad_token_id': 0,
  }


def test_untied_round_trip_in_bfloat16(params, tmp_path):
  cfg = dataclasses.replace(CFG, tie_embeddings=False)
  head = jnp.arange(8 * 12, dtype=jnp.float32).reshape(8, 12) / 7
  untied = {**params, 'unembedding': head}
  hf.save_checkpoint(tmp_path, cfg, untied, tokenizer_of(), (1, 3), 'bfloat16')
  loaded_cfg = hf.load_config(
    tmp_path, dtype='bfloat16', param_dtype='bfloat16', remat='full'
  )
  assert loaded_cfg == dataclasses.replace(
    cfg, dtype='bfloat16', param_dtype='bfloat16', remat='full'
  )
  loaded = hf.load_params(tmp_path, loaded_cfg)
  assert_same(loaded, jax.tree.map(lambda x: x.astype(jnp.bfloat16), untied))
  wide = hf.load_params(tmp_path, cfg)
  assert wide['embedding'].dtype == jnp.float32
  assert_same(wide, jax.tree.map(lambda x: x.astype(jnp.float32), loaded))


def test_each_weight_goes_to_its_place(saved, params):
  mesh = sharding.make_mesh(config.Mesh(2, 2), jax.devices()[:4])
  place = sharding.state_sharding(params, mesh)
  loaded = hf.load_params(saved, CFG, place)
  assert_same(loaded, params)
  kernel = loaded['layers']['attn']['o']['kernel']
  assert kernel.sharding.spec == PartitionSpec(None, 'model', 'data')


def test_fields_without_use_here_are_kept_from_the_source(
  folder, params, tmp_path
):
  edit(folder, max_position_embeddings=777)
  out = tmp_path / 'out'
  hf.save_checkpoint(out, CFG, params, tokenizer_of(), (1,), source=folder)
  raw = json.loads((out / hf.CONFIG).read_text())
  assert raw['max_position_embeddings'] == 777
  assert hf.load_config(out) == CFG
  edit(folder, rms_norm_eps=1e-4)
  with pytest.raises(CheckpointError, match='norm_eps=0.0001, but this one'):
    hf.save_checkpoint(out, CFG, params, tokenizer_of(), (1,), source=folder)


def theta(folder):
  return hf.load_config(folder).attention[0].rope.theta


def test_both_styles_of_rope(folder):
  edit(folder, rope_parameters=..., rope_theta=77.0, rope_scaling=None)
  assert theta(folder) == 77.0
  edit(folder, rope_parameters={'rope_theta': 88.0, 'rope_type': 'default'})
  assert theta(folder) == 88.0
  edit(folder, rope_parameters={'rope_type': 'default'})
  assert theta(folder) == 77.0


def test_sliding_windows(folder):
  edit(
    folder,
    layer_types=...,
    sliding_window=4,
    use_sliding_window=True,
    max_window_layers=3,
  )
  assert hf.load_config(folder) == CFG
  edit(folder, use_sliding_window=False, max_window_layers=0)
  assert hf.load_config(folder) == CFG
  edit(folder, use_sliding_window=True, max_window_layers=1)
  windows = [kind.window for kind in hf.load_config(folder).attention]
  assert windows == [0, 4, 4]


@pytest.mark.parametrize(
  'fields, words',
  [
    ({'model_type': 'mamba'}, ["'mamba'", 'qwen3']),
    ({'model_type': ...}, ['model_type', 'qwen3']),
    ({'hidden_act': 'gelu'}, ['hidden_act', "'gelu'", "'silu'"]),
    ({'attention_bias': 'yes'}, ['attention_bias']),
    ({'layer_types': ['full_attention'] * 4}, ['layer_types']),
    (
      {
        'layer_types': ['full_attention', 'linear_attention'] * 2,
        'num_hidden_layers': 4,
      },
      ['layer_types', 'linear_attention'],
    ),
    (
      {
        'layer_types': ['sliding_attention'] * 3,
        'sliding_window': None,
        'use_sliding_window': True,
      },
      ['sliding_window', 'None'],
    ),
    (
      {'rope_scaling': {'type': 'dynamic', 'factor': 2.0}},
      ['dynamic', 'linear', 'yarn'],
    ),
    (
      {'rope_parameters': {'rope_type': 'longrope', 'rope_theta': 1.0}},
      ['rope_parameters', 'longrope'],
    ),
    (
      {
        'rope_parameters': {
          'rope_type': 'yarn',
          'rope_theta': 1.0,
          'factor': -2.0,
        }
      },
      ['rope_parameters', 'factor', 'above 0'],
    ),
    (
      {'rope_parameters': {'rope_theta': 1.0, 'partial_rotary_factor': 0.5}},
      ['rope_parameters', 'partial_rotary_factor'],
    ),
    ({'quantization_config': {'bits': 4}}, ['quantization_config']),
    ({'hidden_size': ...}, ['hidden_size', 'missing']),
    ({'num_hidden_layers': 2.5}, ['num_hidden_layers', '2.5']),
    ({'num_key_value_heads': 3}, ['num_attention_heads', '4', '3']),
    ({'head_dim': 5}, ['head_dim', '5']),
    ({'rms_norm_eps': 'small'}, ['rms_norm_eps', "'small'"]),
    ({'tie_word_embeddings': 'no'}, ['tie_word_embeddings']),
  ],
)
def test_config_that_is_not_ours(folder, fields, words):
  edit(folder, **fields)
  with pytest.raises(CheckpointError) as error:
    hf.load_config(folder)
  for word in [hf.CONFIG, *words]:
    assert word in str(error.value)


def test_unknown_numerics():
  for option in ('dtype', 'param_dtype', 'remat'):
    with pytest.raises(ValueError, match=f'{option}=.float8. is not one of'):
      hf.load_config('nowhere', **{option: 'float8'})


def test_missing_folder_and_files(folder):
  with pytest.raises(CheckpointError, match='Qwen/Qwen3-0.6B'):
    hf.resolve('Qwen/Qwen3-0.6B')
  with pytest.raises(CheckpointError, match=r"'nothing'.*shipped"):
    hf.resolve('builtin:nothing')
  (folder / hf.WEIGHTS).unlink()
  with pytest.raises(CheckpointError, match=r'model\.safetensors is missing'):
    hf.load_params(folder, CFG)
  (folder / hf.CONFIG).write_text('{"model_type": ')
  with pytest.raises(CheckpointError, match='config.json is not readable JSON'):
    hf.load_config(folder)
  (folder / hf.CONFIG).unlink()
  with pytest.raises(CheckpointError, match='config.json is missing'):
    hf.load_config(folder)


def test_builtin_folder(saved, monkeypatch, tmp_path):
  shutil.copytree(saved, tmp_path / 'tiny')
  monkeypatch.setattr(hf, '__file__', str(tmp_path / 'hf.py'))
  assert hf.resolve('builtin:tiny') == tmp_path / 'tiny'
  assert hf.load_config('builtin:tiny') == CFG
  with pytest.raises(CheckpointError, match='there is: tiny'):
    hf.resolve('builtin:nothing')


@pytest.mark.parametrize('keep', [0, 4, 100, -1])
def test_truncated_weights(folder, keep):
  path = folder / hf.WEIGHTS
  path.write_bytes(path.read_bytes()[:keep])
  with pytest.raises(CheckpointError, match=r'model\.safetensors .*truncated'):
    hf.load_params(folder, CFG)


K_NAME = 'model.layers.1.self_attn.k_proj.weight'


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda t: t.pop(K_NAME), [K_NAME, 'missing', '1 tensors']),
    (
      lambda t: t.update({K_NAME.replace('weight', 'bias'): np.ones(8)}),
      ['k_proj.bias', 'no place'],
    ),
    (
      lambda t: t.update({K_NAME: np.ones((16, 8), np.float32)}),
      [K_NAME, '(16, 8)', '(8, 8)'],
    ),
    (lambda t: t[K_NAME].put(9, np.nan), [K_NAME, 'not finite']),
    (lambda t: t[K_NAME].put(0, -np.inf), [K_NAME, 'not finite']),
    (
      lambda t: t.update({K_NAME: np.ones((8, 8), np.int8)}),
      [K_NAME, 'I8', 'BF16'],
    ),
    (
      lambda t: t.update({'lm_head.weight': np.ones((12, 8), np.float32)}),
      ['lm_head.weight', 'tie_word_embeddings'],
    ),
  ],
)
def test_weights_that_do_not_fit(folder, change, words):
  edit_weights(folder, change)
  with pytest.raises(CheckpointError) as error:
    hf.load_params(folder, CFG)
  for word in [str(folder), *words]:
    assert word in str(error.value)


def test_harmless_surplus_tensors(folder, params):
  def change(tensors):
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'].copy()
    tensors['model.layers.0.self_attn.rotary_emb.inv_freq'] = np.ones(2)

  edit_weights(folder, change)
  assert_same(hf.load_params(folder, CFG), params)


@pytest.fixture
def shards(folder):
  """The same weights in two files and an index."""
  tensors = safetensors.numpy.load_file(folder / hf.WEIGHTS)
  (folder / hf.WEIGHTS).unlink()
  names = sorted(tensors)
  parts = {'a.safetensors': names[:9], 'b.safetensors': names[9:]}
  for part, held in parts.items():
    safetensors.numpy.save_file({n: tensors[n] for n in held}, folder / part)
  where = {name: part for part, held in parts.items() for name in held}
  (folder / hf.INDEX).write_text(json.dumps({'weight_map': where}))
  return folder, where


def test_shards(shards, params):
  folder, _ = shards
  assert_same(hf.load_params(folder, CFG), params)
  (folder / 'b.safetensors').unlink()
  with pytest.raises(CheckpointError, match='b.safetensors is missing'):
    hf.load_params(folder, CFG)


def test_truncated_shard(shards):
  folder, _ = shards
  path = folder / 'b.safetensors'
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(CheckpointError, match=r'b\.safetensors .*truncated'):
    hf.load_params(folder, CFG)


def test_an_index_that_lies(shards):
  folder, where = shards
  first = min(where)
  (folder / hf.INDEX).write_text(
    json.dumps({'weight_map': where | {first: 'b.safetensors'}})
  )
  with pytest.raises(CheckpointError, match=f'places {first} in b.safeten'):
    hf.load_params(folder, CFG)
  (folder / hf.INDEX).write_text('{"weight_map": ')
  with pytest.raises(CheckpointError, match='not readable as an index'):
    hf.load_params(folder, CFG)


def published(model_type, **fields):
  """A config.json as it was published, before transformers 5."""
  sizes = {
    'model_type': model_type,
    'vocab_size': 100,
    'hidden_size': 32,
    'num_hidden_layers': 6,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'intermediate_size': 48,
    'max_position_embeddings': 131072,
    'rms_norm_eps': 1e-6,
    'torch_dtype': 'bfloat16',
    'transformers_version': '4.46.0',
  }
  return sizes | fields


def read_published(tmp_path, raw):
  (tmp_path / hf.CONFIG).write_text(json.dumps(raw))
  return hf.load_config(tmp_path)


def test_published_llama_2(tmp_path):
  raw = published('llama', hidden_act='silu', tie_word_embeddings=False)
  del raw['num_key_value_heads']
  cfg = read_published(tmp_path, raw)
  assert cfg.num_kv_heads == 4 and cfg.head_dim == 8
  assert cfg.attention == (AttentionKind(rope=Rope(theta=10000.0)),)
  assert not cfg.qkv_bias and not cfg.tie_embeddings


def test_published_llama_3(tmp_path):
  scaling = {
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  }
  raw = published('llama', rope_theta=500000.0, rope_scaling=scaling)
  want = Rope(
    theta=500000.0,
    scaling='llama3',
    factor=8.0,
    original_context=8192,
    low=1.0,
    high=4.0,
  )
  assert read_published(tmp_path, raw).attention[0].rope == want


def test_published_qwen_2_5(tmp_path):
  raw = published(
    'qwen2',
    rope_theta=1000000.0,
    sliding_window=32768,
    max_window_layers=6,
    use_sliding_window=False,
    use_mrope=False,
    tie_word_embeddings=True,
  )
  cfg = read_published(tmp_path, raw)
  assert cfg.attention == (AttentionKind(rope=Rope(theta=1000000.0)),)
  assert cfg.qkv_bias and not cfg.o_bias and cfg.tie_embeddings


def test_published_mistral(tmp_path):
  cfg = read_published(tmp_path, published('mistral', sliding_window=4096))
  assert cfg.attention[0].window == 4096
  cfg = read_published(tmp_path, published('mistral', sliding_window=None))
  assert cfg.attention[0].window == 0


def test_published_olmo_3(tmp_path):
  scaling = {
    'attention_factor': 1.2079441541679836,
    'beta_fast': 32.0,
    'beta_slow': 1.0,
    'factor': 8.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'yarn',
  }
  raw = published(
    'olmo3',
    rope_theta=500000,
    rope_scaling=scaling,
    sliding_window=4096,
    layer_types=(['sliding_attention'] * 3 + ['full_attention']) * 2,
    num_hidden_layers=8,
    max_position_embeddings=65536,
  )
  cfg = read_published(tmp_path, raw)
  near, far = cfg.attention[0], cfg.attention[3]
  assert near == AttentionKind(window=4096, rope=Rope(theta=500000.0))
  assert far.window == 0 and far.rope.scaling == 'yarn'
  assert far.rope.magnitude == 1.2079441541679836
  assert [kind == near for kind in cfg.attention] == [1, 1, 1, 0] * 2
  assert cfg.norms == 'post' and cfg.qk_norm == 'projection'


def test_published_gemma_3(tmp_path):
  raw = published(
    'gemma3_text',
    head_dim=16,
    hidden_activation='gelu_pytorch_tanh',
    query_pre_attn_scalar=16,
    rope_local_base_freq=10000,
    rope_theta=1000000,
    rope_scaling={'factor': 8.0, 'rope_type': 'linear'},
    sliding_window=512,
    sliding_window_pattern=6,
    attn_logit_softcapping=None,
    final_logit_softcapping=None,
  )
  cfg = read_published(tmp_path, raw)
  near, far = cfg.attention[0], cfg.attention[5]
  assert near == AttentionKind(window=512, rope=Rope(theta=10000.0))
  assert far.rope == Rope(theta=1000000.0, scaling='linear', factor=8.0)
  assert [kind == near for kind in cfg.attention] == [1] * 5 + [0]
  assert cfg.tie_embeddings and cfg.norm_offset == 1
  assert cfg.query_scale == 0.25
  assert cfg.embedding_scale == pytest.approx(32**0.5)


def test_vocabulary(params, tmp_path):
  hf.check_vocabulary(CFG, tokenizer_of(9))  # padded up to 12: fine
  small = dataclasses.replace(CFG, vocab_size=8)
  hf.check_vocabulary(small, tokenizer_of(8))
  with pytest.raises(CheckpointError, match='9 tokens but the model only 8'):
    hf.check_vocabulary(small, tokenizer_of(9))
  with pytest.raises(CheckpointError, match='9 tokens'):
    hf.save_checkpoint(tmp_path, small, params, tokenizer_of(9), (1,))
  assert not list(tmp_path.iterdir())


def test_weights_that_cannot_be_written(params, tmp_path):
  tokenizer = tokenizer_of()
  wide = dataclasses.replace(CFG, ffn_width=11)
  with pytest.raises(CheckpointError, match=r"layers/down/kernel'.*\(3, 10, 8"):
    hf.save_checkpoint(tmp_path, wide, params, tokenizer, (1,))
  surplus = {**params, 'unembedding': jnp.ones((8, 12))}
  with pytest.raises(CheckpointError, match="'unembedding' has no place"):
    hf.save_checkpoint(tmp_path, CFG, surplus, tokenizer, (1,))
  plain = dataclasses.replace(CFG, qk_norm='none')
  with pytest.raises(CheckpointError, match="qk_norm='none'"):
    hf.save_checkpoint(tmp_path, plain, params, tokenizer, (1,))
  with pytest.raises(ValueError, match='float8'):
    hf.save_checkpoint(tmp_path, CFG, params, tokenizer, (1,), 'float8')
  assert not list(tmp_path.iterdir())
