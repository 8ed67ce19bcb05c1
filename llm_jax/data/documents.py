"""Sources of documents, and their split into training, validation and test.

A source is named in `data.sources` by its kind and where it is: 'stdlib',
'text:GLOB', 'jsonl:GLOB', 'parquet:GLOB', 'tfds:NAME' or 'tfds:DIR', the last two
with ':SPLIT' at the end if wished. Its documents come in the same order each time.
A corpus of `prepare_data` ('corpus:DIR') is rows already: `prepare.py` opens it.

A document goes to the split that the hash of its content says, so that equal
documents are never on two sides.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
import hashlib
import json
import re
from typing import Any

from llm_jax.config import parts, schema
from llm_jax.config.schema import ConfigError
from llm_jax.data import datasets, files, stdlib

SPLITS = ('train', 'validation', 'test')

# Where a document is, for errors, and its text in pieces.
Document = tuple[str, Iterable[str]]


@dataclasses.dataclass(frozen=True)
class Source:
    """Documents of one entry of `data.sources` or `data.validation_sources`.

    Attributes:
      name: the key of the entry.
      fingerprint: changes when the documents may have changed.
      readers: how to read each part. The key 'all' is split by hash; a data set with
        splits of its own has them under their names.
      fractions: (validation, test) share of 'all' or 'train' held out by hash.
    """

    name: str
    fingerprint: str
    readers: Mapping[str, Callable[[], Iterator[Document]]]
    fractions: tuple[float, float]
    max_chars: int

    def documents(self, split: str) -> Iterator[str]:
        """Texts of a split ('train', 'validation' or 'test'), in a fixed order; none is empty."""
        if split != 'train' and split in self.readers:
            yield from (text for _, text in self._texts(split))
            return
        for where, text in self._texts('all' if 'all' in self.readers else 'train'):
            try:
                found = split_of(text, *self.fractions)
            except UnicodeEncodeError as error:
                raise ConfigError(f'{where}: {error.reason} ({error.object[error.start]!r}); it is not text') from error
            if found == split:
                yield text

    def _texts(self, part: str) -> Iterator[tuple[str, str]]:
        for where, blocks in self.readers[part]():
            yield from ((where, text) for text in cut(blocks, self.max_chars) if text)


def open_sources(config: schema.Data) -> tuple[list[Source], list[Source]]:
    """(sources of `data.sources`, sources of `data.validation_sources`).

    Raises:
      ConfigError: an unknown kind, or inputs that are not there.
    """
    held_out = 0.0 if config.validation_sources else config.validation_fraction
    if held_out + config.test_fraction >= 1:
        raise ConfigError(
            f'data.validation_fraction + data.test_fraction = {held_out + config.test_fraction:g} '
            'leaves nothing to train on; make them smaller'
        )
    make = lambda field, specs, fractions: [
        _open(f'data.{field}.{name}', name, spec, config, fractions) for name, spec in specs.items()
    ]
    return (
        make('sources', config.sources, (held_out, config.test_fraction)),
        make('validation_sources', config.validation_sources, (1.0, 0.0)),
    )


def split_of(text: str, validation_fraction: float, test_fraction: float) -> str:
    """The split that a document belongs to, by the hash of its content alone."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    place = int.from_bytes(digest, 'little') / 2**64
    if place < validation_fraction:
        return 'validation'
    return 'test' if place < validation_fraction + test_fraction else 'train'


def cut(blocks: Iterable[str], max_chars: int) -> Iterator[str]:
    """The text as one piece, or as pieces of at most `max_chars` that end at line ends.

    A line longer than that is cut inside. Joined, the pieces are the text. Memory is
    one block and one piece.
    """
    if not max_chars:
        yield ''.join(blocks)
        return
    held = ''
    for block in blocks:
        held += block
        start = 0
        while len(held) - start > max_chars:
            stop = held.rfind('\n', start, start + max_chars) + 1 or start + max_chars
            yield held[start:stop]
            start = stop
        held = held[start:]
    yield held


# --- Kinds -----------------------------------------------------------------------------


def _open(field: str, name: str, spec: str, config: schema.Data, fractions: tuple[float, float]) -> Source:
    kind, _, where = str(spec).partition(':')
    if kind not in _KINDS:
        raise ConfigError(
            f'{field} = {spec!r}: there is no kind of source {kind!r}{parts.nearest(kind, _KINDS)} '
            f'Kinds: {", ".join(_KINDS)}; a text file is "text:{spec}".'
        )
    if (kind == 'stdlib') == bool(where):
        raise ConfigError(f'{field} = {spec!r}: write "stdlib", or "{kind}:" and where it is')
    readers, fingerprint = _KINDS[kind](field, where, config.text_field)
    if fractions[0] == 1.0 and 'validation' in readers:
        readers = {'all': readers['validation']}  # a data set named as a validation source gives its own
    elif fractions[0] == 1.0 and 'train' in readers:
        readers = {'all': readers['train']}
    own = [0.0 if split in readers else share for split, share in zip(SPLITS[1:], fractions, strict=True)]
    return Source(name, fingerprint, readers, (own[0], own[1]), config.max_document_chars)


def _digest(*items: str) -> str:
    return hashlib.sha256('\0'.join(items).encode()).hexdigest()


