"""E-mail and IP addresses.

E-mail: what has a name, '@' and a domain with a top-level domain of letters, also written
'name [at] host [dot] com'. Left: the domains that RFC 2606 and 6761 reserve for examples and
tests (example.com, .invalid), the accounts of version control (git@github.com:a/b), file
names such as icon@2x.png, and in code what may as well be a product of matrices (q@k.weight).

IP: addresses that the IANA registries of special-purpose addresses (RFC 6890) do not list: those
stand for no machine on the internet. Left, too: numbers with four parts that are versions or
sections, by the word before them or because all parts are small and nothing says 'address'.
"""

from collections.abc import Iterator
import ipaddress
import re

# Letters of addresses beyond ASCII: Latin, Greek, Cyrillic. Not Chinese or Japanese ones, which
# stand before an address without a space.
_LETTER = r'A-Za-z\u00c0-\u024f\u0370-\u052f'
_NAME_REVERSED = re.compile(rf"[{_LETTER}0-9._%+'-]{{1,64}}")
_DOMAIN = re.compile(
    rf'(?:[{_LETTER}0-9](?:[{_LETTER}0-9-]{{0,61}}[{_LETTER}0-9])?\.)+(xn--[a-z0-9-]{{2,59}}|[{_LETTER}]{{2,24}})'
    r'(?![A-Za-z0-9_])'
)
# What looks like a top-level domain and is the end of a file name.
_FILE_END = re.compile(
    r'png|jpe?g|gif|svg|webp|ico|bmp|s?css|less|[mc]?jsx?|tsx?|json|map|html?|xml|pdf|zip|t?gz|tar|whl|woff|ttf', re.I
)
# In code an attribute can follow any '@': only these domains, and those of countries, count there.
_CODE_DOMAIN = re.compile(
    r'[a-z]{2}|com|org|net|edu|gov|mil|int|info|biz|name|pro|dev|app|cloud|online|site|tech|store|blog|email|aero|coop|'
    r'museum|jobs|mobi|travel|asia|xyz|top|club|news|live|social|world|page|space|website|agency|company|systems|'
    r'digital|software|solutions|network|services|group|foundation|academy|codes|works|media|studio|design|science|'
    r'university|international|[A-Z]{2,}'
)
_RESERVED = re.compile(r'(?:^|\.)(?:example(?:\.(?:com|net|org|edu))?|test|invalid|localhost)$', re.I)
# 'https://user:' stands before a password.
_IN_URL = re.compile(r'://[^\s/@]*:$')
_ACCOUNTS = frozenset(('git', 'hg', 'svn'))
_OBFUSCATED = re.compile(
    r'(?<![\w.+-])[\w.+-]{1,64}\s?[\[({<]\s?(?:at|AT|@)\s?[\])}>]\s?[a-zA-Z0-9-]+'
    r'(?:\s?(?:[\[({<]\s?(?:dot|DOT|\.)\s?[\])}>]|\.|\sdot\s)\s?[a-zA-Z0-9-]+)+'
)
_SPELLED = re.compile(
    r'(?<![\w.+-])[\w.+-]{1,64} (?:at|AT) [a-zA-Z0-9-]+(?: (?:dot|DOT) [a-zA-Z0-9-]+)* (?:dot|DOT) '
    r'(?:com|org|net|edu|gov|info|io|[a-z]{2}|COM|ORG|NET|EDU)(?!\w)'
)
_BRACKETED_AT = re.compile(r'[\[({<]\s?(?:at|AT|@)\s?[\])}>]')


def emails(text: str, code: bool) -> Iterator[tuple[int, int]]:
    """(start, end) of each e-mail address."""
    at = text.find('@')
    while at >= 0:
        name = _NAME_REVERSED.match(text[max(0, at - 64) : at][::-1])
        domain = _DOMAIN.match(text, at + 1) if name else None
        if domain:
            written = name[0][::-1].lstrip(".%+'-_") if name[0][-1] in ".%+'-_" else name[0][::-1]
            start = at - len(written)
            if written and not _is_no_address(written, domain, text, code) and not _IN_URL.search(text[:start][-64:]):
                yield start, domain.end()
        at = text.find('@', at + 1)
    if _BRACKETED_AT.search(text):
        yield from (match.span() for match in _OBFUSCATED.finditer(text))
    if ' dot ' in text or ' DOT ' in text:
        yield from (match.span() for match in _SPELLED.finditer(text))


