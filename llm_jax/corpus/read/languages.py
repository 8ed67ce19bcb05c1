"""What a file is, by its name and, where the name leaves it open, by how it begins."""

from collections.abc import Callable, Mapping
import os
import re

# Suffixes of each programming or data language, in lower case.
_SUFFIXES = {
    suffix: language
    for language, suffixes in {
        'ada': 'adb ads',
        'agda': 'agda',
        'assembly': 'asm s nasm',
        'awk': 'awk',
        'bash': 'bash sh zsh ksh bats',
        'batchfile': 'bat cmd',
        'bazel': 'bzl bazel star',
        'c': 'c',
        'clojure': 'clj cljs cljc edn',
        'cmake': 'cmake',
        'coffeescript': 'coffee',
        'common-lisp': 'lisp cl asd',
        'cpp': 'cc cpp cxx c++ hpp hh hxx h++ ipp tpp inl ino',
        'crystal': 'cr',
        'csharp': 'cs csx',
        'css': 'css',
        'cuda': 'cu cuh',
        'cython': 'pyx pxd pxi',
        'd': 'd di',
        'dart': 'dart',
        'dockerfile': 'dockerfile',
        'elixir': 'ex exs',
        'elm': 'elm',
        'emacs-lisp': 'el',
        'erlang': 'erl hrl',
        'fortran': 'f f77 f90 f95 f03 f08 for',
        'fsharp': 'fs fsi fsx',
        'glsl': 'glsl vert frag comp geom',
        'go': 'go',
        'gradle': 'gradle',
        'graphql': 'graphql gql',
        'groovy': 'groovy',
        'haskell': 'hs lhs',
        'haxe': 'hx',
        'hcl': 'hcl tf tfvars',
        'html': 'html htm xhtml shtml',
        'idris': 'idr',
        'ini': 'ini cfg conf properties',
        'java': 'java',
        'javascript': 'js mjs cjs jsx',
        'json': 'json json5 jsonc',
        'julia': 'jl',
        'kotlin': 'kt kts',
        'lean': 'lean',
        'less': 'less',
        'llvm': 'll',
        'lua': 'lua',
        'makefile': 'mk mak make',
        'mako': 'mako',
        'mlir': 'mlir',
        'mojo': 'mojo',
        'nim': 'nim nims',
        'nix': 'nix',
        'objective-c': 'mm',
        'ocaml': 'ml mli',
        'odin': 'odin',
        'opencl': 'opencl',
        'pascal': 'pas pp dpr lpr',
        'perl': 'pm t',
        'php': 'php php3 php4 php5 phtml',
        'powershell': 'ps1 psm1 psd1',
        'prolog': 'prolog',
        'protobuf': 'proto',
        'python': 'py pyi pyw',
        'r': 'r',
        'racket': 'rkt',
        'raku': 'raku rakumod',
        'ruby': 'rb rake gemspec ru',
        'rust': 'rs',
        'sas': 'sas',
        'scala': 'scala sc',
        'scheme': 'scm ss sld',
        'scss': 'scss sass',
        'solidity': 'sol',
        'sparql': 'sparql rq',
        'sql': 'sql',
        'starlark': 'starlark',
        'stata': 'do ado',
        'svelte': 'svelte',
        'swift': 'swift',
        'systemverilog': 'sv svh',
        'tcl': 'tcl',
        'template': 'j2 jinja jinja2 tmpl mustache hbs ejs',
        'tex': 'tex sty cls ltx bib',
        'thrift': 'thrift',
        'toml': 'toml',
        'typescript': 'tsx mts cts',
        'vhdl': 'vhd vhdl',
        'vim': 'vim',
        'visual-basic': 'vb bas vbs',
        'vue': 'vue',
        'webassembly': 'wat wast',
        'xml': 'xml xsd xsl xslt pom csproj vcxproj wsdl',
        'yaml': 'yaml yml',
        'zig': 'zig',
    }.items()
    for suffix in suffixes.split()
}
# Files that go by their whole name, in lower case.
_NAMES = {
    'dockerfile': 'dockerfile', 'makefile': 'makefile', 'gnumakefile': 'makefile', 'kbuild': 'makefile',
    'cmakelists.txt': 'cmake', 'rakefile': 'ruby', 'gemfile': 'ruby', 'vagrantfile': 'ruby', 'podfile': 'ruby',
    'jenkinsfile': 'groovy', 'build': 'bazel', 'workspace': 'bazel', 'sconstruct': 'python', 'sconscript': 'python',
    'wscript': 'python', 'pkgbuild': 'bash', '.bashrc': 'bash', '.profile': 'bash', '.zshrc': 'bash', '.vimrc': 'vim',
    '.emacs': 'emacs-lisp', 'procfile': 'yaml', 'meson.build': 'meson', 'pipfile': 'toml', 'cargo.lock': 'toml',
}  # fmt: skip
_INTERPRETERS = {
    'python': 'python', 'pypy': 'python', 'sh': 'bash', 'bash': 'bash', 'dash': 'bash', 'zsh': 'bash', 'ksh': 'bash',
    'node': 'javascript', 'deno': 'typescript', 'perl': 'perl', 'ruby': 'ruby', 'php': 'php', 'lua': 'lua',
    'luajit': 'lua', 'awk': 'awk', 'gawk': 'awk', 'tclsh': 'tcl', 'wish': 'tcl', 'rscript': 'r', 'julia': 'julia',
    'osascript': 'applescript', 'pwsh': 'powershell', 'escript': 'erlang', 'elixir': 'elixir', 'groovy': 'groovy',
    'guile': 'scheme', 'racket': 'racket', 'make': 'makefile', 'runghc': 'haskell', 'swift': 'swift', 'expect': 'tcl',
}  # fmt: skip
_COMPRESSIONS = ('gz', 'zst', 'bz2', 'xz')
_SHEBANG = re.compile(r'#!\s*(?:\S*/)?(?:env\s+(?:-\S+\s+)*)?(?:\S*/)?([a-z]+)', re.I)


