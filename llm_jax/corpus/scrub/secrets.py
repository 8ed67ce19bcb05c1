"""Keys, tokens and passwords.

Three ways to know one:
  - its own form: the issuers of tokens give them prefixes so that they can be found;
  - a private key in PEM armour, a token in an Authorization header, a password in a URL;
  - a value that is given to a name such as `password` or `api_key` (by an assignment, an element of XML,
    an option of a command, a statement of SQL and the other forms of `_ELSEWHERE`) and looks as if nobody
    had chosen its letters: at least `_MIN_ENTROPY` bits a character, and neither a word nor a path.
Left: what stands for a secret (changeme, <YOUR_KEY>, xxxx, ${TOKEN}), public keys and certificates,
names, words of any language, paths and calls.
"""

from collections import Counter
from collections.abc import Iterator
import math
import re

# What has to stand in the text -> the token (group 'secret', or all of it).
_TOKENS = tuple(
    (literals, re.compile(pattern))
    for literals, pattern in (
        # Cloud
        (('AKIA', 'ASIA', 'ABIA', 'ACCA'), r'(?<![A-Za-z0-9])(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}(?![A-Za-z0-9])'),
        (('AIza',), r'(?<![\w-])AIza[\w-]{35}(?![\w-])'),
        (('ya29.',), r'(?<![\w-])ya29\.[\w-]{20,}'),
        (('GOCSPX-',), r'GOCSPX-[\w-]{28}'),
        (('AccountKey=',), r'AccountKey=(?P<secret>[A-Za-z0-9+/]{86}==)'),
        (('dop_v1_', 'doo_v1_', 'dor_v1_'), r'do[opr]_v1_[0-9a-f]{64}'),
        (('dapi',), r'(?<!\w)dapi[0-9a-f]{32}(?:-\d)?(?!\w)'),
        # Code hosting and packages
        (('ghp_', 'gho_', 'ghu_', 'ghs_', 'ghr_'), r'(?<!\w)gh[pousr]_[A-Za-z0-9]{36,255}(?!\w)'),
        (('github_pat_',), r'github_pat_[A-Za-z0-9_]{22,255}'),
        (('glpat-',), r'glpat-[\w-]{20,}'),
        (('npm_',), r'(?<!\w)npm_[A-Za-z0-9]{36}(?!\w)'),
        (('pypi-',), r'(?<!\w)pypi-AgE[\w-]{50,}'),
        (('dckr_pat_',), r'dckr_pat_[\w-]{27}'),
        # Messages
        (('xox',), r'xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{10,}'),
        (('xapp-',), r'xapp-\d-[A-Z0-9]+-\d+-[a-z0-9]{20,}'),
        (('hooks.slack.com',), r'hooks\.slack\.com/(?:services|workflows)/(?P<secret>T\w{6,}/[AB]\w{6,}/\w{16,})'),
        (('discord',), r'discord(?:app)?\.com/api/webhooks/(?P<secret>\d{17,20}/[\w-]{60,})'),
        ((':AA',), r'(?<!\w)\d{8,10}:AA[\w-]{33}(?![\w-])'),
        (('SG.',), r'(?<!\w)SG\.[\w-]{22}\.[\w-]{43}(?![\w-])'),
        (('key-',), r'(?<![\w-])key-[0-9a-f]{32}(?!\w)'),
        (('SK',), r'(?<!\w)SK[0-9a-f]{32}(?!\w)'),
        # Payment and shops
        (('k_live_', 'k_test_'), r'(?<!\w)[sr]k_(?:live|test)_[A-Za-z0-9]{16,}'),
        (('whsec_',), r'whsec_[A-Za-z0-9+/=]{32,}'),
        (('shpat_', 'shpca_', 'shppa_', 'shpss_'), r'shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}'),
        (('sq0',), r'sq0(?:atp|csp)-[\w-]{22,43}'),
        # Models
        (('sk-',), r'(?<![\w-])sk-(?:ant-|proj-|svcacct-|admin-|or-v1-)?(?=[A-Za-z_-]*\d)[A-Za-z0-9_-]{20,}'),
        (('hf_',), r'(?<!\w)hf_[A-Za-z0-9]{34}(?!\w)'),
        (('gsk_',), r'(?<!\w)gsk_[A-Za-z0-9]{52}(?!\w)'),
        (('xai-',), r'(?<![\w-])xai-[A-Za-z0-9]{70,}'),
        (('r8_',), r'(?<!\w)r8_[A-Za-z0-9]{37}(?!\w)'),
        # Anything
        (('eyJ',), r'(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{10,}'),
    )
)  # fmt: skip
_SHORTEST = 20
_PRIVATE_KEY = re.compile(
    r'-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----'
    # To its end; of a key that is cut off, as far as it goes.
    r'(?:(?s:.{1,16384}?)-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----|(?:\s|\\n|[A-Za-z0-9+/=])+)'
)
_URL_PASSWORD = re.compile(r'://[^\s/:@"\'<>]{0,64}:([^\s/@"\'<>{}$]{3,128})@(?=[\w\[])')
_HEADER = re.compile(r'(?:Bearer (?=\S*\d)|[Bb]asic (?=\S*[=0-9]))([\w+/.~-]{16,}={0,2})')
_VALUE = re.compile(
    r'[=:](?:(?<=:)=|(?<==)>)?(?!=)[ \t]*'
    r'(?:[rbufLN@$]?(["\'`])([^"\'`\s]{8,200})\1|([^\s"\'`,;]{8,200})(?=[ \t]*(?:$|#)))',
    re.M,
)
# Where a name and its value are not joined by '=' or ':', or are not alone on their line.
_QUOTED = r'(?P<q>["\'`])(?P<secret>[^\s"\'`]{8,200})(?P=q)'
_BARE = r'(?P<q>["\']?)(?P<secret>[^\s"\'`<>]{8,200})(?P=q)'
_IN_MARKUP = r'>\s{0,8}(?P<secret>[^\s<>]{8,200})\s{0,8}</'
# One of these stands in the text, in lower case -> the secret, and perhaps the 'name' that has to call it one.
_ELSEWHERE = tuple(
    (hints, re.compile(pattern, re.I | re.M))
    for hints, pattern in (
        # <password>...</password>
        (('</',), r'<(?P<name>[\w.:-]{2,60})(?:\s[^<>]{0,200})?' + _IN_MARKUP + r'(?P=name)>'),
        # <entry name="password">...</entry>
        (('</',), r'(?:name|key|id)=["\'](?P<name>[\w.:-]{2,60})["\'][^<>\n]{0,80}' + _IN_MARKUP),
        # name="password" value="...", "name": "password", "value": "...", and the same on two lines of YAML
        (
            ('value',),
            r'\b(?:name|key|id)["\']?\s?[=:]\s{0,2}["\']?(?P<name>[\w.:-]{2,60})["\']?[^<>\w]{1,60}'
            r'\bvalue["\']?\s?[=:]\s{0,2}' + _BARE,
        ),
        # password: >- and the value on the next line
        (
            ('|\n', '>\n', '|-', '>-', '|+', '>+'),
            r'^[ \t-]*["\']?(?P<name>[\w.-]{2,60})["\']?:[ \t]+[|>][+-]?[ \t]*\n[ \t]+(?P<secret>\S{8,200})[ \t]*$',
        ),
        # Server=a;Password=...;
        ((';',), r';\s?(?P<name>password|pwd|\w{1,20}key)\s?=\s?(?P<secret>[^\s;"\'<>]{8,200})(?=[;"\'<\s]|$)'),
        # IDENTIFIED BY '...', PASSWORD '...'
        (
            ('identified', 'password'),
            r'\b(?:IDENTIFIED\s(?:WITH\s\S{1,40}\s)?(?:BY|AS)|PASSWORD)(?:\s*\(|\s)\s*(?:PASSWORD\s)?N?' + _QUOTED,
        ),
        # ENV PASSWORD ...
        (('env ',), r'^[ \t]*ENV[ \t]+(?P<name>\w{2,60})[ \t]+' + _BARE + r'[ \t]*$'),
        # A=1 PASSWORD=... psql
        (('=',), r'(?-i:(?P<name>[A-Z](?<!\S.)[A-Z0-9_]{2,60}))=' + _BARE + r'(?=[ \t\\;]|$)'),
        # --password=..., --token ...
        (('--',), r'-(?<![\w-]-)-?(?P<name>[\w-]{2,40})[= ]' + _BARE + r'(?=[\s;|&]|$)'),
        # -u user:...
        ((' -u', '--user'), r'-(?<![\w-]-)(?:u|-user)[= ]?["\']?[\w.@-]{1,64}:(?P<secret>[^\s"\']{8,200})'),
        # mysql -p..., sshpass -p ..., redis-cli -a ..., docker login -p ...
        (('mysql', 'mariadb'), r'\b(?:mysql|mariadb)\w*[ \t][^\n|;]{0,200}?-p(?P<secret>[^\s"\'|;]{8,200})'),
        (
            ('sshpass', 'redis-cli', ' login '),
            r'\b(?:sshpass|redis-cli|\w+[ \t]login)[ \t](?:[^\n|;]{0,200}?[ \t])?-[ap][ \t]?' + _BARE,
        ),
        # .netrc: machine host login user password ...
        (('machine',), r'\bmachine\s+\S+\s+login\s+\S+\s+password\s+(?P<secret>\S{8,200})'),
        # .npmrc: //registry/:_authToken=...
        (('//',), r'^//\S{1,200}:_?(?P<name>\w{2,30})[ \t]?=[ \t]?' + _BARE),
        # "X-Api-Key: ..."
        (('key:', 'token:'), r'["\'](?P<name>[\w-]{2,40}):[ \t]?(?P<secret>[^\s"\']{8,200})["\']'),
        # define('PASSWORD', '...')
        (('",', "',", '`,'), r'\(\s{0,8}["\'`](?P<name>[\w.:-]{2,60})["\'`],\s{0,8}' + _QUOTED),
        # auth=('user', '...'), login('user', '...')
        (
            ('auth=(', 'auth = (', 'auth(', 'credential', 'login(', 'authenticate('),
            r'(?:auth|credentials?|login|HTTPBasicAuth|authenticate)\s{0,2}=?\s{0,2}'
            r'\(\s{0,8}(?:\w+=)?(["\'])[^"\'\n]{1,80}\1,\s{0,8}(?:\w+=)?' + _QUOTED,
        ),
        # The password is ...
        (
            tuple(f'{name} {verb}' for name in ('password', 'passphrase', 'token', ' key') for verb in ('is', 'was')),
            r'\b(?P<name>password|passphrase|token|(?:api|access|secret) key) (?:is|was) ["\'`]?'
            r'(?-i:(?=\S*[a-z])(?=\S*[A-Z])(?=\S*[0-9]))(?P<secret>[^\s"\'`<>]{7,200}[^\s"\'`<>.,;!?)])',
        ),
    )
)  # fmt: skip
# INSERT INTO users (name, password) VALUES ('a', '...'), ('b', '...')
_INSERT = re.compile(r'\binsert\s+into\s+\S{1,80}\s*\(([^()]{1,2000})\)\s*values\s*', re.I)
_STRING = r"'(?:[^']|'')*+'"
_ROW = re.compile(rf"\s*,?\s*\(((?:[^()']|{_STRING}|\([^()]*\)){{1,4000}}+)\)")
_CELL = re.compile(rf'\s*N?(?P<string>{_STRING})\s*|(?:[^,(]|\([^()]*\)|\()+', re.I)
# Without one of these there is no such name, and none of the tools that take a password.
_WORDS = (
    'pass', 'pwd', 'secret', 'token', 'key', 'credential', 'auth', 'login', 'identified', '-u', 'mysql', 'mariadb',
    'redis-cli',
)  # fmt: skip
# Languages in which a value needs no quotation marks.
SETTINGS = frozenset((
    'yaml', 'ini', 'toml', 'dockerfile', 'xml', 'properties', 'bash', 'batchfile', 'powershell', 'makefile', 'text', '',
))  # fmt: skip
_NAME = re.compile(
    r'(?:passw(?:or)?d|passphrase|passwd|(?<![a-z])pass|pwd|secret|token|credential|'
    r'(?:api|access|private|auth|secret|signing|encryption|account)[ _-]?key)s?'
    r'(?:[_-]?(?:key|value|id|hash|string|prod|dev|live))?'
    r'["\'\])]*[ \t]*(?::[ \t]*\w+[ \t]*)?$',
    re.I,
)
_PLACEHOLDER = re.compile(
    r'(?i)x{4,}|\*{3,}|\.{3}|…|_{4,}|example|change.?me|placeholder|dummy|sample|your|insert|replace|redacted|todo|fixme|'
    r'fake|mock|default|1234567|abcdef|foobar|hunter2|n0t|not.?a.?real|undefined|invalid|<.*>|\{.*\}|^\$|\$[{(]|'
    r'%[sd(]|\(|\[|^(?:id|type|src|source|env|file|name)=|(?-i:\$[A-Z_]{3})'
)
# Words of which values are made that keep no secret; digits and marks around them do not count.
_PLAIN = re.compile(
    r'(?i)\W*(?:my|guest|anonymous|the|new|old|bad|good|some|super|user|admin|root|test\w*|pass(?:word|phrase|wd)?|'
    r'secret\w*|token\w*|key|api|auth|access|refresh|client|login|hello|world|foo|bar|baz|spam|eggs|none|null|true|false|string|hash|value|'
    r'[\W_]|\d{1,4}(?!\d))+'
)
# Words in any script and a few marks around them; paths; attributes; marks and numbers; addresses.
_IDENTIFIER = re.compile(
    r'\W{0,3}[^\W\d](?:[^\W\d]|[.:-])*+\d{0,2}\W{0,3}|(?:[A-Za-z_.:~-]*\d{0,2}/)+[A-Za-z_.-]*\d{0,2}|'
    r'(?:[\w.:~-]*/)+[\w-]+\.[a-z]{2,4}|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|\W+|[0-9.:,-]+|https?://.*'
)
_MIN_ENTROPY = 2.75


