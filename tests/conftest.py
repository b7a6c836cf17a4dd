"""What every test needs before jax starts: 8 devices and warm compiles."""

import os
import tempfile
from pathlib import Path

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)

import jax  # noqa: E402

jax.config.update(
  'jax_compilation_cache_dir',
  str(Path(tempfile.gettempdir()) / 'sdjax-compilations'),
)
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.2)
