"""Token rows on disk: a TFDS data set of ArrayRecord files, written in order, read at random.

A record is a tf.train.Example of `tokens` (uint16 or uint32 [L+1], as bytes) and
`length` (how many of them are real). `tfds.builder_from_directory` reads it too.
"""

from collections.abc import Iterable, Mapping, Sequence
import functools
import itertools
import os
import pathlib

from array_record.python import array_record_module
from etils import epath
import numpy as np

PADDING = -1
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
    import tensorflow_datasets as tfds

    pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
    as_bytes = tfds.features.Encoding.BYTES
    tokens = tfds.features.Tensor(shape=(seq_len + 1,), dtype=dtype, encoding=as_bytes)
    features = tfds.features.FeaturesDict({'tokens': tokens, 'length': np.int32})
    identity = tfds.core.DatasetIdentity(
        name='rows', version=tfds.core.Version('1.0.0'), data_dir=os.fspath(directory), module_name='llm_jax.data'
    )
    info = tfds.core.DatasetInfo(builder=identity, features=features, description='Packed rows of tokens.')
    info.set_file_format('array_record')
    shard_rows = max(1, _SHARD_BYTES // ((seq_len + 1) * np.dtype(dtype).itemsize))
    infos = []
    for split, rows in splits.items():
        template = tfds.core.ShardedFileTemplate(
            template='{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}',
            data_dir=epath.Path(directory),
            dataset_name='rows',
            split=split,
            filetype_suffix='array_record',
        )
        examples = ({'tokens': tokens, 'length': np.int32(length)} for tokens, length in rows)
        encoded = map(features.serialize_example, examples)
        lengths, size = [], 0
        while (first := next(encoded, None)) is not None:
            path = template.sharded_filepath(shard_index=len(lengths), num_shards=None)
            shard = itertools.chain([first], itertools.islice(encoded, shard_rows - 1))
            length, written = _write_shard(os.fspath(path), shard)
            lengths.append(length)
            size += written
        if lengths:
            infos.append(tfds.core.SplitInfo(split, lengths, size, filename_template=template))
    info.set_splits(tfds.core.SplitDict(infos))
    info.write_to_directory(directory)


def _write_shard(path: str, encoded: Iterable[bytes]) -> tuple[int, int]:
    """(records, bytes) written to one file."""
    # One record per group makes access random; tokens hardly compress, and reading is faster without.
    writer = array_record_module.ArrayRecordWriter(path, 'group_size:1,uncompressed')
    count = size = 0
    for record in encoded:
        writer.write(record)
        count += 1
        size += len(record)
    writer.close()
    return count, size


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
        self._around = self._layout()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32[n, L+1] of the rows at `indices` (any order, repeats allowed)."""
        indices = np.asarray(indices, np.int64)
        records = self._records(indices)
        out = np.empty((len(indices), *self._shape), np.int32)
        done = self._read_full(records, out)
        for i in np.flatnonzero(~done):
            out[i] = self._decoded(int(indices[i]))
        return out

    def _read_full(self, records: list[bytes], out: np.ndarray) -> np.ndarray:
        """Decodes the records of full rows into `out` as one array; says which those are, bool[n]."""
        if self._around is None:
            return np.zeros(len(records), bool)
        before, after = self._around
        start = len(before)
        stop = start + self._shape[0] * self._dtype.itemsize
        size = stop + len(after)
        full = np.fromiter(map(len, records), np.int64, len(records)) == size
        raw = np.frombuffer(b''.join(records if full.all() else itertools.compress(records, full)), np.uint8)
        raw = raw.reshape(-1, size)
        out[full] = np.ascontiguousarray(raw[:, start:stop]).view(self._dtype)
        full[full] = (raw[:, :start] == before).all(1) & (raw[:, stop:] == after).all(1)
        return full

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

    def _layout(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The bytes before and after the tokens in a full row's record, found in the first row.

        Records of full rows differ in their tokens alone, so that a batch of them can be
        decoded as one array. `read` compares these bytes in every record, and decodes
        through TFDS where they differ (a row that is not full). None if the first row is
        not full: then there is nothing to go by, and usually no other row.
        """
        example = self._examples[0]
        if example['length'] != self._shape[0]:
            return None
        record, payload = self._records(np.array([0]))[0], example['tokens'].tobytes()
        start = record.index(payload)
        around = record[:start], record[start + len(payload) :]
        return np.frombuffer(around[0], np.uint8), np.frombuffer(around[1], np.uint8)

    @functools.cached_property
    def _examples(self) -> Sequence[dict[str, np.ndarray]]:
        return self._builder.as_data_source(split=self._split)

    def _decoded(self, index: int) -> np.ndarray:
        example = self._examples[index]
        row = example['tokens'].astype(np.int32)
        row[int(example['length']) :] = PADDING
        return row
