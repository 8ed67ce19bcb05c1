"""What can be seen of each block of a page, as numbers: what the network goes by that finds main text.

The numbers are of the kinds that Boilerpipe (Kohlschütter et al. 2010) and Web2Text
(Vogels et al. 2018, arXiv:1801.02607) have found to tell: length and links of a block,
of its neighbours and of what it is in; names of classes; place; and what kind of page
it is. All are of order 1.
"""

from collections.abc import Iterator
import re

import numpy as np

from llm_jax.corpus.extract.blocks import MARKS, TAGS, Page
from llm_jax.corpus.extract.facts import Facts

# Phrases of short blocks, by what they give away.
_PHRASES = {
    'legal': r'©|\bcopyright\b|rights reserved|privacy|\bterms\b|cookie|imprint|impressum|disclaimer|'
    r'mentions légales',
    'action': r'\bsubscribe|sign (?:up|in)|log ?in\b|register|add to (?:cart|bag|wish|basket)|'
    r'(?:buy|shop|order|get) now|(?:read|learn|show|load|see|view) (?:more|all)|click here|\bskip to|\bdownload|'
    r'\bprint\b|\breply\b|\bquote\b|\breport\b|\bsearch\b|\bclose\b|\bmenu\b|\bnext\b|\bprevious\b|\bsort\b|'
    r'\bfilter|contact us|get started|\bapply\b',
    'social': r'\bshare\b|follow us|facebook|twitter|instagram|linkedin|pinterest|youtube|whatsapp|tiktok|e-?mail',
    'related': r'\brelated\b|you (?:may|might) (?:also )?like|recommend|more (?:from|in|on|stories)|popular|trending|'
    r'\blatest\b|\brecent\b|similar|also (?:bought|viewed)|newsletter|advertis|sponsor',
    'meta': r'\bmin(?:ute)?s? read\b|\bviews?\b|\bcomments?\b|\bposted\b|\bpublished\b|\bupdated\b|\bago\b|\bjoined\b|'
    r'\bposts?\b|\blikes?\b|\bvotes?\b|\bmember\b|\bby\s|\b(?:19|20)\d\d\b',
    'price': r'[$€£¥]\s?\d|\d\s?(?:€|usd|eur|kr\b|zł)|\bprice\b|\bin stock\b|\breviews?\b|\brating',
}
_PHRASE = re.compile('|'.join(f'(?P<{name}>{pattern})' for name, pattern in _PHRASES.items()))
_PHRASE_ROW = {name: i for i, name in enumerate(_PHRASES)}
# Phrases that make boilerplate of what stands beside them: all but prices.
_TELLING = len(_PHRASES) - 1
_SHORT = 120
_URLS = {
    name: re.compile(pattern)
    for name, pattern in {
        'forum': r'forum|thread|topic|discussion|questions?/|viewtopic|community|comments/|/t/|/q/|answers',
        'product': r'product|/p/|/dp/|/item|/shop|/buy|sku|/pd/',
        'docs': r'docs?[./-]|/api|reference|manual|guide|tutorial|/en/latest|documentation|learn|wiki|help',
        'news': r'blog|news|article|/20\d\d/|story|post',
        'many': r'categor|collection|tags?/|search|archive|list|/c/|catalog|directory|/best|top-\d',
        'service': r'service|solution|pricing|about|program|course|feature|platform',
    }.items()
}
_OPEN_GRAPH = ('article', 'product', 'website')
_SCHEMAS = (
    'Article', 'BlogPosting', 'NewsArticle', 'Product', 'ItemList', 'CollectionPage', 'QAPage',
    'DiscussionForumPosting', 'FAQPage', 'Service', 'Organization', 'WebPage', 'TechArticle', 'Course',
)  # fmt: skip
_OWN_TAGS = TAGS[: TAGS.index('ul')]
_INSIDE = (
    'p', 'li', 'article', 'main', 'nav', 'header', 'footer', 'aside', 'form', 'ul', 'table', 'dl', 'details',
    'figure', 'section', 'noscript',
)  # fmt: skip
_HEADINGS = tuple(map(TAGS.index, ('h1', 'h2', 'h3', 'h4')))
# A block of prose has this many words, and at most this share of them in links.
_PROSE_WORDS, _PROSE_LINKED = 10, 0.3
# How many of the nodes around a block are looked at, counting those only that hold more than the one before.
_LEVELS = 5
_FULL_STOP, _COMMA, _COLON = 46, 44, 58
_LAST_OF_SENTENCES = (33, 34, 41, 46, 63, 0x201D, 0x3002)

