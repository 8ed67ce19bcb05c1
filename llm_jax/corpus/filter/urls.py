"""Rules about where a page is from: lists of the user, addresses without a name, adult sites.

A domain of a list stands for itself and all below it; a host of n labels takes n look-ups,
whatever the length of the list. Like RefinedWeb's (Penedo et al. 2023, arXiv:2306.01116, appendix
G.1) the built-in words are of two sorts: a few that have no other meaning, which condemn a host
wherever they stand in it ('freeporntube'), and words of which two different ones have to stand
alone in the address, one of them explicit ('milf' and 'videos'). So neither Essex nor
Scunthorpe is meant, nor teens who learn about sex.
"""

from collections.abc import Collection, Iterable
import dataclasses
import gzip
import ipaddress
import pathlib
import re
from urllib.parse import unquote, urlsplit

from llm_jax.config.schema import ConfigError, field
from llm_jax.corpus.document import Document, Dropped, Stage

_ADULT_TLDS = ('adult', 'porn', 'sex', 'xxx')
# Not Pornic and Pornichet, towns in Brittany, nor those who study or fight it.
# Not Pornic and Pornichet, towns in Brittany, nor those who study or fight it; not Essex's shops.
_ADULT_HOST = re.compile(
    r'porn(?!ic\b|ichet|ography|addict|recovery|free)|hentai|xvideos|xhamster|xnxx|blowjob|cumshot|gangbang|camgirl|'
    r'livejasmin|shemale|creampie|milfs?(?:tube|hunter|cam)|(?<![a-z])sex(?:cam|tube|shop|chat|video|movie|dating)s?\b'
)
_EXPLICIT = (
    'bdsm boobs busty camgirls cum cunt dildo fuck fucked fucking horny milf milfs nsfw porn porno pornstar slut sluts '
    'threesome tits xxx'
)
_SUGGESTIVE = (
    'adult amateur anal ass babe babes bitch cam cams cock erotic erotica escort escorts fetish free gay girls '
    'hardcore hot incest latina lesbian lesbians masturbation mature naked nude nudes nudity orgasm orgy pussy sex '
    'sexy teen teens topless tranny tube videos voyeur webcam webcams whore wife'
)
_EXPLICIT_WORDS = frozenset(_EXPLICIT.split())
_ADULT_WORDS = _EXPLICIT_WORDS.union(_SUGGESTIVE.split())
_BETWEEN_WORDS = re.compile(r'[\W_]+')


@dataclasses.dataclass(frozen=True)
class Options:
    block: tuple = field((), 'files with a domain per line (also hosts files, .gz) whose pages go')
    block_words: tuple = field((), 'words that condemn a page where they stand alone in its address')
    allow: tuple = field((), 'domains whose pages stay, whatever the rules below and the words say')
    adult: bool = field(True, 'whether addresses that are plainly of adult sites go')
    ip_hosts: bool = field(False, 'whether pages stay whose host is a number and not a name')


def make(options: Options) -> Stage:
    """The stage 'urls', which judges documents whose `where` is a URL.

    Reasons: `urls.malformed`, `urls.blocked`, `urls.ip_host`, `urls.word`, `urls.adult`.

    Raises:
      ConfigError: a file of `block` that is not there or holds something that is no domain.
    """
    blocked = frozenset().union(*(read_domains(pathlib.Path(file)) for file in options.block))
    allowed = frozenset(map(str.lower, options.allow))
    words = frozenset(map(str.lower, options.block_words))

    def stage(document: Document) -> Document | Dropped:
        if not document.where.lower().startswith(('http://', 'https://')):
            return document
        found = judged(document.where, options, blocked, allowed, words)
        return document if found is None else Dropped(document, f'urls.{found[0]}', found[1])

    return stage


def judged(
    url: str, options: Options, blocked: Collection[str], allowed: Collection[str], words: Collection[str]
) -> tuple[str, str] | None:
    """Why a page goes: (reason, what matched), or None."""
    try:
        parts = urlsplit(url)
        host = plain_host(parts.hostname or '')
    except ValueError as error:
        return 'malformed', str(error)
    if not host:
        return 'malformed', 'no host'
    if domain := listed(host, blocked):
        return 'blocked', domain
    if listed(host, allowed):
        return None
    if not options.ip_hosts and is_address(host):
        return 'ip_host', host
    in_address = set(_BETWEEN_WORDS.split(f'{host} {unquote(parts.path)} {unquote(parts.query)}'.lower()))
    if found := sorted(in_address & words):
        return 'word', found[0]
    if options.adult and (match := adult(host, in_address)):
        return 'adult', match
    return None


def plain_host(host: str) -> str:
    """The host in lower case, without the last dot, other scripts in their ASCII form."""
    host = host.lower().rstrip('.')
    return host if host.isascii() else host.encode('idna').decode('ascii')


def listed(host: str, domains: Collection[str]) -> str:
    """The domain of the list that the host is, or is below; '' if there is none."""
    while domains and host:
        if host in domains:
            return host
        _, _, host = host.partition('.')
    return ''


def is_address(host: str) -> bool:
    """Whether the host is an IP address, in one of the ways in which browsers read them."""
    if host.isdigit():
        return True
    try:
        ipaddress.ip_address(host.partition('%')[0])
    except ValueError:
        return False
    return True


def adult(host: str, words: Collection[str]) -> str:
    """What in the host, or which two words of the address, say that a site is an adult one; '' if nothing does."""
    if host.rpartition('.')[2] in _ADULT_TLDS:
        return '.' + host.rpartition('.')[2]
    if match := _ADULT_HOST.search(host):
        return match[0]
    found = sorted(_ADULT_WORDS.intersection(words))
    return ' '.join(found) if len(found) > 1 and not _EXPLICIT_WORDS.isdisjoint(found) else ''


def read_domains(file: pathlib.Path) -> set[str]:
    """The domains of a list: one a line, or an address and a domain as in hosts files; '#' begins a comment."""
    if not file.is_file():
        raise ConfigError(f'urls.block = {str(file)!r}: there is no such file')
    content = file.read_bytes()
    text = gzip.decompress(content) if file.suffix == '.gz' else content
    return set(_domains(text.decode('utf-8-sig').splitlines(), file))


def _domains(lines: Iterable[str], file: pathlib.Path) -> Iterable[str]:
    for number, line in enumerate(lines, 1):
        words = line.partition('#')[0].split()
        if not words:
            continue
        domain = words[-1].removeprefix('*').removeprefix('.')
        try:
            domain = plain_host(domain)
        except ValueError:
            domain = ''
        if not re.fullmatch(r'[\w.-]+', domain, re.ASCII) or len(words) > 2:
            raise ConfigError(f'urls.block = {str(file)!r}, line {number}: {line.strip()!r} is not a domain')
        yield domain
