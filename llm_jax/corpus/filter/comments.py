"""How much of a program is comments: by the way in which its language writes them, strings left alone."""

import functools
import re

_LINE = {
    '#': 'awk bash cmake coffeescript crystal dockerfile elixir fish gdscript julia make makefile nim perl '
    'powershell puppet python r ruby shell sh starlark tcl zsh',
    '//': 'c c++ cpp c# csharp cuda d dart go groovy hlsl glsl java javascript jsx kotlin objective-c objectivec php '
    'protobuf proto rust scala solidity swift systemverilog tsx typescript verilog zig',
    '--': 'ada elm haskell lua sql vhdl',
    '%': 'erlang latex matlab octave prolog tex',
    ';': 'asm assembly clojure common-lisp emacs-lisp lisp racket scheme',
    '!': 'fortran',
}
_BLOCKS = {
    ('/*', '*/'): 'c c++ cpp c# csharp css cuda d dart go groovy hlsl glsl java javascript jsx kotlin less objective-c '
    'objectivec php protobuf proto rust scala scss solidity sql swift systemverilog tsx typescript verilog',
    ('{-', '-}'): 'elm haskell',
    ('--[[', ']]'): 'lua',
    ('(*', '*)'): 'ocaml pascal',
    ('#=', '=#'): 'julia',
    ('<#', '#>'): 'powershell',
}
_PYTHON = re.compile(
    r'^[ \t]*[rRuU]?(?P<documentation>"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\')'  # a documentation string begins its line
    r'|"""[\s\S]*?"""|\'\'\'[\s\S]*?\'\'\''
    r'|"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\''
    r'|(?P<comment>\#.*)',
    re.MULTILINE,
)


def shares(text: str, language: str) -> tuple[float, float] | None:
    """The shares of characters that are in comments, and in documentation strings of Python.

    Args:
      text: a program.
      language: its language's name in lower case.

    Returns:
      None for a language whose comments are not known, or that is for data or text.
    """
    pattern = _pattern(language)
    if pattern is None:
        return None
    counts = {'comment': 0, 'documentation': 0}
    for match in pattern.finditer(text):
        if match.lastgroup is not None:
            counts[match.lastgroup] += match.end() - match.start(match.lastgroup)
    size = max(len(text), 1)
    return counts['comment'] / size, counts['documentation'] / size


@functools.cache
def _pattern(language: str) -> re.Pattern | None:
    """What finds strings, and comments as named groups."""
    if language == 'python':
        return _PYTHON
    lines = [mark for mark, languages in _LINE.items() if language in languages.split()]
    blocks = [marks for marks, languages in _BLOCKS.items() if language in languages.split()]
    if not lines and not blocks:
        return None
    parts = [rf'{re.escape(a)}[\s\S]*?(?:{re.escape(b)}|\Z)' for a, b in blocks]
    parts += [rf'{re.escape(mark)}.*' for mark in lines]
    strings = [r'"(?:[^"\\\n]|\\.)*"', r"'(?:[^'\\\n]|\\.)*'", r'`(?:[^`\\]|\\.)*`']
    if '%' in lines:
        strings = []  # an apostrophe is one in TeX, and transposes in MATLAB
    return re.compile('|'.join([*strings, f'(?P<comment>{"|".join(parts)})']))
