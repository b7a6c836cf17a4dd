"""Hugging Face checkpoint folders, read and written without torch.

A folder holds `config.json`, the weights as safetensors (one file, or shards
with an index) and the tokenizer's files. `sdjax.models.families` says which
models there are and what they call their weights.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from sdjax.models.families import (
  CheckpointError,
  Family,
  Fields,
  find_family,
)
from sdjax.models.transformer import REMAT, TransformerConfig, init_params
from sdjax.types import Params

DTYPES = ('float32', 'bfloat16')
CONFIG, WEIGHTS = 'config.json', 'model.safetensors'
INDEX = WEIGHTS + '.index.json'
IGNORED = re.compile(r'rotary_emb\.inv_freq$')  # a buffer, not a weight


def resolve(path: str | Path) -> Path:
  """Finds a checkpoint folder.

  Args:
    path: a folder, or `builtin:NAME` for one shipped inside the package.

  Returns:
    The folder, which exists.

  Raises:
    CheckpointError: if there is none.
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
  folder = Path(path).expanduser()
  if not folder.is_dir():
    raise CheckpointError(
      f'no checkpoint folder {str(path)!r}; give a folder with {CONFIG} and '
      f'{WEIGHTS} (models are not downloaded), or builtin:NAME.'
    )
  return folder


def _read_json(path: Path) -> dict[str, Any]:
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


def load_config(
  folder: str | Path,
  *,
  dtype: str = 'float32',
  param_dtype: str = 'float32',
  remat: str = 'none',
) -> TransformerConfig:
  """Reads the sizes of a checkpoint's model.

  Args:
    folder: as `resolve` takes it.
    dtype: of matrix products.
    param_dtype: the weights will be stored in.
    remat: `none`, `dots` or `full`.

  Returns:
    The configuration of `sdjax.models.transformer.Transformer`.

  Raises:
    CheckpointError: for a missing or unreadable file, an unknown
      `model_type`, or a field with a value this decoder does not do.
    ValueError: for an unknown dtype or remat.
  """
  for name, value, allowed in (
    ('dtype', dtype, DTYPES),
    ('param_dtype', param_dtype, DTYPES),
    ('remat', remat, tuple(REMAT)),
  ):
    if value not in allowed:
      raise ValueError(f'{name}={value!r} is not one of {allowed}.')
  path = resolve(folder) / CONFIG
  raw = _read_json(path)
  sizes = find_family(raw.get('model_type'), path).read(Fields(raw, path))
  return TransformerConfig(
    **sizes, dtype=dtype, param_dtype=param_dtype, remat=remat
  )


