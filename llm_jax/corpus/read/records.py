"""Records with all their fields, for post-training: JSON lines, JSON arrays, Parquet, TFDS, the Hugging Face Hub.

Documents are what corpora are made of; a conversation or a pair of answers is a record. The files are read as those of
documents are; the first mistake is an error.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import functools
import re
from typing import Any

import numpy as np

from llm_jax import hub
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.read import plain, rows
from llm_jax.data import files

# (place of the record, for errors; its fields)
Record = tuple[str, dict[str, Any]]
_MAX_BYTES = 1 << 30
_PARQUET = re.compile(r'\.(parquet|pq)$', re.I)


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of a place.

    Attributes:
      fingerprint: changes when they may have changed.
      parts: 'all', which is to be split, or a data set's own 'train', 'validation' and 'test', as far as it has them.
    """

    fingerprint: str
    parts: Mapping[str, Callable[[], Iterator[Record]]]


def open_records(place: str, field: str) -> Records:
    """Opens a place of records: a path or glob of JSONL, JSON or Parquet, 'tfds:NAME', 'tfds:DIR', 'hf:OWNER/NAME'.

    Args:
      place: as above; the last three may end in ':SPLIT'.
      field: the field of the config, for errors.

    Raises:
      ConfigError: nothing is there.
    """
    if place.startswith('tfds:'):
        return _open_tfds(place.removeprefix('tfds:'), field)
    if place.startswith(hub.PREFIX):
        return _open_hub(place, field)
    found = files.find(place, field)
    marks = [[file.path, file.stamp] for file in found]
    return Records(digest(marks), {'all': functools.partial(_read_files, found)})


def _open_hub(place: str, field: str) -> Records:
    from llm_jax.corpus.read import hub as hub_reader

    repo = hub.parse_data_set(place, field)
    found = hub_reader.open_data_set(repo, field)
    own = {} if repo.split else plain.own_splits(found.splits)
    if 'train' in own:
        chosen = {ours: found.splits[theirs] for ours, theirs in own.items()}
    else:
        chosen = {'all': hub_reader.pick_split(found, repo, field)}
    marks = [[split, file.path, file.stamp] for split, some in chosen.items() for file in some]
    return Records(digest(marks), {split: functools.partial(_read_files, some) for split, some in chosen.items()})


def _open_tfds(place: str, field: str) -> Records:
    from llm_jax.corpus.read import tfds

    builder, split = tfds.open_builder(place, f'{field} = {"tfds:" + place!r}')
    present = builder.info.splits
    chosen = {'all': split} if split else plain.own_splits(present)
    if not split and 'train' not in chosen:
        raise ConfigError(f'{field} = {"tfds:" + place!r} has no split "train" but {sorted(present)}; add ":SPLIT"')
    if split and split.partition('[')[0] not in present:
        raise ConfigError(f'{field} = {"tfds:" + place!r} has no split {split!r} but {sorted(present)}')

    def read(theirs: str) -> Iterator[Record]:
        for number, record in enumerate(builder.as_data_source(split=theirs), 1):
            yield f'tfds:{place}, split {theirs}, record {number}', _as_json(record)

    parts = {ours: functools.partial(read, theirs) for ours, theirs in chosen.items()}
    return Records(digest(place, tfds.fingerprint(builder)), parts)


def _read_files(found: list[files.File]) -> Iterator[Record]:
    for file in found:
        read = _read_parquet if _PARQUET.search(file.path) else _read_json
        for number, record in enumerate(read(file), 1):
            where = f'{file.path}, record {number}'
            if not isinstance(record, Mapping):
                raise ConfigError(f'{where} is {type(record).__name__}, not an object with fields')
            yield where, dict(record)


def _read_parquet(file: files.File) -> Iterator[Any]:
    from llm_jax.corpus.read import parquet  # Parquet's is slow to import

    return parquet.read_rows(file)


def _read_json(file: files.File) -> Iterator[Any]:
    for row, key, _ in rows.json_rows(file, 0, 0, _MAX_BYTES):
        if isinstance(row, rows.NotJson):
            raise ConfigError(f'{file.path}, line {plain.line_at(file, key)} is not JSON: {row.detail}')
        if isinstance(row, rows.TooLong):
            raise ConfigError(f'{file.path}, line {plain.line_at(file, key)} is longer than {_MAX_BYTES >> 20} MiB')
        yield row


def _as_json(value: Any) -> Any:
    """A value of TFDS as JSON would have it: bytes are text, and a sequence of objects, a dict of arrays, is a list."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (np.ndarray, np.generic)):
        return _as_json(value.tolist())
    if isinstance(value, Mapping):
        return {name: _unzip(_as_json(inner)) for name, inner in value.items()}
    return [_as_json(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _unzip(value: Any) -> Any:
    if not isinstance(value, dict) or not value or not all(isinstance(column, list) for column in value.values()):
        return value
    if len({len(column) for column in value.values()}) > 1:
        return value
    return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
