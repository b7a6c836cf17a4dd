"""Importing `transformers` without being told to install PyTorch."""

import contextlib
import os
from collections.abc import Iterator

_SWITCH = 'TRANSFORMERS_NO_ADVISORY_WARNINGS'


@contextlib.contextmanager
def without_advice() -> Iterator[None]:
  """Keeps `transformers` from giving advice while it is imported.

  Of it only tokenizers and configurations are used, which need no PyTorch.
  """
  before = os.environ.get(_SWITCH)
  os.environ[_SWITCH] = '1'
  try:
    yield
  finally:
    if before is None:
      del os.environ[_SWITCH]
    else:
      os.environ[_SWITCH] = before
