"""Tokenizers on their way between directories: the one place where weights meet text."""

import os

from llm_jax import tokenizer as tokenizer_lib
from llm_jax.schema import ConfigError


def find(directory: str | os.PathLike) -> object | None:
    """The tokenizer of a directory, or None where there is none that can be read: weights need none."""
    try:
        return tokenizer_lib.load(directory)
    except ConfigError:
        return None


def carry(source: str | os.PathLike, target: str | os.PathLike) -> object | None:
    """Copies the tokenizer of one directory into another; what `find` says."""
    tokenizer = find(source)
    if tokenizer is not None:
        tokenizer.save(target)
    return tokenizer
