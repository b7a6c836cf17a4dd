"""The graphs as a TFDS data set. Importing this module takes seconds.

No TensorFlow: records are written and read as `array_record`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from sdjax.tasks.concept_graph.graph import SHAPE, SPLITS, Graph, graph_at
from sdjax.tasks.concept_graph.options import ConceptGraph
from sdjax.tasks.concept_graph.store import GENERATOR_VERSION


def to_example(index: int, graph: Graph) -> dict[str, Any]:
  """Flattens a graph into the features of the data set."""
  chain_of = [-1] * len(graph.names)
  for number, chain in enumerate(graph.chains):
    for node in chain[:-1]:
      chain_of[node] = number
  return {
    'id': index,
    'names': ' '.join(graph.names),
    'kinds': ' '.join(graph.kinds),
    'chain_of': chain_of,
    'edges': [node for edge in graph.edges for node in edge],
    'target': graph.target,
  }


def from_example(example: dict[str, Any]) -> Graph:
  """Undoes `to_example`."""
  names = tuple(example['names'].decode().split())
  kinds = tuple(example['kinds'].decode().split())
  edges = [int(node) for node in example['edges']]
  chains: list[list[int]] = []
  end = 0
  for node, number in enumerate(example['chain_of']):
    if kinds[node] == SHAPE:
      end = node
    if number == len(chains):
      chains.append([end])
    if number >= 0:
      chains[number].insert(-1, node)
  return Graph(
    names=names,
    kinds=kinds,
    edges=tuple(zip(edges[::2], edges[1::2], strict=True)),
    chains=tuple(map(tuple, chains)),
    target=example['target'].decode(),
  )


class SdjaxConceptGraph(tfds.core.GeneratorBasedBuilder):
  """Writes the graphs of all splits; settings come from the config."""

  VERSION = tfds.core.Version(GENERATOR_VERSION)
  # Nothing is downloaded. Left alone, the base class looks for checksums in
  # the top package's folder, which fails where that has no single folder.
  url_infos = None

  def __init__(self, *, task_config: ConceptGraph, **kwargs: Any):
    self._task_config = task_config
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    integers = tfds.features.Tensor(shape=(None,), dtype=np.int32)
    return tfds.core.DatasetInfo(
      builder=self,
      description='Stars of concept chains, drawn by a seeded generator.',
      features=tfds.features.FeaturesDict(
        {
          'id': tfds.features.Scalar(np.int64),
          'names': tfds.features.Text(),
          'kinds': tfds.features.Text(),
          'chain_of': integers,
          'edges': integers,
          'target': tfds.features.Text(),
        }
      ),
      # Row i is graph i, so reading by index needs no table of positions.
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager  # Nothing is downloaded.
    return {split: self._generate_examples(split) for split in SPLITS}

  def _generate_examples(self, split: str) -> Iterator[tuple[int, Any]]:
    config = self._task_config
    size = config.train_size if split == 'train' else config.eval_size
    for index in range(size):
      yield index, to_example(index, graph_at(config, split, index))


def build(config: ConceptGraph, root: Path) -> Path:
  """Writes the data set into an empty folder, and returns where below it."""
  builder = SdjaxConceptGraph(
    task_config=config, data_dir=root, file_format='array_record'
  )
  builder.download_and_prepare(
    download_dir=root / 'downloads',
    download_config=tfds.download.DownloadConfig(try_download_gcs=False),
  )
  return Path(builder.data_dir)


def open_split(folder: Path, split: str) -> Any:
  """Opens one split: a random-access source, row i being graph i."""
  builder: Any = tfds.builder_from_directory(folder)
  return builder.as_data_source(split=split)
