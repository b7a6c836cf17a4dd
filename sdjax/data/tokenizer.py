"""Tokenizers: loading one, making a small one, contexts and completions.

Anything with the interface of `transformers`' fast tokenizers will do. The
padding id is never used to tell real tokens: it may be the end-of-sequence
id.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

PAD, EOS, UNK = '<pad>', '<eos>', '<unk>'

QUESTION = '{question}'
DEMONSTRATION = '{demonstration}'

_NEEDED = (
  'a tokenizer folder needs tokenizer.json and tokenizer_config.json, as '
  '`save_pretrained` writes them'
)


def word_tokenizer(
  words: Sequence[str], specials: Sequence[str] = (PAD, EOS, UNK)
) -> Any:
  """Makes a tokenizer of whole words, split at whitespace.

  Args:
    words: the vocabulary, distinct, without whitespace; ids follow the order,
      after the specials.
    specials: padding, end-of-sequence and unknown token, in this order.

  Returns:
    A `transformers.PreTrainedTokenizerFast`. Decoding joins words with one
    space and touches nothing else.

  Raises:
    ValueError: a word is repeated, empty or holds whitespace, or there are
      not three specials.
  """
  import tokenizers
  from transformers import PreTrainedTokenizerFast

  specials = tuple(specials)
  if len(specials) != 3:
    raise ValueError(
      f'specials are {specials}; three are needed: padding, end of sequence, '
      'unknown'
    )
  everything = (*specials, *words)
  seen = set()
  for word in everything:
    if word.split() != [word]:
      raise ValueError(f'{word!r} is not one word; drop it or split it')
    if word in seen:
      raise ValueError(f'the word {word!r} is given twice; drop one')
    seen.add(word)
  pad, eos, unk = specials
  model = tokenizers.models.WordLevel(
    {word: i for i, word in enumerate(everything)}, unk_token=unk
  )
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    pad_token=pad,
    eos_token=eos,
    unk_token=unk,
    # Otherwise decoding would glue punctuation to the word before it.
    clean_up_tokenization_spaces=False,
  )


def load_tokenizer(folder: str | Path) -> Any:
  """Loads the tokenizer of a Hugging Face checkpoint folder.

  Args:
    folder: a local folder; nothing is downloaded.

  Returns:
    The tokenizer.

  Raises:
    FileNotFoundError: the folder or its tokenizer files are missing.
    ValueError: the files cannot be read as a tokenizer.
  """
  folder = Path(folder)
  if not folder.is_dir():
    raise FileNotFoundError(
      f'no folder {folder} to load a tokenizer from; {_NEEDED}'
    )
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    if not (folder / name).is_file():
      raise FileNotFoundError(f'{folder} has no {name}; {_NEEDED}')
  from transformers import AutoTokenizer

  try:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
  # A broken file surfaces as anything, bare Exception from Rust included.
  except Exception as error:
    raise ValueError(
      f'the tokenizer files in {folder} cannot be read ({error}); {_NEEDED}'
    ) from error


def eos_ids(folder: str | Path, tokenizer: Any) -> tuple[int, ...]:
  """Collects the ids that end a completion.

  Args:
    folder: the checkpoint folder; its `generation_config.json`, when there is
      one, lists one id or several.
    tokenizer: the tokenizer, whose own end-of-sequence id is added.

  Returns:
    Distinct ids, rising.

  Raises:
    ValueError: the file cannot be read, or there is no such id at all.
  """
  path = Path(folder) / 'generation_config.json'
  listed: Any = None
  if path.is_file():
    try:
      listed = json.loads(path.read_text()).get('eos_token_id')
    except (ValueError, AttributeError) as error:
      raise ValueError(f'{path} is not a JSON object ({error})') from error
  listed = listed if isinstance(listed, list) else [listed]
  ids = {i for i in (*listed, tokenizer.eos_token_id) if i is not None}
  if not all(isinstance(i, int) for i in ids):
    raise ValueError(
      f'eos_token_id in {path} is {listed}; it must be a whole number or a '
      'list of them'
    )
  if not ids:
    raise ValueError(
      f'neither {path} nor the tokenizer names an end-of-sequence token; set '
      'eos_token_id in generation_config.json'
    )
  return tuple(sorted(ids))


def decode_completion(tokenizer: Any, ids: Iterable[int]) -> str:
  """Turns a completion's tokens into the text a verifier reads.

  Args:
    tokenizer: the tokenizer.
    ids: the tokens that count; the end-of-sequence token may be among them.

  Returns:
    The text without special tokens. The unknown token stays visible, so that
    an answer is not right only because a wrong word was dropped from it.
  """
  special = set(tokenizer.all_special_ids)
  special -= {tokenizer.unk_token_id} - {
    tokenizer.pad_token_id,
    tokenizer.eos_token_id,
    tokenizer.bos_token_id,
  }
  return tokenizer.decode([i for i in map(int, ids) if i not in special])


def check_template(template: str, demonstration: bool) -> None:
  """Checks that a template has each of its fields once.

  Args:
    template: the template.
    demonstration: whether it takes a demonstration.

  Raises:
    ValueError: a field is missing, repeated or out of place.
  """
  for field, wanted in ((QUESTION, 1), (DEMONSTRATION, int(demonstration))):
    found = template.count(field)
    if found != wanted:
      raise ValueError(
        f'the template holds {field} {found} times; it must hold it '
        f'{"once" if wanted else "not at all"}: {template!r}'
      )


def fill_template(
  template: str, question: str, demonstration: str | None
) -> str:
  """Puts a question and a demonstration into a template.

  What is put in is never read as a template again, whatever it holds.

  Args:
    template: holds `{question}` once, and `{demonstration}` once if one is
      given; other braces mean nothing.
    question: the question.
    demonstration: the demonstration, or None.

  Returns:
    The filled template.

  Raises:
    ValueError: a field is missing, repeated or out of place.
  """
  check_template(template, demonstration is not None)
  if demonstration is None:
    return template.replace(QUESTION, question)
  before, after = template.split(DEMONSTRATION)
  return (
    before.replace(QUESTION, question)
    + demonstration
    + after.replace(QUESTION, question)
  )


def _encode(tokenizer: Any, text: str) -> list[int]:
  chat = getattr(tokenizer, 'chat_template', None)
  if not chat:
    return list(tokenizer.encode(text, add_special_tokens=False))
  options = {}
  if 'enable_thinking' in str(chat):
    options['enable_thinking'] = False
  return list(
    tokenizer.apply_chat_template(
      [{'role': 'user', 'content': text}],
      add_generation_prompt=True,
      return_dict=False,
      **options,
    )
  )


def _too_long(size: int, max_tokens: int, question: str) -> ValueError:
  return ValueError(
    f'the context needs {size} tokens without any demonstration, but only '
    f'{max_tokens} are allowed; raise max_context. The question begins '
    f'{question[:60]!r}'
  )


def encode_context(
  tokenizer: Any,
  template: str,
  question: str,
  demonstration: str | None,
  max_tokens: int,
) -> tuple[list[int], int]:
  """Encodes what a model is shown before it answers.

  With a chat template the filled template is one user turn, followed by the
  generation prompt, thinking switched off where the template knows of it.

  Args:
    tokenizer: a fast tokenizer.
    template: holds `{question}`, and `{demonstration}` if one is given.
    question: the question; never cut.
    demonstration: a correct answer, or None. Too long a context loses tokens
      from the demonstration's end, and from nothing else.
    max_tokens: the most tokens the context may have.

  Returns:
    The token ids, and how many tokens the demonstration lost.

  Raises:
    ValueError: the context is too long without any demonstration, or the
      template's fields are not as they should be.
  """
  ids = _encode(tokenizer, fill_template(template, question, demonstration))
  if len(ids) <= max_tokens:
    return ids, 0
  if demonstration is None:
    raise _too_long(len(ids), max_tokens, question)
  # Cut the text where a token ends: cut ids may decode to half a character.
  offsets = tokenizer(
    demonstration, add_special_tokens=False, return_offsets_mapping=True
  )['offset_mapping']

  def shortened(kept: int) -> list[int]:
    text = demonstration[: offsets[kept - 1][1]] if kept else ''
    return _encode(tokenizer, fill_template(template, question, text))

  best = shortened(0)
  if len(best) > max_tokens:
    raise _too_long(len(best), max_tokens, question)
  # Tokens may merge differently at the new end, so the length is measured,
  # not computed. `fits` tokens are known to fit, `fails` not to.
  fits, fails = 0, len(offsets)
  while fails - fits > 1:
    middle = (fits + fails) // 2
    ids = shortened(middle)
    if len(ids) <= max_tokens:
      fits, best = middle, ids
    else:
      fails = middle
  return best, len(offsets) - fits
