"""A web page as a sequence of blocks of text, with where in the page each one stands.

A block is what stands between two breaks of line: a paragraph, a heading, an item of
a list, a cell of a table. Elements that hold blocks are nodes; in document order the
blocks of a node are neighbours, so that a node is an interval of blocks.
"""

import dataclasses
import re

from lxml import etree
import lxml.html
import numpy as np

from llm_jax.corpus.extract import formulas

# What is written to be run, drawn or filled in, not read.
_SKIPPED = frozenset((
    'script', 'style', 'template', 'svg', 'canvas', 'iframe', 'object', 'embed', 'audio', 'video', 'map',
    'math-renderer', 'head', 'select', 'datalist', 'input', 'textarea', 'progress', 'meter', 'frameset',
))  # fmt: skip
# Elements within a line; every other one begins a new block.
_INLINE = frozenset((
    'a', 'abbr', 'acronym', 'b', 'bdi', 'bdo', 'big', 'cite', 'code', 'data', 'del', 'dfn', 'em', 'font', 'i', 'img',
    'ins', 'kbd', 'label', 'mark', 'nobr', 'picture', 'q', 'rp', 'rt', 'ruby', 's', 'samp', 'small', 'source', 'span',
    'strike', 'strong', 'sub', 'sup', 'time', 'tt', 'u', 'var', 'wbr', 'slot',
))  # fmt: skip
# Tags that features look at, and those that tell as much.
TAGS = (
    'other', 'p', 'h1', 'h2', 'h3', 'h4', 'li', 'td', 'th', 'dt', 'dd', 'pre', 'blockquote', 'figcaption', 'button',
    'summary', 'section', 'article', 'main', 'nav', 'header', 'footer', 'aside', 'form', 'ul', 'table', 'dl', 'dialog',
    'details', 'figure', 'address', 'div', 'noscript', 'tr',
)  # fmt: skip
_TAG_IDS = {name: i for i, name in enumerate(TAGS)} | {
    'h5': 5, 'h6': 5, 'ol': 24, 'menu': 24, 'caption': 13, 'legend': 13, 'textarea': 11, 'listing': 11,
}  # fmt: skip
# What names of classes, ids and roles say about a node; each is one bit of a node's marks.
MARKS = {
    'comment': r'comment|disqus|respon[ds]|discussion',
    'post': r'post|repl(?:y|ies)|message|thread|topic|answer|question|forum',
    'side': r'side|rail|widget|aside|complementary|secondary|column',
    'footer': r'foot|colophon|copyright|bottom|contentinfo|legal',
    'nav': r'nav|menu|crumb|toc|pagination|pager|toolbar|tabs?\b|dropdown|skip',
    'header': r'head|masthead|banner|topbar|hero|title',
    'related': r'relat|recommend|similar|also|more-|read-?next|trending|popular|recent|latest|upsell|'
    r'cross-?sell|viewed',
    'share': r'shar(?:e|ing)|social|facebook|twitter|follow|pinterest|whatsapp|like',
    'overlay': r'cookie|consent|gdpr|modal|popup|overlay|dialog|lightbox|tooltip|toast|drawer|cart|minicart|alert',
    'promo': r'newsletter|subscri|sign-?up|promo|\bads?\b|advert|sponsor|cta|donat|login|sign-?in|paywall|campaign',
    'content': r'content|article|entry|body|main|story|text|prose|markdown|rte|rich|copy|wysiwyg|paragraph',
    'product': r'product|descri|detail|spec|feature|review|rating|price|sku|variant|buy|swatch',
    'hidden': r'hidden|sr-only|screen-?reader|collaps|visuallyhidden|invisible|a11y|offscreen|d-none|noprint|mobile',
    'byline': r'author|byline|meta|date|time|tags?\b|caption|credit|avatar|user|profile|badge|label|stats|count|vote',
    'item': r'list|grid|card|item|tile|result|row|teaser|entry|collection|gallery|carousel|slide|swiper',
    'control': r'button|btn|form|search|filter|sort|input|action|select|option|control|facet|toggle|accordion|faq',
}
_MARKS = re.compile('|'.join(f'(?P<{name}>{pattern})' for name, pattern in MARKS.items()))
_MARK_BITS = {name: 1 << i for i, name in enumerate(MARKS)}
# Numbers of lines beside code.
_LINE_NUMBERS = re.compile(r'line-?no|line-?num|gutter')
_HIDDEN_BIT = _MARK_BITS['hidden']


@dataclasses.dataclass(frozen=True, slots=True)
class Page:
    """Blocks and nodes of a page, as parallel arrays.

    Attributes:
      texts: text of each block; line breaks in it are as in the page.
      n_chars, n_linked, n_bold: characters of each block, those in links, those in bold.
      node: the innermost node each block is in.
      inline_marks: marks of the inline elements in each block.
      parent: of each node, its parent; of the first one, itself.
      start, stop: the blocks of each node.
      tag: of each node, its place in TAGS.
      marks: of each node, bits of MARKS that its own attributes show.
      shape: of each node, an id of its tag and class, by which like nodes are found.
      depth: of each node.
    """

    texts: list[str]
    n_chars: np.ndarray
    n_linked: np.ndarray
    n_bold: np.ndarray
    node: np.ndarray
    inline_marks: np.ndarray
    parent: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    tag: np.ndarray
    marks: np.ndarray
    shape: np.ndarray
    depth: np.ndarray


