"""Jupyter notebooks as scripts: cells in their order, prose as comments, outputs off."""

import ast
from collections.abc import Callable
import json
import re
import warnings

from llm_jax.corpus.document import Document, Dropped, Raw
from llm_jax.corpus.extract.common import document, dropped, text_of
from llm_jax.corpus.extract.options import Extract

# What a line comment begins with, in the languages of kernels; '#' in all others.
_COMMENTS = {
    **dict.fromkeys(
        ('c', 'c++', 'cpp', 'c#', 'csharp', 'f#', 'fsharp', 'go', 'java', 'javascript', 'typescript'), '//'
    ),
    **dict.fromkeys(('kotlin', 'rust', 'scala', 'swift', 'q#', 'dart', 'groovy', 'php'), '//'),
    **dict.fromkeys(('haskell', 'lua', 'sql'), '--'),
    **dict.fromkeys(('matlab', 'octave', 'prolog', 'erlang'), '%'),
    **dict.fromkeys(('clojure', 'scheme', 'common-lisp', 'racket'), ';'),
}
# Magics that only measure or hide: the rest of their cell is code of the kernel's language.
_TRANSPARENT = ('%%time', '%%timeit', '%%capture', '%%prun', '%%memit', '%%mprun')
_MAGIC = re.compile(r'(\s*)((?:%{1,2}[A-Za-z_]|!|\?)|(?:[\w., ]+=\s*(?:!|%[A-Za-z_]))|[\w.]+\?{1,2}\s*$)')
_PICTURE = re.compile(r'!\[[^\]]*\]\((?:data:|attachment:)[^)]*\)|<img\b[^>]*src=["\']data:[^>]*>')


def make(options: Extract) -> Callable[[Raw], Document | Dropped]:
    """The extractor of notebooks, to documents of kind 'code'.

    Drops 'extract.not_a_notebook' and 'extract.empty'.
    """
    del options

    def extract(raw: Raw) -> Document | Dropped:
        text = text_of(raw)
        try:
            notebook = json.loads(text)
            found = script(notebook)
        except (json.JSONDecodeError, AttributeError, KeyError, TypeError, RecursionError) as error:
            return dropped(raw, 'extract.not_a_notebook', text, f'{type(error).__name__}: {error}')
        if not found.strip():
            return dropped(raw, 'extract.empty', text)
        return document(raw, found, kind='code', language=language(notebook))

    return extract


def language(notebook: dict) -> str:
    """The language of a notebook's kernel in lower case; 'python' if it does not say."""
    about = notebook.get('metadata', {})
    name = about.get('language_info', {}).get('name') or about.get('kernelspec', {}).get('language')
    return str(name or 'python').lower().removeprefix('i').replace('python3', 'python') if name else 'python'


def script(notebook: dict) -> str:
    """A notebook (nbformat 3 or 4) as a script in its kernel's language.

    Markdown cells become comments, without embedded pictures; raw cells go. Magics and
    shell commands are commented out, with `pass` where a block would be left empty; a
    cell in another language (`%%bash`) is commented out whole.

    Raises:
      KeyError, TypeError, AttributeError: it is no notebook.
    """
    cells = notebook['cells'] if 'cells' in notebook else [c for s in notebook['worksheets'] for c in s['cells']]
    kernel = language(notebook)
    mark = _COMMENTS.get(kernel, '#')
    parts = []
    for cell in cells:
        kind = cell['cell_type']
        source = cell['source'] if 'source' in cell else cell.get('input', '')
        source = (source if isinstance(source, str) else ''.join(source)).strip('\n').rstrip()
        if not source:
            continue
        if kind == 'code':
            parts.append(_code(source, kernel, mark))
        elif kind in ('markdown', 'heading'):
            source = _PICTURE.sub('', source).strip()
            if kind == 'heading':
                source = '#' * cell.get('level', 1) + ' ' + source
            if source:
                parts.append(_commented(source, mark))
    return '\n\n'.join(parts)


def _commented(source: str, mark: str) -> str:
    return '\n'.join(f'{mark} {line}'.rstrip() for line in source.split('\n'))


def _code(source: str, kernel: str, mark: str) -> str:
    first = source.lstrip().split('\n')[0]
    if first.startswith('%%') and not first.startswith(_TRANSPARENT):
        return _commented(source, mark)
    if kernel != 'python':
        # Other kernels have few magics, and '!' or '%' may well begin a line of their code.
        return '\n'.join(_commented(line, mark) if line.startswith('%%') else line for line in source.split('\n'))
    if _parses(source):
        return source
    return '\n'.join(_without_magic(line) for line in source.split('\n'))


def _without_magic(line: str) -> str:
    match = _MAGIC.match(line)
    if not match:
        return line
    return f'{match[1]}pass  # {line.strip()}' if match[1] else f'# {line}'


def _parses(source: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # all that ast.parse says of what is no Python
        return False
    return True
