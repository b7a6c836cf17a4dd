"""What every test needs before jax starts: 8 devices and quick compiles."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

DEVICES = '--xla_force_host_platform_device_count=8'

# A tiny model compiles eight times faster with these on a CPU.
QUICK = (
  '--xla_backend_optimization_level=0',
  '--xla_llvm_disable_expensive_passes=true',
  '--xla_cpu_use_fusion_emitters=false',
  '--xla_cpu_parallel_codegen_split_count=1',
)


def known(flags: tuple[str, ...]) -> tuple[str, ...]:
  """Those that this release of XLA has: they come and go.

  An unknown one ends the process, so another one tries them.
  """
  tried = subprocess.run(
    [sys.executable, '-c', 'import jax; jax.devices("cpu")'],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': ' '.join(flags)},
    capture_output=True,
    text=True,
  )
  if not tried.returncode:
    return flags
  left = tuple(flag for flag in flags if flag not in tried.stderr)
  assert len(left) < len(flags), tried.stderr
  return known(left)


# In the environment, so that the processes that tests start share it, and
# those that run the tests do not ask again.
given = os.environ.get('XLA_FLAGS', '')
if DEVICES not in given:
  os.environ['XLA_FLAGS'] = ' '.join([given, DEVICES, *known(QUICK)])
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(Path(tempfile.gettempdir()) / 'sdjax-compilations'),
)

import jax  # noqa: E402

# What costs more to compile than to read; `launch/mutations.py`, which runs
# the same tests again and again, keeps everything.
LEAST = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'
jax.config.update(
  'jax_persistent_cache_min_compile_time_secs',
  float(os.environ.get(LEAST, 0.2)),
)

# From here on a wrong shape is an error, wherever an annotation names one.
import jaxtyping  # noqa: E402
import shape_check  # noqa: E402

jaxtyping.install_import_hook(
  [f'sdjax.{room}' for room in shape_check.ROOMS], 'shape_check.checked'
)
