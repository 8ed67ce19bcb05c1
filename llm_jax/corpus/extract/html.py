"""Web pages: main text by one of several methods, title, language and licence as the page states them."""

from collections.abc import Callable
import re

from lxml import etree
import numpy as np

from llm_jax.config import parts
from llm_jax.corpus.document import Document, Dropped, Raw
from llm_jax.corpus.extract import blocks, formulas, network
from llm_jax.corpus.extract.common import document, dropped, text_of
from llm_jax.corpus.extract.facts import facts
from llm_jax.corpus.extract.main_text import main_text
from llm_jax.corpus.extract.options import Extract

# Takes a page and its address; returns its main text, '' if it has none.
Method = Callable[[str, str], str]

_ANY_TAG = re.compile(r'<(?:!doctype|[a-z][a-z0-9]*)\b', re.I)
# libxml2 gives up at 2048, and the time that resiliparse takes grows with the square.
_MAX_DEPTH = 2000
# Pages between which trafilatura's caches are emptied; they hold parts of pages.
_PAGES_PER_CACHE = 5000


def make(options: Extract) -> Callable[[Raw], Document | Dropped]:
    """The extractor of web pages.

    Drops 'extract.not_html', 'extract.too_large', 'extract.empty' (no main text: pages made
    by scripts, missing pages), 'extract.failed' (a library gave up on the page).

    Raises:
      ConfigError: an unknown method.
    """
    method = (
        METHODS[options.html]()
        if options.html in METHODS
        else parts.resolve_part('extract.html', options.html, METHODS)
    )

    def extract(raw: Raw) -> Document | Dropped:
        page = text_of(raw)
        if not page.strip():
            return dropped(raw, 'extract.empty')
        if not _ANY_TAG.search(page):
            return dropped(raw, 'extract.not_html', page)
        tags = page.count('<')
        if len(page) > options.max_page or tags > options.max_tags:
            return dropped(raw, 'extract.too_large', page, f'{len(page)} characters, {tags} tags')
        if too_deep(page):
            return dropped(raw, 'extract.too_large', page, f'elements nested more than {_MAX_DEPTH} deep')
        try:
            text = method(page if options.html == 'main' else _with_formulas(page), raw.where)
        except Failed as error:
            return dropped(raw, 'extract.failed', page, str(error))
        if not text.strip():
            return dropped(raw, 'extract.empty', page)
        known = facts(page)
        return document(
            raw,
            text,
            title=raw.title or known.title,
            language=raw.language or known.language,
            licence=known.licence or raw.licence,
        )

    return extract


def _with_formulas(page: str) -> str:
    """The page with formulas, exponents and indices as text, for methods with a parser of their own."""
    tree = blocks.parse(page) if formulas.has_any(page) else None
    return page if tree is None else etree.tostring(tree, method='html', encoding='unicode')


def too_deep(page: str) -> bool:
    """Whether elements are nested deeper than parsers can follow without losing text or time.

    Tags are counted first, which finds at least the depth that there is; few pages have to be parsed for it.
    """
    data = np.frombuffer(page.encode() + b'  ', np.uint8)
    at = np.flatnonzero(data == ord('<'))
    following = data[at + 1]
    step = np.where(following == ord('/'), -1, (following | 32) >= ord('a')).cumsum()
    bound = step - np.minimum.accumulate(np.minimum(step, 0))
    if not len(bound) or bound.max() <= _MAX_DEPTH:
        return False
    tree, depth = blocks.parse(page), 0
    deepest = 0
    for event, _ in etree.iterwalk(tree, events=('start', 'end')) if tree is not None else ():
        depth += 1 if event == 'start' else -1
        deepest = max(deepest, depth)
    return deepest > _MAX_DEPTH


class Failed(Exception):
    """A library cannot read a page."""


def _make_main() -> Method:
    net = network.load()
    return lambda page, url: main_text(net, page, url)


def _make_trafilatura(**options) -> Method:
    # Imported here: they take a second, and other methods need neither.
    import trafilatura
    from trafilatura.meta import reset_caches

    done = 0

    def method(page: str, url: str) -> str:
        nonlocal done
        done += 1
        if done % _PAGES_PER_CACHE == 0:
            reset_caches()
        try:
            return trafilatura.extract(page, **options) or ''
        except RecursionError as error:  # it walks trees by recursion
            raise Failed(str(error)) from error

    return method


def _make_resiliparse(main_content: bool) -> Method:
    from resiliparse.extract.html2text import extract_plain_text

    return lambda page, url: extract_plain_text(page, main_content=main_content)


METHODS: dict[str, Callable[[], Method]] = {
    'main': _make_main,
    'trafilatura': _make_trafilatura,
    'trafilatura_fast': lambda: _make_trafilatura(fast=True),
    'resiliparse': lambda: _make_resiliparse(main_content=True),
    'visible': lambda: _make_resiliparse(main_content=False),
}
