"""Where the built graphs are kept, and how a broken folder is dealt with.

A folder is built under a temporary name and renamed when complete, with a
manifest of its files inside. So a folder without a manifest was not finished
by this code and is built anew; a file that differs from the manifest was
damaged later, and is an error.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdjax.tasks.concept_graph.options import ConceptGraph
from sdjax.tasks.concept_graph.vocabulary import CONCEPTS, SHAPES

GENERATOR_VERSION = '1.0.0'
"""Raise it when a graph of the same settings comes out different."""

MANIFEST = 'manifest.json'
_NOT_GENERATOR = 'name rendering template reference_route cache_dir'.split()


def data_folder(config: ConceptGraph) -> Path:
  """Names the folder of a data set: `CACHE/concept_graph-VERSION-HASH`.

  It need not exist. The hash is of the settings that shape the graphs.
  """
  fields = dataclasses.asdict(config)
  for field in _NOT_GENERATOR:
    del fields[field]
  source = json.dumps([fields, CONCEPTS, SHAPES], sort_keys=True)
  digest = hashlib.sha256(source.encode()).hexdigest()[:16]
  cache = config.cache_dir or os.environ.get('SDJAX_CACHE') or '~/.cache/sdjax'
  name = f'concept_graph-{GENERATOR_VERSION}-{digest}'
  return Path(cache).expanduser().absolute() / name


def _fingerprint(path: Path) -> list[int]:
  data = path.read_bytes()
  return [len(data), zlib.crc32(data)]


def check(folder: Path) -> bool:
  """Tells whether a folder is complete: not absent, nor left unfinished.

  Raises ValueError if it was finished, and a file was damaged or lost since.
  """
  try:
    files = dict(json.loads((folder / MANIFEST).read_text()))
  except (OSError, ValueError):
    return False
  for name, expected in files.items():
    path = folder / name
    actual = _fingerprint(path) if path.exists() else None
    if actual != expected:
      what = 'is missing'
      if actual is not None:
        what = f'is damaged ({actual[0]} bytes, {expected[0]} were written)'
      raise ValueError(
        f'{path} {what}. Delete the folder {folder}; it is built again on '
        'the next start'
      )
  return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Mutes the data set library's log, and its bars where nobody looks."""
  from absl import logging as absl_logging

  before = absl_logging.get_verbosity()
  logger_before = logging.getLogger('absl').level
  absl_logging.set_verbosity(absl_logging.ERROR)
  try:
    import tensorflow_datasets as tfds

    if not sys.stderr.isatty():
      tfds.disable_progress_bar()
    # It also prints what it would download: nothing.
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    absl_logging.set_verbosity(before)
    logging.getLogger('absl').setLevel(logger_before)


def _build(config: ConceptGraph, folder: Path) -> None:
  try:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = tempfile.mkdtemp(prefix='building-', dir=folder.parent)
  except OSError as error:
    raise OSError(
      f'cannot write to the cache folder {folder.parent}: {error}. Set '
      '--config.task.cache_dir or $SDJAX_CACHE to a folder that can be written'
    ) from error
  try:
    from sdjax.tasks.concept_graph import builder

    built = builder.build(config, Path(temporary))
    files = sorted(path for path in built.iterdir() if path.is_file())
    manifest = {path.name: _fingerprint(path) for path in files}
    (built / MANIFEST).write_text(json.dumps(manifest, indent=1))
    if folder.exists() and not check(folder):
      # Never finished: out of the way. Another process may do the same.
      with contextlib.suppress(FileNotFoundError):
        folder.rename(Path(temporary) / 'unfinished')
    try:
      built.rename(folder)
    except OSError:
      # Another process was faster; its graphs are the same.
      if not check(folder):
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def open_source(config: ConceptGraph, split: str) -> Any:
  """Opens a split, building the data set first where it is not there.

  Returns a random-access source of examples. Raises ValueError if a file of the
  data set was damaged or lost, OSError if the cache folder cannot be written.
  """
  folder = data_folder(config)
  with _quiet():
    from sdjax.tasks.concept_graph import builder

    if not check(folder):
      _build(config, folder)
    return builder.open_split(folder, split)
