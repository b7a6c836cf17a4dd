"""Every family against torch, on random models that transformers makes.

`$SDJAX_PARITY_MODELS` adds folders: each holds a checkpoint and `ref.npz`
with `ids` [1, L] and `logits` [1, L, V] of the reference in float32.
"""

import copy
import functools
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models import left_padded

from sdjax.models import hf
from sdjax.models import load as language_model
from sdjax.models.cache import append, empty_suffix
from sdjax.models.tokenizer import word_tokenizer
from sdjax.steps.rollout import rollout_step
from sdjax.steps.sampling import Sampling
from sdjax.steps.score import prefill
from sdjax.types import Prompts

VOCAB = 37
SIZES = {
  'vocab_size': VOCAB,
  'hidden_size': 16,
  'num_hidden_layers': 4,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 24,
  'max_position_embeddings': 128,
  'rms_norm_eps': 1e-5,
  'bos_token_id': None,
  'eos_token_id': None,
  'pad_token_id': None,
}
# Every case goes past its window and past its original context.
CASES = {
  'qwen3': ('Qwen3', {'head_dim': 8, 'tie_word_embeddings': True}),
  'qwen3_window': (
    'Qwen3',
    {
      'head_dim': 8,
      'use_sliding_window': True,
      'sliding_window': 5,
      'max_window_layers': 2,
    },
  ),
  'qwen2': ('Qwen2', {}),
  'llama2': ('Llama', {'num_key_value_heads': 4}),
  'llama3': (
    'Llama',
    {
      'tie_word_embeddings': True,
      'rope_parameters': {
        'rope_type': 'llama3',
        'rope_theta': 500000.0,
        'factor': 8.0,
        'low_freq_factor': 1.0,
        'high_freq_factor': 4.0,
        'original_max_position_embeddings': 16,
      },
    },
  ),
  'llama_biased': (
    'Llama',
    {
      'attention_bias': True,
      'mlp_bias': True,
      'rope_parameters': {
        'rope_type': 'linear',
        'rope_theta': 1000.0,
        'factor': 4.0,
      },
    },
  ),
  'mistral': ('Mistral', {'sliding_window': 6}),
  'olmo2': ('Olmo2', {}),
  'olmo3': (
    'Olmo3',
    {
      'sliding_window': 5,
      'rope_theta': 500000.0,
      'rope_scaling': {
        'rope_type': 'yarn',
        'factor': 8.0,
        'original_max_position_embeddings': 16,
        'beta_fast': 32,
        'beta_slow': 1,
      },
    },
  ),
  'gemma3': (
    'Gemma3',
    {
      'head_dim': 8,
      'sliding_window': 5,
      'query_pre_attn_scalar': 12,
      'num_hidden_layers': 7,
      'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    },
  ),
}


def make_torch(name):
  """A torch model of a case, of weights so wide that none is near uniform."""
  torch = pytest.importorskip(
    'torch', reason='compares with torch; pip install torch to run it'
  )
  import transformers

  family, changes = CASES[name]
  kind = 'Gemma3Text' if family == 'Gemma3' else family
  config = getattr(transformers, f'{kind}Config')(**{**SIZES, **changes})
  torch.manual_seed(0)
  model = getattr(transformers, f'{family}ForCausalLM')(config).float().eval()
  with torch.no_grad():
    for parameter, weight in model.named_parameters():
      # Gemma stores what its norms differ from 1.
      around = 'norm' in parameter and family != 'Gemma3'
      weight.normal_(float(around), 0.3)
  return model


@pytest.fixture(scope='module', params=list(CASES))
def checkpoint(request, tmp_path_factory):
  """A torch model and the folder it was saved to."""
  model = make_torch(request.param)
  folder = tmp_path_factory.mktemp(request.param)
  model.save_pretrained(folder)
  return model, folder


def torch_logits(model, rows):
  import torch

  with torch.no_grad():
    return model(torch.asarray(np.asarray(rows))).logits.numpy()


def close(ours, theirs):
  assert np.abs(theirs).max() > 2
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)
  np.testing.assert_array_equal(np.argmax(ours, -1), np.argmax(theirs, -1))


def test_logits(checkpoint):
  model, folder = checkpoint
  loaded = language_model.load(str(folder))
  ids = np.random.default_rng(0).integers(0, VOCAB, (2, 40))
  ours = jax.jit(loaded.apply_fn)(loaded.params, jnp.asarray(ids, jnp.int32))
  close(ours, torch_logits(model, ids))


def decoder(apply_fn, width):
  """Compiled logits [Q, G, T, V] from left-padded contexts, token by token."""

  @jax.jit
  def run(params, context_ids, length, ids_QGT):
    prefix, _ = prefill(apply_fn, params, context_ids[:, None], length[:, None])
    suffix = empty_suffix(prefix, ids_QGT.shape[1], width)

    def one(suffix, ids_QG):
      hidden, kv = apply_fn(
        params,
        ids_QG[..., None],
        prefix=prefix,
        suffix=suffix,
        method='hidden',
      )
      return append(suffix, kv), apply_fn(params, hidden, method='head')

    _, logits = jax.lax.scan(one, suffix, jnp.moveaxis(ids_QGT, -1, 0))
    return jnp.moveaxis(logits[..., 0, :], 0, 2)

  return run


