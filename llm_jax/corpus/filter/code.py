"""Rules for programs: what is data, generated, minified, or markup without text.

Those of The Stack and StarCoder: longest and mean line and share of letters and digits
(Kocetkov et al. 2022, arXiv:2211.15533; Chen et al. 2021, arXiv:2107.03374), comments,
XML and the visible text of HTML (Li et al. 2023, arXiv:2305.06161, section 3.2), encoded
data (Lozhkov et al. 2024, arXiv:2402.19173, section 3.3). Two things are milder than there.
Documentation strings do not count towards "all comments": that dropped the best explained
modules of SciPy. And only a file of some length is asked for comments at all.
"""

import dataclasses
import re

from llm_jax.config.schema import field
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.filter import comments, rules, signals

# Base64, or hexadecimal digits, over one or more lines; and bytes or characters spelt out.
_BASE64 = re.compile(r'(?:(?<![A-Za-z0-9+/])(?=[A-Za-z+/]{0,40}\d)[A-Za-z0-9+/]{60,}={0,2}[\'"]?\s*\\?)+')
_LONG_WORD = 60
_ESCAPED = re.compile(r'(?:0x[0-9a-fA-F]{2},\s*){8,}|(?:\\x[0-9a-fA-F]{2}){8,}|(?:\\u[0-9a-fA-F]{4}){8,}')
_ESCAPES = ('0x', '\\x', '\\u')
_XML = re.compile(r'<\?xml\s+version=')
_INVISIBLE = re.compile(
    r'<(script|style|svg|template|noscript)\b[\s\S]*?</\1\s*>|<!--[\s\S]*?-->|<[^>]*>', re.IGNORECASE
)
_HTML = ('html', 'xhtml')
_XML_HEAD = 100


@dataclasses.dataclass(frozen=True)
class Options:
    kinds: tuple = field(rules.CODE, 'kinds of document that are judged; others pass')
    max_line: int = field(1000, 'longest line in characters')
    max_mean_line: float = field(100.0, 'highest mean length of a line in characters')
    min_alphanumeric: float = field(0.25, 'smallest share of characters that are letters or digits')
    max_comments: float = field(0.8, 'largest share of characters in comments')
    min_explained: float = field(0.01, 'smallest share in comments and documentation strings; 0 asks for none')
    explained_from: int = field(2000, 'characters of a file from which it is asked for them')
    max_encoded: float = field(0.5, 'largest share of characters in base64 and the like')
    max_encoded_run: int = field(1024, 'most characters of such data in one place')
    max_repeated_lines: float = field(0.5, 'largest share of characters in lines that have stood before')
    keep_xml: tuple = field(('xslt',), 'languages that may begin with an XML declaration')
    min_visible: float = field(0.2, 'smallest share of HTML that can be seen')
    min_visible_characters: int = field(100, 'fewest characters of HTML that can be seen')


def make(options: Options) -> Stage:
    """The stage 'code'; its signals and reasons are those of `measure`."""
    bounded = bounds(options)

    def stage(document: Document) -> Document | Dropped:
        if document.kind not in options.kinds:
            return document
        measured = measure(signals.view(document.text), document.language.lower(), options)
        document = rules.with_signals(document, 'code', measured)
        found = rules.missed(measured, bounded)
        return document if found is None else Dropped(document, f'code.{found[0]}', found[1])

    return stage


def measure(text: signals.Text, language: str, options: Options) -> dict[str, float]:
    """The signals of a program. Those that its language or length does not have are left out."""
    size, lengths = max(len(text.text), 1), list(map(len, text.lines))
    runs = encoded(text)
    out = {
        'longest_line': max(lengths, default=0),
        'mean_line': sum(lengths) / max(len(lengths), 1),
        'alphanumeric': text.alphanumeric / size,
        'encoded': sum(runs) / size,
        'encoded_run': max(runs, default=0),
        'repeated_lines': signals.repeats([line.strip() for line in text.filled_lines])[1] / size,
    }
    if (shares := comments.shares(text.text, language)) is not None:
        out['comments'] = shares[0]
        if size >= options.explained_from:
            out['explained'] = sum(shares)
    if language not in options.keep_xml:
        out['xml'] = int(_XML.search(text.text, 0, _XML_HEAD) is not None)
    if language in _HTML:
        seen = len(' '.join(visible(text.text).split()))
        out |= {'visible': seen / size, 'visible_characters': seen}
    return out


def bounds(options: Options) -> rules.Bounds:
    """What is kept, in the order in which reasons are looked for."""
    return {
        'longest_line': (0, options.max_line),
        'mean_line': (0, options.max_mean_line),
        'alphanumeric': (options.min_alphanumeric, 1),
        'xml': (0, 0),
        'visible_characters': (options.min_visible_characters, rules.INFINITY),
        'visible': (options.min_visible, 1),
        'encoded_run': (0, options.max_encoded_run),
        'encoded': (0, options.max_encoded),
        'repeated_lines': (0, options.max_repeated_lines),
        'comments': (0, options.max_comments),
        'explained': (options.min_explained, 1),
    }


def encoded(text: signals.Text) -> list[int]:
    """Lengths of the stretches that are encoded data."""
    found = []
    if len(text.words) and text.word_lengths.max() >= _LONG_WORD:
        found += _BASE64.findall(text.text)
    if any(escape in text.text for escape in _ESCAPES):
        found += _ESCAPED.findall(text.text)
    return list(map(len, found))


def visible(html: str) -> str:
    """What is left of HTML without its tags, scripts and styles."""
    return _INVISIBLE.sub(' ', html)
