"""Entries of the compile cache that are cut off: removed, and written again; what compiling leaves is given back."""

import ctypes
import os
import pathlib
import re
import subprocess
import sys

import pytest

from llm_jax.train import compile_cache

_RUN = """
import sys, warnings
import jax, jax.numpy as jnp
from llm_jax.train.compile_cache import keep_compiled
warnings.simplefilter('error')
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
print(len(keep_compiled(sys.argv[1])))
jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.ones((8, 8)))
"""


def run(directory):
    """Compiles two programs in a process of its own; returns how many entries it removed."""
    env = os.environ | {'JAX_COMPILATION_CACHE_DIR': ''}
    done = subprocess.run([sys.executable, '-c', _RUN, directory], capture_output=True, text=True, check=True, env=env)
    return int(done.stdout)


def test_cut_off_entries_are_replaced(tmp_path):
    assert run(tmp_path) == 0
    sizes = {file.name: file.stat().st_size for file in tmp_path.glob('*-cache')}
    for name, left in zip(sorted(sizes)[:2], (0, 300), strict=True):
        os.truncate(tmp_path / name, left)
    assert run(tmp_path) == 2
    assert {file.name: file.stat().st_size for file in tmp_path.glob('*-cache')} == pytest.approx(sizes, rel=0.05)
    times = {file: file.stat().st_mtime_ns for file in tmp_path.glob('*-cache')}
    assert run(tmp_path) == 0
    assert times == {file: file.stat().st_mtime_ns for file in tmp_path.glob('*-cache')}  # read, not written


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'malloc_trim'), reason='needs the C library of GNU')
def test_what_lies_free_between_what_lives_goes_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    resident = lambda: int(re.search(r'VmRSS:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]) >> 10
    blocks = [libc.malloc(60_000) for _ in range(4000)]
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    full = resident()
    for block in blocks[::2]:
        libc.free(block)
    compile_cache.release_freed()
    assert full - resident() > 80  # MiB, of 114
    for block in blocks[1::2]:
        libc.free(block)
