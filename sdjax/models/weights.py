"""Weights on their way from files to devices, one slice at a time.

Each device's part of a weight is read by itself, in the order of falling size:
the host never holds more than the largest weight beside what is already in its
place, and no process reads what is not its own.
"""

import functools
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict

from sdjax.models.config_fields import CheckpointError
from sdjax.models.families import Family
from sdjax.models.gguf import GgufTensors
from sdjax.models.transformer import TransformerConfig, init_params
from sdjax.types import Params

WEIGHTS = 'model.safetensors'
INDEX = WEIGHTS + '.index.json'
# Buffers, not weights.
BUFFERS = ('rotary_emb.inv_freq', 'embeddings.position_ids')
FLOATS = ('F64', 'F32', 'F16', 'BF16')


class Safetensors:
  """The tensors, by `names`, of a folder: one file, or shards with an index."""

  def __init__(self, folder: Path):
    """Reads the headers; nothing stays open.

    Raises CheckpointError for a missing, truncated or unreadable file, or one
    that holds no numbers.
    """
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
      files, listed = {WEIGHTS}, None
    else:
      listed = _weight_map(folder / INDEX)
      files = set(listed.values())
    self._path: dict[str, Path] = {}
    self._shape: dict[str, tuple[int, ...]] = {}
    for name in sorted(files):
      self._scan(folder / name)
    for name, file in (listed or {}).items():
      if self._path.get(name) != folder / file:
        raise CheckpointError(
          f'{folder / INDEX} places {name} in {file}, which does not hold it; '
          'copy or download the folder again.'
        )
    self.names = set(self._path)

  def _scan(self, path: Path) -> None:
    if not path.is_file():
      raise CheckpointError(
        f'{path} is missing; the weights must be in safetensors format, in '
        f'{WEIGHTS} or in the shards that {INDEX} lists.'
      )
    try:
      with safetensors.safe_open(path, 'np') as file:
        for name in file.keys():
          entry = file.get_slice(name)
          if entry.get_dtype() not in FLOATS and not is_buffer(name):
            raise CheckpointError(
              f'{path}: {name} has dtype {entry.get_dtype()}; allowed: '
              f'{", ".join(FLOATS)}. Quantised weights are not read.'
            )
          self._path[name] = path
          self._shape[name] = tuple(entry.get_shape())
    except (safetensors.SafetensorError, OSError) as error:
      raise CheckpointError(
        f'{path} cannot be read as safetensors ({error}); it is probably '
        'truncated: copy or download it again.'
      ) from error

  def path(self, name: str) -> Path:
    """Returns the file that holds a tensor."""
    return self._path[name]

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns a tensor's shape without reading it."""
    return self._shape[name]

  def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
    """Returns part of a tensor."""
    # Opened anew each time: the pages of a closed file are not our memory.
    with safetensors.safe_open(self._path[name], 'np') as file:
      return file.get_slice(name)[index]


Tensors = Safetensors | GgufTensors
"""Named tensors that are read when asked for."""


def _weight_map(path: Path) -> dict[str, str]:
  try:
    listed = json.loads(path.read_text(encoding='utf-8'))['weight_map']
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise CheckpointError(
      f'{path} is not readable as an index with a weight_map ({error!r}).'
    ) from error
  if not isinstance(listed, dict) or not listed:
    raise CheckpointError(f'{path} has no weight_map.')
  return listed


def plan(
  cfg: TransformerConfig, family: Family
) -> Iterator[tuple[str, list[str], bool, Any]]:
  """Lists a model's weights.

  Yields our path, their names (one for each layer if stacked), whether they
  store it transposed, and our leaf's shape and dtype.
  """
  tree = jax.eval_shape(lambda: init_params(cfg, jax.random.key(0)))
  for path, leaf in flatten_dict(tree, sep='/').items():
    count = cfg.num_layers if is_stacked(path) else 1
    names = [family.names[path].format(i) for i in range(count)]
    transposed = path.endswith(('kernel', 'unembedding'))
    yield path, names, transposed, leaf


def is_buffer(name: str) -> bool:
  """Returns whether a tensor is no weight: it follows from the sizes."""
  return name.endswith(BUFFERS)


