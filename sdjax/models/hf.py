"""Hugging Face checkpoints, read and written without torch.

A folder holds `config.json`, the weights as safetensors (one file, or shards
with an index) and the tokenizer's files. A GGUF file holds all three.
`sdjax.models.families` says which models there are and what they call their
weights, `sdjax.models.weights` brings these to their devices.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from sdjax.models import gguf, hub
from sdjax.models.config_fields import CheckpointError, Fields
from sdjax.models.families import Family, check_config, find_family, new_config
from sdjax.models.transformer import REMAT, TransformerConfig
from sdjax.models.weights import (
  INDEX,
  WEIGHTS,
  Safetensors,
  is_stacked,
  plan,
  read_params,
)
from sdjax.types import Params

DTYPES = ('float32', 'bfloat16')
SAVED_DTYPES = (*DTYPES, 'float16')
CONFIG, GENERATION = 'config.json', 'generation_config.json'


def resolve(path: str | Path) -> Path:
  """Finds a checkpoint: a folder or file, which exists.

  A path is one of these itself, `builtin:NAME` for a model shipped inside the
  package, or the name `owner/model` of one on the hub. Raises CheckpointError
  if there is none.
  """
  here = Path(__file__).parent
  name = str(path).removeprefix('builtin:')
  if name != str(path):
    shipped = sorted(x.parent.name for x in here.glob(f'*/{CONFIG}'))
    if name not in shipped:
      raise CheckpointError(
        f'no model {name!r} is shipped with sdjax; there is: '
        f'{", ".join(shipped) or "none"}.'
      )
    return here / name
  local = Path(path).expanduser()
  if local.is_dir() or is_gguf(local) and local.is_file():
    return local
  if hub.is_hub_name(path):
    return hub.hub_folder(name)
  raise CheckpointError(
    f'no checkpoint {str(path)!r}; give a folder with {CONFIG} and {WEIGHTS}, '
    'a .gguf file, builtin:NAME, or owner/model for one on the hub.'
  )


def is_gguf(path: Path) -> bool:
  """Returns whether a checkpoint is a GGUF file."""
  return path.suffix == '.gguf'


def read_json(path: Path) -> dict[str, Any]:
  """Reads a JSON object.

  Raises CheckpointError if it is missing or holds something else.
  """
  try:
    raw = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise CheckpointError(
      f'{path} is missing; a checkpoint folder has {CONFIG} and {WEIGHTS}.'
    ) from None
  except (OSError, ValueError) as error:
    raise CheckpointError(f'{path} is not readable JSON: {error}.') from error
  if not isinstance(raw, dict):
    raise CheckpointError(f'{path} must hold a JSON object.')
  return raw


def raw_config(checkpoint: Path) -> dict[str, Any]:
  """Returns the content of the `config.json` of what `resolve` returned."""
  if is_gguf(checkpoint):
    return gguf.read_config(checkpoint)
  return read_json(checkpoint / CONFIG)


def load_config(
  checkpoint: str | Path,
  *,
  dtype: str = 'float32',
  param_dtype: str = 'float32',
  remat: str = 'none',
) -> TransformerConfig:
  """Reads the sizes of the model of a checkpoint, as `resolve` takes it.

  `dtype` is that of matrix products, `param_dtype` that of stored weights;
  `remat` is `none`, `dots` or `full`.

  Raises:
    CheckpointError: for a missing or unreadable file, an unknown `model_type`,
      or a field with a value this decoder does not do.
    ValueError: for an unknown dtype or remat.
  """
  for name, value, allowed in (
    ('dtype', dtype, DTYPES),
    ('param_dtype', param_dtype, DTYPES),
    ('remat', remat, tuple(REMAT)),
  ):
    if value not in allowed:
      raise ValueError(f'{name}={value!r} is not one of {allowed}.')
  path = resolve(checkpoint)
  raw = raw_config(path)
  where = path if is_gguf(path) else path / CONFIG
  sizes = find_family(raw.get('model_type'), where).read(Fields(raw, where))
  return TransformerConfig(
    **sizes, dtype=dtype, param_dtype=param_dtype, remat=remat
  )


def load_params(
  checkpoint: str | Path, cfg: TransformerConfig, sharding: Any = None
) -> Params:
  """Reads a checkpoint's weights, one slice at a time.

  They come in the `param_dtype` of `cfg`, as the nested dict that `init_params`
  gives, layers stacked on axis 0. Each device's part goes straight to its place
  in `sharding`, a tree as `sdjax.models.sharding.state_sharding` makes it for
  the weights; None: to the default device.

  Raises CheckpointError for a missing or truncated file, and for a tensor that
  is missing, unexpected, of another shape or not finite.
  """
  path = resolve(checkpoint)
  family = find_family(raw_config(path).get('model_type'), path)
  tensors = gguf.GgufTensors(path) if is_gguf(path) else Safetensors(path)
  return read_params(tensors, cfg, family, sharding)


def save_checkpoint(
  folder: str | Path,
  cfg: TransformerConfig,
  params: Params,
  tokenizer: Any,
  eos_ids: Sequence[int],
  dtype: str = 'float32',
  *,
  source: str | Path | None = None,
  max_shard_bytes: int = 5 * 10**9,
) -> None:
  """Writes a folder that transformers, vLLM and `load_params` read.

  Files of the same names are replaced; the tokenizer's chat template is written
  too. The weights are stored in `dtype`, which is `float32`, `bfloat16` or
  `float16`; beyond `max_shard_bytes` they go to several files with an index.
  `eos_ids` end a completion. `source` is the checkpoint the model once came
  from: its `config.json` is kept as it is but for the dtype, and so is its
  generation config. None: the model was made here and is written as a Qwen3.

  Raises CheckpointError if the vocabulary is smaller than the tokenizer's, the
  weights do not have the shapes of `cfg`, or the source is not of `cfg`.
  """
  if dtype not in SAVED_DTYPES:
    raise ValueError(f'dtype={dtype!r} is not one of {SAVED_DTYPES}.')
  check_vocabulary(cfg, tokenizer)
  raw, generation = new_config(cfg) if source is None else {}, {}
  if source is not None:
    source = resolve(source)
    raw = raw_config(source)
    check_config(raw, cfg, source)
    if (source / GENERATION).is_file():
      generation = read_json(source / GENERATION)
  ids = {
    'bos_token_id': tokenizer.bos_token_id,
    'pad_token_id': tokenizer.pad_token_id,
    'eos_token_id': eos_ids[0] if len(eos_ids) == 1 else list(eos_ids),
  }
  raw |= ids | {'dtype': dtype, 'torch_dtype': dtype}
  family = find_family(raw['model_type'], 'save_checkpoint')
  shards = list(_shards(cfg, params, family, dtype, max_shard_bytes))
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  files = [WEIGHTS]
  if len(shards) > 1:
    stem = WEIGHTS.removesuffix('.safetensors')
    files = [
      f'{stem}-{i:05}-of-{len(shards):05}.safetensors'
      for i in range(1, len(shards) + 1)
    ]
  total, where = 0, {}
  for file, shard in zip(files, shards, strict=True):
    tensors = {name: read() for name, read in shard}
    safetensors.numpy.save_file(
      tensors, folder / f'{file}.partial', metadata={'format': 'pt'}
    )
    where |= dict.fromkeys(tensors, file)
    total += sum(tensor.nbytes for tensor in tensors.values())
  tokenizer.save_pretrained(str(folder))
  _write_json(folder / CONFIG, raw)
  _write_json(folder / GENERATION, generation | ids)
  for file in files:
    # safetensors makes files that only their owner may read.
    (folder / f'{file}.partial').chmod((folder / CONFIG).stat().st_mode)
  for old in (*folder.glob('model-*-of-*.safetensors'), folder / INDEX):
    old.unlink(missing_ok=True)
  for file in files:
    os.replace(folder / f'{file}.partial', folder / file)
  if len(files) > 1:
    index = {'metadata': {'total_size': total}, 'weight_map': where}
    _write_json(folder / INDEX, index)
    (folder / WEIGHTS).unlink(missing_ok=True)


def _shards(
  cfg: TransformerConfig,
  params: Params,
  family: Family,
  dtype: str,
  max_bytes: int,
) -> Iterator[list[tuple[str, Any]]]:
  """Yields lists of (their name, function that reads the tensor)."""
  leaves: dict[str, Any] = flatten_dict(params, sep='/')
  shard, size = [], 0
  for path, names, transposed, leaf in plan(cfg, family):
    found = leaves.pop(path, None)
    if found is None or found.shape != leaf.shape:
      shape = 'missing' if found is None else f'of shape {found.shape}'
      raise CheckpointError(
        f'weight {path!r} is {shape}; cfg makes it {leaf.shape}.'
      )
    each = leaf.size // len(names) * jnp.dtype(dtype).itemsize
    stacked = is_stacked(path)
    for i, name in enumerate(names):

      def read(x=found, i=i, stacked=stacked, transposed=transposed):
        row = np.asarray(x[i] if stacked else x).astype(jnp.dtype(dtype))
        # A transposed view would be written in the order of its memory.
        return np.ascontiguousarray(row.T if transposed else row)

      if shard and size + each > max_bytes:
        yield shard
        shard, size = [], 0
      shard.append((name, read))
      size += each
  if leaves:
    raise CheckpointError(
      f'weight {min(leaves)!r} has no place in a {family.architecture}.'
    )
  yield shard


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
  text = json.dumps(dict(sorted(value.items())), indent=2)
  path.write_text(text + '\n', encoding='utf-8')


def num_tokens(tokenizer: Any) -> int:
  """Returns one more than the largest id of a transformers tokenizer."""
  return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))


def check_vocabulary(cfg: TransformerConfig, tokenizer: Any) -> None:
  """Refuses a tokenizer with ids the model has no embedding for.

  Special tokens behind the last embedding are let through: published models
  have such, for modes they do not use. So is a larger model: vocabularies are
  often padded. The CheckpointError gives both sizes.
  """
  special = {
    i
    for i, token in getattr(tokenizer, 'added_tokens_decoder', {}).items()
    if token.special
  }
  plain = [i for i in tokenizer.get_vocab().values() if i not in special]
  if max(plain, default=0) >= cfg.vocab_size:
    raise CheckpointError(
      f'the tokenizer has {num_tokens(tokenizer)} tokens but the model only '
      f'{cfg.vocab_size} (vocab_size); tokenizer and weights do not belong '
      'together.'
    )
