"""What every test needs before jax starts: 8 devices and warm compiles."""

import os
import tempfile
from pathlib import Path

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

# In the environment, so that the processes that tests start share it.
os.environ.setdefault(
  'JAX_COMPILATION_CACHE_DIR',
  str(Path(tempfile.gettempdir()) / 'sdjax-compilations'),
)

import jax  # noqa: E402

jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
