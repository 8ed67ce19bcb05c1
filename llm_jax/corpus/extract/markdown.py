"""Markdown stays Markdown; what is not for readers goes: front matter, comments, badges.

Nothing within fenced or indented code is touched.
"""

from collections.abc import Callable
import re

from llm_jax.corpus.document import Document, Dropped, Raw
from llm_jax.corpus.extract.common import document, dropped, text_of
from llm_jax.corpus.extract.options import Extract

_FRONT_MATTER = re.compile(r'\s*(-{3,}|\+{3,})[ \t]*\n(.*?\n)??\1[ \t]*(?:\n|\Z)', re.S)
_KEY = re.compile(r'^[\w-]+[ \t]*[:=]', re.M)
_TITLE = re.compile(r'^title[ \t]*[:=][ \t]*(["\']?)(.+?)\1[ \t]*$', re.M | re.I)
_FENCE = re.compile(r'^ {0,3}(`{3,}|~{3,})[^\n]*\n.*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)', re.M | re.S)
_INDENTED = re.compile(r'(?:^|(?<=\n\n))(?:(?: {4}|\t)[^\n]*\n?)+', re.M)
_COMMENT = re.compile(r'[ \t]*<!--.*?-->[ \t]*', re.S)
# Hosts and paths of the pictures that tell a project's state.
_BADGE = (
    r'(?:shields\.io|badge|travis-ci\.(?:org|com)|codecov\.io|coveralls\.io|circleci\.com|appveyor\.com|/status\.svg|'
    r'app\.codacy\.com|codeclimate\.com|david-dm\.org|snyk\.io|requires\.io|readthedocs\.org/projects|colab-badge|'
    r'mybinder\.org|pepy\.tech|opencollective\.com|zenodo\.org/|github/workflow|workflows/[^)\s]*\.svg|'
    r'goreportcard\.com|isitmaintained\.com|deepsource\.io|sonarcloud\.io|gitter\.im)'
)
_IMAGE = rf'!\[[^\]\n]*\]\([^)\n]*{_BADGE}[^)\n]*\)'
_BADGES = re.compile(
    rf'\[[ \t]*(?:{_IMAGE}[ \t]*)+\](?:\([^)\n]*\)|\[[^\]\n]*\])|{_IMAGE}|'
    rf'(?:<a\b[^>]*>\s*)?<img\b[^>]*{_BADGE}[^>]*>(?:\s*</a>)?',
    re.I,
)
_DEFINED = re.compile(rf'^ {{0,3}}\[([^\]\n]+)\]:[ \t]*<?\S*{_BADGE}\S*[^\n]*\n?', re.M | re.I)


def make(options: Extract) -> Callable[[Raw], Document | Dropped]:
    """The extractor of Markdown; drops 'extract.empty'."""
    del options

    def extract(raw: Raw) -> Document | Dropped:
        text = text_of(raw)
        body, title = _without_front_matter(text)
        body = clean(body)
        if not body.strip():
            return dropped(raw, 'extract.empty', text)
        return document(raw, body, title=raw.title or title)

    return extract


def clean(text: str) -> str:
    """Markdown without comments and badges; code in it is as it was."""
    badges = {name.lower() for name in _DEFINED.findall(text)}
    out, at = [], 0
    # Code inside a comment belongs to the comment, so comments around fences go first.
    for fence in _FENCE.finditer(text):
        if fence.start() >= at:
            out += [_clean_prose(text[at : fence.start()], badges), fence[0]]
            at = fence.end()
    out.append(_clean_prose(text[at:], badges))
    return re.sub(r'\A\s*\n', '', ''.join(out)).rstrip()


def _without_front_matter(text: str) -> tuple[str, str]:
    """(the text after its YAML or TOML front matter, the title given there)."""
    match = _FRONT_MATTER.match(text)
    # A rule at the top may be no more than a rule: front matter holds keys.
    if not match or (match[2] and not _KEY.search(match[2])):
        return text, ''
    title = _TITLE.search(match[2] or '')
    return text[match.end() :], title[2] if title else ''


def _clean_prose(text: str, badges: set[str]) -> str:
    out, at = [], 0
    for code in _INDENTED.finditer(text):
        out += [_clean_lines(text[at : code.start()], badges), code[0]]
        at = code.end()
    return ''.join((*out, _clean_lines(text[at:], badges)))


def _clean_lines(text: str, badges: set[str]) -> str:
    if not text:
        return text
    cleaned = _BADGES.sub('', _DEFINED.sub('', _COMMENT.sub('', text)))
    if badges:
        names = '|'.join(sorted(map(re.escape, badges)))
        cleaned = re.sub(
            rf'\[?!\[[^\]\n]*\]\[(?:{names})\](?:\](?:\([^)\n]*\)|\[[^\]\n]*\]))?', '', cleaned, flags=re.I
        )
        cleaned = re.sub(rf'\[?!\[(?:{names})\](?:\](?:\([^)\n]*\)|\[[^\]\n]*\]))?(?![\[(])', '', cleaned, flags=re.I)
    if cleaned == text:
        return text
    # Lines and elements that held only what went.
    cleaned = re.sub(r'<(p|div|center|h\d)\b[^>]*>\s*</\1>', '', cleaned)
    return re.sub(r'\n\s*\n\s*\n', '\n\n', cleaned)