def secrets(text: str, code: bool) -> Iterator[tuple[int, int]]:
    """(start, end) of each key, token or password.

    Args:
      code: whether an unquoted value is an expression; it is not in files of settings (`SETTINGS`).
    """
    yield from _tokens(text)
    yield from _elsewhere(text)
    for match in _VALUE.finditer(text):
        quoted = match[2] is not None
        name = _NAME.search(text, max(0, match.start() - 40), match.start())
        if name and _is_secret(match[2] or match[3]) and (quoted or _is_setting(text, match.start(), code)):
            yield match.span(2) if quoted else match.span(3)


def _elsewhere(text: str) -> Iterator[tuple[int, int]]:
    lower = text.lower()
    if not any(word in lower for word in _WORDS):
        return
    for hints, pattern in _ELSEWHERE:
        if any(hint in lower for hint in hints):
            for match in pattern.finditer(text):
                if _says_secret(match.groupdict().get('name')) and _is_secret(match['secret']):
                    yield match.span('secret')
    if 'insert' in lower:
        yield from _inserted(text)


def _inserted(text: str) -> Iterator[tuple[int, int]]:
    """Yields (start, end) of the secrets in the rows of INSERT statements whose columns are named."""
    for match in _INSERT.finditer(text):
        are_secret = [_says_secret(column.strip().strip('"`[]')) for column in match[1].split(',')]
        row = _ROW.match(text, match.end()) if any(are_secret) else None
        while row:
            for is_secret, cell in zip(are_secret, _CELL.finditer(text, *row.span(1)), strict=False):
                value = (cell['string'] or '')[1:-1]
                if is_secret and re.fullmatch(r'\S{8,200}', value) and _is_secret(value):
                    yield cell.start('string') + 1, cell.end('string') - 1
            row = _ROW.match(text, row.end())