def test_cached_decoding_under_left_padding(checkpoint):
  model, folder = checkpoint
  loaded = language_model.load(str(folder))
  rng = np.random.default_rng(2)
  lengths, tokens = (14, 3), 20
  rows = [rng.integers(0, VOCAB, n).tolist() for n in lengths]
  context_ids, length = left_padded(rows, 16)
  ids = rng.integers(0, VOCAB, (2, 2, tokens))
  ours = decoder(loaded.apply_fn, tokens)(
    loaded.params, context_ids, length, jnp.asarray(ids, jnp.int32)
  )
  for q, row in enumerate(rows):
    both = [[*row, *ids[q, g]] for g in range(2)]
    close(ours[q], torch_logits(model, both)[:, len(row) :])


@pytest.mark.slow
def test_greedy_generation(checkpoint):
  import torch

  model, folder = checkpoint
  loaded = language_model.load(str(folder))
  row = np.random.default_rng(3).integers(0, VOCAB, 9)
  context_ids, length = left_padded([row.tolist()], 12)
  prompts = Prompts(
    ids=context_ids, length=length, question_id=jnp.zeros(1, jnp.int32)
  )
  rollout = jax.jit(
    functools.partial(
      rollout_step,
      loaded.apply_fn,
      num_samples=1,
      max_new_tokens=64,
      eos_ids=(VOCAB + 1,),  # never
      sampling=Sampling(temperature=0.0),
    )
  )(loaded.params, prompts, jax.random.key(0))
  theirs = model.generate(
    torch.asarray(row[None]),
    attention_mask=torch.ones(1, 9),
    do_sample=False,
    max_new_tokens=64,
    min_new_tokens=64,
  )[0, 9:]
  np.testing.assert_array_equal(rollout.ids[0, 0], theirs.numpy())


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_our_export_is_bitwise_theirs(checkpoint, tmp_path, dtype):
  import torch
  import transformers

  model, folder = checkpoint
  loaded = language_model.load(str(folder))
  words = word_tokenizer([';', ':', 'plum', 'fig'])
  hf.save_checkpoint(
    tmp_path,
    loaded.config,
    loaded.params,
    words,
    (1, 2),
    dtype,
    source=folder,
    max_shard_bytes=5000,
  )
  assert len(list(tmp_path.glob('*.safetensors'))) > 1
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=getattr(torch, dtype)
  )
  assert type(again) is type(model)
  assert again.generation_config.eos_token_id == [1, 2]
  theirs = copy.deepcopy(model).to(getattr(torch, dtype)).state_dict()
  ours = again.state_dict()
  assert ours.keys() == theirs.keys()
  for name, weight in theirs.items():
    assert torch.equal(ours[name], weight), name
  if type(model) is transformers.Qwen3ForCausalLM:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer('plum fig')['input_ids'] == [5, 6]
  if dtype == 'float32':
    ids = np.arange(36).reshape(1, 36)
    np.testing.assert_array_equal(
      torch_logits(again.eval(), ids), torch_logits(model, ids)
    )


def test_theirs_in_bfloat16_is_read_bitwise(tmp_path):
  model = make_torch('qwen3').bfloat16()
  import torch

  model.save_pretrained(tmp_path)
  cfg = hf.load_config(tmp_path, param_dtype='bfloat16')
  ours = hf.load_params(tmp_path, cfg)['layers']['attn']['q']['kernel'][1].T
  theirs = model.model.layers[1].self_attn.q_proj.weight
  np.testing.assert_array_equal(
    np.asarray(ours).view(np.uint16), theirs.view(torch.uint16).numpy()
  )


def test_their_shards_are_read(tmp_path):
  model = make_torch('llama3')
  model.save_pretrained(tmp_path / 'one')
  model.save_pretrained(tmp_path / 'many', max_shard_size='5KB')
  index = json.loads((tmp_path / 'many' / hf.INDEX).read_text())
  assert len(set(index['weight_map'].values())) > 1
  cfg = hf.load_config(tmp_path / 'one')
  jax.tree.map(
    np.testing.assert_array_equal,
    hf.load_params(tmp_path / 'many', cfg),
    hf.load_params(tmp_path / 'one', cfg),
  )


def given_folders():
  root = os.environ.get('SDJAX_PARITY_MODELS')
  return sorted(x.parent for x in Path(root).glob('*/ref.npz')) if root else []


@pytest.mark.parametrize('folder', given_folders(), ids=lambda x: x.name)
def test_given_folder(folder):
  reference = np.load(folder / 'ref.npz')
  ids, theirs = reference['ids'], reference['logits']
  loaded = language_model.load(str(folder))
  ours = np.asarray(language_model.logits(loaded, ids))
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)
  np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))
