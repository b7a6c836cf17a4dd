"""What jaxtyping's import hook checks the shapes in `sdjax` with.

It is beartype, but for two things. Annotations that name no shape are left to
pyright: tests give fakes, and JAX gives tracers for numbers. And JAX rebuilds
the structs of a tree with whatever a map, a scan or a sharding puts in the
place of their arrays; the fields are checked when somebody else makes one.
"""

import sys
import typing
from collections.abc import Callable
from types import FrameType
from typing import Any

import beartype
from jaxtyping import AbstractArray

ROOMS = ('types', 'objectives', 'models', 'steps', 'forecast')
"""The parts of `sdjax` whose annotations name shapes."""


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
  """Returns a function that refuses arrays of other shapes than it names."""
  shapes = {
    name: annotation
    for name, annotation in function.__annotations__.items()
    if _names_shape(annotation)
  }
  if not shapes:
    return function
  function.__annotations__ = shapes
  check = beartype.beartype(function)
  if function.__name__ != '__init__':
    return check

  def init(*args: Any, **kwargs: Any) -> None:
    if not _is_jax(_caller(sys._getframe(1))):
      check(*args, **kwargs)

  return init


def _names_shape(annotation: Any) -> bool:
  if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
    return True
  return any(map(_names_shape, typing.get_args(annotation)))


def _caller(frame: FrameType) -> FrameType:
  """Returns the frame that asked for a struct, behind those of the hook."""
  while frame.f_back and _module(frame).startswith('jaxtyping.'):
    frame = frame.f_back
  return frame


def _is_jax(frame: FrameType) -> bool:
  return _module(frame).partition('.')[0] == 'jax'


def _module(frame: FrameType) -> str:
  # Code that is run from a text has no name.
  return frame.f_globals.get('__name__', '')
