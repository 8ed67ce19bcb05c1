"""Eight devices on every machine, and quick compiles: set before anything imports jax."""

import os
import pathlib
import tempfile

os.environ['JAX_PLATFORMS'] = 'cpu'
# The programs here are tiny: nearly all of their time is LLVM's, so it is told not to optimise.
_FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAGS}'.strip()
# Compiled programs are kept between runs.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(pathlib.Path(tempfile.gettempdir()) / 'llm_jax_test_cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')
