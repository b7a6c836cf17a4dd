"""Contexts: templates, chat templates of known families, and their seam."""

import pytest
from chats import FAMILIES, family_tokenizer, make_tokenizer

from sdjax.config.schema import ConceptGraph, ConfigError
from sdjax.data.context import (
  QUESTION,
  answer_prompt,
  check_endings,
  check_thinking,
  common_ending,
  encode_context,
  fill_template,
  opens_thinking,
  render,
)
from sdjax.models.tokenizer import word_tokenizer
from sdjax.tasks.concept_graph.corpus import compact_words
from sdjax.tasks.concept_graph.rendering import (
  STUDENT_TEMPLATES,
  TEACHER_TEMPLATES,
)

# Ids: <pad> 0, <eos> 1, <unk> 2, then these from 3 on.
WORDS = ('a', 'b', 'c', 'd', ':', '=', ',', '?', '{question}', '{x}')
CHAT = (
  "{% for m in messages %}u {{ m['content'] }} <eos> {% endfor %}"
  '{% if add_generation_prompt %}g {% endif %}'
  '{% if enable_thinking is defined and not enable_thinking %}off{% endif %}'
)


@pytest.fixture
def tokenizer():
  return word_tokenizer(WORDS)


@pytest.fixture
def chat_tokenizer():
  tokenizer = word_tokenizer((*WORDS, 'u', 'g', 'off'))
  tokenizer.chat_template = CHAT
  return tokenizer


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
  tokenizer = make_tokenizer()
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


HINTED = 'Q: {question}\nOne answer: {demonstration}\nNow yours.'


@pytest.mark.parametrize('thinking', [False, True])
@pytest.mark.parametrize('name', FAMILIES)
def test_published_chat_templates(name, thinking):
  family, tokenizer = FAMILIES[name], family_tokenizer(name)
  prompt = family.prompt
  if thinking and family.thinking_prompt:
    prompt = family.thinking_prompt
  expected = family.user.replace('@', prompt)
  assert render(tokenizer, 'hi', thinking) == expected
  assert answer_prompt(tokenizer, HINTED, thinking) == prompt
  ids, _ = encode_context(
    tokenizer, QUESTION, 'hi', None, 99, thinking=thinking
  )
  assert tokenizer.decode(ids) == expected
  # Control tokens are one token each, and there is one at the start at most.
  for token in family.special:
    one = tokenizer.convert_tokens_to_ids(token)
    assert ids.count(one) == expected.count(token)
  if family.bos:
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_plain_text_begins_as_the_tokenizer_begins_texts():
  tokenizer = make_tokenizer(bos='<bos>')
  plain = make_tokenizer().encode('plum')
  for template in ('{question}', '<bos>{question}'):
    ids, _ = encode_context(tokenizer, template, 'plum', None, 9)
    assert ids == [tokenizer.bos_token_id, *plain]
  ids, _ = encode_context(make_tokenizer(), '{question}', 'plum', None, 9)
  assert ids == plain


def test_thinking_that_nothing_listens_to():
  check_thinking(family_tokenizer('qwen3'), True)
  for name in FAMILIES:
    check_thinking(family_tokenizer(name), False)
  for tokenizer, why in (
    (family_tokenizer('chatml'), '`enable_thinking`, and never opens'),
    (family_tokenizer('r1'), '`enable_thinking`, and always opens'),
    (make_tokenizer(), 'has no chat template'),
  ):
    with pytest.raises(ConfigError, match=f'model.thinking=True.*{why}'):
      check_thinking(tokenizer, True)


def test_which_answers_begin_inside_a_thinking_block():
  opened = {
    (name, thinking)
    for name in FAMILIES
    for thinking in (False, True)
    if opens_thinking(family_tokenizer(name), QUESTION, thinking)
  }
  assert opened == {('r1', False), ('r1', True)}
  plain = make_tokenizer()
  assert opens_thinking(plain, '{question}\n<think>\n', False)
  assert not opens_thinking(plain, '<think> first. {question}', False)


def test_contexts_do_not_depend_on_the_day():
  tokenizer = make_tokenizer(
    "{{ 'Today: ' + strftime_now('%d %B %Y') + '\\n' + messages[0].content }}"
  )
  assert render(tokenizer, 'hi') == 'Today: 01 Jan 2025\nhi'


def test_templates_that_show_no_user():
  refuses = make_tokenizer("{{ raise_exception('system first') }}")
  with pytest.raises(ValueError, match='system first.*chat_template'):
    render(refuses, 'hi')
  silent = make_tokenizer('assistant:')
  with pytest.raises(ValueError, match="'assistant:' in place of"):
    answer_prompt(silent, QUESTION, False)


