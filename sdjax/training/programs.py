"""Steps that are compiled ahead of the loop, for every shape they may meet.

Nothing runs on a device for it: a step is lowered for the shapes and places of
its arguments, and compiled while the next one is being lowered.
"""

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import jax

from sdjax.models.sharding import batch_sharding

# XLA compiles without Python's lock; tracing and lowering need it.
_COMPILERS = concurrent.futures.ThreadPoolExecutor(
  max_workers=min(4, os.cpu_count() or 1), thread_name_prefix='compile'
)

_begun: list[concurrent.futures.Future[Any]] = []


def finish_compiling() -> None:
  """Blocks until everything that was begun is compiled."""
  while _begun:
    concurrent.futures.wait(_begun[:1])
    _begun.pop(0).result()


def stop_compiling() -> None:
  """Drops what no thread has taken up, for which the process would wait."""
  while _begun:
    _begun.pop().cancel()


class ShapeError(ValueError):
  """A step was called with arguments of shapes it was not compiled for."""


class Program:
  """A step, a pure function, compiled for some shapes of its arguments.

  Once it is compiled for one, it takes no shape that it is not compiled for:
  what would compile in the middle of a run is an error, which names the step.
  Before, it is what `jax.jit` makes of it.
  """

  def __init__(self, name: str, function: Callable[..., Any], **options: Any):
    """Compiles nothing yet; `options` are those of `jax.jit`."""
    self._name, self._function = name, jax.jit(function, **options)
    self._compiled: dict[Any, concurrent.futures.Future[Any]] = {}
    self._results: dict[Any, Any] = {}

  def compile(self, *args: Any) -> Any:
    """Lowers the step now, and compiles it in another thread.

    In place of arrays it takes `jax.ShapeDtypeStruct`s with shardings too, and
    returns those of the results, without.
    """
    key = _shapes(args)
    if key not in self._compiled:
      lowered = self._function.lower(*args)
      self._results[key] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), lowered.out_info
      )
      self._compiled[key] = _COMPILERS.submit(lowered.compile)
      _begun.append(self._compiled[key])
    return self._results[key]

  def __call__(self, *args: Any) -> Any:
    """Runs the step.

    Raises:
      ShapeError: `compile` was called, but for none of these shapes.
    """
    if not self._compiled:
      return self._function(*args)
    key = _shapes(args)
    if key not in self._compiled:
      here = sorted(set(key) - set().union(*self._compiled))
      raise ShapeError(
        f'the {self._name} step was not compiled for arguments of the shapes '
        f'{here}; it was for {len(self._compiled)} others. Name all widths in '
        'rollout.context_buckets, and all numbers of contexts in the '
        "method's `num_contexts`."
      )
    return self._compiled[key].result()(*args)


def _shapes(args: Any) -> tuple[tuple[tuple[int, ...], str], ...]:
  return tuple((x.shape, str(x.dtype)) for x in jax.tree.leaves(args))


def batch_shapes(tree: Any, mesh: Any) -> Any:
  """Describes a batch, axis 0 = questions, as `shard_batch` would place it."""
  place = batch_sharding(mesh)
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree
  )
