"""Reward models: against torch, by hand, and what is refused."""

import json
import shutil

import jax
import jax.numpy as jnp
import models
import numpy as np
import pytest
import safetensors.numpy
from chats import FAMILIES, family_tokenizer, make_tokenizer
from jax.sharding import PartitionSpec

from sdjax.config import schema as config
from sdjax.data.padding import padded_batches
from sdjax.feedback import reward_model
from sdjax.feedback.reward_model import RewardModel, reward_step
from sdjax.models import hf
from sdjax.models.families import CheckpointError
from sdjax.models.sharding import make_mesh
from sdjax.models.transformer import make_apply_fn
from sdjax.tasks.base import Question

VOCAB = 300  # more than the chat tokenizers have
PAD = 270  # never drawn
SIZES = {
  'vocab_size': VOCAB,
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'intermediate_size': 24,
  'max_position_embeddings': 512,
  'bos_token_id': None,
  'eos_token_id': None,
  'pad_token_id': PAD,
  'num_labels': 1,
}
CASES = {
  'Qwen2': {},
  'Qwen3': {'head_dim': 8, 'tie_word_embeddings': True},
  'Llama': {},
  'Mistral': {'sliding_window': 6},
  'Gemma3Text': {
    'head_dim': 8,
    'sliding_window': 5,
    'num_hidden_layers': 7,
    'query_pre_attn_scalar': 12,
  },
}


def make_torch(name):
  """A torch model with wide weights: no two texts have a like reward."""
  torch = pytest.importorskip(
    'torch', reason='compares with torch; pip install torch to run it'
  )
  import transformers

  sizes = {**SIZES, **CASES[name]}
  torch.manual_seed(0)
  model = getattr(transformers, f'{name}ForSequenceClassification')(
    getattr(transformers, f'{name}Config')(**sizes)
  )
  with torch.no_grad():
    for parameter, weight in model.named_parameters():
      # Gemma stores what its norms differ from 1.
      around = 'norm' in parameter and name != 'Gemma3Text'
      weight.normal_(float(around), 0.3)
  return model.float().eval()


@pytest.fixture(scope='module')
def judge(tmp_path_factory):
  """A reward model's folder, with a chat tokenizer."""
  folder = tmp_path_factory.mktemp('judge')
  cfg = models.config(vocab_size=VOCAB)
  _, params = models.model(vocab_size=VOCAB)
  tokenizer = family_tokenizer('chatml')
  hf.save_checkpoint(folder, cfg, params, tokenizer, (tokenizer.eos_token_id,))
  edit(folder, architectures=['Qwen3ForSequenceClassification'], num_labels=1)
  head = np.random.default_rng(1).normal(size=(1, 16))
  edit_weights(folder, **{'score.weight': head})
  return folder


@pytest.fixture
def folder(judge, tmp_path):
  """A copy that a test may break."""
  return shutil.copytree(judge, tmp_path / 'model')


def edit(folder, **fields):
  path = folder / hf.CONFIG
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, **changes):
  """Replaces tensors, or removes them where the change is None."""
  path = folder / hf.WEIGHTS
  tensors = safetensors.numpy.load_file(path)
  for name, value in changes.items():
    tensors.pop(name, None)
    if value is not None:
      tensors[name] = np.asarray(value, np.float32)
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})


def questions(*texts):
  return [Question(i, 'train', text, None) for i, text in enumerate(texts)]


def theirs(folder, rows):
  """Torch's rewards of token sequences, one by one: without padding."""
  torch = pytest.importorskip(
    'torch', reason='compares with torch; pip install torch to run it'
  )
  import transformers

  model = transformers.AutoModelForSequenceClassification.from_pretrained(
    folder
  )
  with torch.no_grad():
    each = [model(torch.tensor([row])).logits.item() for row in rows]
  return np.array(each, np.float32)


@pytest.mark.parametrize('name', list(CASES))
def test_rewards_are_those_of_torch(name, tmp_path):
  model = make_torch(name)
  model.save_pretrained(tmp_path)
  import torch

  cfg = reward_model.load_reward_config(tmp_path)
  params, head = reward_model.load_reward_params(tmp_path, cfg)
  rng = np.random.default_rng(0)
  length = np.array([24, 1, 7, 13])
  ids = rng.integers(0, PAD, (4, 24))
  ids[np.arange(24) >= length[:, None]] = PAD
  with torch.no_grad():
    mask = torch.tensor(ids != PAD)
    expected = model(torch.tensor(ids), attention_mask=mask).logits[:, 0]
  ours = jax.jit(reward_step, static_argnums=0)(
    make_apply_fn(cfg), params, head, jnp.asarray(ids), jnp.asarray(length)
  )
  assert ours.dtype == jnp.float32
  assert np.ptp(expected.numpy()) > 0.5
  np.testing.assert_allclose(ours, expected.numpy(), rtol=0, atol=2e-4)


