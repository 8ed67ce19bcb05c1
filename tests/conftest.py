"""Eight devices on every machine, quick compiles, and fixtures that several test files share."""

from collections.abc import Callable, Iterator
import contextlib
import os
import pathlib
import tempfile
import time
import types

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


@contextlib.contextmanager
def _tpu_compiler() -> Iterator[None]:
    if not os.path.isfile(os.environ.get('LLM_JAX_LIBTPU', '')):
        pytest.skip('no TPU compiler: LLM_JAX_LIBTPU names no file (./tools/run test fetches it)')
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    from llm_jax.plan import topology

    # What is compiled for chips that are not here cannot be loaded again from the cache of compiled programs.
    cached = jax.config.jax_enable_compilation_cache
    jax.config.update('jax_enable_compilation_cache', False)
    compilation_cache.reset_cache()  # which remembers whether it is used
    with topology.compiler():
        yield
    jax.config.update('jax_enable_compilation_cache', cached)
    compilation_cache.reset_cache()


@pytest.fixture(scope='module')
def tpu_compiler() -> Iterator[None]:
    """Within a module, `plan.topology.tpu_devices` gives devices to compile for; skips without the compiler."""
    with _tpu_compiler():
        yield


@pytest.fixture
def tpu_devices() -> Iterator[Callable[..., list]]:
    """`tpu_devices('v5e:2x4', 2)`: devices to compile for, of one slice or several; skips without the compiler."""
    from llm_jax.plan import topology

    with _tpu_compiler():
        yield lambda name, slices=1: topology.tpu_devices(topology.parse_tpu(name, slices))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in of the Hugging Face Hub, empty; its address is HF_ENDPOINT, and the cache is new. Nothing waits."""
    import hub_server
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub_cache'))
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_HUB_OFFLINE'):
        monkeypatch.delenv(name, raising=False)
    for module in (_http, file_download):
        monkeypatch.setattr(module, 'time', types.SimpleNamespace(sleep=lambda seconds: None, time=time.time))
    stand_in = hub_server.Hub({})
    with hub_server.serve(stand_in) as address:
        monkeypatch.setenv('HF_ENDPOINT', address)
        yield stand_in