def _of_files(read: Callable[[files.File, str, str], Iterator[Document]]) -> Callable:
    """A kind whose documents are read file by file."""

    def open_files(field: str, where: str, text_field: str) -> tuple[dict, str]:
        found = files.find(where, field)

        def documents() -> Iterator[Document]:
            for file in found:
                yield from read(file, field, text_field)

        stamps = [item for file in found for item in (file.path, file.stamp)]
        return {'all': documents}, _digest(text_field, *stamps)

    return open_files


def _text_file(file: files.File, field: str, text_field: str) -> Iterator[Document]:
    del field, text_field
    yield file.path, file.text()


def _json_file(file: files.File, field: str, text_field: str) -> Iterator[Document]:
    del field
    if re.search(r'\.json(\.gz|\.zst)?$', file.path):
        values = _parsed(''.join(file.text()), file.path)
        rows = enumerate(values if isinstance(values, list) else [values], 1)
    else:
        lines = enumerate(file.lines(), 1)
        rows = ((i, _parsed(line, f'{file.path}, line {i}')) for i, line in lines if line.strip())
    for i, row in rows:
        where = f'{file.path}, record {i}'
        if not isinstance(row, dict):
            raise ConfigError(f'{where} is {type(row).__name__}; each record must be an object with {text_field!r}')
        yield where, (_field_of(row, text_field, where),)


def _parquet_file(file: files.File, field: str, text_field: str) -> Iterator[Document]:
    del field
    import pyarrow
    import pyarrow.parquet

    with file.open() as stream:
        try:
            table = pyarrow.parquet.ParquetFile(stream)
        except pyarrow.ArrowInvalid as error:
            raise ConfigError(f'{file.path} is not a Parquet file: {error}') from error
        names = table.schema_arrow.names
        if text_field not in names:
            raise _no_field(file.path, text_field, names)
        row = 0
        for batch in table.iter_batches(batch_size=1024, columns=[text_field]):
            for value in batch.column(0).to_pylist():
                row += 1
                where = f'{file.path}, row {row}'
                yield where, (_field_of({text_field: value}, text_field, where),)


def _open_tfds(field: str, where: str, text_field: str) -> tuple[dict, str]:
    """A TFDS data set by name or directory; its own validation and test splits are used."""
    builder, split = datasets.open_builder(where, f'{field} = {"tfds:" + where!r}')
    if text_field not in builder.info.features:
        raise _no_field(f'{field} = {"tfds:" + where!r}', text_field, builder.info.features)

    def documents(part: str) -> Iterator[Document]:
        rows = builder.as_data_source(split=part)
        for i in range(len(rows)):
            spot = f'tfds:{where}, split {part}, record {i}'
            yield spot, (_field_of(rows[i], text_field, spot),)

    own = builder.info.splits
    names = {'train': ('train',), 'validation': ('validation', 'valid', 'val', 'dev'), 'test': ('test',)}
    if split:
        readers = {'all': functools.partial(documents, split)}
    elif 'train' in own:
        found = {ours: next((n for n in theirs if n in own), None) for ours, theirs in names.items()}
        readers = {ours: functools.partial(documents, theirs) for ours, theirs in found.items() if theirs}
    else:
        raise ConfigError(f'{field} = {"tfds:" + where!r} has no split "train" but {sorted(own)}; add ":SPLIT"')
    return readers, _digest(text_field, where, datasets.fingerprint(builder))


def _open_stdlib(field: str, where: str, text_field: str) -> tuple[dict, str]:
    """Sources of the running Python's standard library."""
    del where, text_field
    root, names = stdlib.library()
    if not names:
        raise ConfigError(f'{field} = "stdlib": this Python has no library sources in {root}; use "text:GLOB"')

    def documents() -> Iterator[Document]:
        for name in names:
            yield str(root / name), (stdlib.text(root / name),)

    return {'all': documents}, stdlib.fingerprint(root, names)


def _open_corpus(field: str, where: str, text_field: str) -> tuple[dict, str]:
    raise ConfigError(
        f'{field} = "corpus:{where}": a corpus has a tokenizer, splits and a mixture of its own; make it the only '
        'source, and leave data.validation_sources empty'
    )


_KINDS = {
    'stdlib': _open_stdlib,
    'text': _of_files(_text_file),
    'jsonl': _of_files(_json_file),
    'parquet': _of_files(_parquet_file),
    'tfds': _open_tfds,
    'corpus': _open_corpus,
}


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f'{where} is not JSON: {error}') from error


def _field_of(row: Mapping[str, Any], text_field: str, where: str) -> str:
    if text_field not in row:
        raise _no_field(where, text_field, row)
    value = row[text_field]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f'{where}: {text_field!r} is not UTF-8 at byte {error.start}') from error
    if not isinstance(value, str):
        raise ConfigError(f'{where}: {text_field!r} is {type(value).__name__}, not text; set data.text_field')
    return value


def _no_field(where: str, text_field: str, names: Iterable[str]) -> ConfigError:
    return ConfigError(
        f'{where} has no field {text_field!r}{parts.nearest(text_field, list(names))} '
        f'It has: {", ".join(map(str, names))}; set data.text_field'
    )
