"""Parquet files, by groups of their row groups.

Memory. A page is decompressed whole by Arrow, which cannot be told to stop. Past that, what is held at a time is
bounded: a column is read through a buffer, a batch has so few rows that they take `_BATCH_BYTES` even if each is
as long as its column chunk (a dictionary keeps a string once that thousands of rows share), and a row becomes Python
objects only if it is no longer than records may be.
"""

from collections.abc import Callable, Iterator
import contextlib
import functools
from typing import Any

import pyarrow
import pyarrow.parquet

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.document import Broken
from llm_jax.corpus.read import rows, unit
from llm_jax.corpus.read.unit import Input, Record, Source, groups, longest, numbered
from llm_jax.data import files

# Fields that a document takes over besides those that the options name.
_FIELDS = ('title', 'language', 'lang', 'licence', 'license', 'path')
_BATCH_ROWS, _BATCH_BYTES = 256, 64 << 20
_BUFFER_BYTES = 1 << 20
# Of a row in Arrow, besides its values: offsets and masks.
_ROW_OVERHEAD = 4096


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


def read_rows(file: files.File) -> Iterator[dict[str, Any]]:
    """Yields the rows of a file with all their fields.

    Raises:
      ConfigError: it is no Parquet file, or damaged.
    """
    try:
        with _opened(file) as table:
            for batch in table.iter_batches(_BATCH_ROWS):
                yield from _python_rows(batch)
    except pyarrow.ArrowException as error:
        raise ConfigError(f'{file.path} is no Parquet file that can be read: {error}') from error


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
        limit = longest(fields.source) + _ROW_OVERHEAD
        for batch in table.iter_batches(_batch_rows(table, index, columns), row_groups=[index], columns=columns):
            for row in _rows(batch, limit):
                yield fields.too_large(key) if row is None else fields.record(row, key)
                key += 1
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, 'errno', None):  # of the file system; Arrow's own have no number
            raise
        left = table.metadata.row_group(index).num_rows - (key - start)
        yield fields.broken(key, 'damaged', f'{error}; {left} rows are lost')


def _batch_rows(table: pyarrow.parquet.ParquetFile, index: int, columns: list[str]) -> int:
    """Returns how many rows of a row group are read at a time."""
    group = table.metadata.row_group(index)
    chunks = (group.column(i) for i in range(group.num_columns))
    size = sum(c.total_uncompressed_size for c in chunks if _column(c.path_in_schema, columns) in columns)
    return max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(size, 1)))


def _rows(batch: pyarrow.RecordBatch, limit: int) -> Iterator[dict[str, Any] | None]:
    """Yields the rows of a batch, None for one of more than `limit` bytes."""
    kinds = [_replaced(kind, _plain) for kind in batch.schema.types]
    if batch.nbytes <= limit and kinds == batch.schema.types:
        yield from _python_rows(batch)
        return
    for i in range(batch.num_rows):
        # The size of an array with a dictionary is that of all its strings.
        row = [column.slice(i, 1).cast(kind, safe=False) for column, kind in zip(batch.columns, kinds, strict=True)]
        small = sum(column.nbytes for column in row) <= limit
        yield _python_rows(pyarrow.RecordBatch.from_arrays(row, batch.schema.names))[0] if small else None


def _python_rows(batch: pyarrow.RecordBatch) -> list[dict[str, Any]]:
    """Returns the rows of a batch; their strings are bytes if one is not UTF-8, which writers need not check."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = [column.cast(_replaced(column.type, _bytes)) for column in batch.columns]
        return pyarrow.RecordBatch.from_arrays(columns, batch.schema.names).to_pylist()


def _plain(kind: pyarrow.DataType) -> pyarrow.DataType:
    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _bytes(kind: pyarrow.DataType) -> pyarrow.DataType:
    types = pyarrow.types
    is_text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return pyarrow.large_binary() if is_text else kind


def _replaced(kind: pyarrow.DataType, leaf: Callable[[pyarrow.DataType], pyarrow.DataType]) -> pyarrow.DataType:
    """Returns a type with `leaf` of those that it is made of, however deep in structs and lists."""
    types = pyarrow.types
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_replaced(field.type, leaf)) for field in kind.fields])
    if types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_replaced(kind.value_type, leaf)))
    if types.is_large_list(kind):
        return pyarrow.large_list(kind.value_field.with_type(_replaced(kind.value_type, leaf)))
    if types.is_fixed_size_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_replaced(kind.value_type, leaf)), kind.list_size)
    if types.is_map(kind):
        return pyarrow.map_(_replaced(kind.key_type, leaf), _replaced(kind.item_type, leaf))
    return leaf(kind)


def _column(field: str, columns: list[str]) -> str:
    return field if field in columns else field.partition('.')[0]


@contextlib.contextmanager
def _opened(file: files.File) -> Iterator[pyarrow.parquet.ParquetFile]:
    with file.open() as stream, pyarrow.parquet.ParquetFile(stream, buffer_size=_BUFFER_BYTES) as table:
        yield table
