"""The tokenizer of a GGUF file, without torch.

The file names the rule that cuts a text into pieces, not the rule itself; the
rules sdjax knows are written out here.
"""

import dataclasses
from pathlib import Path
from typing import Any

from sdjax.models.advice import from_transformers
from sdjax.models.config_fields import CheckpointError
from sdjax.models.gguf import TOKENIZER
from sdjax.models.gguf_file import GgufFile, open_file

# The format's numbers of token types that are not plain text.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5


@dataclasses.dataclass(frozen=True)
class _Pre:
  """What a name in the file stands for: how text becomes pieces.

  Attributes:
    number: the pattern of a piece of digits; None: each digit is cut off,
      and the rest is cut as GPT-2 does.
    nfc: whether text is brought to Unicode's composed form first.
    whole: whether a piece that is a token is taken without merging.
    bos: whether texts begin with the token bos unless the file says so.
  """

  number: str | None = None
  nfc: bool = False
  whole: bool = False
  bos: bool = False


_PRE = {
  'smollm': _Pre(),
  'qwen2': _Pre(number=r'\p{N}', nfc=True),
  'llama-bpe': _Pre(number=r'\p{N}{1,3}', whole=True, bos=True),
}


def _split(pre: _Pre) -> Any:
  """What cuts a text into the pieces that are merged one by one."""
  from tokenizers import Regex, pre_tokenizers

  if pre.number is None:
    pieces = pre_tokenizers.Digits(individual_digits=True)
  else:
    pattern = (
      r"(?i:'[stmd]|'re|'ve|'ll)",
      r'[^\r\n\p{L}\p{N}]?\p{L}+',
      pre.number,
      r' ?[^\s\p{L}\p{N}]+[\r\n]*',
      r'\s*[\r\n]+',
      r'\s+(?!\S)',
      r'\s+',
    )
    pieces = pre_tokenizers.Split(Regex('|'.join(pattern)), 'isolated')
  by_byte = pre_tokenizers.ByteLevel(
    add_prefix_space=False, use_regex=pre.number is None
  )
  return pre_tokenizers.Sequence([pieces, by_byte])


def _merges(file: GgufFile) -> list[tuple[str, str]]:
  merges = []
  for merge in file.texts(f'{TOKENIZER}merges'):
    left, space, right = merge.partition(' ')
    if not (left and space and right) or ' ' in right:
      raise CheckpointError(
        f'{file.path}: {TOKENIZER}merges has {merge!r}; a merge is two '
        'tokens with one space between them.'
      )
    merges.append((left, right))
  return merges


def _named_tokens(
  file: GgufFile, tokens: list[str], pre: _Pre
) -> dict[str, Any]:
  """The options of a transformers tokenizer that say what tokens are for."""
  named: dict[str, Any] = {}
  for name, option in (
    ('bos', 'bos_token'),
    ('eos', 'eos_token'),
    ('unknown', 'unk_token'),
    ('padding', 'pad_token'),
  ):
    key = f'{TOKENIZER}{name}_token_id'
    index = file.metadata.get(key)
    if index is None:
      continue
    if not isinstance(index, int) or not 0 <= index < len(tokens):
      raise file.error(key, f'it must be one of the {len(tokens)} tokens')
    named[option] = tokens[index]
  for name, default in (('bos', pre.bos), ('eos', False)):
    add = f'add_{name}_token'
    named[add] = file.flag(f'{TOKENIZER}{add}', default)
    if named[add] and f'{name}_token' not in named:
      raise file.error(
        f'{TOKENIZER}{name}_token_id', 'it must be given: texts get this token'
      )
  return named


def read_tokenizer(path: str | Path) -> Any:
  """Makes the `transformers.PreTrainedTokenizerFast` a file describes.

  It has the file's chat template; control tokens are special. Ids that the file
  marks as unused have no token, as in the folder the file was made from. Raises
  CheckpointError if the file cannot be read, its tokenizer is not a byte-level
  BPE that sdjax knows how to split text for, or its lists do not fit together.
  """
  import tokenizers
  from tokenizers import decoders, models, normalizers

  file = open_file(path)
  if file.metadata.get(f'{TOKENIZER}model') != 'gpt2':
    raise file.error(
      f'{TOKENIZER}model', 'sdjax reads gpt2, which is byte-level BPE'
    )
  pre = _PRE.get(str(file.metadata.get(f'{TOKENIZER}pre')))
  if pre is None:
    raise file.error(f'{TOKENIZER}pre', f'sdjax knows {", ".join(_PRE)}')
  if file.flag(f'{TOKENIZER}add_space_prefix', False):
    raise file.error(
      f'{TOKENIZER}add_space_prefix', 'sdjax puts no space before a text'
    )
  tokens = file.texts(f'{TOKENIZER}tokens')
  if len(set(tokens)) != len(tokens):
    raise CheckpointError(
      f'{path}: {TOKENIZER}tokens has tokens twice, so their ids are unclear.'
    )
  types = file.metadata.get(f'{TOKENIZER}token_type')
  if not isinstance(types, list) or len(types) != len(tokens):
    raise file.error(
      f'{TOKENIZER}token_type', f'it must list {len(tokens)} types'
    )
  named = _named_tokens(file, tokens, pre)
  typed = list(zip(tokens, types, strict=True))
  vocabulary = {
    token: i
    for i, (token, kind) in enumerate(typed)
    if kind != _UNUSED or token in named.values()
  }
  merges = _merges(file)
  try:
    model = models.BPE(vocabulary, merges, ignore_merges=pre.whole)
  # The Rust side raises bare Exception.
  except Exception as error:
    raise CheckpointError(
      f'{path}: {TOKENIZER}merges and {TOKENIZER}tokens do not belong '
      f'together ({error}).'
    ) from error
  tokenizer = tokenizers.Tokenizer(model)
  if pre.nfc:
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = _split(pre)
  tokenizer.decoder = decoders.ByteLevel()

  def added(kind: int) -> list[Any]:
    found = (token for token, of_kind in typed if of_kind == kind)
    return [tokenizers.AddedToken(token, normalized=False) for token in found]

  tokenizer.add_special_tokens(added(_CONTROL))
  tokenizer.add_tokens(added(_USER_DEFINED))
  return from_transformers('PreTrainedTokenizerFast')(
    tokenizer_object=tokenizer,
    chat_template=file.metadata.get('tokenizer.chat_template'),
    # Otherwise decoding would remove spaces before punctuation.
    clean_up_tokenization_spaces=False,
    **named,
  )
