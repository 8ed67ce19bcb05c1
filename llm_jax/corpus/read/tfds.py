"""TFDS data sets by name or directory, by ranges of their records, without TensorFlow."""

from collections.abc import Iterator
import functools
import json
import re
from typing import Any

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.read import rows
from llm_jax.corpus.read.unit import Input, Record, Source, numbered, ranges
from llm_jax.data import files


def inputs(name: str, source: Source) -> list[Input]:
    """Lists the units of the 'train' split of a data set, or of the split at the end of its path.

    Raises:
      ConfigError: no such data set, split, or text field.
    """
    builder, split = open_builder(source.path.removeprefix('tfds:'), f'sources.{name}.path = {source.path!r}')
    return inputs_of_split(f'sources.{name}', source, builder, split or 'train', name)


def inputs_of_split(field: str, source: Source, builder: Any, split: str, name: str = '') -> list[Input]:
    """Lists the units of one split of an opened data set.

    Args:
      field: the entry of the source in the config, for errors.
      source: its options.
      builder: as `open_builder` gives it.
      split: name of the split, or a slice of one such as 'train[:10%]'.
      name: of the source.

    Raises:
      ConfigError: no such split or text field.
    """
    where = source.path.removeprefix('tfds:')
    features = list(builder.info.features)
    for option in ('text_field', 'id_field'):
        wanted = getattr(source, option)
        if wanted and wanted.partition('.')[0] not in features and wanted not in features:
            raise rows.missing_field(f'{field}.{option}', wanted, where, features)
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f'{field} = {source.path!r} has no split {split!r} but {sorted(builder.info.splits)}; add ":SPLIT"'
        ) from error
    count, size = info.num_examples, getattr(info, 'num_bytes', 0)
    cuts = ranges(size)
    edges = [count * i // len(cuts) for i in range(len(cuts) + 1)]
    mark = fingerprint(builder)
    return [
        Input(
            numbered(split, i, len(cuts)),
            digest(where, split, mark, edges[i], edges[i + 1]),
            size // len(cuts),
            functools.partial(_read, name, source, where, split, edges[i], edges[i + 1]),
        )
        for i in range(len(cuts))
    ]


def open_builder(where: str, field: str) -> tuple[Any, str]:
    """Opens a data set, downloading and preparing it if need be.

    Args:
      where: 'NAME', 'DIR', or one of them with ':SPLIT' at the end.
      field: the field of the config and its value, for errors.

    Returns:
      (TFDS builder, SPLIT or '').

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
    """Describes the version of a data set and the size of its splits: changes when the data set does."""
    splits = {n: [info.num_examples, info.num_bytes] for n, info in sorted(builder.info.splits.items())}
    return json.dumps([str(builder.info.version), splits])


def _read(name: str, source: Source, where: str, split: str, start: int, stop: int) -> Iterator[Record]:
    builder, _ = open_builder(where, f'sources.{name}.path')
    found, fields = builder.as_data_source(split=split), rows.RecordFields(name, source, split)
    for i in range(start, stop):
        yield fields.record(found[i], i)
