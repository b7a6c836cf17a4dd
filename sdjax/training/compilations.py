"""What XLA compiles: counted, and kept for the next run on this machine."""

import hashlib
import os
import platform
import threading
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
from jax.experimental.compilation_cache import compilation_cache

SHORTEST = 0.05
"""Seconds: what compiles faster is compiled anew, not kept."""


class Compilations:
  """Counts what XLA compiles in this process, by listening to JAX."""

  def __init__(self):
    self.count = 0
    self.seconds = 0.0
    self._lock = threading.Lock()  # several threads compile
    jax.monitoring.register_event_duration_secs_listener(self._hear)

  def _hear(self, event: str, duration_secs: float, **_: Any) -> None:
    if event.endswith('backend_compile_duration'):
      with self._lock:
        self.count += 1
        self.seconds += duration_secs


def machine() -> str:
  """Names what compiled code depends on; code of another name is never run.

  The platform and a digest of the releases of JAX, the devices, and the
  processor with its instruction sets.
  """
  devices = jax.devices()
  parts = [
    jax.__version__,
    jaxlib.version.__version__,
    devices[0].client.platform_version,
    *sorted({device.device_kind for device in devices}),
    platform.machine(),
    *_processor(),
  ]
  digest = hashlib.sha256('\n'.join(parts).encode()).hexdigest()[:16]
  return f'{devices[0].platform}-{digest}'


def _processor() -> list[str]:
  """Lines of the first processor's description that never change."""
  try:
    lines = Path('/proc/cpuinfo').read_text().split('\n\n')[0].splitlines()
  except OSError:
    return [platform.processor()]
  # x86 has model and flags, ARM the others.
  names = 'vendor', 'model', 'flags', 'Features', 'CPU'
  return [line for line in lines if line.startswith(names)]


def keep_compilations(keep: bool = True) -> None:
  """Has JAX read compiled code from the cache folder, and write it there.

  The folder is `compilations/` in `$SDJAX_CACHE` or `~/.cache/sdjax`. One that
  was chosen already, say by JAX_COMPILATION_CACHE_DIR, is left as it is. With
  `keep` False nothing is done.
  """
  if not keep or jax.config.values['jax_compilation_cache_dir']:
    return
  cache = os.environ.get('SDJAX_CACHE') or '~/.cache/sdjax'
  folder = Path(cache).expanduser() / 'compilations' / machine()
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError:
    return  # Only slower: a run does not need it.
  jax.config.update('jax_compilation_cache_dir', str(folder))
  if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
    jax.config.update('jax_persistent_cache_min_compile_time_secs', SHORTEST)
  # What was compiled before made JAX decide that there is none.
  compilation_cache.reset_cache()
