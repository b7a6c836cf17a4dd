"""Small chat tokenizers: the shapes of published templates, on few merges."""

import functools
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast


class Family(NamedTuple):
  """A chat template and what it needs.

  Attributes:
    template: in Jinja.
    special: control tokens, the one that ends a turn first.
    bos: the token before every text, or None.
    user: what a user's turn `hi` looks like; `@` is the prompt.
    prompt: what invites the answer.
    thinking_prompt: the same when asked to think; None: makes no difference.
  """

  template: str
  special: tuple[str, ...]
  bos: str | None
  user: str
  prompt: str
  thinking_prompt: str | None = None


_CHATML = (
  "{% if messages[0].role != 'system' %}"
  "{{ '<|im_start|>system\nBe of use.<|im_end|>\n' }}{% endif %}"
  '{% for m in messages %}'
  "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_QWEN3 = (
  '{% for m in messages %}'
  "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
  '{% if enable_thinking is defined and enable_thinking is false %}'
  "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
_R1 = (
  '{{ bos_token }}{% for m in messages %}'
  "{% if m.role == 'user' %}{{ '<|User|>' + m.content }}{% endif %}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
_HEADER = '<|start_header_id|>{}<|end_header_id|>\n\n'
_LLAMA3 = (
  '{{ bos_token }}{% for m in messages %}'
  "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
  "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
  '{% if add_generation_prompt %}'
  "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_GEMMA = (
  "{{ bos_token }}{% if messages[0].role == 'system' %}"
  "{{ raise_exception('no system role') }}{% endif %}"
  '{% for m in messages %}'
  "{% set role = 'model' if m.role == 'assistant' else m.role %}"
  "{{ '<start_of_turn>' + role + '\n' + m.content | trim"
  " + '<end_of_turn>\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

FAMILIES = {
  'chatml': Family(
    template=_CHATML,
    special=('<|im_end|>', '<|im_start|>'),
    bos=None,
    user='<|im_start|>system\nBe of use.<|im_end|>\n<|im_start|>user\nhi@',
    prompt='<|im_end|>\n<|im_start|>assistant\n',
  ),
  'qwen3': Family(
    template=_QWEN3,
    special=('<|im_end|>', '<|im_start|>'),
    bos=None,
    user='<|im_start|>user\nhi@',
    prompt='<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n',
    thinking_prompt='<|im_end|>\n<|im_start|>assistant\n',
  ),
  'r1': Family(
    template=_R1,
    special=('<|end|>', '<|User|>', '<|Assistant|>'),
    bos='<|begin|>',
    user='<|begin|><|User|>hi@',
    prompt='<|Assistant|><think>\n',
  ),
  'llama3': Family(
    template=_LLAMA3,
    special=('<|eot_id|>', '<|start_header_id|>', '<|end_header_id|>'),
    bos='<|begin_of_text|>',
    user='<|begin_of_text|>' + _HEADER.format('user') + 'hi@',
    prompt='<|eot_id|>' + _HEADER.format('assistant'),
  ),
  'gemma': Family(
    template=_GEMMA,
    special=('<end_of_turn>', '<start_of_turn>'),
    bos='<bos>',
    user='<bos><start_of_turn>user\nhi@',
    prompt='<end_of_turn>\n<start_of_turn>model\n',
  ),
}


@functools.cache
def _merges() -> str:
  """A byte-level BPE with a few merges, some of them across lines."""
  inner = tokenizers.Tokenizer(tokenizers.models.BPE())
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=False
  )
  trainer = trainers.BpeTrainer(
    vocab_size=272,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    show_progress=False,
  )
  texts = ['plum mango fig.\n\n', 'the answer is plum.\n\n## Answer:\n'] * 9
  inner.train_from_iterator(texts, trainer)
  inner.decoder = decoders.ByteLevel()
  return inner.to_str()


def make_tokenizer(
  template: str | None = None,
  special: tuple[str, ...] = ('<|end|>',),
  bos: str | None = None,
) -> Any:
  """Makes a byte-level tokenizer.

  Args:
    template: its chat template.
    special: control tokens; the first ends a sequence and is the padding.
    bos: what it puts before every text it is asked to complete.

  Returns:
    The tokenizer; `<think>` and `</think>` are one token each, and as in the
    published ones no control tokens.
  """
  inner = tokenizers.Tokenizer.from_str(_merges())
  inner.add_special_tokens([*special, *([bos] if bos else [])])
  inner.add_tokens(['<think>', '</think>'])
  if bos:
    inner.post_processor = processors.TemplateProcessing(
      single=f'{bos} $A', special_tokens=[(bos, inner.token_to_id(bos))]
    )
  tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=inner,
    eos_token=special[0],
    pad_token=special[0],
    bos_token=bos,
    clean_up_tokenization_spaces=False,
  )
  tokenizer.chat_template = template
  return tokenizer


def family_tokenizer(name: str) -> Any:
  """Makes the tokenizer of a family."""
  family = FAMILIES[name]
  return make_tokenizer(family.template, family.special, family.bos)
