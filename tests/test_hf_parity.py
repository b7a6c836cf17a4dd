"""The decoder against torch, on random Qwen3 models made by transformers."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdjax.data.tokenizer import word_tokenizer
from sdjax.models import hf
from sdjax.models.transformer import make_apply_fn
from sdjax.steps.score import completion_hidden

torch = pytest.importorskip(
  'torch', reason='compares with torch; pip install torch to run it'
)
transformers = pytest.importorskip('transformers')

SIZES = {
  'vocab_size': 37,
  'hidden_size': 16,
  'num_hidden_layers': 3,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'head_dim': 8,  # not hidden_size / num_attention_heads, on purpose
  'intermediate_size': 24,
  'rms_norm_eps': 1e-5,
  'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0},
}


@pytest.fixture(scope='module', params=[True, False], ids=['tied', 'untied'])
def checkpoint(request, tmp_path_factory):
  """A torch model with wide weights, and the folder it was saved to."""
  torch.manual_seed(0)
  config = transformers.Qwen3Config(
    **SIZES, tie_word_embeddings=request.param
  )
  model = transformers.Qwen3ForCausalLM(config).float().eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      weight.normal_(1.0 if 'norm' in name else 0.0, 0.3)
  folder = tmp_path_factory.mktemp('qwen3')
  model.save_pretrained(folder)
  return model, folder


def torch_logits(model, rows):
  with torch.no_grad():
    return model(torch.asarray(np.asarray(rows))).logits.numpy()


def close(ours, theirs):
  # The logits are of the order of 10 here; float32 sums in another order.
  assert np.abs(theirs).max() > 2
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)


def test_logits(checkpoint):
  model, folder = checkpoint
  cfg = hf.load_config(folder)
  params, forward = hf.load_params(folder, cfg), jax.jit(make_apply_fn(cfg))
  for seed in range(3):
    ids = np.random.default_rng(seed).integers(0, 37, (3, 24))
    ours = forward(params, jnp.asarray(ids, jnp.int32))
    close(ours, torch_logits(model, ids))


def test_shared_prefix_under_left_padding(checkpoint):
  model, folder = checkpoint
  cfg = hf.load_config(folder)
  params, apply_fn = hf.load_params(folder, cfg), make_apply_fn(cfg)
  rng = np.random.default_rng(2)
  width, tokens, lengths = 9, 5, (9, 4)
  context = np.zeros((2, 1, width), np.int32)
  ids = rng.integers(0, 37, (2, 3, tokens))
  for q, length in enumerate(lengths):
    context[q, 0, width - length :] = rng.integers(0, 37, length)

  @jax.jit
  def logits(params, context, lengths, ids):
    hidden = completion_hidden(apply_fn, params, context, lengths, ids)
    return apply_fn(params, hidden, method='head')

  ours = logits(params, context, np.asarray(lengths)[:, None], ids)
  for q, length in enumerate(lengths):
    for g in range(3):
      row = np.concatenate([context[q, 0, width - length :], ids[q, g]])
      theirs = torch_logits(model, row[None])[0, length - 1 : -1]
      close(ours[q, g], theirs)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_our_export_is_bitwise_theirs(checkpoint, tmp_path, dtype):
  model, folder = checkpoint
  cfg = hf.load_config(folder)
  params = hf.load_params(folder, cfg)
  words = word_tokenizer([';', ':', 'plum', 'fig'])
  hf.save_checkpoint(tmp_path, cfg, params, words, (1, 2), dtype)
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=getattr(torch, dtype)
  )
  assert type(again) is transformers.Qwen3ForCausalLM
  assert again.generation_config.eos_token_id == [1, 2]
  theirs = copy.deepcopy(model).to(getattr(torch, dtype)).state_dict()
  ours = again.state_dict()
  assert ours.keys() == theirs.keys()
  for name, weight in theirs.items():
    assert torch.equal(ours[name], weight), name
  rope = again.config.rope_parameters
  assert rope['rope_theta'] == 500.0
  assert again.config.rms_norm_eps == 1e-5
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert tokenizer('plum fig')['input_ids'] == [5, 6]
  if dtype == 'float32':
    ids = np.arange(12).reshape(1, 12)
    np.testing.assert_array_equal(
      torch_logits(again.eval(), ids), torch_logits(model, ids)
    )


def test_theirs_in_bfloat16_is_read_bitwise(checkpoint, tmp_path):
  model, _ = checkpoint
  copy.deepcopy(model).bfloat16().save_pretrained(tmp_path)
  cfg = hf.load_config(tmp_path, param_dtype='bfloat16')
  ours = hf.load_params(tmp_path, cfg)['layers']['attn']['q']['kernel'][1].T
  theirs = model.model.layers[1].self_attn.q_proj.weight.bfloat16()
  np.testing.assert_array_equal(
    np.asarray(ours).view(np.uint16), theirs.view(torch.uint16).numpy()
  )


def test_their_shards_are_read(checkpoint, tmp_path):
  model, folder = checkpoint
  model.save_pretrained(tmp_path, max_shard_size='5KB')
  index = json.loads((tmp_path / hf.INDEX).read_text())
  assert len(set(index['weight_map'].values())) > 1
  cfg = hf.load_config(folder)
  jax.tree.map(
    np.testing.assert_array_equal,
    hf.load_params(tmp_path, cfg),
    hf.load_params(folder, cfg),
  )