def parse(html: str) -> etree._Element | None:
    """The tree of a page; None where there is no element in it."""
    parser = lxml.html.HTMLParser(encoding='utf-8', huge_tree=True, remove_comments=True, remove_pis=True)
    # libxml2 takes a NUL for the end of the page; a lone surrogate cannot be encoded.
    data = html.replace('\0', '').encode('utf-8', 'replace')
    if not data.strip():
        return None
    try:
        tree = etree.fromstring(data, parser)
    except etree.ParserError:
        return None
    if tree is not None and formulas.has_any(html):
        formulas.rewrite(tree)
    return tree


def blocks(tree: etree._Element) -> Page:
    """The blocks of a page, in document order."""
    texts, sizes, node_of, inline_marks = [], [], [], []
    parent, start, stop, tag_ids, marks, shapes, depths = [0], [0], [0], [0], [0], [0], [0]
    shape_ids: dict[tuple[str, str], int] = {}
    marks_of: dict[str, int] = {}
    stack = [0]
    pieces: list[str] = []
    linked = bold = in_link = in_bold = in_pre = line_marks = 0
    breaks = 0
    skipping = None

    def flush() -> None:
        nonlocal pieces, linked, bold, line_marks, breaks
        if pieces:
            text = ''.join(pieces)
            text = (
                text.strip('\n').rstrip()
                if in_pre
                else '\n'.join(line for line in (' '.join(line.split()) for line in text.split('\v')) if line)
            )
            if text.strip():
                texts.append(text)
                sizes.append((len(text), linked, bold))
                node_of.append(stack[-1])
                inline_marks.append(line_marks)
            pieces = []
        linked = bold = line_marks = breaks = 0

    def add(text: str) -> None:
        nonlocal linked, bold, breaks
        if in_pre and text.isspace() and pieces and pieces[-1] == '\n':
            text = text.replace('\n', '', 1)  # that of the element before it
        pieces.append(text)
        if in_link or in_bold:
            size = len(text.strip())
            linked += size if in_link else 0
            bold += size if in_bold else 0
        if breaks and not text.isspace():
            breaks = 0

    def end_line() -> None:
        if pieces and not pieces[-1].endswith('\n'):
            pieces.append('\n')

    for event, element in etree.iterwalk(tree, events=('start', 'end')):
        tag = element.tag
        if skipping is not None:
            if event == 'end' and element is skipping:
                skipping = None
                if element.tail:
                    add(element.tail)
            continue
        if event == 'start':
            if not isinstance(tag, str) or tag in _SKIPPED:
                skipping = element
                continue
            attributes = element.attrib
            mark, name = 0, ''
            if attributes:
                name = attributes.get('class', '')
                if _LINE_NUMBERS.search(name) and not ''.join(element.itertext()).strip(' \n\t0123456789'):
                    skipping = element
                    continue
                words = f'{name} {attributes.get("id", "")} {attributes.get("role", "")}'
                mark = marks_of.get(words)
                if mark is None:
                    mark = 0
                    for match in _MARKS.finditer(words.lower()):
                        mark |= _MARK_BITS[match.lastgroup]
                    marks_of[words] = mark
                if 'hidden' in attributes or attributes.get('aria-hidden') == 'true':
                    mark |= _HIDDEN_BIT
                style = attributes.get('style')
                if style and 'display' in style and re.search(r'display\s*:\s*none', style):
                    mark |= _HIDDEN_BIT
            if tag in _INLINE:
                line_marks |= mark
                if tag == 'a':
                    in_link += 1
                elif tag in ('b', 'strong'):
                    in_bold += 1
            elif tag == 'br':
                breaks += 1
                if breaks == 2 and not in_pre:
                    flush()
                elif pieces:
                    pieces.append('\n' if in_pre else '\v')
            elif in_pre:  # a line of code; the elements within count
                in_pre += 1
                end_line()
            else:
                flush()
                in_pre = int(tag in ('pre', 'listing'))
                stack.append(len(parent))
                parent.append(stack[-2])
                start.append(len(texts))
                stop.append(0)
                tag_ids.append(_TAG_IDS.get(tag, 0))
                marks.append(mark)
                shapes.append(shape_ids.setdefault((tag, name), len(shape_ids)))
                depths.append(len(stack) - 1)
            if element.text:
                add(element.text)
            continue
        if tag in _INLINE:
            if tag == 'a':
                in_link -= 1
            elif tag in ('b', 'strong'):
                in_bold -= 1
        elif tag != 'br' and in_pre > 1:
            in_pre -= 1
            end_line()
        elif tag != 'br':
            flush()
            stop[stack.pop()] = len(texts)
            in_pre = 0
        if element.tail:
            add(element.tail)
    flush()
    stop[0] = len(texts)
    sizes = np.array(sizes, np.int64).reshape(-1, 3).T
    array = lambda values: np.array(values, np.int64)
    return Page(
        texts, *sizes, array(node_of), array(inline_marks), array(parent), array(start), array(stop), array(tag_ids),
        array(marks), array(shapes), array(depths),
    )  # fmt: skip