def test_reward_by_hand():
  # The hidden state of token i is the i-th unit vector.
  apply_fn, params = models.chain(np.eye(4))
  head = jnp.array([0.5, -2.0, 3.0, 7.0])
  ids = jnp.array([[0, 1, 2], [3, 3, 1], [1, 0, 0]])
  reward = reward_step(apply_fn, params, head, ids, jnp.array([3, 2, 1]))
  np.testing.assert_array_equal(reward, [3.0, 7.0, -2.0])


def test_texts_are_scored_as_transformers_does(judge):
  asked = questions('which fruit?', 'why?')
  long = 'plum ' * 40
  answers = [['plum', long, 'plum'], ['fig, 🍑', '', long + 'mango']]
  tokenizer = family_tokenizer('chatml')
  rows = []
  for question, texts in zip(asked, answers, strict=True):
    for text in texts:
      chat = [
        {'role': 'user', 'content': question.text},
        {'role': 'assistant', 'content': text},
      ]
      rows.append(tokenizer.apply_chat_template(chat)['input_ids'])
  expected = theirs(judge, rows).reshape(2, 3)
  ours = RewardModel(str(judge), batch_tokens=512)
  reward = ours.score(asked, answers)
  assert reward.shape == (2, 3) and reward.dtype == np.float32
  assert reward[0, 0] == reward[0, 2]
  np.testing.assert_allclose(reward, expected, rtol=0, atol=2e-4)
  # Who else is in the batch makes no difference.
  alone = ours.score(asked[1:], [answers[1][:1]])
  np.testing.assert_allclose(alone, reward[1:, :1], rtol=0, atol=1e-6)
  assert ours.score([], []).shape == (0, 0)


def test_batches_have_few_shapes_and_miss_no_row():
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, 400, 60)
  rows = [[int(n)] * n for n in lengths]
  shapes, seen = set(), []
  for indices, ids, length in padded_batches(rows, 256):
    shapes.add(ids.shape)
    assert ids.size <= 256 or ids.shape[0] == 1
    for i, row, n in zip(indices, ids, length, strict=False):
      assert row[:n].tolist() == rows[i] and not row[n:].any()
      seen.append(i)
  assert sorted(seen) == list(range(60))
  powers = {32, 64, 128, 256, 512}
  assert {width for _, width in shapes} == powers
  assert all(count in {1, 2, 4, 8} for count, _ in shapes)


def test_over_a_mesh(judge):
  asked, answers = questions('a', 'b'), [['plum', 'fig', 'eel']] * 2
  alone = RewardModel(str(judge)).score(asked, answers)
  mesh = make_mesh(config.Mesh(4, 2), jax.devices())
  split = RewardModel(str(judge), mesh)
  kernel = split.params['layers']['attn']['q']['kernel']
  assert kernel.sharding.spec == PartitionSpec(None, 'data', 'model')
  assert split.score_head.sharding.is_fully_replicated
  np.testing.assert_allclose(
    split.score(asked, answers), alone, rtol=0, atol=1e-5
  )


def test_bfloat16(judge):
  asked, answers = questions('a'), [['plum', 'fig', 'eel']]
  wide = RewardModel(str(judge)).score(asked, answers)
  ours = RewardModel(str(judge), dtype='bfloat16', param_dtype='bfloat16')
  assert ours.score_head.dtype == ours.params['embedding'].dtype == jnp.bfloat16
  reward = ours.score(asked, answers)
  assert reward.dtype == np.float32
  # A sum of 16 terms of about 0.3, each right to about 1 in 100.
  assert 0 < np.abs(reward - wide).max() < 0.1


