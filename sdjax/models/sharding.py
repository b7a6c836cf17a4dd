"""Where every array lives: a mesh of devices and one table of rules.

The mesh has two axes. `data` splits the questions of a batch and, as in fully
sharded data parallelism, the weights; `model` splits each matrix by heads,
feed-forward columns or vocabulary. The optimizer's moments and the teacher
end in the same names as the weights, so the same rules place them.
"""

import re
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from sdjax.options import Section, Size

AXES = ('data', 'model')

RULES: tuple[tuple[str, PartitionSpec], ...] = (
  # [L, D, X]: into heads or feed-forward columns.
  (r'layers/.*\b(q|k|v|gate|up)/kernel$', PartitionSpec(None, *AXES)),
  # [L, X, D]: back from them.
  (r'layers/.*\b(o|down)/kernel$', PartitionSpec(None, 'model', 'data')),
  (r'layers/.*\b(q|k|v|gate|up)/bias$', PartitionSpec(None, 'model')),
  (r'layers/.*\b(o|down)/bias$', PartitionSpec()),
  (r'norm/scale$', PartitionSpec()),
  # An adapter's factors are thin: every device has them whole.
  (r'kernel/(a|b)$', PartitionSpec()),
  # [V, D] and [D, V]: the vocabulary is what `model` splits in both.
  (r'\bembedding$', PartitionSpec('model', 'data')),
  (r'\bunembedding$', PartitionSpec('data', 'model')),
  (r'\b(step|count)$', PartitionSpec()),
)
"""(regex searched in a leaf's path, how its axes are split); first match."""


@dataclass(frozen=True)
class MeshSizes(Section):
  """Devices: `data` splits the batch and the weights, `model` each tensor.

  Attributes:
    data: size of the axis; -1 takes what is left.
    model: size of the axis.
  """

  data: int = -1
  model: Size = 1


class ShardingError(ValueError):
  """Arrays that the mesh or the rules have no place for."""


def make_mesh(sizes: MeshSizes, devices: Any = None) -> Mesh:
  """Arranges devices in a (data, model) grid.

  By default these are all devices of all processes. The mesh's axes are Auto:
  the compiler propagates shardings from the arguments, and code written for one
  device runs unchanged. Raises ShardingError if the sizes do not multiply to
  the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  count = len(devices)
  data = sizes.data
  if data == -1 and sizes.model > 0:
    data = count // sizes.model
  if data < 1 or sizes.model < 1 or data * sizes.model != count:
    raise ShardingError(
      f'mesh.data={sizes.data} and mesh.model={sizes.model} do not multiply '
      f'to the {count} devices there are; choose sizes with a product of '
      f'{count} (mesh.data=-1 takes what is left by mesh.model).'
    )
  return jax.make_mesh(
    (data, sizes.model), AXES, (AxisType.Auto,) * 2, devices=devices
  )


def path_name(path: Any) -> str:
  """Returns a leaf's path as text: `params/layers/attn/q/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator='/')


def leaf_spec(name: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """Returns the spec of the first rule that matches an array's path.

  Raises ShardingError if no rule matches, or an axis cannot be split evenly.
  """
  rule = next((r for r in RULES if re.search(r[0], name)), None)
  if rule is None:
    raise ShardingError(
      f'no sharding rule matches {name!r} of shape {shape}; add its path to '
      'RULES in sdjax/models/sharding.py.'
    )
  pattern, spec = rule
  if len(spec) not in (0, len(shape)):
    raise ShardingError(
      f'{name!r} has shape {shape} but its sharding rule {pattern!r} names '
      f'{len(spec)} dimensions; give it a rule of its own in '
      'sdjax/models/sharding.py.'
    )
  for dimension, axis in enumerate(spec):
    if axis is not None and shape[dimension] % mesh.shape[axis]:
      raise ShardingError(
        f'dimension {dimension} of {name!r} has size {shape[dimension]}, '
        f'which mesh.{axis}={mesh.shape[axis]} does not divide; '
        f'choose mesh.{axis} among the divisors of that size.'
      )
  return spec


def state_sharding(abstract_state: Any, mesh: Mesh) -> Any:
  """Places a training state, or any tree that ends in weight names.

  Takes arrays or `jax.ShapeDtypeStruct`s, such as `jax.eval_shape` gives, and
  returns the same tree of `NamedSharding`s, for `jax.device_put`,
  `out_shardings` or a restore. Raises ShardingError as `leaf_spec`.
  """
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: NamedSharding(
      mesh, leaf_spec(path_name(path), tuple(leaf.shape), mesh)
    ),
    abstract_state,
  )


def with_sharding(abstract_state: Any, mesh: Mesh) -> Any:
  """Writes the place of each array into its abstract value.

  The `jax.ShapeDtypeStruct`s with shardings are what
  `sdjax.training.checkpoint.Checkpoints.restore` takes.
  """
  return jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=place
    ),
    abstract_state,
    state_sharding(abstract_state, mesh),
  )


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the place of a batch: questions (axis 0) over `data`."""
  return NamedSharding(mesh, PartitionSpec('data'))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the place of what every device holds whole, such as a key."""
  return NamedSharding(mesh, PartitionSpec())


def shard_batch(tree: Any, mesh: Mesh) -> Any:
  """Moves a batch of host arrays with axis 0 = questions to the devices.

  With several processes, each gives the rows of its own devices (processes that
  hold the same rows of the mesh's `data` axis give the same rows). Returns
  global arrays with `batch_sharding`. Raises ShardingError if the questions
  cannot be split evenly.
  """
  place = batch_sharding(mesh)
  data = mesh.shape['data']

  def put(path, x):
    x = np.asarray(x)
    if jax.process_count() > 1:
      return jax.make_array_from_process_local_data(place, x)
    if x.ndim == 0 or x.shape[0] % data:
      raise ShardingError(
        f'batch array {path_name(path)!r} of shape {x.shape} cannot be split '
        f'over mesh.data={data}: its first axis, the questions, must be a '
        f'multiple of {data}; change the number of questions or mesh.data.'
      )
    return jax.device_put(x, place)

  return jax.tree_util.tree_map_with_path(put, tree)
