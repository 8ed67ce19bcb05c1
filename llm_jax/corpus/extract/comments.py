"""Comments at the top of source files, and the licences in them."""

import re

# Languages by what a line comment begins with; all that are not named take the first of each kind that fits.
_HASH_IS_NO_COMMENT = frozenset((
    'c', 'cpp', 'csharp', 'cuda', 'd', 'dart', 'fsharp', 'glsl', 'go', 'groovy', 'haskell', 'java', 'javascript',
    'kotlin', 'less', 'objective-c', 'ocaml', 'protobuf', 'rust', 'scala', 'scss', 'solidity', 'swift', 'typescript',
    'verilog', 'zig', 'hlsl',
))  # fmt: skip
_BLOCKS = (('/*', '*/'), ('<!--', '-->'), ('(*', '*)'), ('{-', '-}'), ('--[[', ']]'), ('<#', '#>'), ('#|', '|#'))
_LINES = ('//', '#', '--', ';', '%', '!', 'dnl ', 'REM ', "'", '"')
_LINE_ONLY = {'%': ('matlab', 'tex', 'latex', 'erlang', 'prolog', 'postscript'), '!': ('fortran',), '"': ('vim',),
              "'": ('visual-basic', 'vb', 'basic')}  # fmt: skip
# Lines that have to stay first: '#!', an encoding or editor line, <?php, a doctype.
_PRELUDE = re.compile(
    r'#!|<\?|<!doctype|\W*(?:-\*-.*-\*-|.*\bcoding[:=]\s*[-\w.]+)|\W*vim?:\s*set\b|["\']use strict["\']|@charset|%!',
    re.I,
)
_LICENCE = re.compile(
    r'copyright\b|\(c\)\s*(?:19|20)\d\d|©|spdx-license|all rights reserved|'
    r'licen[cs]ed (?:under|to|by|for)|under (?:the )?(?:terms|conditions) of|'
    r'under (?:an?|the) [\w .,-]{0,40}licen[cs]e|'
    r'(?:see|in|read|find) (?:the )?(?:accompanying )?(?:file )?[\w./\'"`<> -]{0,40}\b(?:licen[cs]e|copying)\b|'
    r'governed by|licen[cs]e(?:d)?\s*:|licen[cs]e (?:agreement|information|terms|text)|'
    r'(?:apache|mit|bsd|isc|mozilla public|gnu (?:lesser |affero |library )?general public|boost software|'
    r'eclipse public|python software foundation|psf) (?:-?style )?licen[cs]e|'
    r'permission (?:is hereby granted|to use, copy)|redistributions? (?:and use|of source|in binary)|'
    r'without (?:any )?(?:express or implied )?warrant(?:y|ies)|provided .{0,12}as[ -]is|warranty of|'
    r'(?:free|open source) software[;,:]|you (?:may|can) (?:not use this file|obtain a copy|redistribute|use, copy)|'
    r'should have received a copy|(?:released|placed|dedicated|is) (?:in|into|to) the public domain|'
    r'endorse or promote products|source code form is subject',
    re.I,
)
_NAMED = re.compile(
    r'(?:copyright|\(c\)|©|spdx-|all rights reserved|licen[cs]e\s*:|licensed to\b|@licen[cs]e|@copyright)'
    r'(?!.*permission)',
    re.I,
)
_MARKS = re.compile(r'^[\s/*#;%!(){}<>|"\'-]*|[\s/*#;%!(){}<>|-]*$')
_MAX_BLOCKS = 6


def without_licence(text: str, language: str) -> str:
    """The text without the licences and copyright lines in the comments before its first line of code.

    Of a comment that also says something else, the paragraphs from the first to the last
    one about a licence go and the rest stays. Docstrings are no comments.

    Args:
      text: a source file.
      language: its name ('python', 'cpp'); '' if it is not known.
    """
    kept, at = [], 0
    prelude = _end_of_prelude(text, language)
    kept.append(text[:prelude])
    at, changed = prelude, False
    for _ in range(_MAX_BLOCKS):
        blank = re.compile(r'(?:[ \t\f]*\n)*').match(text, at).end()
        stop = _end_of_comment(text, blank, language)
        if stop == blank:
            break
        comment = text[blank:stop]
        cleaned = _without_licence_paragraphs(comment) if _LICENCE.search(comment) else comment
        changed |= cleaned != comment
        kept += [text[at:blank], cleaned] if cleaned else []
        at = stop
    if not changed:
        return text
    rest = text[at:]
    head = ''.join(kept)
    return head + rest if head.strip() else rest.lstrip('\n')


