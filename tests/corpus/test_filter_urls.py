"""Where pages are from: lists, addresses without a name, adult sites, and names that only look like it."""

import gzip
import json

import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.document import Document, Dropped
from llm_jax.corpus.filter import urls


def reason(url: str, **options) -> str:
    out = urls.make(urls.Options(**options))(Document('a', 's', url, 'text', 'html'))
    return out.reason if isinstance(out, Dropped) else ''


@pytest.mark.parametrize(
    'url',
    [
        'https://example.org/', 'http://www.essex.ac.uk/sex', 'https://sussex.police.uk/webcam',
        'https://www.scunthorpe.gov.uk/', 'https://www.penistone.co.uk/', 'https://ville-pornic.fr/plage',
        'https://www.pornichet.fr/', 'https://www.plannedparenthood.org/learn/teens/sex', 'https://essexshop.co.uk/',
        'https://en.wikipedia.org/wiki/Sex', 'https://example.com/same-sex-marriage-gay-couples', 'https://analysis.org/',
        'https://cockburn.wa.gov.au/', 'https://dickens.org/hard-times', 'https://example.com/hot-cam-girls-of-roller-derby',
        'https://en.wikipedia.org/wiki/Pornography', 'https://titsey.org/', 'https://grapes.org/cum-laude',
        'books/file.txt', '', '/home/xxx/porn.txt', 'https://8.example.com/1.2.3.4', 'https://bücher.example/x',
    ],
)  # fmt: skip
def test_kept(url):
    assert reason(url) == ''


@pytest.mark.parametrize(
    ('url', 'expected'),
    [
        ('https://freeporntube.example/', 'adult'),
        ('https://anything.xxx/about', 'adult'),
        ('HTTPS://WWW.HENTAI-WORLD.EXAMPLE', 'adult'),
        ('https://sexshop.example/', 'adult'),
        ('https://example.com/watch/milf-videos', 'adult'),
        ('https://example.com/?q=horny%20teens', 'adult'),
        ('http://192.168.1.10:8080/x', 'ip_host'),
        ('http://[2001:db8::1]/x', 'ip_host'),
        ('http://3232235777/x', 'ip_host'),
        ('http://[bad/x', 'malformed'),
        ('https:///x', 'malformed'),
    ],
)
def test_dropped(url, expected):
    assert reason(url) == f'urls.{expected}'


def test_options():
    assert reason('https://freeporntube.example/', adult=False) == ''
    assert reason('http://127.0.0.1/', ip_hosts=True) == ''
    assert reason('https://a.sexshop.example/', allow=('sexshop.example',)) == ''
    assert reason('https://example.com/casino-bonus', block_words=('Casino',)) == 'urls.word'
    assert reason('https://example.com/casinos', block_words=('casino',)) == ''


def test_domain_lists(tmp_path):
    plain, hosts = tmp_path / 'domains.txt', tmp_path / 'hosts.gz'
    plain.write_text('\ufeff# a list\nBad.example\n\n*.worse.example # why\nbücher.example\n', encoding='utf-8')
    hosts.write_bytes(gzip.compress(b'127.0.0.1 evil.example\n0.0.0.0 sub.ok.example\n'))
    block = (str(plain), str(hosts))
    for host in (
        'bad.example',
        'www.BAD.example.',
        'a.b.worse.example',
        'evil.example',
        'bücher.example',
        'sub.ok.example',
    ):
        assert reason(f'https://{host}/x', block=block) == 'urls.blocked', host
    for host in ('notbad.example', 'bad.example.org', 'ok.example', 'example'):
        assert reason(f'https://{host}/x', block=block) == '', host
    assert reason('https://bad.example/', block=block, allow=('bad.example',)) == 'urls.blocked'  # the user's list wins


def test_errors(tmp_path):
    with pytest.raises(ConfigError, match='none.txt'):
        reason('https://a.example', block=(str(tmp_path / 'none.txt'),))
    (tmp_path / 'list.txt').write_text('ok.example\nhttp://not.a.domain/\n')
    with pytest.raises(ConfigError, match='line 2'):
        reason('https://a.example', block=(str(tmp_path / 'list.txt'),))


def test_real_addresses_stay(shared_data):
    found = json.loads(gzip.decompress((shared_data / 'web/trafilatura_eval_annotations.json.gz').read_bytes()))
    assert [url for url in found if reason(url)] == []
