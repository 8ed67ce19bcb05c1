"""The running Python's standard library, as a corpus of code that every machine has."""

import hashlib
import io
import os
import pathlib
import platform
import re
import sysconfig
import tokenize

# Directories of tests and of programs that are no library, and files that a script wrote.
_NOT_LIBRARY = {
    'test',
    'tests',
    'idle_test',
    'idlelib',
    'turtledemo',
    'site-packages',
    'dist-packages',
    'pydoc_data',
}
_GENERATED = re.compile(
    r'_sysconfigdata.*|_opcode_metadata\.py|html/entities\.py|encodings/(cp|iso8859|mac|koi8|hp|kz|pt|tis)[^/]*\.py'
)


def library() -> tuple[pathlib.Path, list[str]]:
    """(directory, paths of the library's modules within it, sorted)."""
    root = pathlib.Path(sysconfig.get_path('stdlib'))
    names = []
    for directory, subdirectories, entries in os.walk(root):
        subdirectories[:] = [d for d in subdirectories if d not in _NOT_LIBRARY]
        inside = pathlib.Path(directory).relative_to(root)
        names += [(inside / entry).as_posix() for entry in entries if entry.endswith('.py')]
    return root, sorted(name for name in names if not _GENERATED.fullmatch(name))


def text(path: pathlib.Path) -> str:
    """A module's source, in the encoding that it declares."""
    data = path.read_bytes()
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return data.decode(encoding)


def fingerprint(root: pathlib.Path, names: list[str]) -> str:
    """Hash of the sources: by content, so that the same Python elsewhere gives the same one."""
    contents = (hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names)
    return hashlib.sha256('\0'.join([platform.python_version(), *names, *contents]).encode()).hexdigest()