def _is_no_address(name: str, domain: re.Match, text: str, code: bool) -> bool:
    top = domain[1]
    if name in _ACCOUNTS or _FILE_END.fullmatch(top) or _RESERVED.search(domain[0]):
        return True
    if not code:
        return False
    before, after = (
        text[domain.start() - len(name) - 2 : domain.start() - len(name) - 1],
        text[domain.end() : domain.end() + 1],
    )
    if before + after in ('""', "''", '<>'):
        return False
    return after == '(' or not _CODE_DOMAIN.fullmatch(top)


# --- IP addresses ----------------------------------------------------------------------

# They begin with what they consume, and look behind it then: so `re` skips to the next such character.
_IPV4 = re.compile(r'[0-9](?<![\w.][0-9])(?<!::[0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}(?!\w|\.\w|-\w*\.)')
# What IANA has given out: of 2000::/3 so far.
_IPV6 = re.compile(
    r'2(?<![\w:.]2)(?:00[1-9]|[4-9a-cA-C][0-9a-fA-F]{2}):(?:[0-9a-fA-F]{0,4}:){1,6}[0-9a-fA-F]{0,4}(?![\w:]|\.\d)'
)
_SPECIAL = [
    ipaddress.ip_network(net)
    for net in (
        '0.0.0.0/8', '10.0.0.0/8', '100.64.0.0/10', '127.0.0.0/8', '169.254.0.0/16', '172.16.0.0/12', '192.0.0.0/24',
        '192.0.2.0/24', '192.88.99.0/24', '192.168.0.0/16', '198.18.0.0/15', '198.51.100.0/24', '203.0.113.0/24',
        '224.0.0.0/3', '2001::/23', '2001:db8::/32', '2002::/16',
    )
]  # fmt: skip
_VERSION = re.compile(
    r'(?:(?<![a-z])(?:versions?|ver|release[ds]?|rev(?:ision)?|v|sections?|sect?|chapters?|clauses?|paragraphs?|'
    r'articles?|figures?|fig|tables?|appendix|annex|rules?|steps?|items?|levels?|build|firmware|update|patch|'
    r'part|kap(?:itel)?|abschnitt)[\s.:#=\'"(_]*|§+\s?|[=~><^!]=\s?[\'"]?|(?<![.\w])[\w+-]+/|[\w)]-|[a-z]_)$',
    re.I,
)
# 'Flash Player 11.2.202.233', 'Linux 2.6.32.220': a name, but not the first word of a sentence that tells of a machine.
_PRODUCT = re.compile(
    r'(?<![\w.])(?!(?:From|To|At|By|In|On|Via|For|With|And|Or|The|Is|Was|User|Users|Editor|Anon\w*|Block\w*|Bann?\w*)\b)'
    r'(?:[A-Z][\w+#]*|linux|kernel|windows|android|ios|macos|chrome|firefox|java|php|python|mysql|nginx|apache|driver|plugin)'
    r'[ \xa0]\(?$'
)
_ADDRESS = re.compile(
    r'(?<![a-z])(?:ip(?:v4|s)?|addr(?:ess(?:es)?)?|hosts?|servers?|dns|nameservers?|ping|gateway|router|proxy|netmask|'
    r'subnet|ssh|telnet|client|remote|peer|inet|nslookup|traceroute|firewall|x-forwarded-for)(?![a-z])|://$|@$',
    re.I,
)
_PORT = re.compile(r':\d{2,5}\b|/\d{1,2}\b')
# Below this, every part of the number of a version or section.
_SMALL = 50


def ip_addresses(text: str, code: bool) -> Iterator[tuple[int, int]]:
    """(start, end) of each public IP address; the same in prose and code."""
    for match in _IPV4.finditer(text):
        if _is_public(match[0]):
            before, after = text[max(0, match.start() - 32) : match.start()], text[match.end() : match.end() + 8]
            parts = list(map(int, match[0].split('.')))
            said = _ADDRESS.search(before) or _PORT.match(after)
            named = parts[0] < _SMALL and _PRODUCT.search(before)
            if (said or (max(parts) >= _SMALL and not named)) and not _VERSION.search(before):
                yield match.span()
    if ':' in text:
        yield from (match.span() for match in _IPV6.finditer(text) if _is_public(match[0]))


def _is_public(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # 1.2.3.400, 01.02.03.04; '2010:12:31' is a time
        return False
    return not any(address in net for net in _SPECIAL)
