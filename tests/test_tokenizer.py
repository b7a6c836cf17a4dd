import json

import numpy as np
import pytest

from sdjax.config import ConceptGraph
from sdjax.data.prompts import encode_prompts, pad_contexts
from sdjax.data.tokenizer import (
  decode_completion,
  encode_context,
  eos_ids,
  fill_template,
  load_tokenizer,
  word_tokenizer,
)
from sdjax.tasks.concept_graph import compact_words, draw_graph, render_question

# Ids: <pad> 0, <eos> 1, <unk> 2, then these from 3 on.
WORDS = ('a', 'b', 'c', 'd', ':', '=', ',', '?', '{question}', '{x}')
CHAT = (
  "{% for m in messages %}u {{ m['content'] }} <eos> {% endfor %}"
  '{% if add_generation_prompt %}g {% endif %}'
  "{% if enable_thinking is defined and not enable_thinking %}off{% endif %}"
)


@pytest.fixture
def tokenizer():
  return word_tokenizer(WORDS)


@pytest.fixture
def chat_tokenizer():
  tokenizer = word_tokenizer((*WORDS, 'u', 'g', 'off'))
  tokenizer.chat_template = CHAT
  return tokenizer


def test_word_tokenizer_by_hand(tokenizer):
  assert len(tokenizer) == 13
  assert tokenizer.encode('a  c\n: zz') == [3, 5, 7, 2]
  assert tokenizer.encode('a?') == [2]
  # Punctuation keeps its space: nothing is cleaned up.
  assert tokenizer.decode([3, 9, 10, 8]) == 'a , ? ='
  assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('a', 'a'), "'a' is given twice"),
    (('a b',), "'a b' is not one word"),
    (('',), 'is not one word'),
    (('<eos>',), 'given twice'),
  ],
)
def test_bad_words(words, message):
  with pytest.raises(ValueError, match=message):
    word_tokenizer(words)
  with pytest.raises(ValueError, match='three'):
    word_tokenizer(WORDS, ('<pad>',))


@pytest.mark.parametrize('model_type', ['', 'qwen3'])
def test_saved_and_loaded(tokenizer, tmp_path, model_type):
  # A model type must not make the loader swap in that family's own splitter.
  tokenizer.save_pretrained(tmp_path)
  if model_type:
    (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'qwen3'}))
  loaded = load_tokenizer(tmp_path)
  text = 'a , b ? {x} = c'
  ids = tokenizer.encode(text)
  assert ids == [3, 9, 4, 10, 12, 8, 5]
  assert loaded.encode(text, add_special_tokens=False) == ids
  assert loaded.decode(ids) == text
  assert loaded.pad_token_id == 0
  assert loaded.eos_token_id == 1


