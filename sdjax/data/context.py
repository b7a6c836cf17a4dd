"""What a model is shown before it answers: templates and chat templates.

A context is a filled template; with a chat template it is one user turn,
followed by whatever invites the model to answer. The student's and the
teacher's must end alike: the same answer tokens are appended to both.
"""

import itertools
import operator
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sdjax.models.tokenizer import THINKING, without_control_tokens
from sdjax.options import ConfigError
from sdjax.tasks.base import FIELDS, QUESTION

NO_LIMIT = 2**31
"""More tokens than any context has."""

# What chat templates call to learn today's date. A run that goes on tomorrow
# must show the contexts it showed today.
_NO_CLOCK = '{% macro strftime_now(format) %}01 Jan 2025{% endmacro %}'

_FIELD = re.compile('|'.join(FIELDS))
_PROBE = 'qzx'  # stands for a user's text; no chat template holds it


def check_template(template: str, fields: Collection[str]) -> None:
  """Checks that a template has each of its fields once, and no other.

  Fields are of `{question}`, `{demonstration}` and `{feedback}`. Raises
  ValueError if one is missing, repeated or out of place.
  """
  for field in FIELDS:
    found, wanted = template.count(field), int(field in fields)
    if found != wanted:
      raise ValueError(
        f'the template holds {field} {found} times; it must hold it '
        f'{"once" if wanted else "not at all"}: {template!r}'
      )


def fill_template(
  template: str,
  question: str,
  demonstration: str | None,
  feedback: str | None = None,
) -> str:
  """Puts a question and what the teacher is shown into a template.

  The template holds `{question}` once, and `{demonstration}` and `{feedback}`
  once each if they are given; other braces mean nothing. What is put in is
  never read as a template again, whatever it holds. Raises ValueError if a
  field is missing, repeated or out of place.
  """
  texts = zip(FIELDS, (question, demonstration, feedback), strict=True)
  given = {field: text for field, text in texts if text is not None}
  check_template(template, given)
  return _FIELD.sub(lambda match: given[match.group()], template)


def render(tokenizer: Any, text: str, thinking: bool = False) -> str:
  """Makes a text the user's turn of a chat, if the tokenizer knows chats.

  Returns the text to encode: with a chat template one user turn and the
  generation prompt, without one the text itself. The chat template is told
  `thinking` as `enable_thinking`, here and below. Raises ValueError if it does
  not take a chat of one user turn.
  """
  if not getattr(tokenizer, 'chat_template', None):
    return text
  turns = [{'role': 'user', 'content': text}]
  return _apply_chat_template(
    tokenizer, turns, add_generation_prompt=True, enable_thinking=thinking
  )


def encode_answered(tokenizer: Any, question: str, answer: str) -> list[int]:
  """Encodes a question with its answer, for a model that judges answers.

  With a chat template these are a user's and an assistant's turn, without one
  the two texts, one behind the other; neither is cut. Control tokens spelled
  out in the answer are dropped: it must not end its turn and write on in
  another's name. Raises ValueError if the chat template does not take such a
  chat.
  """
  answer = without_control_tokens(tokenizer, answer)
  if not getattr(tokenizer, 'chat_template', None):
    return list(tokenizer.encode(question + answer))
  turns = [
    {'role': 'user', 'content': question},
    {'role': 'assistant', 'content': answer},
  ]
  text = _apply_chat_template(tokenizer, turns)
  return list(tokenizer.encode(text, add_special_tokens=False))


def _apply_chat_template(
  tokenizer: Any, turns: Sequence[Mapping[str, str]], **options: Any
) -> str:
  import jinja2

  chat_template = tokenizer.get_chat_template()
  if 'strftime_now' in chat_template:
    chat_template = _NO_CLOCK + chat_template
  try:
    return tokenizer.apply_chat_template(
      turns, chat_template=chat_template, tokenize=False, **options
    )
  except jinja2.TemplateError as error:
    roles = ' and '.join(f'one {turn["role"]}' for turn in turns)
    raise ValueError(
      f"the tokenizer's chat template does not take a chat of {roles} turn "
      f'({error}); correct chat_template in the checkpoint'
    ) from error


