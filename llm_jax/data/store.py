"""Directories that are built once and kept: by name, whole or not at all."""

from collections.abc import Callable
import fcntl
import os
import pathlib
import shutil

import fsspec
from fsspec.implementations.local import LocalFileSystem

from llm_jax import disk
from llm_jax.config import schema
from llm_jax.data import files

_FIX = 'free some space, or set data.cache_dir to another disk'
# In a cloud bucket this object is written last: with it, the directory is complete.
_COMPLETE = 'COMPLETE'


def cached(cache_dir: str, name: str, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """The directory `name` of the cache, built if it is not there yet.

    It is built beside its final place and then renamed, so that a process killed at any
    time leaves nothing that looks complete. Processes of one machine wait for the one
    that builds.

    Args:
      cache_dir: a local directory, or a gs:// or s3:// one. ArrayRecord reads local files,
        so a cloud cache is a store that each machine copies from, into the default
        `data.cache_dir`.
      name: says everything that the content depends on, usually with a hash in it.
      build: fills the empty directory that it is given.

    Returns:
      a local directory.
    """
    fs, path = files.filesystem(cache_dir)
    if is_local(fs):
        return _cached_locally(pathlib.Path(path), name, build)
    remote = f'{path}/{name}'

    def fetch_or_build(directory: pathlib.Path) -> None:
        if fs.exists(f'{remote}/{_COMPLETE}'):
            fs.get(f'{remote}/', f'{directory}/', recursive=True)
            return
        build(directory)
        fs.put(f'{directory}/', f'{remote}/', recursive=True)
        fs.pipe_file(f'{remote}/{_COMPLETE}', b'1')

    return _cached_locally(pathlib.Path(schema.Data().cache_dir), name, fetch_or_build)


def is_local(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is this machine's own."""
    return isinstance(fs, LocalFileSystem)


def _cached_locally(root: pathlib.Path, name: str, build: Callable[[pathlib.Path], None]) -> pathlib.Path:
    final = root / name
    if final.is_dir():
        return final
    with disk.naming(root, _FIX):
        root.mkdir(parents=True, exist_ok=True)
    with open(root / f'.{name}.lock', 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # let go by the system when the process ends, however it ends
        if final.is_dir():
            return final
        partial = root / f'.{name}.partial'
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left; the lock says it is nobody's
        partial.mkdir()
        try:
            with disk.naming(final, _FIX):
                build(partial)
                os.rename(partial, final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    return final
