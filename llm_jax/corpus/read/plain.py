"""Plain sources, those of `data.sources`: documents by split, from the corpus's readers, at the first mistake an error.

A source is named by its kind and its place: 'stdlib', 'text:GLOB', 'jsonl:GLOB',
'parquet:GLOB', 'tfds:NAME', 'tfds:DIR' or 'hf:OWNER/NAME', the last three optionally with ':SPLIT' at the end.
Its documents come in the same order each time, and go through no stage. A text file is
one document, and has to be UTF-8: `max_chars` cuts it as it is read, whatever its size.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import functools
import importlib

from llm_jax import hub
from llm_jax.config import parts, schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.document import Broken, Raw
from llm_jax.corpus.read import rows
from llm_jax.corpus.read.unit import Input, Record, Skipped, Source
from llm_jax.corpus.splits import SPLITS, split_of
from llm_jax.data import files

# The place of a document, for errors, and its text in pieces.
Text = tuple[str, Iterable[str]]
# Longest record of JSON lines, Parquet and TFDS: a longer one is an error.
_MAX_BYTES = 1 << 30
# Names that data sets give to our splits.
_SPLIT_NAMES = {'train': ('train',), 'validation': ('validation', 'valid', 'val', 'dev'), 'test': ('test',)}


@dataclasses.dataclass(frozen=True)
class PlainSource:
    """Documents of one entry of `data.sources` or `data.validation_sources`.

    Attributes:
      name: the key of the entry.
      fingerprint: changes when the documents may have changed.
      readers: name of a part -> iterator of its texts. The part 'all' is split by hash; a data
        set with splits of its own has them under their names.
      fractions: (validation, test) share of 'all' or 'train' held out by hash.
      max_chars: length of a document at most; 0 never cuts.
      by_place: whether the held-out shares are the end of the text, validation before test, not drawn by hash.
    """

    name: str
    fingerprint: str
    readers: Mapping[str, Callable[[], Iterator[Text]]]
    fractions: tuple[float, float]
    max_chars: int
    by_place: bool = False

    def has_text(self) -> bool:
        """Tells whether there is anything but white space, in whatever split."""
        return any(not text.isspace() for part in self.readers for text in self._texts(part))

    def documents(self, split: str) -> Iterator[str]:
        """Yields the texts of a split ('train', 'validation' or 'test'), in a fixed order; none is empty."""
        if split != 'train' and split in self.readers:
            yield from self._texts(split)
            return
        texts = self._texts('all' if 'all' in self.readers else 'train')
        if self.by_place:
            yield from _between(texts, *self._edges[split])
            return
        yield from (text for text in texts if split_of(text, *self.fractions) == split)

    def _texts(self, part: str) -> Iterator[str]:
        for where, blocks in self.readers[part]():
            for text in cut(blocks, self.max_chars):
                try:
                    text.encode()
                except UnicodeEncodeError as error:
                    character = error.object[error.start]
                    raise ConfigError(f'{where}: {error.reason} ({character!r}); it is not text') from error
                if text:
                    yield text

    @functools.cached_property
    def _edges(self) -> dict[str, tuple[int, int]]:
        """The characters [start, stop) of each split; they have to be counted once."""
        total = sum(map(len, self._texts('all' if 'all' in self.readers else 'train')))
        validation, test = self.fractions
        edges = [0, int(total * (1 - validation - test)), int(total * (1 - test)), total]
        return {split: (edges[i], edges[i + 1]) for i, split in enumerate(SPLITS)}


def open_sources(config: schema.Data) -> tuple[list[PlainSource], list[PlainSource]]:
    """Opens (sources of `data.sources`, sources of `data.validation_sources`).

    Raises:
      ConfigError: an unknown kind, or inputs that do not exist.
    """
    held_out = 0.0 if config.validation_sources else config.validation_fraction
    if held_out + config.test_fraction >= 1:
        raise ConfigError(
            f'data.validation_fraction + data.test_fraction = {held_out + config.test_fraction:g} '
            'leaves nothing to train on; make them smaller'
        )
    open_all = lambda field, specs, fractions: [
        _open(f'data.{field}.{name}', name, spec, config, fractions) for name, spec in specs.items()
    ]
    return (
        open_all('sources', config.sources, (held_out, config.test_fraction)),
        open_all('validation_sources', config.validation_sources, (1.0, 0.0)),
    )


def cut(blocks: Iterable[str], max_chars: int) -> Iterator[str]:
    """Yields the text as one piece, or as pieces of at most `max_chars` that end at line ends.

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


