"""Wikipedia articles as WikiExtractor writes them: JSON lines, or `<doc id= url= title=>` blocks.

What the extraction leaves behind is taken out: HTML entities (also doubly escaped ones),
tags, links in brackets, category lines, and the empty parentheses of pronunciations.
Placeholders such as 'formula_3' stay, as what they stood for is lost.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import html
import re

from llm_jax.corpus.document import Broken, Raw
from llm_jax.corpus.read import rows
from llm_jax.corpus.read.unit import Input, Record, Skipped, Source, longest
from llm_jax.data import files

_DOC = re.compile(r'<doc\s+([^>]*)>')
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')
_BREAK = re.compile(r'<(br|hr|/?p)\b[^<>]*>', re.I)
_TAG = re.compile(
    r'</?(ref|references|section|onlyinclude|noinclude|includeonly|nowiki|templatestyles|poem|mapframe|maplink|score|ins|'
    r'del|gallery|math|chem|ce|ol|ul|li|dl|dd|dt|div|span|small|big|sup|sub|center|blockquote|i|b|u|s|em|strong|code|tt|'
    r'var|kbd|cite|abbr|q|table|tr|td|th|tbody|caption|font|timeline|imagemap|syntaxhighlight|source|pre|indicator|'
    r'categorytree|graph|phonos|hiero)\b[^<>]*>',
    re.I,
)
_CATEGORY = re.compile(r'^\s*\[\[\w+:[^\]\n]*\]\]\s*$\n?', re.M)
_LINK = re.compile(r'\[\[(?:[^\[\]|\n]*\|)?([^\[\]|\n]*)\]\]')
_EMPTY = re.compile(r' \((?:[,;:]\s*)*\)')
_LEADING = re.compile(r'\((?:[,;]\s+)+(?=\S)')


def clean(text: str) -> str:
    """An article without what the extraction left behind."""
    for _ in range(2):
        if '&' not in text:
            break
        text = html.unescape(text)
    if '<' in text:
        text = _TAG.sub('', _BREAK.sub('\n', text))
    if '[[' in text:
        text = _LINK.sub(r'\1', _CATEGORY.sub('', text))
    return _LEADING.sub('(', _EMPTY.sub('', text))


def inputs(name: str, source: Source, path: str, file: files.File) -> list[Input]:
    """Units of a file of articles; its first line says which of the two formats it is."""
    try:
        blocks = b'<doc ' in next((line for _, line in rows.lines(file, 0, 0, longest(source))), b'')
    except files.Damaged:
        blocks = False
    if blocks:
        return rows.of_lines(functools.partial(_doc_records, name, source, path), path, file)
    source = dataclasses.replace(source, id_field=source.id_field or 'id')
    return [
        dataclasses.replace(unit, _read=functools.partial(_cleaned, name, unit))
        for unit in rows.inputs(name, source, path, file)
    ]


def _cleaned(name: str, unit: Input) -> Iterator[Record]:
    for record in unit.read():
        yield _article(name, record) if isinstance(record, Raw) else record


def _article(name: str, record: Raw) -> Raw | Skipped:
    text, title = clean(record.content), html.unescape(record.title)
    if not text.strip().removeprefix(title).strip():
        return Skipped(name, record.where, 'skip.empty')
    return dataclasses.replace(record, content=text, title=title)


def _doc_records(name: str, source: Source, path: str, file: files.File, start: int, stop: int) -> Iterator[Record]:
    """Articles whose `<doc>` line starts in [start, stop)."""
    attributes, held, offset, left = None, [], start, longest(source)
    broken = lambda detail: Broken(name, f'{path}#{offset}', 'read.truncated', detail)
    try:
        for at, line in rows.lines(file, start, file.size if stop else 0, longest(source), blank=True):
            text = line.decode('utf-8', 'replace')
            if match := _DOC.match(text):
                if attributes is not None:
                    yield broken('it has no </doc>')
                attributes = None
                if stop and at >= stop:
                    return
                attributes, held, offset, left = dict(_ATTRIBUTE.findall(match[1])), [], at, longest(source)
            elif attributes is None:  # the end of an article of the unit before
                continue
            elif text.strip() == '</doc>':
                if left < 0:
                    yield Skipped(name, f'{path}#{offset}', 'skip.too_large')
                else:
                    yield _doc(name, source, path, offset, attributes, '\n'.join(held))
                attributes = None
            else:
                left -= len(line) + 1
                if left < 0:
                    held = []
                else:
                    held.append(text)
    except files.Damaged as error:
        yield Broken(name, f'{path}#{offset}', 'read.damaged', f'{error}; what follows is lost')
        return
    if attributes is not None:
        yield broken('it has no </doc>')


def _doc(name: str, source: Source, path: str, offset: int, attributes: Mapping[str, str], text: str) -> Raw | Skipped:
    own = attributes.get('id', '')
    raw = Raw(
        id=f'{name}/{path}#{offset}' + (f':{own}' if own else ''),
        source=name,
        where=html.unescape(attributes.get('url', '')) or f'{path}#{own or offset}',
        content=text,
        kind='text',
        language=source.language,
        licence=source.licence,
        title=attributes.get('title', ''),
    )
    return _article(name, raw)
