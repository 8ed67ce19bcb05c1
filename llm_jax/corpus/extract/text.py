"""Plain text: decoded, otherwise as it is."""

from collections.abc import Callable

from llm_jax.corpus.document import Document, Dropped, Raw
from llm_jax.corpus.extract.common import document, dropped, text_of
from llm_jax.corpus.extract.options import Extract


def make(options: Extract) -> Callable[[Raw], Document | Dropped]:
    """The extractor of plain text; drops 'extract.empty'."""
    del options

    def extract(raw: Raw) -> Document | Dropped:
        text = text_of(raw).strip('\n')
        return document(raw, text) if text.strip() else dropped(raw, 'extract.empty')

    return extract
