"""What moves through the corpus pipeline: records as they are read, documents, and what was dropped.

    reader -> Raw -> extractor -> Document -> stage -> Document -> ... -> corpus
                 \\-> Broken          \\-> Dropped  \\-> Dropped

A stage is a pure function of one document. Nothing disappears: what does not become a
document of the corpus is a `Broken` or a `Dropped` with its reason, and is counted.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from types import MappingProxyType
from typing import Any

from llm_jax.corpus.digest import digest

_NOTHING: Mapping = MappingProxyType({})


def well_formed(text: str) -> str:
    """Joins pairs of surrogates to the character that they stand for; lone ones, which no encoding has, become U+FFFD.

    Halves come from JSON that was cut ('\\ud83d') and from file names that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')
    return text


def mend(record: Any, names: tuple[str, ...]) -> None:
    """Makes these fields of a frozen record well-formed; an id stays unique."""
    for name in names:
        value = getattr(record, name)
        if isinstance(value, str) and not value.isascii() and (mended := well_formed(value)) != value:
            object.__setattr__(record, name, f'{mended}:{digest(value)[:8]}' if name == 'id' else mended)


@dataclasses.dataclass(frozen=True, slots=True)
class Raw:
    """One record of a source, before its text is taken out.

    Attributes:
      id: unique in the corpus and the same on every run: 'SOURCE/FILE#RECORD'.
      source: name of the source in the config.
      where: URL, or path within the source.
      content: bytes where the encoding is still to be found, else text.
      kind: which extractor it needs: html, text, gutenberg, markdown, code, notebook.
      charset: the encoding that the record declares; '' if it does not.
      language: ISO 639 code that the record declares; '' if it does not.
      licence: as the source states it.
      title: where the record has one.
    """

    id: str
    source: str
    where: str
    content: bytes | str
    kind: str
    charset: str = ''
    language: str = ''
    licence: str = ''
    title: str = ''

    def __post_init__(self):
        mend(self, ('id', 'where', 'charset', 'language', 'licence', 'title'))


@dataclasses.dataclass(frozen=True, slots=True)
class Broken:
    """A record that cannot be read: cut off, not what it says it is. Counted, never fatal.

    Attributes:
      source, where: as in `Raw`.
      reason: short name under which it is counted, 'read.truncated'.
      detail: what was found.
    """

    source: str
    where: str
    reason: str
    detail: str = ''

    def __post_init__(self):
        mend(self, ('where', 'detail'))


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text on its way into the corpus.

    Attributes:
      id, source, where, licence, title: as in `Raw`.
      text: the text.
      kind: as in `Raw`: some rules hold for code alone, or for prose alone.
      language: ISO 639 code, or the programming language of code ('python').
      cluster: documents with the same one go to the same split, as they share much of their text;
        '' stands for the document alone.
      signals: measured qualities by name ('gopher.mean_word_length'), kept with the document.
    """

    id: str
    source: str
    where: str
    text: str
    kind: str
    language: str = ''
    licence: str = ''
    title: str = ''
    cluster: str = ''
    signals: Mapping[str, float] = dataclasses.field(default_factory=lambda: _NOTHING)

    def __post_init__(self):
        mend(self, ('id', 'where', 'language', 'licence', 'title'))


@dataclasses.dataclass(frozen=True, slots=True)
class Dropped:
    """A document that a stage took out.

    Attributes:
      document: as it was before the stage.
      reason: 'STAGE.RULE', under which it is counted: 'gopher.mean_word_length'.
      detail: the value and the threshold it missed, or the text that matched.
    """

    document: Document
    reason: str
    detail: str = ''


# Reads one file of a source.
Reader = Callable[..., Iterator[Raw | Broken]]
# Takes the text out of a record.
Extractor = Callable[[Raw], Document | Dropped]
# Changes, keeps or drops a document. Made once per process by a factory `make(options)`.
Stage = Callable[[Document], Document | Dropped]
