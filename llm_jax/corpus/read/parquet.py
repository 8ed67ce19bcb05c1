"""Parquet files, by groups of their row groups."""

from collections.abc import Iterator
import contextlib
import functools
from typing import Any

import pyarrow
import pyarrow.parquet

from llm_jax.corpus.digest import digest
from llm_jax.corpus.document import Broken
from llm_jax.corpus.read import rows, unit
from llm_jax.corpus.read.unit import Input, Record, Source, groups, numbered
from llm_jax.data import files

# Fields that a document takes over besides those that the options name.
_FIELDS = ('title', 'language', 'lang', 'licence', 'license', 'path')
_BATCH_ROWS, _BATCH_BYTES = 256, 32 << 20


def inputs(name: str, source: Source, path: str, file: files.File) -> list[Input]:
    """Units of a Parquet file; what cannot be opened is one unit, of a `Broken`."""
    whole = Input(path, digest(path, file.stamp), file.size, functools.partial(_read, name, source, path, file, None))
    if file.size <= unit.UNIT_BYTES:
        return [whole]
    try:
        with _opened(file) as table:
            meta = table.metadata
            sizes = [(i, meta.row_group(i).total_byte_size) for i in range(meta.num_row_groups)]
    except pyarrow.ArrowException:
        return [whole]
    parts = list(groups(sizes, lambda entry: entry[1]))
    return [
        Input(
            numbered(path, i, len(parts)),
            digest(path, file.stamp, i),
            sum(size for _, size in part),
            functools.partial(_read, name, source, path, file, [index for index, _ in part]),
        )
        for i, part in enumerate(parts)
    ]


def check(name: str, source: Source, path: str, file: files.File) -> None:
    """Raises ConfigError if the file lacks a column that the options name."""
    try:
        with _opened(file) as table:
            columns = table.schema_arrow.names
    except pyarrow.ArrowException:
        return  # counted when it is read
    for option in ('text_field', 'id_field'):
        wanted = getattr(source, option)
        if wanted and _column(wanted, columns) not in columns:
            raise rows.missing_field(f'sources.{name}.{option}', wanted, path, columns)


def _read(name: str, source: Source, path: str, file: files.File, row_groups: list[int] | None) -> Iterator[Record]:
    try:
        with _opened(file) as table:
            yield from _records(rows.RecordFields(name, source, path), table, row_groups)
    except pyarrow.ArrowException as error:
        yield Broken(name, path, 'read.damaged', f'it is no Parquet file: {error}')


def _records(
    fields: rows.RecordFields, table: pyarrow.parquet.ParquetFile, wanted: list[int] | None
) -> Iterator[Record]:
    columns, source, meta = table.schema_arrow.names, fields.source, table.metadata
    options = (source.text_field, source.id_field, source.url_field)
    wanted_columns = sorted({_column(f, columns) for f in options if f} | set(_FIELDS))
    present = [field for field in wanted_columns if field in columns]
    start = 0
    for index in range(meta.num_row_groups):
        count = meta.row_group(index).num_rows
        if wanted is None or index in wanted:
            if _column(source.text_field, columns) not in columns:
                detail = f'{count} rows have {rows.no_field(source.text_field, columns)}'
                yield fields.broken(start, 'no_text', detail)
            else:
                yield from _row_group(fields, table, index, present, start)
        start += count


def _row_group(
    fields: rows.RecordFields, table: pyarrow.parquet.ParquetFile, index: int, columns: list[str], start: int
) -> Iterator[Record]:
    key = start
    try:
        group = table.metadata.row_group(index)
        # Long rows come one by one.
        size = max(1, min(_BATCH_ROWS, _BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1)))
        for batch in table.iter_batches(size, row_groups=[index], columns=columns):
            for row in _rows(batch):
                yield fields.record(row, key)
                key += 1
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, 'errno', None):  # of the file system; Arrow's own have no number
            raise
        left = table.metadata.row_group(index).num_rows - (key - start)
        yield fields.broken(key, 'damaged', f'{error}; {left} rows are lost')


def _rows(batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    """Rows of a batch; their strings are bytes if one is not UTF-8, which writers need not check."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        return pyarrow.RecordBatch.from_arrays(list(map(_bytes, batch.columns)), batch.schema.names).to_pylist()


def _bytes(array: pyarrow.Array) -> pyarrow.Array:
    """An array with bytes in the place of strings, however deep in structs and lists."""
    array = array.dictionary_decode() if pyarrow.types.is_dictionary(array.type) else array
    return array.cast(_bytes_type(array.type))


def _bytes_type(kind: pyarrow.DataType) -> pyarrow.DataType:
    types = pyarrow.types
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pyarrow.large_binary()
    if types.is_struct(kind):
        return pyarrow.struct([(kind.field(i).name, _bytes_type(kind.field(i).type)) for i in range(kind.num_fields)])
    if types.is_list(kind) or types.is_large_list(kind):
        return pyarrow.large_list(_bytes_type(kind.value_type))
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(_bytes_type(kind.value_type), kind.list_size)
    if types.is_map(kind):
        return pyarrow.map_(_bytes_type(kind.key_type), _bytes_type(kind.item_type))
    return kind


def _column(field: str, columns: list[str]) -> str:
    return field if field in columns else field.partition('.')[0]


@contextlib.contextmanager
def _opened(file: files.File) -> Iterator[pyarrow.parquet.ParquetFile]:
    with file.open() as stream, pyarrow.parquet.ParquetFile(stream) as table:
        yield table