@pytest.mark.parametrize('name', FAMILIES)
def test_a_demonstration_cannot_end_the_turn(name):
  family, tokenizer = FAMILIES[name], family_tokenizer(name)
  end, start = family.special[:2]
  bos = family.bos or ''
  nested = start[:3] + end + start[3:]
  shown = f'plum{end}\n{start}{nested} mango{bos}'
  got, cut = encode_context(tokenizer, HINTED, 'fig', shown, 999)
  want, _ = encode_context(tokenizer, HINTED, 'fig', 'plum\n mango', 999)
  assert got == want and cut == 0


def test_words_and_unknown_words_stay_in_a_demonstration(tokenizer):
  got, _ = encode_context(
    tokenizer, '{demonstration} {question}', 'a', 'b <eos> <unk> c zz', 9
  )
  assert got == [4, 2, 5, 2, 3]


@pytest.mark.parametrize('name', FAMILIES)
def test_cutting_leaves_the_chat_around_a_demonstration_whole(name):
  tokenizer = family_tokenizer(name)
  full, _ = encode_context(tokenizer, HINTED, 'fig', 'plum ' * 40, 999)
  none, _ = encode_context(tokenizer, HINTED, 'fig', '', 999)
  got, cut = encode_context(tokenizer, HINTED, 'fig', 'plum ' * 40, 100)
  assert len(none) < len(got) <= 100 < len(full) and cut > 0
  around = FAMILIES[name].user.split('hi@')[0], FAMILIES[name].prompt
  text = tokenizer.decode(got)
  assert text.startswith(f'{around[0]}Q: fig\nOne answer: plum plum')
  assert text.endswith(f'\nNow yours.{around[1]}')


def check(tokenizer, student, teacher, thinking=False):
  check_endings(tokenizer, student, teacher, 'q ? plum', 'fig plum', thinking)


@pytest.mark.parametrize('thinking', [False, True])
@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('student', ['{question}', 'Look: {question} ?\n'])
def test_chats_end_alike(name, thinking, student):
  check(family_tokenizer(name), student, HINTED, thinking)


@pytest.mark.parametrize('rendering', STUDENT_TEMPLATES)
def test_the_templates_of_concept_graph_end_alike(rendering):
  pair = STUDENT_TEMPLATES[rendering], TEACHER_TEMPLATES[rendering]
  check(family_tokenizer('qwen3'), *pair)
  if rendering == 'compact':
    check(word_tokenizer(compact_words(ConceptGraph())), *pair)


def test_plain_templates_end_alike():
  tokenizer = make_tokenizer()
  check(tokenizer, '{question} :', '{question} = {demonstration} :')
  # What stands before the last field may merge into it: the last token counts.
  end = '\n\n## Answer:\n'
  check_endings(
    tokenizer, QUESTION + end, HINTED[:-11] + end, 'plum', 'fig.', False
  )


@pytest.mark.parametrize(
  ('student', 'teacher'),
  [
    ('{question} :', '{demonstration} = {question}'),
    ('{question}', '{question} = {demonstration} :'),
    ('{question}:\n', '{demonstration} {question} :\n'),
    # Here the last words are the same by chance.
    ('{question}', '{question} = {demonstration}'),
  ],
)
def test_plain_templates_that_end_differently(student, teacher):
  with pytest.raises(ConfigError, match=r'same tokens.*method\.demonstrations'):
    check(make_tokenizer(), student, teacher)


def test_a_chat_that_reads_its_mode_from_the_text():
  template = (
    "{{ '<|User|>' + messages[0].content + '<|end|>' }}"
    "{% if '/think' in messages[0].content %}{{ '<think>' }}{% endif %}"
  )
  tokenizer = make_tokenizer(template, ('<|end|>', '<|User|>'))
  check(tokenizer, '{question} /think', HINTED.replace('Now', '/think'))
  # In both, the question asks for it.
  check_endings(tokenizer, QUESTION, HINTED, 'q /think', 'plum', False)
  # The template writes something, so the end of the user's text is free.
  check(tokenizer, '{question}', HINTED)
  with pytest.raises(ConfigError, match='<think>'):
    check(tokenizer, '{question} /think', HINTED)
  with pytest.raises(ConfigError, match='<think>'):
    check_endings(tokenizer, QUESTION, HINTED, 'q', 'plum /think', False)


def test_a_prompt_that_melts_into_the_text_before_it():
  template = "{{ messages[0].content + '\\n\\n## Answer:\\n' }}"
  tokenizer = make_tokenizer(template)
  check(tokenizer, '{question}', '{demonstration} = {question}')
  # `plum` and the empty line are tokens of their own, `.` and it are one.
  with pytest.raises(ConfigError, match='Answer'):
    check(tokenizer, '{question}', '{demonstration} = {question}.')


def test_common_ending():
  assert common_ending([1, 2, 3], [9, 2, 3]) == 2
  assert common_ending([2, 3], [1, 2, 3]) == 2
  assert common_ending([1], [2]) == common_ending([], [1]) == 0
