"""Token rows on disk: a TFDS data set of ArrayRecord files, written in order, read at random.

A record is a tf.train.Example of `tokens` (uint16 or uint32 [L+1], as bytes) and
`length` (how many of them are real). `tfds.builder_from_directory` reads it too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import functools
import itertools
import os
import pathlib
from typing import Any, NamedTuple

from array_record.python import array_record_module
from etils import epath
import numpy as np

from llm_jax.config.schema import ConfigError

PADDING = -1
# Of the data set, which file names begin with.
NAME = 'rows'
_LENGTH_NAME = b'length'
_SHARD_BYTES = 1 << 30


def write(
    directory: str | os.PathLike,
    splits: Mapping[str, Iterable[tuple[np.ndarray, int]]],
    *,
    seq_len: int,
    dtype: type[np.unsignedinteger],
) -> None:
    """Writes rows in the order they come, holding one at a time.

    Args:
      directory: where; made if needed.
      splits: (tokens [L+1], length) per split. A split without rows is left out.
      seq_len: L.
      dtype: np.uint16 or np.uint32.
    """
    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    shard_rows = max(1, _SHARD_BYTES // ((seq_len + 1) * np.dtype(dtype).itemsize))
    sizes: dict[str, list[tuple[int, int]]] = {}
    for split, rows in splits.items():
        rest = iter(rows)
        for first in rest:
            shard = itertools.chain([first], itertools.islice(rest, shard_rows - 1))
            done = sizes.setdefault(split, [])
            path = os.path.join(directory, file_name(NAME, split, len(done)))
            done.append(write_rows(path, shard, seq_len=seq_len, dtype=dtype))
    features = row_features(seq_len, dtype)
    write_info(directory, NAME, features, sizes, 'Packed rows of tokens.')


def row_features(seq_len: int, dtype: type[np.unsignedinteger]) -> Any:
    """What a record of a row holds, for TFDS."""
    import tensorflow_datasets as tfds

    as_bytes = tfds.features.Encoding.BYTES
    tokens = tfds.features.Tensor(shape=(seq_len + 1,), dtype=dtype, encoding=as_bytes)
    return tfds.features.FeaturesDict({'tokens': tokens, 'length': np.int32})


def write_rows(
    path: str, rows: Iterable[tuple[np.ndarray, int]], *, seq_len: int, dtype: type[np.unsignedinteger]
) -> tuple[int, int]:
    """Writes one file of rows; gives (records, bytes)."""
    serialise = serialiser(row_features(seq_len, dtype))
    examples = ({'tokens': tokens, 'length': np.int32(length)} for tokens, length in rows)
    # One record per group makes access random; tokens hardly compress, and reading is faster without.
    return write_file(path, map(serialise, examples), 'group_size:1,uncompressed')


def serialiser(features: Any) -> Callable[[Mapping[str, Any]], bytes]:
    """Example -> record, the same bytes in every process; those of `features.serialize_example` are not."""
    from tensorflow_datasets.core import example_serializer

    inner = example_serializer.ExampleSerializer(features.get_serialized_info())
    encode = lambda example: inner.get_tf_example(features.encode_example(example))
    return lambda example: encode(example).SerializeToString(deterministic=True)


def write_file(path: str, records: Iterable[bytes], options: str) -> tuple[int, int]:
    """Writes one ArrayRecord file; gives (records, bytes). Raises as `FileWriter`."""
    writer = FileWriter(path, options)
    for record in records:
        writer.add(record)
    writer.close()
    return writer.records, writer.bytes


class FileWriter:
    """One ArrayRecord file that is being written.

    Attributes:
      records, bytes: what it holds so far.
    """

    def __init__(self, path: str, options: str):
        """Args: options: of ArrayRecord, such as 'group_size:1'.

        Raises (as do the other methods):
          ConfigError: the disk is full, or the place cannot be written to.
        """
        self._path = path
        self.records = self.bytes = 0
        with self._explained():
            self._writer = array_record_module.ArrayRecordWriter(path, options)

    def add(self, record: bytes) -> None:
        with self._explained():
            self._writer.write(record)
        self.records += 1
        self.bytes += len(record)

    def close(self) -> None:
        """Completes the file."""
        with self._explained():
            self._writer.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # in the library's words: 'write() failed: No space left on device; ...'
            raise ConfigError(f'cannot write {self._path}: {error}') from error


def file_name(name: str, split: str, index: int) -> str:
    """The name of one file of a data set."""
    return f'{name}-{split}.array_record-{index:05d}'


def write_info(
    directory: str | os.PathLike, name: str, features: Any, splits: Mapping[str, Iterable[tuple[int, int]]], what: str
) -> None:
    """Writes what makes a TFDS data set of a directory of files.

    Args:
      directory: with the files, called as `file_name` says.
      name: of the data set.
      features: of its records.
      splits: (records, bytes) of each file, in order. A split without files is left out.
      what: a line that describes it.
    """
    import tensorflow_datasets as tfds

    directory = os.fspath(directory)
    version = tfds.core.Version('1.0.0')
    # The place is not written down, so that equal data sets are equal files.
    identity = tfds.core.DatasetIdentity(name=name, version=version, data_dir='.', module_name='llm_jax.data')
    info = tfds.core.DatasetInfo(builder=identity, features=features, description=what)
    info.set_file_format('array_record')
    infos = []
    for split, files in splits.items():
        template = tfds.core.ShardedFileTemplate(
            template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}',
            data_dir=epath.Path(directory),
            dataset_name=name,
            split=split,
            filetype_suffix='array_record',
        )
        if sizes := list(files):
            records, n_bytes = zip(*sizes, strict=True)
            infos.append(tfds.core.SplitInfo(split, list(records), sum(n_bytes), filename_template=template))
    info.set_splits(tfds.core.SplitDict(infos))
    info.write_to_directory(directory)


class _Layout(NamedTuple):
    """What the bytes of a record are. Records of one size differ in their tokens and their length alone.

    So they can be decoded as one array; a record whose other bytes differ is decoded by TFDS.
    """

    tokens: slice
    length: slice
    rest: np.ndarray
    template: np.ndarray  # the bytes at `rest`


class Rows:
    """Rows of one split, read by index.

    `len(rows)` is their number N; `rows.read(indices)` gives int32[n, L+1], with
    PADDING where a row is not full. Safe to use from several threads.
    """

    def __init__(self, directory: str | os.PathLike, split: str):
        import tensorflow_datasets as tfds

        self._builder = tfds.builder_from_directory(os.fspath(directory))
        self._split = split
        info = self._builder.info.splits[split]
        lengths = [instruction.examples_in_shard for instruction in info.file_instructions]
        self._ends = np.cumsum(lengths)
        self._readers = [
            array_record_module.ArrayRecordReader(instruction.filename, 'readahead_buffer_size:0')
            for instruction in info.file_instructions
        ]
        tokens = self._builder.info.features['tokens']
        self._shape, self._dtype = tokens.shape, np.dtype(tokens.np_dtype)
        self._layouts: dict[int, _Layout] = {}

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32[n, L+1] of the rows at `indices` (any order, repeats allowed)."""
        indices = np.asarray(indices, np.int64)
        records = self._records(indices)
        out = np.empty((len(indices), *self._shape), np.int32)
        sizes = np.fromiter(map(len, records), np.int64, len(records))
        for size in np.unique(sizes):
            places = np.flatnonzero(sizes == size)
            done = self._read_alike([records[i] for i in places], indices[places], out, places)
            for i in places[~done]:
                out[i] = self._decoded(int(indices[i]))
        return out

    def _read_alike(self, records: list[bytes], indices: np.ndarray, out: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Decodes records of one size into `out[places]` as one array; says which it could, bool[n]."""
        size = len(records[0])
        if size not in self._layouts:
            self._layouts[size] = self._layout(records[0], int(indices[0]))
        layout = self._layouts[size]
        raw = np.frombuffer(b''.join(records), np.uint8).reshape(-1, size)
        tokens = np.ascontiguousarray(raw[:, layout.tokens]).view(self._dtype)
        digits = raw[:, layout.length].astype(np.int64)
        places_of_7_bits = np.arange(digits.shape[1])
        length = ((digits & 0x7F) << (7 * places_of_7_bits)).sum(1)
        goes_on = (digits >= 0x80) == (places_of_7_bits < digits.shape[1] - 1)
        if (length < self._shape[0]).any():
            tokens = np.where(np.arange(self._shape[0]) < length[:, None], tokens.astype(np.int32), PADDING)
        out[places] = tokens
        return (raw[:, layout.rest] == layout.template).all(1) & goes_on.all(1)

    def _records(self, indices: np.ndarray) -> list[bytes]:
        if not len(indices):
            return []
        if indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(f'rows {indices.min()} to {indices.max()} of {len(self)}')
        if len(self._readers) == 1:
            return self._readers[0].read(indices.tolist())
        records: list[bytes] = [b''] * len(indices)
        shards = np.searchsorted(self._ends, indices, side='right')
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            local = indices[places] - (self._ends[shard - 1] if shard else 0)
            for place, record in zip(places, self._readers[shard].read(local.tolist()), strict=True):
                records[place] = record
        return records

    def _layout(self, record: bytes, index: int) -> '_Layout':
        """Where what is in a record, found in one whose content is known."""
        example = self._examples[index]
        payload, length = example['tokens'].tobytes(), int(example['length'])
        start = record.index(payload)
        tokens = slice(start, start + len(payload))
        # The name of the field, six bytes of tags and sizes, and then the number as a varint.
        name = record.find(_LENGTH_NAME, 0, start)
        at = (name if name >= 0 else record.index(_LENGTH_NAME, tokens.stop)) + len(_LENGTH_NAME) + 6
        number = slice(at, at + max(1, -(-length.bit_length() // 7)))
        rest = np.ones(len(record), bool)
        rest[tokens] = rest[number] = False
        places = np.flatnonzero(rest)
        return _Layout(tokens, number, places, np.frombuffer(record, np.uint8)[places])

    @functools.cached_property
    def _examples(self) -> Sequence[dict[str, np.ndarray]]:
        return self._builder.as_data_source(split=self._split)

    def _decoded(self, index: int) -> np.ndarray:
        example = self._examples[index]
        row = example['tokens'].astype(np.int32)
        row[int(example['length']) :] = PADDING
        return row