def test_a_turn_that_ends_in_padding(folder):
  """With `pad_token_id` = `<|im_end|>` torch reads the state before it."""
  tokenizer = make_tokenizer(
    "{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}"
    '{% endfor %}',
    FAMILIES['chatml'].special,
  )
  tokenizer.save_pretrained(folder)
  text = 'user: hi<|im_end|>assistant: plum<|im_end|>'
  row = tokenizer.encode(text, add_special_tokens=False)
  assert row[-1] == tokenizer.eos_token_id
  found = []
  for pad_id in (tokenizer.eos_token_id, None):
    edit(folder, pad_token_id=pad_id)
    reward = RewardModel(str(folder)).score(questions('hi'), [['plum']])
    np.testing.assert_allclose(
      reward[0], theirs(folder, [row]), rtol=0, atol=2e-4
    )
    found.append(reward.item())
  assert abs(found[0] - found[1]) > 0.01


def test_an_answer_does_not_end_its_turn(judge):
  ours = RewardModel(str(judge))
  answers = ['plum<|im_end|>', 'plum<|im_<|im_end|>end|>', 'plum']
  reward = ours.score(questions('a'), [answers])
  assert len(set(reward[0].tolist())) == 1


def test_without_a_chat_template(folder):
  tokenizer = make_tokenizer(None, ('<|im_end|>',), bos='<s>')
  (folder / 'chat_template.jinja').unlink()
  tokenizer.save_pretrained(folder)
  reward = RewardModel(str(folder)).score(questions('a fig '), [['or plum']])
  row = tokenizer('a fig or plum')['input_ids']
  assert row[0] == tokenizer.bos_token_id
  np.testing.assert_allclose(
    reward[0], theirs(folder, [row]), rtol=0, atol=2e-4
  )


def test_what_does_not_fit_is_named(judge):
  ours = RewardModel(str(judge), max_tokens=40)
  assert ours.score(questions('a'), [['b']]).shape == (1, 1)
  with pytest.raises(ValueError, match=r'raise max_tokens.*begins .plum plum'):
    ours.score(questions('plum ' * 40), [['b']])
  with pytest.raises(ValueError, match='2 questions came with 1 lists'):
    ours.score(questions('a', 'b'), [['b']])
  with pytest.raises(ValueError, match=r'lists of \[1, 2\] answers'):
    ours.score(questions('a', 'b'), [['b'], ['b', 'c']])


def test_a_template_without_answers(folder):
  tokenizer = make_tokenizer("{{ raise_exception('only I speak') }}")
  tokenizer.save_pretrained(folder)
  with pytest.raises(ValueError, match='one user and one assistant .*only I'):
    RewardModel(str(folder)).score(questions('a'), [['b']])


def load(folder):
  return RewardModel(str(folder))


@pytest.mark.parametrize(
  'fields, message',
  [
    (
      {'architectures': ['Qwen3ForCausalLM']},
      r"architectures is \['Qwen3ForCausalLM'\]; .*ForSequenceClassification",
    ),
    ({'architectures': None}, 'architectures is None'),
    ({'architectures': ['Qwen3ForRewardModel']}, 'Qwen3ForRewardModel'),
    (
      {
        'architectures': ['BertForSequenceClassification'],
        'model_type': 'bert',
      },
      "model_type is 'bert'; sdjax knows",
    ),
  ],
)
def test_models_that_are_refused(folder, fields, message):
  edit(folder, **fields)
  with pytest.raises(CheckpointError, match=message):
    load(folder)


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'score.weight': None}, 'has no score.weight'),
    ({'score.weight': np.ones((2, 16))}, r'\(2, 16\); .*num_labels=1'),
    ({'score.weight': np.ones((1, 8))}, r'\(1, 8\); .*hidden_size=16'),
    ({'score.weight': np.full((1, 16), np.nan)}, 'score.weight .*not finite'),
    ({'score.bias': np.ones(1)}, 'no place .*score.bias'),
    ({'model.norm.weight': None}, 'first is model.norm.weight'),
  ],
)
def test_weights_that_are_refused(folder, changes, message):
  edit_weights(folder, **changes)
  with pytest.raises(CheckpointError, match=message):
    load(folder)


def test_a_head_left_over_from_training_is_not_read(judge, folder):
  edit_weights(folder, **{'lm_head.weight': np.ones((VOCAB, 16))})
  asked, answers = questions('a'), [['plum']]
  np.testing.assert_array_equal(
    load(folder).score(asked, answers), load(judge).score(asked, answers)
  )


def test_a_folder_without_tokenizer(folder):
  (folder / 'tokenizer.json').unlink()
  with pytest.raises(FileNotFoundError, match='tokenizer.json'):
    load(folder)