def _between(texts: Iterable[str], start: int, stop: int) -> Iterator[str]:
    """Yields the characters [start, stop) of texts that follow each other, text by text."""
    position = 0
    for text in texts:
        if part := text[max(start - position, 0) : max(stop - position, 0)]:
            yield part
        position += len(text)


def _open(field: str, name: str, spec: str, config: schema.Data, fractions: tuple[float, float]) -> PlainSource:
    kind, _, where = str(spec).partition(':')
    if kind == 'corpus':
        raise ConfigError(
            f'{field} = "{spec}": a corpus has a tokenizer, splits and a mixture of its own; make it the only '
            'source, and leave data.validation_sources empty'
        )
    if kind not in _KINDS:
        raise ConfigError(
            f'{field} = {spec!r}: there is no kind of source {kind!r}{parts.nearest(kind, [*_KINDS, "corpus"])} '
            f'Kinds: {", ".join(_KINDS)}, corpus; a text file is "text:{spec}".'
        )
    if (kind == 'stdlib') == bool(where):
        raise ConfigError(f'{field} = {spec!r}: write "stdlib", or "{kind}:" and where it is')
    readers, fingerprint = _KINDS[kind](field, where, config.text_field)
    if fractions[0] == 1.0 and 'validation' in readers:
        readers = {'all': readers['validation']}  # a data set named as a validation source gives its own
    elif fractions[0] == 1.0 and 'train' in readers:
        readers = {'all': readers['train']}
    shares = [0.0 if split in readers else share for split, share in zip(SPLITS[1:], fractions, strict=True)]
    return PlainSource(
        name, fingerprint, readers, (shares[0], shares[1]), config.max_document_chars, config.split_by == 'place'
    )


# --- Kinds -----------------------------------------------------------------------------

Readers = dict[str, Callable[[], Iterator[Text]]]


def _open_text(field: str, where: str, text_field: str) -> tuple[Readers, str]:
    del text_field
    found = files.find(where, field)
    read = lambda: ((file.path, file.text()) for file in found)
    return {'all': read}, digest([[file.path, file.stamp] for file in found])


def _open_files(module: str) -> Callable[[str, str, str], tuple[Readers, str]]:
    """Makes the opener of files of records that a reader's `inputs` splits into units."""

    def open_files(field: str, where: str, text_field: str) -> tuple[Readers, str]:
        inputs = importlib.import_module(module).inputs  # Parquet's is slow to import
        source = _source(where, text_field)
        units = [(file, inputs(field, source, file.path, file)) for file in files.find(where, field)]
        read = lambda: (text for file, some in units for text in _read_strictly(some, file.path, file))
        return {'all': read}, digest(text_field, [one.fingerprint for _, some in units for one in some])

    return open_files


def _open_stdlib(field: str, where: str, text_field: str) -> tuple[Readers, str]:
    from llm_jax.corpus.read import python

    del where
    units = python.standard_library(field.rpartition('.')[2], _source('stdlib', text_field))
    records = lambda: (record for one in units for record in one.read() if isinstance(record, Raw))
    read = lambda: ((f'stdlib/{record.where}', (record.content,)) for record in records())
    return {'all': read}, digest([one.fingerprint for one in units])