Column = tuple[str, np.ndarray | float]


def features(page: Page, url: str, facts: Facts) -> tuple[list[str], np.ndarray]:
    """(name of each feature, features of each block [n_blocks, n_features] in float32)."""
    seen = _Seen(page)
    columns = [
        *seen.of_text(),
        *seen.of_title(facts.title),
        *seen.of_repeats(),
        *seen.of_nodes(),
        *seen.of_surroundings(),
        *seen.of_place(),
        *seen.of_neighbours(),
        *seen.of_page(),
        *_of_address(url, facts),
    ]
    names = [name for name, _ in columns]
    values = np.empty((len(page.texts), len(columns)), np.float32)
    for i, (_, column) in enumerate(columns):
        values[:, i] = column
    return names, values


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return part / np.maximum(whole, 1e-9)


def _sums(values: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(values)])


class _Seen:
    """A page with what several features are made of. Has at least one block."""

    def __init__(self, page: Page):
        self.page, self.n = page, len(page.texts)
        # The characters of all blocks at once; each block is closed by a line break.
        codes = np.frombuffer(('\n'.join(page.texts) + '\n').encode('utf-32-le', 'surrogatepass'), np.uint32)
        self.lengths = np.fromiter(map(len, page.texts), np.int64, self.n)
        self.first = np.cumsum(self.lengths + 1) - self.lengths - 1
        self.codes = codes
        # Of scripts without spaces, two characters are taken for a word.
        ideographs = self._count((codes >= 0x2E80) & (codes < 0xA000))
        self.words = self._count((codes == 32) | (codes == 10)) + ideographs / 2
        self.linked = _share(page.n_linked, self.lengths).clip(0, 1)
        self.commas = self._count((codes == _COMMA) | (codes == 0xFF0C) | (codes == 0x3001))
        self.stops = self._count((codes == _FULL_STOP) | (codes == 33) | (codes == 63) | (codes == 0x3002))
        self.digits = self._count((codes >= 48) & (codes < 58))
        last = codes[self.first + self.lengths - 1]
        self.closed, self.colon = np.isin(last, _LAST_OF_SENTENCES), last == _COLON
        is_prose = (self.words >= _PROSE_WORDS) & (self.linked < _PROSE_LINKED) & (self.commas + self.stops > 0)
        self.prose = self.words * is_prose
        self.total_words, self.total_prose = max(self.words.sum(), 1), max(self.prose.sum(), 1)
        self.own_tag = page.tag[page.node]
        self.heading = np.isin(self.own_tag, _HEADINGS)
        self.says = self._phrases()
        self.place = np.arange(self.n)
        self.size = page.stop - page.start
        self._inherit()

    def _count(self, mask: np.ndarray) -> np.ndarray:
        """How many characters of each block the mask holds of."""
        return np.add.reduceat(mask, self.first, dtype=np.int64)

    def _phrases(self) -> np.ndarray:
        says = np.zeros((len(_PHRASES), self.n), np.float32)
        for i in np.flatnonzero(self.lengths < _SHORT).tolist():
            for match in _PHRASE.finditer(self.page.texts[i].lower()):
                says[_PHRASE_ROW[match.lastgroup], i] = 1
        return says

    def _inherit(self) -> None:
        """What nodes have from the nodes they are in: larger ancestor, marks, tags."""
        page = self.page
        parents, sizes, depths = page.parent.tolist(), self.size.tolist(), page.depth.tolist()
        own = page.marks.tolist()
        larger, near, above = list(range(len(parents))), list(own), list(own)
        bits = [1 << _INSIDE.index(tag) if tag in _INSIDE else 0 for tag in TAGS]
        inside = [0] * len(parents)
        of_tag = [bits[tag] for tag in page.tag.tolist()]
        for i in range(1, len(parents)):
            parent = parents[i]
            larger[i] = parent if sizes[parent] > sizes[i] else larger[parent]
            inside[i] = inside[parent] | of_tag[i]
            # The classes of <html> and <body> say what the page has, not where in it a block is.
            if depths[i] > 2:
                above[i] |= above[parent]
            if depths[i] > 4:
                near[i] |= own[parent] | own[parents[parent]]
        self.larger, self.inside = np.array(larger), np.array(inside)[page.node]
        self.marks = {'own': page.marks[page.node] | page.inline_marks, 'near': np.array(near)[page.node],
                      'all': np.array(above)[page.node]}  # fmt: skip

    def of_text(self) -> Iterator[Column]:
        words, codes = self.words, self.codes
        upper = self._count((codes >= 65) & (codes < 91))
        begins = codes[self.first]
        yield 'words', np.log1p(words)
        yield 'linked', self.linked
        yield 'bold', _share(self.page.n_bold, self.lengths).clip(0, 1)
        yield 'word_length', _share(self.lengths, words).clip(0, 20) / 5
        yield 'digits', _share(self.digits, self.lengths)
        yield 'upper', _share(upper, self.lengths)
        yield 'upper_words', _share(upper, words).clip(0, 3)
        yield 'commas', np.log1p(self.commas)
        yield 'stops', np.log1p(self.stops)
        yield 'bars', np.log1p(self._count(np.isin(codes, (124, 0xB7, 0xBB, 0x203A, 0x2022))))
        yield 'closed', self.closed
        yield 'colon', self.colon
        yield 'capital', (begins >= 65) & (begins < 91)
        yield 'prose', self.prose > 0
        for name, values in zip(_PHRASES, self.says, strict=True):
            yield f'says_{name}', values

    def of_title(self, title: str) -> Iterator[Column]:
        title_words = set(re.findall(r'\w+', title.lower()))
        alike = np.zeros(self.n)
        if title_words:
            for i in np.flatnonzero((self.words >= 2) & (self.words < 30)).tolist():
                own = set(re.findall(r'\w+', self.page.texts[i].lower()))
                alike[i] = len(own & title_words) / len(own | title_words)
        found = np.flatnonzero(alike > 0.5)
        yield 'title', alike
        yield 'after_title', self.place > found[0] if len(found) else 0.5

    def of_repeats(self) -> Iterator[Column]:
        first: dict[str, int] = {}
        again = np.zeros(self.n)
        for i, text in enumerate(self.page.texts):
            j = first.setdefault(text, i)
            if j != i:
                again[i] = 1
                again[j] = max(again[j], 0.5)
        self.repeated = again
        yield 'repeated', again
        yield 'repeats', again == 1

    def of_nodes(self) -> Iterator[Column]:
        for i, name in enumerate(_OWN_TAGS):
            yield f'tag_{name}', self.own_tag == i
        for i, name in enumerate(_INSIDE):
            yield f'in_{name}', self.inside >> i & 1
        for reach, marks in self.marks.items():
            for i, name in enumerate(MARKS):
                yield f'{reach}_{name}', marks >> i & 1
        yield 'depth', np.log1p(self.page.depth[self.page.node])

    def of_surroundings(self) -> Iterator[Column]:
        """What the nodes around a block hold, and the nodes that look like them: posts of a thread, cards of a list."""
        page = self.page
        of_node = lambda values: (lambda s: s[page.stop] - s[page.start])(_sums(values))
        words, linked, prose = (of_node(v) for v in (self.words, self.words * self.linked, self.prose))
        marks = of_node(self.commas + self.stops)
        n_shapes = page.shape.max() + 1
        twins = lambda values: np.bincount(page.shape, values, n_shapes)
        n_twins, twin_words = twins((self.size > 0).astype(float)), twins(words)
        twin_linked, twin_prose = twins(linked), twins(prose)
        at = page.node
        for k in range(_LEVELS):
            shape = page.shape[at]
            yield f'up{k}_words', np.log1p(words[at])
            yield f'up{k}_share', words[at] / self.total_words
            yield f'up{k}_linked', _share(linked[at], words[at])
            yield f'up{k}_prose', _share(prose[at], words[at])
            yield f'up{k}_prose_share', prose[at] / self.total_prose
            yield f'up{k}_commas', _share(marks[at], words[at]).clip(0, 1) * 5
            yield f'up{k}_block', np.log1p(_share(words[at], self.size[at]))
            yield f'up{k}_twins', np.log1p(n_twins[shape])
            yield f'up{k}_twin_words', np.log1p(_share(twin_words[shape], n_twins[shape]))
            yield f'up{k}_twin_linked', _share(twin_linked[shape], twin_words[shape])
            yield f'up{k}_twin_prose', _share(twin_prose[shape], twin_words[shape])
            yield f'up{k}_twin_share', (twin_words[shape] / self.total_words).clip(0, 2)
            at = self.larger[at]
        # The smallest node around a block that holds half of the page's prose, and how much else it holds.
        half = np.where(prose >= self.total_prose / 2, np.arange(len(prose)), 0).tolist()
        for i, parent in enumerate(page.parent.tolist()):
            half[i] = half[i] or half[parent]
        half = np.array(half)[page.node]
        yield 'half_share', words[half] / self.total_words
        yield 'half_distance', np.log1p(page.depth[page.node] - page.depth[half])
        yield 'half_depth', np.log1p(page.depth[half])

    def of_place(self) -> Iterator[Column]:
        before, prose_before = np.cumsum(self.words) - self.words, np.cumsum(self.prose) - self.prose
        yield 'place', self.place / self.n
        yield 'place_words', before / self.total_words
        yield 'from_start', np.log1p(self.place)
        yield 'from_end', np.log1p(self.n - 1 - self.place)
        yield 'prose_before', prose_before / self.total_prose
        yield 'prose_after', (self.total_prose - prose_before - self.prose) / self.total_prose

    def of_neighbours(self) -> Iterator[Column]:
        shape, telling = self.page.shape[self.page.node], self.says[:_TELLING].max(0)
        for shift in (-2, -1, 1, 2):
            to = self.place + shift
            there = (to >= 0) & (to < self.n)
            to = to.clip(0, self.n - 1)
            yield f'at{shift}_words', np.log1p(self.words[to]) * there
            yield f'at{shift}_linked', self.linked[to] * there
            yield f'at{shift}_closed', self.closed[to] * there
            yield f'at{shift}_heading', self.heading[to] * there
            yield f'at{shift}_same', (shape[to] == shape) * there
            yield f'at{shift}_says', telling[to] * there
        for reach in (3, 6, 20):
            low, high = (self.place - reach).clip(0), (self.place + reach + 1).clip(0, self.n)
            within = lambda values, low=low, high=high: (lambda s: s[high] - s[low])(_sums(values))
            words = within(self.words)
            yield f'within{reach}_words', np.log1p(words)
            yield f'within{reach}_linked', _share(within(self.words * self.linked), words)
            yield f'within{reach}_prose', _share(within(self.prose), words)
        under = np.maximum.accumulate(np.where(self.heading, self.place, -1))
        yield 'since_heading', np.log1p(self.place - under)
        yield 'heading_level', np.where(self.heading, self.own_tag, 0)[under.clip(0)]
        yield 'heading_says', telling[under.clip(0)]

    def of_page(self) -> Iterator[Column]:
        words, total = self.words, self.total_words
        yield 'page_words', np.log1p(total)
        yield 'page_blocks', np.log1p(self.n)
        yield 'page_linked', (words * self.linked).sum() / total
        yield 'page_prose', self.total_prose / total
        yield 'page_commas', self.commas.sum() / total * 5
        yield 'page_repeated', self.repeated.mean()
        yield 'page_h1', np.log1p((self.own_tag == TAGS.index('h1')).sum())
        yield 'page_h2', np.log1p((self.own_tag == TAGS.index('h2')).sum())
        yield 'page_digits', self.digits.sum() / self.lengths.sum() * 5
        yield 'page_prices', np.log1p(self.says[_PHRASE_ROW['price']].sum())
        yield 'page_code', words[self.own_tag == TAGS.index('pre')].sum() / total
        for name in ('main', 'article', 'table', 'ul', 'noscript'):
            yield f'page_{name}', words[self.inside >> _INSIDE.index(name) & 1 == 1].sum() / total
        yield 'page_articles', np.log1p((self.page.tag == TAGS.index('article')).sum())
        for name in ('comment', 'post', 'product', 'item'):
            yield f'page_{name}', words[self.marks['all'] >> list(MARKS).index(name) & 1 == 1].sum() / total


def _of_address(url: str, facts: Facts) -> Iterator[Column]:
    for name in _OPEN_GRAPH:
        yield f'og_{name}', float(facts.og_type.startswith(name))
    for name in _SCHEMAS:
        yield f'schema_{name}', float(name in facts.schemas)
    for name, pattern in _URLS.items():
        yield f'url_{name}', float(pattern.search(url.lower()) is not None)
    path = url.split('://')[-1].partition('/')[2]
    yield 'url_depth', float(np.log1p(sum(map(bool, path.split('/')))))
    yield 'url_length', float(np.log1p(len(path))) / 3
