"""What all extractors share: the text of a record, and what becomes of it."""

from typing import Any

from llm_jax.corpus.document import Document, Dropped, Raw, well_formed
from llm_jax.corpus.read.encoding import decode

# What is kept of a record that is dropped, in characters: enough to see why.
_SHOWN = 20_000


def text_of(raw: Raw) -> str:
    """The content of a record as text, with '\\n' at the ends of lines, without NULs; lone surrogates become U+FFFD."""
    text = raw.content
    if isinstance(text, bytes):
        text, _, _ = decode(text, raw.charset, html=raw.kind == 'html')
    else:
        text = well_formed(text)
    return text.removeprefix('\ufeff').replace('\0', '').replace('\r\n', '\n').replace('\r', '\n')


def document(raw: Raw, text: str, **changes: Any) -> Document:
    """A document of this text; what else is known of it is the record's, or given in `changes`."""
    known = {name: getattr(raw, name) for name in ('id', 'source', 'where', 'kind', 'language', 'licence', 'title')}
    return Document(text=well_formed(text), **(known | changes))


def dropped(raw: Raw, reason: str, text: str = '', detail: str = '') -> Dropped:
    """A record that becomes no document; of its text, the beginning is kept to be shown."""
    return Dropped(document(raw, text[:_SHOWN]), reason, detail)
