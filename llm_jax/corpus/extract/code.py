"""Source code as it was written: licence headers off; what no one wrote or no one writes here is dropped.

Whether a file is generated, minified, vendored or data is told by its path, then by its
first comments, then by its lines.
"""

from collections.abc import Callable
import re

from llm_jax.corpus.document import Document, Dropped, Raw
from llm_jax.corpus.extract.comments import leading_comments, without_licence
from llm_jax.corpus.extract.common import document, dropped, text_of
from llm_jax.corpus.extract.options import Code, Extract

_VENDORED = frozenset((
    '_vendor', '_vendored', 'vendor', 'vendors', 'vendored', 'third_party', 'third-party', 'thirdparty', '3rdparty',
    '3rd_party', 'node_modules', 'bower_components', 'jspm_packages', 'godeps', 'pods', 'carthage', 'extern',
    'externals', '_distutils_vendor',
))  # fmt: skip
# The basename matches, in lower case.
_GENERATED_NAMES = re.compile(
    r'.*_pb2(?:_grpc)?\.pyi?|.*\.pb(?:\.gw)?\.(?:go|cc|h|swift|dart)|.*\.(?:g|freezed|mocks|gr)\.dart|'
    r'.*\.designer\.(?:cs|vb)|.*[._-](?:generated|autogen)\.\w+|.*\.gen\.\w+|zz_generated.*|generated[._].*|'
    r'parser\.out|(?:parse|yacc|lex)tab\.py|lex\.yy\.c|.*\.tab\.[ch]|moc_.*\.cpp|qrc_.*\.(?:py|cpp)|bindata\.go|'
    r'configure|aclocal\.m4|makefile\.in|ltmain\.sh|config\.(?:guess|sub|status)|install-sh|depcomp|missing|gradlew(?:\.bat)?'
)
_GENERATED_DIRECTORIES = frozenset(('__generated__', '__pycache__', '_generated', 'generated-sources'))
_MINIFIED_NAMES = re.compile(
    r'.*[.-]min\.(?:js|mjs|cjs|css|html)|.*\.(?:bundle|chunk|prod)\.(?:js|mjs|css)|.*\.(?:js|mjs|css)\.map'
)
_LOCKS = re.compile(
    r'package-lock\.json|npm-shrinkwrap\.json|pnpm-lock\.ya?ml|bun\.lockb?|go\.(?:sum|work\.sum)|.*\.lock|.*[._-]lock\.(?:json|ya?ml|toml)|'
    r'conda-lock\.ya?ml|package\.resolved|packages\.config|podfile\.lock'
)
_DATA_SUFFIXES = re.compile(
    r'.*\.(?:csv|tsv|svg|geojson|ndjson|jsonl|po|pot|xliff|xlf|plist|resx|snap|har|log|out|diff|patch|pem|crt|key|asc|'
    r'obj|stl|ply|gltf|fasta|pdb|mol|sdf|bib|srt|vtt|ics|vcf|dat|hex|map|tmlanguage|strings|arb|rst\.inc)'
)
# Of JSON and XML, what people write: settings of projects and tools.
_SETTINGS = re.compile(
    r'(?:package|composer|bower|manifest|deno|lerna|nx|turbo|vercel|firebase|angular|babel\.config|jsconfig|project|'
    r'renovate|pyrightconfig|devcontainer|launch|tasks|settings|tsconfig.*|\..*rc|.*\.(?:config|schema))\.jsonc?|'
    r'pom\.xml|build\.xml|androidmanifest\.xml|web\.config|.*\.(?:csproj|vcxproj|targets|props|xsd|xsl|xslt|xaml)'
)
_GENERATED = re.compile(
    r'(?<![\w@])@generated\b|\bdo not (?:edit|modify|change|alter)\b(?! (?:the|any|unless))|'
    r'\bdon[’\']t (?:edit|modify) this file|'
    r'\b(?:this|the following|these) (?:file|module|code|header|script|source|table|class|document)s? '
    r'(?:\S+ )?(?:was|were|is|are|has been|have been) (?:\w+[ -])?(?:auto-?)?'
    r'(?:generated|created automatically|compiled from)\b|\b(?:automatically|auto|machine)[- ]?'
    r'(?:generated|created|built)(?: (?:\w+ )?(?:by|from|with|file|code|using)\b|[.!]|\s*$)|'
    r'(?:\A|\n\W*\n)\W*(?:code |file |parser |source )?generated (?:by|from|with|using|on|at)\b|'
    r'\bgenerated (?:from|by|with|using) [\'"`<]?[\w./ -]+[\'"`>]? (?:with|by|using|via) [\w./-]+',
    re.I | re.M,
)
_SOURCE_MAP = re.compile(r'^//[#@]\s*sourceMappingURL=', re.M)
_HASH_COMMENT = re.compile(r'#[^\n]*')
_SLASH_COMMENT = re.compile(r'/\*.*?\*/|//[^\n]*', re.S)
_HASH_LANGUAGES = frozenset((
    'python', 'ruby', 'perl', 'r', 'julia', 'bash', 'yaml', 'toml', 'cython', 'makefile', 'cmake', 'elixir',
))  # fmt: skip
_LITERAL = re.compile(
    r'[bBrRuUfF]{0,2}"(?:[^"\\\n]|\\.)*"|[bBrRuUfF]{0,2}\'(?:[^\'\\\n]|\\.)*\'|\b0[xX][0-9a-fA-F_]+[uUlL]*|'
    r'\b\d[\d_.]*(?:[eE][+-]?\d+)?[jfFuUlL]*|[\s,;:\[\]{}()=+-]+'
)
# Files too small for their lines and literals to tell anything, in characters.
_SMALL = 3000


