"""What a page says about itself: title, language, licence, and what kind of page it is."""

import dataclasses
import html
import re

# Where a page states these things; scripts may come first, and be long.
_HEAD = 200_000
_TITLE = re.compile(r'<title[^>]*>(.*?)</title', re.I | re.S)
_LANGUAGE = re.compile(r'<html\b[^>]*?\s(?:xml:)?lang\s*=\s*["\']?\s*([a-zA-Z]{2,3})(?![a-zA-Z])', re.I)
_TAG = re.compile(r'<(meta|link|a)\b([^>]*)>', re.I)
_META = re.compile(r'<meta\b[^>]*>', re.I)
_ATTRIBUTE = re.compile(r'([\w:-]+)\s*=\s*(?:"([^"]*)"|\'([^\']*)\'|([^\s>"\']+))')
_SCHEMA = re.compile(r'"@type"\s*:\s*"(\w+)"')
_LICENSED = re.compile(r'<(?:a|link)\b[^>]*(?:\brel\s*=\s*["\']?[^"\'>]*\blicense\b|creativecommons\.org/)[^>]*>', re.I)
_COMMONS = re.compile(r'creativecommons\.org/(?:licenses/([a-z-]+)/(\d\.\d)|(publicdomain)/(zero|mark)/(\d\.\d))', re.I)


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What a page states.

    Attributes:
      title: its title, in one line.
      language: ISO 639 code of its <html lang>.
      licence: SPDX name of its Creative Commons licence, or the address of what it links to as
        rel="license".
      og_type: Open Graph's type ('article').
      schemas: the schema.org types in its JSON-LD.
    """

    title: str = ''
    language: str = ''
    licence: str = ''
    og_type: str = ''
    schemas: frozenset[str] = frozenset()


def facts(page: str) -> Facts:
    """What a page states; '' where it states nothing."""
    head = page[:_HEAD]
    title = _TITLE.search(head)
    language = _LANGUAGE.search(head)
    types = [a.get('content', '') for a in map(_attributes, _META.findall(head)) if a.get('property') == 'og:type']
    schemas = frozenset(_SCHEMA.findall(page)) if 'ld+json' in page else frozenset()
    return Facts(
        title=' '.join(html.unescape(title[1]).split()) if title else '',
        language=language[1].lower() if language else '',
        licence=_licence(page),
        og_type=types[0] if types else '',
        schemas=schemas,
    )


def _attributes(tag: str) -> dict[str, str]:
    return {m[1].lower(): html.unescape(m[2] or m[3] or m[4] or '') for m in _ATTRIBUTE.finditer(tag)}


def _licence(page: str) -> str:
    """A link that says it is the licence counts before others; those count if they agree."""
    linked = []
    for tag in _LICENSED.findall(page):
        attributes = _attributes(tag)
        href = attributes.get('href', '')
        name = spdx(href)
        if 'license' in attributes.get('rel', '').lower().split() and (name or href.startswith('http')):
            return name or href
        linked.append(name)
    names = set(filter(None, linked))
    return names.pop() if len(names) == 1 else ''


def spdx(url: str) -> str:
    """SPDX name of the Creative Commons licence at this address ('CC-BY-SA-4.0'); '' if it is none."""
    match = _COMMONS.search(url)
    if not match:
        return ''
    kind, version, _, dedication, of_dedication = match.groups()
    if kind:
        return f'CC-{kind.upper()}-{version}'
    return f'CC0-{of_dedication}' if dedication.lower() == 'zero' else f'CC-PDM-{of_dedication}'