def leading_comments(text: str, language: str, limit: int = 4000) -> str:
    """The comments (and, of Python, the docstring) before the first line of code, at most `limit` characters."""
    at = _end_of_prelude(text, language)
    out = [text[:at]]
    for _ in range(_MAX_BLOCKS):
        at = re.compile(r'(?:[ \t\f]*\n)*').match(text, at).end()
        stop = _end_of_comment(text, at, language) or at
        if stop == at:
            docstring = re.compile(r'[rRuU]?("""|\'\'\').*?\1', re.S).match(text, at)
            stop = docstring.end() if docstring else at
        if stop == at or at > limit:
            break
        out.append(text[at:stop])
        at = stop
    return '\n'.join(out)[:limit]


def _end_of_prelude(text: str, language: str) -> int:
    at = 0
    for line in text.split('\n', 3)[:3]:
        if not _PRELUDE.match(line) or _LICENCE.search(line):
            break
        at += len(line) + 1
    return min(at, len(text))


def _end_of_comment(text: str, at: int, language: str) -> int:
    """Where the comment that begins at `at` ends, its line break included; `at` if there is none."""
    for opening, closing in _BLOCKS:
        if text.startswith(opening, at) and not (opening == '#|' and language in _HASH_IS_NO_COMMENT):
            end = text.find(closing, at + len(opening))
            if end < 0:
                return at
            end += len(closing)
            newline = text.find('\n', end)
            newline = len(text) if newline < 0 else newline
            # Code on the comment's last line belongs to the code.
            return end if text[end:newline].strip() else min(newline + 1, len(text))
    for mark in _LINES:
        if not text.startswith(mark, at) or (mark == '#' and language in _HASH_IS_NO_COMMENT):
            continue
        if mark in _LINE_ONLY and language not in _LINE_ONLY[mark]:
            continue
        match = re.compile(rf'(?:[ \t]*{re.escape(mark.rstrip())}(?!\[|\!)[^\n]*(?:\n|\Z))+').match(text, at)
        return match.end() if match else at
    return at


def _without_licence_paragraphs(comment: str) -> str:
    """A comment without the paragraphs from the first to the last one about a licence; '' if nothing is left."""
    lines = comment.split('\n')
    trailing = '\n' if comment.endswith('\n') else ''
    lines = lines[:-1] if trailing else lines
    bare = [_MARKS.sub('', line) for line in lines]
    paragraph, of_line = 0, []
    for i, line in enumerate(bare):
        paragraph += bool(i and not line) or bool(i and not bare[i - 1])
        of_line.append(paragraph)
    lines_of = lambda number: [line for line, n in zip(bare, of_line, strict=True) if n == number]
    joined: dict[int, str] = {}
    for number, line in zip(of_line, bare, strict=True):
        joined[number] = (joined.get(number, '') + ' ' + line).strip()
    about = [number for number, said in joined.items() if said and _LICENCE.search(said)]
    # A paragraph in which some lines name the holder or the licence, and no more, loses those lines.
    whole = [n for n in about if any(_LICENCE.search(line) and not _NAMED.match(line) for line in lines_of(n))]
    within = range(whole[0], whole[-1] + 1) if whole else range(0)
    keep = [
        number not in within and not (number in about and _NAMED.match(line))
        for number, line in zip(of_line, bare, strict=True)
    ]
    # What opens and closes the comment stays with what is left of it.
    if not any(k and line for k, line in zip(keep, bare, strict=True)):
        return ''
    block = next(((o, c) for o, c in _BLOCKS if comment.startswith(o)), None)
    if block:
        keep[0] = keep[0] or not bare[0]
        keep[-1] = keep[-1] or not bare[-1]
    left = [line for line, k in zip(lines, keep, strict=True) if k]
    if block and not keep[0]:
        left.insert(0, block[0])
    if block and not keep[-1]:
        left.append(block[1])
    while not block and not _MARKS.sub('', left[0]):
        left.pop(0)
    while not block and not _MARKS.sub('', left[-1]):
        left.pop()
    return '\n'.join(left) + trailing
