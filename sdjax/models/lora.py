"""Low-rank adapters beside a model's frozen matrices.

The trained tree holds two thin factors for every matrix that is adapted;
`adapt` puts them beside it, where the model's products find them. They are not
added to the matrix while training: most of a small adapter is lost in a
bfloat16 one. `merge` adds them, in float32, for who needs a single matrix. An
adapter whose second factor is zero is the model itself: the frozen teacher of a
run is its first adapter.
"""

import re
from typing import Any

import jax
import jax.numpy as jnp
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
  matrices = _matrices(params)
  chosen = {p: x for p, x in matrices.items() if re.search(targets, p)}
  if not chosen:
    raise ValueError(
      f'model.lora.targets={targets!r} matches none of the matrices '
      f'{", ".join(sorted(matrices))}.'
    )
  adapter: Params = {}
  for i, (path, x) in enumerate(sorted(chosen.items())):
    layers, fan_in, fan_out = x.shape
    bound = fan_in**-0.5
    node = adapter
    for name in path.split('/'):
      node = node.setdefault(name, {})
    node['a'] = jax.random.uniform(
      jax.random.fold_in(key, i),
      (layers, fan_in, rank),
      minval=-bound,
      maxval=bound,
    )
    node['b'] = jnp.zeros((layers, rank, fan_out))
  return adapter


def adapt(params: Params, adapter: Params, scale: float) -> Params:
  """Puts an adapter beside the matrices it adapts, as `apply_fn` asks.

  Returns `params` with, beside each adapted `kernel`, its factors `lora_a` and,
  times the scale (alpha / rank), `lora_b`.
  """
  out = {}
  for name, value in params.items():
    beside = adapter.get(name)
    if beside is None:
      out[name] = value
    elif beside.keys() == {'a', 'b'}:
      out |= {name: value, 'lora_a': beside['a'], 'lora_b': scale * beside['b']}
    else:
      out[name] = adapt(value, beside, scale)
  return out


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
  for key, leaf in jax.tree_util.tree_leaves_with_path(adapter):
    path = jax.tree_util.keystr(key, simple=True, separator='/')
    matrix, _, factor = path.rpartition('/')
    found.setdefault(matrix, {})[factor] = leaf
  return found


def _matrices(params: Params) -> dict[str, Any]:
  paths = {
    jax.tree_util.keystr(key, simple=True, separator='/'): leaf
    for key, leaf in jax.tree_util.tree_leaves_with_path(params)
  }
  return {
    path: leaf
    for path, leaf in paths.items()
    if path.startswith('layers/') and path.endswith('/kernel')
  }