def _contains(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.search(pattern, text, re.M) is not None


_OBJECTIVE_C = r'^\s*(@interface|@implementation|@protocol|@end|@class|#import)\b'
_CPP = (
    r'^\s*(namespace\b|template\s*<|class\s+\w+[^;]*$|using\s+\w|(public|private|protected)\s*:|virtual\s|'
    r'#\s*include\s*<\w+>)|\b\w+::\w|\b(constexpr|nullptr|noexcept|static_cast|typename)\b'
)
# Suffixes of several languages: the first whose marks the text has, else the last.
_SHARED: Mapping[str, tuple[tuple[str, Callable[[str], bool]], ...]] = {
    'h': (('objective-c', _contains(_OBJECTIVE_C)), ('cpp', _contains(_CPP)), ('c', bool)),
    'm': (
        ('objective-c', _contains(_OBJECTIVE_C + r'|^\s*#include')),
        ('mathematica', _contains(r'^\(\*|:=|\[\[')),
        ('matlab', bool),
    ),
    'pl': (('prolog', _contains(r'^\s*:-|^\w+\(.*\)\s*(:-|\.$)')), ('perl', bool)),
    'v': (('coq', _contains(r'^\s*(Require|Theorem|Lemma|Definition|Proof)\b')), ('verilog', bool)),
    'ts': (('xml', _contains(r'\A\s*<(\?xml|!DOCTYPE|TS\b)')), ('typescript', bool)),
}


def suffix_of(path: str) -> str:
    """Suffix of a path without its dot, in lower case; '' if there is none. That of compression does not count."""
    stem, _, suffix = path.rpartition('/')[2].lower().rpartition('.')
    if suffix in _COMPRESSIONS:
        stem, _, suffix = stem.rpartition('.')
    return suffix if stem else ''


def language_of(path: str, text: str) -> str:
    """Programming language of a file: 'python'; '' for none that is known.

    By whole name, suffix, or the interpreter that its first line names. Suffixes that
    languages share are settled by what only one of them writes: a '.h' is Objective-C
    with an @interface or #import, C++ with a class, namespace, template, access mark or
    a standard header without '.h', else C.

    Args:
      path: as it is called.
      text: its beginning.
    """
    name = os.path.basename(path).lower()
    if name in _NAMES:
        return _NAMES[name]
    suffix = suffix_of(name)
    if suffix in _SHARED:
        return next(language for language, has_marks in _SHARED[suffix] if has_marks(text) or has_marks is bool)
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    match = _SHEBANG.match(text) if not suffix else None
    return _INTERPRETERS.get(match[1].lower(), '') if match else ''


def may_be_code(path: str) -> bool:
    """Whether the name alone says code, or leaves it to the first line."""
    suffix = suffix_of(path)
    return suffix in _SUFFIXES or suffix in _SHARED or not suffix or is_code_by_name(path)


def is_code_by_name(path: str) -> bool:
    """Whether a file is code by its whole name, whatever its suffix ('CMakeLists.txt')."""
    return os.path.basename(path).lower() in _NAMES
