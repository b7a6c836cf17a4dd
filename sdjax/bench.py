"""Measurements that depend on the machine: `python -m sdjax.bench load`.

`load` makes a synthetic checkpoint, loads it in fresh processes and reports
the most memory each of them held beyond what it held before, as a multiple
of the model's bytes.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy

from sdjax.config import schema as config_lib
from sdjax.models import hf
from sdjax.models import load as language_model
from sdjax.models.families import FAMILIES, new_config
from sdjax.models.sharding import make_mesh
from sdjax.models.transformer import TransformerConfig
from sdjax.models.weights import plan

LAYER_PARAMS = 2 * 1024 * (1024 + 512) + 3 * 1024 * 4096


def write_checkpoint(folder: Path, gigabytes: float, shard: float) -> int:
  """Writes a sharded Qwen3-like checkpoint of random float32 weights.

  Into an empty folder, of about so many gigabytes, in files of about `shard`
  gigabytes. Returned are the bytes of the weights.
  """
  cfg = TransformerConfig(
    vocab_size=32768,
    width=1024,
    num_layers=max(1, round(gigabytes * 1e9 / 4 / LAYER_PARAMS)),
    num_heads=16,
    num_kv_heads=8,
    head_dim=64,
    ffn_width=4096,
  )
  rng = np.random.default_rng(0)
  total, files, part, size = 0, 0, {}, 0
  where: dict[str, str] = {}

  def flush():
    nonlocal files, part, size
    name = f'part-{files}.safetensors'
    safetensors.numpy.save_file(part, folder / name)
    where.update(dict.fromkeys(part, name))
    files, part, size = files + 1, {}, 0

  for _, names, transposed, leaf in plan(cfg, FAMILIES['qwen3']):
    shape = leaf.shape if len(names) == 1 else leaf.shape[1:]
    for name in names:
      tensor = rng.standard_normal(
        shape[::-1] if transposed else shape, np.float32
      )
      part[name] = tensor
      size, total = size + tensor.nbytes, total + tensor.nbytes
      if size > shard * 1e9:
        flush()
  flush()
  (folder / hf.INDEX).write_text(json.dumps({'weight_map': where}))
  (folder / hf.CONFIG).write_text(json.dumps(new_config(cfg)))
  return total


def peak_bytes() -> int:
  """The most memory this process ever held, in bytes (Linux)."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_child(folder: str, rank: int, processes: int, port: int) -> None:
  """Loads a checkpoint in this process and prints what it took."""
  if processes > 1:
    jax.distributed.initialize(f'localhost:{port}', processes, rank)
  mesh = make_mesh(config_lib.Mesh(data=processes, model=1))
  jax.block_until_ready(jax.numpy.zeros(1))
  before = peak_bytes()
  model = language_model.load(folder, mesh=mesh)
  jax.block_until_ready(model.params)
  held = sum(
    shard.data.nbytes
    for leaf in jax.tree.leaves(model.params)
    for shard in leaf.addressable_shards
  )
  print(json.dumps({'peak': peak_bytes() - before, 'held': held}))


def bench_load(gigabytes: float, processes: int) -> None:
  """Prints the memory that loading takes in each of some processes."""
  with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
    total = write_checkpoint(Path(folder), gigabytes, gigabytes / 5)
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
    probe.close()
    command = [sys.executable, '-m', 'sdjax.bench', 'load-child', folder]
    children = [
      subprocess.Popen(
        [*command, str(rank), str(processes), str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ''},
      )
      for rank in range(processes)
    ]
    print(f'model: {total / 1e9:.2f} GB in float32, processes: {processes}')
    for rank, child in enumerate(children):
      out, _ = child.communicate()
      if child.returncode:
        raise RuntimeError(f'process {rank} ended with {child.returncode}')
      found = json.loads(out.splitlines()[-1])
      print(
        f'process {rank}: holds {found["held"] / total:.3f} of the model, '
        f'peak while loading {found["peak"] / total:.3f}'
      )


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the command line."""
  parser = argparse.ArgumentParser(prog='python -m sdjax.bench')
  benches = parser.add_subparsers(dest='bench', required=True)
  load = benches.add_parser('load', help='memory that loading takes')
  load.add_argument('--gigabytes', type=float, default=2.0)
  load.add_argument('--processes', type=int, default=1)
  child = benches.add_parser('load-child')
  child.add_argument('folder')
  for name in ('rank', 'processes', 'port'):
    child.add_argument(name, type=int)
  options = parser.parse_args(argv)
  if options.bench == 'load':
    bench_load(options.gigabytes, options.processes)
  else:
    load_child(options.folder, options.rank, options.processes, options.port)


if __name__ == '__main__':
  main()