def test_compact_questions_are_in_the_vocabulary():
  config = ConceptGraph(subchains=2)
  tokenizer = word_tokenizer(compact_words(config))
  rng = np.random.default_rng(0)
  for split in ('train', 'harder'):
    text = render_question(draw_graph(rng, config, split), 'compact') + ' = :'
    ids = tokenizer.encode(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text


def test_missing_and_broken_files(tokenizer, tmp_path):
  with pytest.raises(FileNotFoundError, match='nowhere.*tokenizer.json'):
    load_tokenizer(tmp_path / 'nowhere')
  with pytest.raises(FileNotFoundError, match=f'{tmp_path} has no tokenizer'):
    load_tokenizer(tmp_path)
  tokenizer.save_pretrained(tmp_path)
  text = (tmp_path / 'tokenizer.json').read_text()
  (tmp_path / 'tokenizer.json').write_text(text[: len(text) // 2])
  with pytest.raises(ValueError, match=f'{tmp_path} cannot be read'):
    load_tokenizer(tmp_path)


@pytest.mark.parametrize(
  ('listed', 'expected'),
  [(None, (1,)), (7, (1, 7)), ([9, 1, 7], (1, 7, 9)), ([], (1,))],
)
def test_eos_ids(tokenizer, tmp_path, listed, expected):
  assert eos_ids(tmp_path, tokenizer) == (1,)
  config = {} if listed is None else {'eos_token_id': listed}
  (tmp_path / 'generation_config.json').write_text(json.dumps(config))
  assert eos_ids(tmp_path, tokenizer) == expected


def test_bad_eos_ids(tokenizer, tmp_path):
  path = tmp_path / 'generation_config.json'
  for content in ('{"eos_token_id": "x"}', '{', '[]'):
    path.write_text(content)
    with pytest.raises(ValueError, match='generation_config.json'):
      eos_ids(tmp_path, tokenizer)
  path.unlink()
  tokenizer.eos_token = None
  with pytest.raises(ValueError, match='end-of-sequence'):
    eos_ids(tmp_path, tokenizer)


def test_decode_completion(tokenizer):
  assert decode_completion(tokenizer, [3, 9, 4, 1]) == 'a , b'
  assert decode_completion(tokenizer, np.array([3, 1, 0, 0]).tolist()) == 'a'
  assert decode_completion(tokenizer, []) == ''
  # A wrong word must not vanish from the answer.
  assert decode_completion(tokenizer, [3, 2, 4]) == 'a <unk> b'


def test_padding_with_the_end_token():
  tokenizer = word_tokenizer(WORDS)
  tokenizer.pad_token = '<eos>'
  prompts = encode_prompts(tokenizer, ['a', 'a <eos> c'], [5, 6], 4)
  np.testing.assert_array_equal(prompts.ids, [[1, 1, 1, 3], [1, 3, 1, 5]])
  np.testing.assert_array_equal(prompts.length, [1, 3])
  assert decode_completion(tokenizer, [3, 1]) == 'a'


def test_filling_is_inert():
  filled = fill_template(
    '{question} = {demonstration} {x} :',
    'q {demonstration} {0}',
    'd {question} {demonstration} {} {',
  )
  assert filled == (
    'q {demonstration} {0} = d {question} {demonstration} {} { {x} :'
  )
  # The demonstration may come first.
  assert fill_template('{demonstration}|{question}', 'q', 'd') == 'd|q'
  assert fill_template('{question} {', 'a {question}', None) == 'a {question} {'


@pytest.mark.parametrize(
  ('template', 'demonstration'),
  [
    ('no field', None),
    ('{question} {question}', None),
    ('{question} {demonstration}', None),
    ('{question}', 'd'),
    ('{demonstration}', 'd'),
    ('{question} {demonstration} {demonstration}', 'd'),
  ],
)
def test_bad_templates(template, demonstration):
  with pytest.raises(ValueError, match='the template holds'):
    fill_template(template, 'q', demonstration)


TEMPLATE = '{question} = {demonstration} :'


@pytest.mark.parametrize(
  ('max_tokens', 'ids', 'cut'),
  [
    (9, [3, 4, 8, 5, 6, 3, 4, 7], 0),
    (8, [3, 4, 8, 5, 6, 3, 4, 7], 0),
    (7, [3, 4, 8, 5, 6, 3, 7], 1),
    (5, [3, 4, 8, 5, 7], 3),
    (4, [3, 4, 8, 7], 4),
  ],
)
def test_only_the_demonstration_is_cut(tokenizer, max_tokens, ids, cut):
  got = encode_context(tokenizer, TEMPLATE, 'a b', 'c d a b', max_tokens)
  assert got == (ids, cut)


def test_too_long_even_without_demonstration(tokenizer):
  with pytest.raises(ValueError, match='4 tokens.*only 3.*max_context'):
    encode_context(tokenizer, TEMPLATE, 'a b', 'c d', 3)
  with pytest.raises(ValueError, match='3 tokens.*only 2'):
    encode_context(tokenizer, '{question} :', 'a b', None, 2)


def test_chat_template(chat_tokenizer):
  # u a b <eos> g off
  assert encode_context(chat_tokenizer, '{question}', 'a b', None, 6) == (
    [13, 3, 4, 1, 14, 15],
    0,
  )
  got = encode_context(chat_tokenizer, TEMPLATE, 'a', '{question} c d', 9)
  assert got == ([13, 3, 8, 11, 5, 7, 1, 14, 15], 1)
  # A template that knows no thinking gets no such option.
  chat_tokenizer.chat_template = CHAT.split('{% if enable')[0]
  ids, _ = encode_context(chat_tokenizer, '{question}', 'a b', None, 6)
  assert ids == [13, 3, 4, 1, 14]


def test_cut_between_bytes_and_merges():
  """With byte-level merges no cut leaves half a character."""
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  inner = tokenizers.Tokenizer(tokenizers.models.BPE())
  inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  inner.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  inner.train_from_iterator(['plum mango fig: plum, fig :'] * 9, trainer)
  tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
  demonstration = 'plum, 🍋 mango 漢字 fig'
  full, cut = encode_context(tokenizer, TEMPLATE, 'q', demonstration, 999)
  assert cut == 0
  empty, _ = encode_context(tokenizer, TEMPLATE, 'q', '', 999)
  cuts = []
  for size in range(len(empty), len(full)):
    ids, cut = encode_context(tokenizer, TEMPLATE, 'q', demonstration, size)
    assert len(ids) <= size
    text = str(tokenizer.decode(ids))
    assert text.startswith('q = ') and text.endswith(' :')
    assert demonstration.startswith(text[4:-2])
    cuts.append(cut)
  assert cuts == sorted(cuts, reverse=True)
  assert cuts[0] > cuts[-1] >= 1


def test_encode_prompts_by_hand(tokenizer):
  prompts = encode_prompts(
    tokenizer, ['a', 'b c'], [11, 12], (8, 3), template='{question} :'
  )
  np.testing.assert_array_equal(prompts.ids, [[0, 3, 7], [4, 5, 7]])
  np.testing.assert_array_equal(prompts.length, [2, 3])
  np.testing.assert_array_equal(prompts.question_id, [11, 12])
  assert prompts.ids.dtype == prompts.length.dtype == np.int32
  assert encode_prompts(tokenizer, ['a b c d'], [1], (3, 8)).ids.shape == (1, 8)
  assert encode_prompts(tokenizer, ['a b c'], [1], (3, 8)).ids.shape == (1, 3)


def test_nothing_is_cut_silently(tokenizer):
  with pytest.raises(ValueError, match='question 12 has 4 tokens.*max_context'):
    encode_prompts(tokenizer, ['a', 'a b c d'], [11, 12], (2, 3))
  with pytest.raises(ValueError, match='question 3 has no tokens'):
    pad_contexts([[]], [3], 4)
  with pytest.raises(ValueError, match='1 contexts and 2 question ids'):
    pad_contexts([[1]], [3, 4], 4)
