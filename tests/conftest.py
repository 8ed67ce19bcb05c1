"""Eight devices on every machine, quick compiles, and fixtures that several test files share."""

import os
import pathlib
import tempfile

import pytest

# Before anything imports jax.
os.environ['JAX_PLATFORMS'] = 'cpu'
# The programs here are tiny: nearly all of their time is LLVM's, so it is told not to optimise.
_FLAGS = '--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0'
os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {_FLAGS}'.strip()
# Compiled programs are kept between runs.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(pathlib.Path(tempfile.gettempdir()) / 'llm_jax_test_cache'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.2')


@pytest.fixture(scope='session')
def shared_data() -> pathlib.Path:
    """Directory of real test data beside the repository; without it the test is skipped."""
    beside = pathlib.Path(__file__).resolve().parents[2] / 'shared' / 'data'
    path = pathlib.Path(os.environ.get('LLM_JAX_SHARED_DATA', beside))
    if not path.is_dir():
        pytest.skip(f'there is no real test data at {path}')
    return path