def _says_secret(name: str | None) -> bool:
    """Tells whether what has this name is a secret; it is where no name has to say so."""
    return name is None or _NAME.search(name) is not None


def _tokens(text: str) -> Iterator[tuple[int, int]]:
    if '://' in text and '@' in text:
        for match in _URL_PASSWORD.finditer(text):
            if not _PLACEHOLDER.search(match[1]) and not _PLAIN.fullmatch(match[1]):
                yield match.span(1)
    if 'PRIVATE KEY-----' in text or 'PRIVATE KEY BLOCK-----' in text:
        yield from (match.span() for match in _PRIVATE_KEY.finditer(text))
    # Prose has few words as long as a token.
    long = ' '.join([word for word in text.split() if len(word) >= _SHORTEST])
    for literals, pattern in _TOKENS if long else ():
        if any(literal in long for literal in literals):
            for match in pattern.finditer(text):
                group = 'secret' if 'secret' in pattern.groupindex else 0
                if not _PLACEHOLDER.search(match[group]):
                    yield match.span(group)
    if long and ('earer ' in text or 'asic ' in text):
        yield from (match.span(1) for match in _HEADER.finditer(text) if not _PLACEHOLDER.search(match[1]))


def _is_secret(value: str) -> bool:
    """Whether a value that is called a secret looks like one."""
    if _PLACEHOLDER.search(value) or _PLAIN.fullmatch(value) or _IDENTIFIER.fullmatch(value):
        return False
    return entropy(value) >= _MIN_ENTROPY


def _is_setting(text: str, at: int, code: bool) -> bool:
    """Whether what is assigned without quotes stands in a file of settings: NAME=value, name: value."""
    line = text[text.rfind('\n', 0, at) + 1 : at]
    if code:  # there, an unquoted value is an expression
        return text[at] == '=' and re.fullmatch(r'\s*(?:export |ENV |ARG |set )?[A-Z][A-Z0-9_]*', line) is not None
    return re.fullmatch(r'\s*(?:export |set |ENV |ARG |-\s)?["\']?[\w./:@ -]{1,80}["\']?', line) is not None


def entropy(text: str) -> float:
    """Shannon entropy in bits a character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())