def answer_prompt(tokenizer: Any, template: str, thinking: bool) -> str:
  """Returns the text that stands right before every answer.

  That is all that a chat template writes behind the user's text; where that is
  nothing, the text behind the template's last field. Raises ValueError if the
  chat template does not show the user's text.
  """
  text = _FIELD.sub(_PROBE, template)
  if not getattr(tokenizer, 'chat_template', None):
    return text.rpartition(_PROBE)[2]
  rendered = render(tokenizer, text, thinking)
  # Many chat templates strip what they are given.
  for shown in (text, text.strip()):
    if shown in rendered:
      return rendered.rpartition(shown)[2] or text.rpartition(_PROBE)[2]
  raise ValueError(
    f"the tokenizer's chat template shows {rendered!r} in place of the user's "
    f'{text!r}; correct chat_template in the checkpoint'
  )


def opens_thinking(tokenizer: Any, template: str, thinking: bool) -> bool:
  """Returns whether an answer begins inside a thinking block."""
  prompt = answer_prompt(tokenizer, template, thinking)
  opened, closed = map(prompt.rfind, THINKING)
  return opened > closed


def check_thinking(tokenizer: Any, thinking: bool) -> None:
  """Refuses to ask for thinking where nothing would listen.

  Raises ConfigError if `thinking` (the option `model.thinking`) is set, and
  there is no chat template, or one that writes the same with and without it.
  """
  if not thinking:
    return
  if render(tokenizer, _PROBE, True) != render(tokenizer, _PROBE, False):
    return
  why = 'the tokenizer has no chat template'
  if getattr(tokenizer, 'chat_template', None):
    opens = opens_thinking(tokenizer, QUESTION, False)
    why = 'the chat template does not know `enable_thinking`, and ' + (
      'always opens a thinking block' if opens else 'never opens one'
    )
  raise ConfigError(
    f'model.thinking=True does nothing: {why}. Leave it False, or choose a '
    'checkpoint whose chat template has the choice.'
  )


def encode_texts(
  tokenizer: Any, texts: Sequence[str], thinking: bool = False
) -> list[list[int]]:
  """Encodes filled templates, as turns of a chat if there are such."""
  encoded = tokenizer(
    [render(tokenizer, text, thinking) for text in texts],
    add_special_tokens=False,
  )['input_ids']
  if getattr(tokenizer, 'chat_template', None):
    return [list(ids) for ids in encoded]
  # A chat template writes its own; a plain text gets the one that the
  # tokenizer puts before every text, if it does.
  first = tokenizer.encode('')[:1]
  begins = first == [tokenizer.bos_token_id]
  return [
    [*first, *ids] if begins and list(ids[:1]) != first else list(ids)
    for ids in encoded
  ]


