"""TFDS data sets, by name or by directory, without TensorFlow."""

import json
import re
from typing import Any

from llm_jax.config.schema import ConfigError
from llm_jax.data import files


def open_builder(where: str, field: str) -> tuple[Any, str]:
    """A TFDS builder whose data are there, downloaded if need be.

    Args:
      where: 'NAME', 'DIR', or one of them with ':SPLIT' at the end.
      field: what errors call it.

    Returns:
      (builder, SPLIT or '').

    Raises:
      ConfigError: no such data set.
    """
    import tensorflow_datasets as tfds

    match = re.fullmatch(r'(?P<name>.+?)(:(?P<split>[A-Za-z_]\w*(\[[^\]]*\])?))?', where)
    name, split = match['name'], match['split'] or ''
    try:
        if '/' in name and files.filesystem(name)[0].isdir(name):
            builder = tfds.builder_from_directory(name)
        else:
            builder = tfds.builder(name, file_format='array_record')
            builder.download_and_prepare(file_format='array_record')
    except (tfds.core.DatasetNotFoundError, OSError, ValueError) as error:
        raise ConfigError(f'{field} cannot be opened: {error}') from error
    return builder, split


def fingerprint(builder: Any) -> str:
    """What changes when the data set does: its version, and what its splits hold."""
    splits = {n: [info.num_examples, info.num_bytes] for n, info in sorted(builder.info.splits.items())}
    return json.dumps([str(builder.info.version), splits])
