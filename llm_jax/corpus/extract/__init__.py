"""From records to documents: one extractor per kind of record."""

from collections.abc import Callable

from llm_jax.corpus.document import Extractor
from llm_jax.corpus.extract import code, gutenberg, html, markdown, notebook, text
from llm_jax.corpus.extract.options import Code, Extract

__all__ = ['EXTRACTORS', 'Code', 'Extract']

# Kind of record -> factory of its extractor.
EXTRACTORS: dict[str, Callable[[Extract], Extractor]] = {
    'html': html.make,
    'text': text.make,
    'gutenberg': gutenberg.make,
    'markdown': markdown.make,
    'code': code.make,
    'notebook': notebook.make,
}