def encode_context(
  tokenizer: Any,
  template: str,
  question: str,
  demonstration: str | None,
  max_tokens: int,
  *,
  feedback: str | None = None,
  thinking: bool = False,
) -> tuple[list[int], int]:
  """Encodes what a model is shown before it answers.

  Args:
    tokenizer: a fast tokenizer; its chat template is applied if it has one.
    template: holds `{question}`, and `{demonstration}` and `{feedback}` if they
      are given.
    question: never cut.
    demonstration: a correct answer, or None. Control tokens spelled out in it
      are dropped: it must not end the user's turn. Too long a context loses
      tokens from the feedback's end, then from the demonstration's, and from
      nothing else.
    max_tokens: the most tokens the context may have.
    feedback: what the environment said of an answer, or None; as the
      demonstration.
    thinking: what the chat template is told as `enable_thinking`.

  Returns:
    The token ids, and how many tokens feedback and demonstration lost.

  Raises:
    ValueError: the context is too long without either, or the template's fields
      are not as they should be.
  """
  shown = [
    None if text is None else without_control_tokens(tokenizer, text)
    for text in (demonstration, feedback)
  ]

  def encoded(texts: Sequence[str | None]) -> list[int]:
    filled = fill_template(template, question, *texts)
    return encode_texts(tokenizer, [filled], thinking)[0]

  ids = encoded(shown)
  if len(ids) <= max_tokens:
    return ids, 0
  # Cut the text where a token ends: cut ids may decode to half a character.
  offsets = [
    tokenizer(
      text or '', add_special_tokens=False, return_offsets_mapping=True
    )['offset_mapping']
    for text in shown
  ]
  sizes = [len(x) for x in offsets]

  def shortened(kept: int) -> list[int]:
    first = min(kept, sizes[0])
    counts = first, kept - first
    return encoded(
      [
        None if text is None else text[: ends[n - 1][1]] if n else ''
        for text, ends, n in zip(shown, offsets, counts, strict=True)
      ]
    )

  best = shortened(0)
  if len(best) > max_tokens:
    raise ValueError(
      f'the context needs {len(best)} tokens without any demonstration, but '
      f'only {max_tokens} are allowed; raise max_context. The question begins '
      f'{question[:60]!r}'
    )
  # Tokens may merge differently at the new end, so the length is measured,
  # not computed. `fits` tokens are known to fit, `fails` not to.
  fits, fails = 0, sum(sizes)
  while fails - fits > 1:
    middle = (fits + fails) // 2
    ids = shortened(middle)
    if len(ids) <= max_tokens:
      fits, best = middle, ids
    else:
      fails = middle
  return best, sum(sizes) - fits


def common_ending(a: list[int], b: list[int]) -> int:
  """Returns how many tokens at the end of two contexts are the same."""
  same = map(operator.eq, reversed(a), reversed(b))
  return sum(itertools.takewhile(bool, same))


def check_endings(
  tokenizer: Any,
  student: str,
  teacher: str,
  question: str,
  demonstration: str | None,
  thinking: bool,
  feedback: str | None = None,
) -> None:
  """Checks that answers begin the same way for student and teacher.

  What a chat template writes behind the user's text invites the answer and sets
  the thinking mode: it must be the same in both contexts, token by token.
  Without a chat template the text behind the last field must be the same, and
  the last token; where no text stands there, both contexts must end in the
  question. `student` and `teacher` are templates, filled with a question and
  what the teacher is shown with it.

  Raises ConfigError if the contexts end differently; it shows both ends.
  """
  filled = (
    fill_template(student, question, None),
    fill_template(teacher, question, demonstration, feedback),
  )
  texts = [render(tokenizer, text, thinking) for text in filled]
  prompts = [answer_prompt(tokenizer, t, thinking) for t in (student, teacher)]
  prompt = prompts[0]
  encoded = [
    tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    for text in texts
  ]
  needed = [1]
  if getattr(tokenizer, 'chat_template', None):
    # A token that begins in the user's text belongs to that text.
    needed += [
      sum(start >= len(text) - len(prompt) for start, _ in x['offset_mapping'])
      for text, x in zip(texts, encoded, strict=True)
    ]
  common = common_ending(*(list(x['input_ids']) for x in encoded))
  alike = (
    prompts[1] == prompt
    and common >= max(needed)
    and (prompt or student.endswith(QUESTION) and teacher.endswith(QUESTION))
  )
  if not alike:
    ends = [tokenizer.decode(x['input_ids'][-24:]) for x in encoded]
    raise ConfigError(
      "the student's and the teacher's contexts must end in the same tokens "
      f'(here {prompt or QUESTION!r}), or the same answer means two things. '
      f"The student's ends in {ends[0]!r}, the teacher's in {ends[1]!r}. "
      f'Change method.demonstrations.template={teacher!r}, or the chat '
      'template if it writes different things behind different texts.'
    )