def make(options: Extract) -> Callable[[Raw], Document | Dropped]:
    """The extractor of source code.

    Drops 'code.vendored', 'code.generated', 'code.minified', 'code.data', as far as the
    options say so, and 'extract.empty'.
    """
    rules = options.code
    kept = {'generated': rules.generated, 'minified': rules.minified, 'vendored': rules.vendored, 'data': rules.data}

    def extract(raw: Raw) -> Document | Dropped:
        text = text_of(raw).replace('\f', '')
        if not text.strip():
            return dropped(raw, 'extract.empty')
        for rule, detail in (by_path(raw.where), by_content(text, raw.language, rules)):
            if rule and not kept[rule]:
                return dropped(raw, f'code.{rule}', text, detail)
        if not rules.licence_headers:
            text = without_licence(text, raw.language)
        if not text.strip():
            return dropped(raw, 'extract.empty', detail='nothing but a licence')
        return document(raw, text.rstrip() + '\n')

    return extract


def by_path(path: str) -> tuple[str, str]:
    """(vendored, generated, minified or data, what in the path says so); ('', '') for code."""
    *directories, name = path.lower().replace('\\', '/').split('/')
    for directory in directories:
        if directory in _VENDORED:
            return 'vendored', directory
        if directory in _GENERATED_DIRECTORIES:
            return 'generated', directory
    for rule, pattern in (
        ('minified', _MINIFIED_NAMES), ('generated', _GENERATED_NAMES), ('data', _LOCKS), ('data', _DATA_SUFFIXES)
    ):  # fmt: skip
        if pattern.fullmatch(name):
            return rule, name
    if name.endswith(('.json', '.xml', '.json5')) and not _SETTINGS.fullmatch(name):
        return 'data', name
    return '', ''


def by_content(text: str, language: str, rules: Code) -> tuple[str, str]:
    """The same as `by_path`, by what is in the file."""
    if match := _GENERATED.search(leading_comments(text, language)):
        return 'generated', match[0].strip()
    if len(text) < _SMALL:
        return '', ''
    share = literal_share(text, language)
    if share > rules.max_data:
        return 'data', f'{share:.0%} of it are literals'
    lines = text.split('\n')
    longest, mean = max(map(len, lines)), len(text) / len(lines)
    if longest > rules.max_line and (mean > rules.max_mean_line or _SOURCE_MAP.search(text, len(text) - 2000)):
        return 'minified', f'longest line {longest}, mean {mean:.0f} characters'
    return '', ''


def literal_share(text: str, language: str) -> float:
    """Share of a file's characters, without comments and space, that are in literals and the marks between them."""
    text = (_HASH_COMMENT if language in _HASH_LANGUAGES else _SLASH_COMMENT).sub('', text)
    whole = len(re.sub(r'\s', '', text))
    left = len(re.sub(r'\s', '', _LITERAL.sub('', text)))
    return 1 - left / whole if whole else 0.0
