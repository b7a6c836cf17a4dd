"""Importing from `transformers` without being told to install PyTorch."""

import importlib
import os
from typing import Any

_SWITCH = 'TRANSFORMERS_NO_ADVISORY_WARNINGS'


def from_transformers(name: str) -> Any:
  """Imports something, and keeps the package from giving advice meanwhile.

  Only tokenizers and configurations are used of it, which need no PyTorch. Its
  warnings, and its advice afterwards, come through.
  """
  before = os.environ.get(_SWITCH)
  os.environ[_SWITCH] = '1'
  try:
    return getattr(importlib.import_module('transformers'), name)
  finally:
    if before is None:
      del os.environ[_SWITCH]
    else:
      os.environ[_SWITCH] = before