def _open_tfds(field: str, where: str, text_field: str) -> tuple[Readers, str]:
    """Opens a TFDS data set by name or directory; its own validation and test splits are used."""
    from llm_jax.corpus.read import tfds

    builder, split = tfds.open_builder(where, f'{field} = {"tfds:" + where!r}')
    present = builder.info.splits
    if text_field not in builder.info.features:
        raise rows.missing_field('data.text_field', text_field, f'tfds:{where}', builder.info.features)
    if split:
        names = {'all': split}
    elif 'train' in present:
        names = own_splits(present)
    else:
        raise ConfigError(f'{field} = {"tfds:" + where!r} has no split "train" but {sorted(present)}; add ":SPLIT"')
    source = _source(f'tfds:{where}', text_field)
    units = {ours: tfds.inputs_of_split(field, source, builder, theirs) for ours, theirs in names.items()}
    readers = {
        ours: functools.partial(_read_strictly, some, f'tfds:{where}, split {names[ours]}')
        for ours, some in units.items()
    }
    return readers, digest(text_field, where, tfds.fingerprint(builder))


def own_splits(present: Iterable[str]) -> dict[str, str]:
    """Our name -> the data set's own, of the splits that it has."""
    present = list(present)
    found = {ours: next((n for n in theirs if n in present), '') for ours, theirs in _SPLIT_NAMES.items()}
    return {ours: theirs for ours, theirs in found.items() if theirs}


def _open_hub(field: str, where: str, text_field: str) -> tuple[Readers, str]:
    """Opens a data set of the Hugging Face Hub; its own validation and test splits are used."""
    from llm_jax.corpus.read import hub as hub_reader

    spec = f'{hub.PREFIX}{where}'
    repo = hub.parse_data_set(spec, field)
    found = hub_reader.open_data_set(repo, field)
    own = {} if repo.split else own_splits(found.splits)
    if 'train' in own:
        chosen = {ours: found.splits[theirs] for ours, theirs in own.items()}
    else:
        chosen = {'all': hub_reader.pick_split(found, repo, field)}
    source = _source(spec, text_field)
    opened = {ours: [(file, hub_reader.units(field, source, [file])) for file in some] for ours, some in chosen.items()}
    read = lambda pairs: (text for file, some in pairs for text in _read_strictly(some, file.path, file))
    fingerprints = [one.fingerprint for pairs in opened.values() for _, some in pairs for one in some]
    return {ours: functools.partial(read, pairs) for ours, pairs in opened.items()}, digest(text_field, fingerprints)


_KINDS = {
    'stdlib': _open_stdlib,
    'text': _open_text,
    'jsonl': _open_files('llm_jax.corpus.read.rows'),
    'parquet': _open_files('llm_jax.corpus.read.parquet'),
    'tfds': _open_tfds,
    'hf': _open_hub,
}


def _source(path: str, text_field: str) -> Source:
    return Source(path=path, text_field=text_field, max_bytes=_MAX_BYTES)


def _read_strictly(units: Iterable[Input], path: str, file: files.File | None = None) -> Iterator[Text]:
    """Yields the texts of units; a record that cannot be read is an error.

    Args:
      units: of one file, or of what `path` names.
      path: as errors call it.
      file: of which a line that is no JSON has a number.
    """
    records = (record for one in units for record in one.read())
    for number, record in enumerate(records, 1):
        where = f'{path}, record {number}'
        if isinstance(record, Broken):
            raise _explained(record, where, file)
        if isinstance(record, Skipped) and record.reason == 'skip.too_large':
            raise ConfigError(f'{where} is longer than {_MAX_BYTES >> 20} MiB; split it into documents')
        if isinstance(record, Raw):
            yield where, (record.content,)


def _explained(record: Record, where: str, file: files.File | None) -> ConfigError:
    key = record.where.rpartition('#')[2]
    if record.reason == 'read.no_json' and file and key.isdigit():
        return ConfigError(f'{file.path}, line {line_at(file, int(key))} is not JSON: {record.detail}')
    hint = '; set data.text_field' if record.reason == 'read.no_text' else ''
    space = ' ' if record.detail.startswith(('is ', 'has ')) else ': '
    return ConfigError(f'{where}{space}{record.detail}{hint}')


def line_at(file: files.File, offset: int) -> int:
    """Returns the number of the line that starts at an offset of the decompressed file."""
    count = 1
    for block in file.blocks():
        if offset <= 0:
            break
        count += block[:offset].count(b'\n')
        offset -= len(block)
    return count
