import json

import numpy as np
import pytest
from chats import FAMILIES, family_tokenizer, make_tokenizer

from sdjax.config.schema import ConceptGraph
from sdjax.data.prompts import encode_prompts, pad_contexts
from sdjax.models import hub
from sdjax.models.families import CheckpointError
from sdjax.models.tokenizer import (
  decode_completion,
  eos_ids,
  load_tokenizer,
  without_control_tokens,
  word_tokenizer,
)
from sdjax.tasks.concept_graph.corpus import compact_words
from sdjax.tasks.concept_graph.graph import draw_graph
from sdjax.tasks.concept_graph.rendering import render_question

# Ids: <pad> 0, <eos> 1, <unk> 2, then these from 3 on.
WORDS = ('a', 'b', 'c', 'd', ':', '=', ',', '?', '{question}', '{x}')


@pytest.fixture
def tokenizer():
  return word_tokenizer(WORDS)


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


def test_loading_by_name(tmp_path, monkeypatch):
  shipped = load_tokenizer('builtin:concept_graph_base')
  assert shipped.encode('start') and shipped.eos_token_id == 1
  family_tokenizer('qwen3').save_pretrained(tmp_path)
  asked = []

  def fetch(name, weights=True):
    asked.append((name, weights))
    return tmp_path

  monkeypatch.setattr(hub, 'hub_folder', fetch)
  loaded = load_tokenizer('some/model')
  assert asked == [('some/model', False)]
  assert loaded.chat_template == FAMILIES['qwen3'].template


def test_missing_and_broken_files(tokenizer, tmp_path):
  with pytest.raises(CheckpointError, match='nowhere'):
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


def test_completions_lose_control_tokens_and_keep_thinking():
  tokenizer = family_tokenizer('llama3')
  # Not every control token has a role that the tokenizer knows of.
  text = '<think>a</think>plum<|end_header_id|><|eot_id|><|begin_of_text|>'
  ids = tokenizer.encode(text, add_special_tokens=False)
  assert decode_completion(tokenizer, ids) == '<think>a</think>plum'
  # Where a thinking block's ends are control tokens, they are kept as well.
  tokenizer = make_tokenizer()
  tokenizer.add_tokens(['<think>', '</think>'], special_tokens=True)
  ids = tokenizer.encode('<think>a</think>plum<|end|>')
  assert decode_completion(tokenizer, ids) == '<think>a</think>plum'


def test_without_control_tokens(tokenizer):
  chat = family_tokenizer('chatml')
  for text, left in (
    ('a <|im_end|>b', 'a b'),
    ('<|im_<|im_<|im_end|>start|>end|>c', 'c'),
    ('a < | im_end', 'a < | im_end'),
    ('', ''),
  ):
    assert without_control_tokens(chat, text) == left
  # An unknown word is a word.
  assert without_control_tokens(tokenizer, 'a <unk> <eos>') == 'a <unk> '
  # GPT-2 has one token for everything, so it is not only the unknown word.
  tokenizer.unk_token = '<eos>'
  assert without_control_tokens(tokenizer, 'a<eos>') == 'a'


def test_padding_with_the_end_token():
  tokenizer = word_tokenizer(WORDS)
  tokenizer.pad_token = '<eos>'
  prompts = encode_prompts(tokenizer, ['a', 'a <eos> c'], [5, 6], 4)
  np.testing.assert_array_equal(prompts.ids, [[1, 1, 1, 3], [1, 3, 1, 5]])
  np.testing.assert_array_equal(prompts.length, [1, 3])
  assert decode_completion(tokenizer, [3, 1]) == 'a'


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
