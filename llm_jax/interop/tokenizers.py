"""Tokenizers on their way between directories: the one place where weights meet text."""

import os
from typing import Any

from etils import epath

from llm_jax import tokenizer as tokenizer_lib

# Files that `tokenizer.load` reads.
FILES = (tokenizer_lib.FILE_NAME,)


def find(path: str | os.PathLike) -> Any | None:
    """The tokenizer of a file or directory; None where a directory has none: weights need none.

    Raises:
      ConfigError: a tokenizer that cannot be used.
    """
    path = epath.Path(path)
    if path.is_dir() and not any((path / name).exists() for name in FILES):
        return None
    return tokenizer_lib.load(path)


def carry(source: str | os.PathLike, target: str | os.PathLike) -> Any | None:
    """Copies the tokenizer of one directory into another, and returns what `find` finds."""
    tokenizer = find(source)
    if tokenizer is not None:
        tokenizer.save(target)
    return tokenizer
