"""The directory of compiled programs that runs share, and the memory that compiling leaves behind."""

import ctypes
import os
import pathlib
import time

import jax
import zstandard

# Its time of change says up to when entries were found whole.
_CHECKED = '.checked'
# A file system's clock may be behind.
_TOLERANCE = 1_000_000_000


def keep_compiled(directory: str) -> list[str]:
    """Keeps compiled programs in `directory` between runs, unless JAX was told of another; '' keeps none.

    JAX writes an entry in place, so that one of a process that was killed, or ran out of disk, is cut off; it
    reads none of these, and replaces none. They are removed here, each entry being looked at once. Objects in a bucket
    are never cut off.

    Returns:
      the names of the entries that were removed.
    """
    if directory and not jax.config.jax_compilation_cache_dir:
        jax.config.update('jax_compilation_cache_dir', directory if '://' in directory else os.path.abspath(directory))
    used = jax.config.jax_compilation_cache_dir
    return _remove_cut_off(pathlib.Path(used)) if used and '://' not in used else []


def _remove_cut_off(directory: pathlib.Path) -> list[str]:
    mark = directory / _CHECKED
    since, now = mark.stat().st_mtime_ns if mark.exists() else 0, time.time_ns()
    entries = [file for file in directory.glob('*-cache') if file.stat().st_mtime_ns >= since]
    if not entries:
        return []
    cut_off = [file for file in entries if not _is_whole(file)]
    for file in cut_off:
        file.unlink(missing_ok=True)  # another process may be as far
    mark.touch()
    os.utime(mark, ns=(now, now - _TOLERANCE))  # what was written meanwhile is looked at next time
    return sorted(file.name for file in cut_off)


def _is_whole(file: pathlib.Path) -> bool:
    try:
        zstandard.ZstdDecompressor().decompress(file.read_bytes())
    except zstandard.ZstdError:
        return False
    except FileNotFoundError:  # removed by another process
        return True
    return True


def release_freed() -> None:
    """Gives memory that the compiler has freed back to the system, where the C library is GNU's.

    It is in pieces between what stays, which malloc keeps for itself; the steps that follow need other sizes.
    """
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):
        trim(0)
