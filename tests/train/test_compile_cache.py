"""Entries of the compile cache that are cut off: removed, and written again."""

import os
import subprocess
import sys

import pytest

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