def is_stacked(path: str) -> bool:
  """Returns whether axis 0 of a weight is the layer."""
  return path.startswith('layers/')


def read_params(
  tensors: Tensors,
  cfg: TransformerConfig,
  family: Family,
  sharding: Any,
  beside: Collection[str] = (),
) -> Params:
  """Reads a model's weights to where they belong.

  They come in `cfg.param_dtype`, as the nested dict that `init_params` gives,
  layers stacked on axis 0. `sharding` is a tree of shardings; None: the default
  device. `beside` are tensors that the decoder has no place for and that are
  read by somebody else, such as the head of a reward model.

  Raises CheckpointError for a tensor that is missing, unexpected, of another
  shape or not finite.
  """
  wanted = list(plan(cfg, family))
  _check_names(tensors, cfg, family, wanted, beside)
  for path, names, transposed, leaf in wanted:
    shape = leaf.shape[1:] if is_stacked(path) else leaf.shape
    shape = shape[::-1] if transposed else shape
    for name in names:
      if tensors.shape(name) != shape:
        raise CheckpointError(
          f'{tensors.path(name)}: {name} has shape {tensors.shape(name)}, but '
          f'the configuration makes it {shape}; the two do not belong '
          'together.'
        )
  if sharding is None:
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    places = [alone] * len(wanted)
  else:
    places = jax.tree.leaves(sharding)
  order = sorted(zip(wanted, places, strict=True), key=lambda x: -x[0][-1].size)
  done = dict.fromkeys(path for path, *_ in wanted)
  for (path, names, transposed, leaf), place in order:
    part: Any = functools.partial(
      _read_part, tensors, path, names, transposed, leaf
    )
    done[path] = jax.make_array_from_callback(leaf.shape, place, part)
    # One at a time: a copy that is under way holds its source.
    jax.block_until_ready(done[path])
  return unflatten_dict(done, sep='/')


def _read_part(
  tensors: Tensors,
  path: str,
  names: Sequence[str],
  transposed: bool,
  leaf: Any,
  index: tuple[slice, ...],
) -> np.ndarray:
  """Reads the part of a weight that one device holds."""
  index = tuple(
    slice(*x.indices(size)) for x, size in zip(index, leaf.shape, strict=True)
  )
  part = np.empty([x.stop - x.start for x in index], leaf.dtype)
  rows, inner, out = [names[0]], index, part[None]
  if is_stacked(path):
    rows, inner, out = names[index[0]], index[1:], part
  for i, name in enumerate(rows):
    tensor = tensors.read(name, inner[::-1] if transposed else inner)
    if not np.isfinite(tensor).all():
      raise CheckpointError(
        f'{tensors.path(name)}: {name} has values that are not finite.'
      )
    out[i] = tensor.T if transposed else tensor
  return part


def _check_names(
  tensors: Tensors,
  cfg: TransformerConfig,
  family: Family,
  wanted: Any,
  beside: Collection[str],
) -> None:
  """Refuses missing and surplus tensors, but for a tied head stored twice."""
  expected = {name for _, names, *_ in wanted for name in names}
  present = {name for name in tensors.names if not is_buffer(name)}
  missing = sorted(expected - present)
  if missing:
    where = tensors.path(min(tensors.names)).parent if tensors.names else ''
    raise CheckpointError(
      f'{where}: {len(missing)} tensors that the configuration asks for are '
      f'missing, the first is {missing[0]}.'
    )
  extra = present - expected - set(beside)
  head, embedding = family.names['unembedding'], family.names['embedding']
  if cfg.tie_embeddings and extra == {head}:
    everything = (slice(None), slice(None))
    if tensors.shape(head) == tensors.shape(embedding) and np.array_equal(
      tensors.read(head, everything), tensors.read(embedding, everything)
    ):
      return
    raise CheckpointError(
      f'{tensors.path(head)}: tie_word_embeddings is true but {head} differs '
      f'from {embedding}; set tie_word_embeddings to false in config.json.'
    )
  if extra:
    first = min(extra)
    raise CheckpointError(
      f'{tensors.path(first)}: {len(extra)} tensors have no place in the '
      f'model that the configuration describes, the first is {first}.'
    )
