"""Keys, tokens and passwords.

Three ways to know one:
  - its own form: the issuers of tokens give them prefixes so that they can be found;
  - a private key in PEM armour, a token in an Authorization header, a password in a URL;
  - a value that is assigned to a name such as `password` or `api_key` and looks as if nobody
    had chosen its letters: at least `_MIN_ENTROPY` bits a character and a mixture of classes.
Left: what stands for a secret (changeme, <YOUR_KEY>, xxxx, ${TOKEN}), public keys and certificates,
names, paths and calls.
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
    r'[=:](?:(?<=:)=|(?<==)>)?(?!=)[ \t]*(?:[rbuf]?(["\'`])([^"\'`\s]{8,200})\1|([^\s"\'`,;]{8,200})(?=[ \t]*(?:$|#)))',
    re.M,
)
# Where a name and its value are not joined by '=' or ':'.
_ELSEWHERE = (
    # <password>...</password>
    re.compile(r'<([\w.:-]{2,60})(?:\s[^<>]{0,200})?>\s{0,8}(?P<secret>[^\s<>]{8,200})\s{0,8}</\1>'),
    # name="password" value="..."
    re.compile(r'(?:name|key|id)=["\']([\w.:-]{2,60})["\'][^<>\n]{0,80}?\svalue=["\'](?P<secret>[^\s"\']{8,200})["\']'),
    # IDENTIFIED BY '...', PASSWORD '...'
    re.compile(
        r'\b(?:IDENTIFIED\s(?:WITH\s\S{1,40}\s)?(?:BY|AS)|PASSWORD)(?:\s*\(|\s)\s*(?:PASSWORD\s)?([\'"])(?P<secret>[^\s\'"]{8,200})\1',
        re.I,
    ),
    # --password=..., --token ..., -u user:...
    re.compile(r'(?<![\w-])--?([\w-]{2,40})[= ](["\']?)(?P<secret>[^\s"\']{8,200})\2(?=[\s;|&]|$)'),
    re.compile(r'(?<![\w-])(?:-u|--user)[= ]?["\']?[\w.@-]{1,64}:(?P<secret>[^\s"\']{8,200})'),
    # auth=('user', '...'), login('user', '...')
    re.compile(
        r'(?:auth|credentials?|login|HTTPBasicAuth|authenticate)\s{0,2}=?\s{0,2}\(\s{0,8}(?:\w+=)?(["\'])[^"\'\n]{1,80}\1,\s{0,8}'
        r'(?:\w+=)?(["\'])(?P<secret>[^\s"\']{8,200})\2',
        re.I,
    ),
)
# Those whose first group is a name that has to say that a secret follows.
_NAMED = _ELSEWHERE[:2] + _ELSEWHERE[3:4]
# One of these stands in the text wherever one of those does.
_HINT = re.compile(r'</|value=|identified\s|password[\s(]|-u|--|auth|credential|login', re.I)
# Languages in which a value needs no quotation marks.
SETTINGS = frozenset((
    'yaml', 'ini', 'toml', 'dockerfile', 'xml', 'properties', 'bash', 'batchfile', 'powershell', 'makefile', 'text', '',
))  # fmt: skip
_NAME = re.compile(
    r'(?:passw(?:or)?d|passphrase|passwd|pwd|secret|token|api_?key|apikey|access_?key|private_?key|auth_?key|'
    r'client_?secret|secret_?key|signing_?key|encryption_?key|account_?key|credential)s?(?:[_-]?(?:key|value|id|hash|string|prod|dev|live))?'
    r'["\'\])]*[ \t]*(?::[ \t]*\w+[ \t]*)?$',
    re.I,
)
_PLACEHOLDER = re.compile(
    r'(?i)x{4,}|\*{3,}|\.{3}|_{4,}|example|change.?me|placeholder|dummy|sample|your|insert|replace|redacted|todo|fixme|'
    r'fake|mock|default|1234567|abcdef|foobar|hunter2|n0t|not.?a.?real|undefined|invalid|<.*>|\{.*\}|^\$|\$[{(]|%[sd(]|\(|\['
)
# Words of which values are made that keep no secret; digits and marks around them do not count.
_PLAIN = re.compile(
    r'(?i)\W*(?:my|guest|anonymous|the|new|old|bad|good|some|super|user|admin|root|test\w*|pass(?:word|phrase|wd)?|secret\w*|token\w*|key|api|'
    r'auth|access|refresh|client|login|hello|world|foo|bar|baz|spam|eggs|none|null|true|false|string|hash|value|'
    r'[\W_]|\d{1,4}(?!\d))+'
)
_IDENTIFIER = re.compile(
    r'[A-Za-z_][A-Za-z_.:-]*\d{0,2}|(?:[A-Za-z_.:~-]*\d{0,2}/)+[A-Za-z_.-]*\d{0,2}|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|\W+|[0-9.:,-]+|https?://.*'
)
_MIN_ENTROPY = 2.75


def secrets(text: str, code: bool) -> Iterator[tuple[int, int]]:
    """(start, end) of each key, token or password.

    Args:
      code: whether an unquoted value is an expression; it is not in files of settings (`SETTINGS`).
    """
    yield from _tokens(text)
    if _HINT.search(text):
        yield from _elsewhere(text)
    for match in _VALUE.finditer(text):
        quoted = match[2] is not None
        name = _NAME.search(text, max(0, match.start() - 40), match.start())
        if name and _is_secret(match[2] or match[3]) and (quoted or _is_setting(text, match.start(), code)):
            yield match.span(2) if quoted else match.span(3)


def _elsewhere(text: str) -> Iterator[tuple[int, int]]:
    for pattern in _ELSEWHERE:
        for match in pattern.finditer(text):
            if (pattern not in _NAMED or _NAME.search(match[1])) and _is_secret(match['secret']):
                yield match.span('secret')


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
    return re.fullmatch(r'\s*(?:export |set |ENV |ARG |-\s)?["\']?[\w. -]{1,40}["\']?', line) is not None


def entropy(text: str) -> float:
    """Shannon entropy in bits a character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())
