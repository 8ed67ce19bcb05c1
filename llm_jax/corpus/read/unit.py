"""What every reader deals in: the options of a source, its units of work, and what is passed over."""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import fnmatch
from typing import Any

from llm_jax.config.schema import field
from llm_jax.corpus.document import Broken, Raw, mend

# Large inputs are cut into units of about this size: a function of the input alone.
UNIT_BYTES = 32 << 20
_MAX_BYTES = 64 << 20
# Small files are put together to at most so many.
_UNIT_FILES = 2000


@dataclasses.dataclass(frozen=True)
class Source:
    """One entry of `sources`: where documents come from and how to read them."""

    path: str = field(
        '',
        'file, glob, directory or archive, local, gs:// or s3://; or "stdlib", "site-packages", "tfds:NAME_OR_DIR", '
        '"hf:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]"',
    )
    format: str = field(
        'auto',
        'warc, wet, html, text, gutenberg, markdown, code, jsonl, parquet, wikipedia, tfds; auto goes by file names',
    )
    include: str = field('', 'glob that paths within a directory or archive must match; empty goes by their suffix')
    text_field: str = field('text', 'field of JSONL, Parquet and TFDS that holds the text; "a.b" is b within a')
    id_field: str = field('', 'field that a record is called by; it becomes part of the id')
    url_field: str = field('url', 'field that says where the text is from, where records have it')
    kind: str = field('text', 'what the text of JSONL, Parquet and TFDS is: text, html, gutenberg, markdown, code')
    language: str = field('', 'ISO 639 code of its prose, programming language of records of code; empty finds out')
    licence: str = field('', 'licence of all its documents; empty takes what the source itself says')
    max_bytes: int = field(0, 'longer records are passed over; 0 means 1 MiB for files of code, 64 MiB for others')
    limit: int = field(0, 'documents to read, for trials; 0 reads all')
    stages: tuple = field((), "names of its stages, in order; empty means the pipeline's")


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """Something that is no document, and rightly so: an image, a redirect, a link. Counted apart from `Broken`.

    Attributes:
      source, where: as in `Broken`.
      reason: 'skip.RULE', under which it is counted.
    """

    source: str
    where: str
    reason: str

    def __post_init__(self):
        mend(self, ('where',))


Record = Raw | Broken | Skipped


@dataclasses.dataclass(frozen=True)
class Input:
    """One unit of work: a file, or a part of one, or some files. It can be pickled.

    Attributes:
      name: unique within the source.
      fingerprint: changes when the content may have changed.
      bytes: size as it is stored, 0 if unknown.
    """

    name: str
    fingerprint: str
    bytes: int
    _read: Callable[[], Iterator[Record]] = dataclasses.field(repr=False, compare=False)

    def read(self) -> Iterator[Record]:
        """Its records in order, one in memory at a time; each is one of the three, so that they add up."""
        return self._read()


def longest(source: Source) -> int:
    """Bytes of the longest record that is read; a longer one is passed over, and counted, without being held."""
    return source.max_bytes or _MAX_BYTES


def ranges(size: int) -> list[tuple[int, int]]:
    """[start, stop) of the units that so many bytes are read in."""
    count = max(1, round(size / UNIT_BYTES))
    edges = [size * i // count for i in range(count + 1)]
    return list(zip(edges[:-1], edges[1:], strict=True))


def groups(items: Sequence[Any], size: Callable[[Any], int]) -> Iterator[Sequence[Any]]:
    """Successive items put together to units of about UNIT_BYTES."""
    start = held = 0
    for i, item in enumerate(items):
        if i > start and (held + size(item) > UNIT_BYTES or i - start >= _UNIT_FILES):
            yield items[start:i]
            start, held = i, 0
        held += size(item)
    if start < len(items):
        yield items[start:]


def numbered(name: str, index: int, count: int) -> str:
    """Name of one of several units of a file."""
    return name if count == 1 else f'{name} [{index + 1}/{count}]'


def matches(path: str, pattern: str) -> bool:
    """Whether a path within a directory or archive matches a glob; '*' goes across '/', '' matches all."""
    return not pattern or fnmatch.fnmatchcase(path, pattern)


def first(records: Iterable[Record], limit: int) -> Iterator[Record]:
    """Records up to the last of `limit` documents."""
    found = 0
    for record in records:
        yield record
        found += isinstance(record, Raw)
        if found == limit:
            return
