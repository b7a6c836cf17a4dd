"""Tokenizers: loading one, making a small one, and reading completions.

Anything with the interface of `transformers`' fast tokenizers will do. The
padding id is never used to tell real tokens: it may be the end-of-sequence
id.
"""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sdjax.models import gguf, gguf_tokenizer, hf, hub
from sdjax.models.advice import from_transformers

PAD, EOS, UNK = '<pad>', '<eos>', '<unk>'

THINKING = _OPEN, _CLOSE = '<think>', '</think>'
"""What opens and closes a thinking block."""

_BLOCK = re.compile(f'{_OPEN}.*?{_CLOSE}', re.DOTALL)

_NEEDED = (
  'a tokenizer folder needs tokenizer.json and tokenizer_config.json, as '
  '`save_pretrained` writes them'
)


def word_tokenizer(
  words: Sequence[str], specials: Sequence[str] = (PAD, EOS, UNK)
) -> Any:
  """Makes a tokenizer of whole words, split at whitespace.

  The words are distinct and without whitespace; ids follow their order, after
  the specials: padding, end-of-sequence and unknown token. Returns a
  `transformers.PreTrainedTokenizerFast`; decoding joins words with one space
  and touches nothing else.

  Raises ValueError if a word is repeated, empty or holds whitespace, or there
  are not three specials.
  """
  import tokenizers

  specials = tuple(specials)
  if len(specials) != 3:
    raise ValueError(
      f'specials are {specials}; three are needed: padding, end of sequence, '
      'unknown'
    )
  ids: dict[str, int] = {}
  for word in (*specials, *words):
    if word.split() != [word]:
      raise ValueError(f'{word!r} is not one word; drop it or split it')
    if word in ids:
      raise ValueError(f'the word {word!r} is given twice; drop one')
    ids[word] = len(ids)
  pad, eos, unk = specials
  model = tokenizers.models.WordLevel(ids, unk_token=unk)
  tokenizer = tokenizers.Tokenizer(model)
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  return from_transformers('PreTrainedTokenizerFast')(
    tokenizer_object=tokenizer,
    pad_token=pad,
    eos_token=eos,
    unk_token=unk,
    # Otherwise decoding would glue punctuation to the word before it.
    clean_up_tokenization_spaces=False,
  )


def load_tokenizer(checkpoint: str | Path) -> Any:
  """Loads a checkpoint's tokenizer and nothing else of it.

  The checkpoint is a folder, a `.gguf` file, `builtin:NAME`, or `owner/model`
  for one on the hub, of which all but the weights is fetched.

  Raises:
    FileNotFoundError: the folder has no tokenizer files.
    ValueError: there is no such checkpoint (a `CheckpointError`), or its files
      cannot be read as a tokenizer.
  """
  if hub.is_hub_name(checkpoint):
    folder = hub.hub_folder(str(checkpoint), weights=False)
  else:
    folder = hf.resolve(checkpoint)
  if hf.is_gguf(folder):
    return gguf_tokenizer.read_tokenizer(folder)
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    if not (folder / name).is_file():
      raise FileNotFoundError(f'{folder} has no {name}; {_NEEDED}')
  loader = from_transformers('AutoTokenizer')
  try:
    return loader.from_pretrained(folder, local_files_only=True)
  # A broken file surfaces as anything, bare Exception from Rust included.
  except Exception as error:
    raise ValueError(
      f'the tokenizer files in {folder} cannot be read ({error}); {_NEEDED}'
    ) from error


def eos_ids(checkpoint: str | Path, tokenizer: Any) -> tuple[int, ...]:
  """Collects the ids that end a completion, distinct and rising.

  They are the tokenizer's own and what a folder's `generation_config.json`,
  when there is one, lists; a `.gguf` file names them itself. Raises ValueError
  if the file cannot be read, or there is no such id at all.
  """
  if hf.is_gguf(Path(checkpoint)):
    return gguf.eos_ids(checkpoint)
  path = Path(checkpoint) / 'generation_config.json'
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


def control_tokens(tokenizer: Any) -> dict[int, str]:
  """Lists the tokens that steer a model and are no part of any text.

  Id to string of every special token, with two exceptions. The unknown token
  stands for a word, so that an answer must not become right because a wrong
  word was dropped from it. A thinking block's ends are needed to tell the
  thinking from the answer.
  """
  specials = {
    i: token.content
    for i, token in tokenizer.added_tokens_decoder.items()
    if token.special
  }
  for i in tokenizer.all_special_ids:
    specials[i] = tokenizer.convert_ids_to_tokens(i)
  if tokenizer.unk_token_id not in (
    tokenizer.pad_token_id,
    tokenizer.eos_token_id,
    tokenizer.bos_token_id,
  ):
    specials.pop(tokenizer.unk_token_id, None)
  return {i: text for i, text in specials.items() if text not in THINKING}


def without_control_tokens(tokenizer: Any, text: str) -> str:
  """Drops from a text whatever would be encoded as a control token."""
  strings = [s for s in control_tokens(tokenizer).values() if s]
  # Dropping one may join what stood around it into another.
  while found := [s for s in strings if s in text]:
    for string in found:
      text = text.replace(string, '')
  return text


def decode_completion(tokenizer: Any, ids: Iterable[int]) -> str:
  """Turns the tokens that count into the text a verifier reads.

  The end-of-sequence token may be among them; control tokens are left out.
  """
  control = control_tokens(tokenizer)
  return tokenizer.decode([i for i in map(int, ids) if i not in control])


def strip_thinking(answer: str, opened: bool = False) -> str:
  """Leaves of an answer what was said, not what was thought.

  `opened` tells whether its context had already opened a thinking block. A
  block that was never closed reaches to the end, one that was never opened
  begins at the start. Empty when the answer is nothing but thinking.
  """
  text = (_OPEN if opened else '') + answer
  said = _BLOCK.sub('', text).rpartition(_CLOSE)[2].partition(_OPEN)[0]
  return answer if said == answer else said.strip()