class _Weights:
  """The tensors of a folder by name, each read when asked for."""

  def __init__(self, folder: Path, files: contextlib.ExitStack):
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
      names = {WEIGHTS}
    else:
      index = _read_json(folder / INDEX).get('weight_map')
      if not isinstance(index, dict):
        raise CheckpointError(f'{folder / INDEX} has no weight_map.')
      names = set(index.values())
    self.folder = folder
    self.files, self.path = {}, {}
    for name in sorted(names):
      path = folder / name
      if not path.is_file():
        raise CheckpointError(
          f'{path} is missing; the weights must be in safetensors format, '
          f'in {WEIGHTS} or in the shards that {INDEX} lists.'
        )
      try:
        file = files.enter_context(safetensors.safe_open(path, 'np'))
      except (safetensors.SafetensorError, OSError) as error:
        raise CheckpointError(
          f'{path} cannot be read as safetensors ({error}); it is probably '
          'truncated: copy or download it again.'
        ) from error
      for key in file.keys():
        self.files[key], self.path[key] = file, path

  def read(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns a tensor that must have this shape and be finite."""
    path = self.path[name]
    found = tuple(self.files[name].get_slice(name).get_shape())
    if found != shape:
      raise CheckpointError(
        f'{path}: {name} has shape {found}, but {CONFIG} makes it {shape}; '
        'the two do not belong together.'
      )
    tensor = self.files[name].get_tensor(name)
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
      raise CheckpointError(
        f'{path}: {name} is {tensor.dtype}; quantised weights are not read.'
      )
    if not np.isfinite(tensor).all():
      raise CheckpointError(f'{path}: {name} has values that are not finite.')
    return tensor


def _tensors(
  cfg: TransformerConfig, family: Family
) -> Iterator[tuple[str, list[str], bool, tuple[int, ...], Any]]:
  """Yields path, their names, transposed or not, their shape, and our leaf."""
  tree = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
  for key, leaf in jax.tree_util.tree_leaves_with_path(tree):
    path = jax.tree_util.keystr(key, simple=True, separator='/')
    stacked = path.startswith('layers/')
    name = family.names[path]
    names = [name.format(i) for i in range(cfg.num_layers if stacked else 1)]
    transposed = path.endswith(('kernel', 'unembedding'))
    shape = leaf.shape[1:] if stacked else leaf.shape
    yield path, names, transposed, shape[::-1] if transposed else shape, leaf


def _check_names(
  weights: _Weights, expected: set[str], tied: tuple[str, str] | None
) -> None:
  """Refuses missing and surplus tensors.

  Args:
    weights: what there is.
    expected: what there must be.
    tied: names of embedding and head when they are one matrix, which some
      checkpoints store twice.
  """
  present = {name for name in weights.files if not IGNORED.search(name)}
  missing = sorted(expected - present)
  if missing:
    raise CheckpointError(
      f'{weights.folder}: {len(missing)} tensors that {CONFIG} asks for are '
      f'missing, the first is {missing[0]}.'
    )
  extra = present - expected
  if tied and extra == {tied[1]}:
    embedding, head = (weights.files[x].get_tensor(x) for x in tied)
    if np.array_equal(embedding, head):
      return
    raise CheckpointError(
      f'{weights.folder}: tie_word_embeddings is true but {tied[1]} differs '
      f'from {tied[0]}; set tie_word_embeddings to false in {CONFIG}.'
    )
  if extra:
    raise CheckpointError(
      f'{weights.folder}: {len(extra)} tensors have no place in the model '
      f'that {CONFIG} describes, the first is {min(extra)}.'
    )


def load_params(
  folder: str | Path, cfg: TransformerConfig, sharding: Any = None
) -> Params:
  """Reads a checkpoint's weights, one at a time.

  Args:
    folder: as `resolve` takes it.
    cfg: from `load_config`; the weights come in its `param_dtype`.
    sharding: tree of shardings as `sdjax.sharding.state_sharding` makes it
      for the weights; each weight goes straight to its place. None: to the
      default device.

  Returns:
    The nested dict that `init_params` gives, layers stacked on axis 0.

  Raises:
    CheckpointError: for a missing or truncated file, and for a tensor that
      is missing, unexpected, of another shape or not finite.
  """
  folder = resolve(folder)
  model_type = _read_json(folder / CONFIG).get('model_type')
  family = find_family(model_type, folder / CONFIG)
  plan = list(_tensors(cfg, family))
  places = [None] * len(plan)
  if sharding is not None:
    places = jax.tree.leaves(sharding)
  params: dict[str, Any] = {}
  with contextlib.ExitStack() as files:
    weights = _Weights(folder, files)
    expected = {name for _, names, *_ in plan for name in names}
    tied = (family.names['embedding'], family.names['unembedding'])
    _check_names(weights, expected, tied if cfg.tie_embeddings else None)
    for (path, names, transposed, shape, leaf), place in zip(
      plan, places, strict=True
    ):
      host = np.empty((len(names), *leaf.shape[-len(shape) :]), leaf.dtype)
      for i, name in enumerate(names):
        tensor = weights.read(name, shape)
        host[i] = tensor.T if transposed else tensor
      *parents, last = path.split('/')
      node = params
      for parent in parents:
        node = node.setdefault(parent, {})
      node[last] = jax.device_put(host.reshape(leaf.shape), place)
  return params


def save_checkpoint(
  folder: str | Path,
  cfg: TransformerConfig,
  params: Params,
  tokenizer: Any,
  eos_ids: Sequence[int],
  dtype: str = 'float32',
  *,
  model_type: str = 'qwen3',
  source: str | Path | None = None,
) -> None:
  """Writes a folder that transformers, vLLM and `load_params` read.

  Args:
    folder: made if it is not there; files of the same names are replaced.
    cfg: the model's sizes.
    params: its weights.
    tokenizer: a transformers tokenizer.
    eos_ids: tokens that end a completion.
    dtype: the weights are stored in: `float32` or `bfloat16`.
    model_type: the family to write it as.
    source: the folder the model once came from; fields of its `config.json`
      that sdjax has no use for (`max_position_embeddings`) are kept.

  Raises:
    CheckpointError: if the vocabulary is smaller than the tokenizer's, or
      the weights do not have the shapes of `cfg`.
  """
  if dtype not in DTYPES:
    raise ValueError(f'dtype={dtype!r} is not one of {DTYPES}.')
  check_vocabulary(cfg, tokenizer)
  family = find_family(model_type, 'save_checkpoint')
  raw = {'max_position_embeddings': 32768, 'initializer_range': 0.02}
  if source is not None:
    raw = _read_json(resolve(source) / CONFIG)
  raw |= family.write(cfg)
  raw |= {
    'model_type': model_type,
    'architectures': [family.architecture],
    'dtype': dtype,
    'torch_dtype': dtype,
    'bos_token_id': tokenizer.bos_token_id,
    'pad_token_id': tokenizer.pad_token_id,
    'eos_token_id': eos_ids[0] if len(eos_ids) == 1 else list(eos_ids),
    'use_cache': True,
  }
  leaves = {
    jax.tree_util.keystr(key, simple=True, separator='/'): leaf
    for key, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  tensors = {}
  for path, names, transposed, _, leaf in _tensors(cfg, family):
    found = leaves.pop(path, None)
    if found is None or found.shape != leaf.shape:
      shape = 'missing' if found is None else f'of shape {found.shape}'
      raise CheckpointError(
        f'weight {path!r} is {shape}; cfg makes it {leaf.shape}.'
      )
    host = np.asarray(found).astype(jnp.dtype(dtype))
    rows = host if path.startswith('layers/') else host[None]
    for name, row in zip(names, rows, strict=True):
      # A transposed view would be written in the order of its memory.
      tensors[name] = np.ascontiguousarray(row.T if transposed else row)
  if leaves:
    raise CheckpointError(
      f'weight {min(leaves)!r} has no place in model_type {model_type}.'
    )
  folder = Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  partial = folder / f'{WEIGHTS}.partial'
  safetensors.numpy.save_file(tensors, partial, metadata={'format': 'pt'})
  tokenizer.save_pretrained(str(folder))
  _write_json(folder / CONFIG, raw)
  generation = ('bos_token_id', 'pad_token_id', 'eos_token_id')
  _write_json(
    folder / 'generation_config.json', {name: raw[name] for name in generation}
  )
  os.replace(partial, folder / WEIGHTS)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
  text = json.dumps(dict(sorted(value.items())), indent=2)
  path.write_text(text + '\n', encoding='utf-8')


def check_vocabulary(cfg: TransformerConfig, tokenizer: Any) -> None:
  """Refuses a tokenizer with ids the model has no embedding for.

  Args:
    cfg: the model's sizes.
    tokenizer: a transformers tokenizer.

  Raises:
    CheckpointError: if it is so, with both sizes. A larger model is fine:
      vocabularies are often padded.
  """
  size = max(len(tokenizer), 1 + max(tokenizer.get_vocab().values()))
  if size > cfg.vocab_size:
    raise CheckpointError(
      f'the tokenizer has {size} tokens but the model only {cfg.vocab_size} '
      '(vocab_size); tokenizer and weights do not belong together.'
    )
