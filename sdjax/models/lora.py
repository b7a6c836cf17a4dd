"""Low-rank adapters beside a model's frozen matrices.

For every matrix that is adapted the trained tree holds two thin factors, which
`adapt` puts beside it, where the model's products find them. Added to the
matrix while training, most of a small adapter would be lost in bfloat16;
`merge` adds them, in float32, for who needs a single matrix. With a second
factor of zero the model is itself: a run's frozen teacher is its first adapter.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Key

from sdjax.types import Params


def init_adapter(
  params: Params, rank: int, targets: str, key: Key[jax.Array, '']
) -> Params:
  """Makes an adapter that changes nothing yet.

  `targets` is a regex searched in the paths of the layers' matrices, such as
  `layers/attn/q/kernel`; of `params` only the shapes are read. For each matrix
  [L, in, out] that matches, the float32 tree has `a` [L, in, rank], uniform in
  +-in^-1/2, and `b` [L, rank, out], zero.

  Raises ValueError if nothing matches, with the paths there are.

  Source: arXiv 2106.09685; initial values as in the package `peft`.
  """
  matrices: dict[str, Any] = {
    path: leaf
    for path, leaf in flatten_dict(params, sep='/').items()
    if path.startswith('layers/') and path.endswith('/kernel')
  }
  chosen = [path for path in sorted(matrices) if re.search(targets, path)]
  if not chosen:
    raise ValueError(
      f'model.lora.targets={targets!r} matches none of the matrices '
      f'{", ".join(sorted(matrices))}.'
    )
  adapter: Params = {}
  for i, path in enumerate(chosen):
    layers, fan_in, fan_out = matrices[path].shape
    bound = fan_in**-0.5
    adapter[f'{path}/a'] = jax.random.uniform(
      jax.random.fold_in(key, i),
      (layers, fan_in, rank),
      minval=-bound,
      maxval=bound,
    )
    adapter[f'{path}/b'] = jnp.zeros((layers, rank, fan_out))
  return unflatten_dict(adapter, sep='/')


def adapt(params: Params, adapter: Params, scale: float) -> Params:
  """Puts an adapter beside the matrices it adapts, as `apply_fn` asks.

  Returns `params` with, beside each adapted `kernel`, its factors `lora_a` and,
  times the scale (alpha / rank), `lora_b`.
  """
  adapted = flatten_dict(params, sep='/')
  for path, factor in factors(adapter).items():
    beside = path.removesuffix('kernel')
    adapted[f'{beside}lora_a'] = factor['a']
    adapted[f'{beside}lora_b'] = scale * factor['b']
  return unflatten_dict(adapted, sep='/')


def merge(params: Params, adapter: Params, scale: float) -> Params:
  """Adds scale * a @ b to every adapted matrix; scale is alpha / rank.

  The adapted matrices come in float32, whatever the others are.
  """
  if adapter.keys() == {'a', 'b'}:
    return params.astype(jnp.float32) + scale * (adapter['a'] @ adapter['b'])
  return {
    name: merge(value, adapter[name], scale) if name in adapter else value
    for name, value in params.items()
  }


def factors(adapter: Params) -> dict[str, dict[str, Any]]:
  """Lists an adapter's factors by the path of the matrix they adapt."""
  found: dict[str, dict[str, Any]] = {}
  for path, leaf in flatten_dict(adapter, sep='/').items():
    matrix, _, factor = path.rpartition('/')
    found.setdefault(matrix, {})[factor] = leaf
  return found
