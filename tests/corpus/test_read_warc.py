"""Each record of a web archive is a page, passed over, or broken; damage costs one record and is said."""

from collections import Counter
import gzip
import io
import json
import random
import zlib

import brotli
import pytest
import zstandard

from llm_jax.corpus.document import Broken, Raw
from llm_jax.corpus.read import unit
from llm_jax.corpus.read.source import Skipped, Source, open_source


def read(path, **options):
    return [record for one in open_source('web', Source(path=str(path), **options)) for record in one.read()]


def answer(body=b'<p>page', status=b'200 OK', media=b'text/html; charset=utf-8', headers=b''):
    stated = b'Content-Type: ' + media + b'\r\n' if media else b''
    return b'HTTP/1.1 ' + status + b'\r\n' + stated + headers + b'\r\n' + body


def entry(block, number=0, kind=b'response', length=None, headers=b'', uri=None):
    uri = uri or b'http://site/%d' % number
    media = b'application/http; msgtype=response' if kind == b'response' else b'text/plain'
    lines = [
        b'WARC/1.0', b'WARC-Type: ' + kind, b'WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-%012d>' % number,
        b'WARC-Date: 2020-01-01T00:00:00Z', b'WARC-Target-URI: ' + uri, b'Content-Type: ' + media,
        b'Content-Length: %d' % (len(block) if length is None else length),
    ]  # fmt: skip
    return b'\r\n'.join(lines) + b'\r\n' + headers + b'\r\n' + block + b'\r\n\r\n'


def pages(count, seed=0):
    rng = random.Random(seed)
    bodies = [b'<p>%d ' % i + rng.randbytes(rng.randrange(3000)).hex().encode() for i in range(count)]
    return [answer(body) for body in bodies]


def write(path, records):
    path.write_bytes(b''.join(map(gzip.compress, records)) if path.suffix == '.gz' else b''.join(records))
    return path


@pytest.fixture(params=['a.warc', 'a.warc.gz'])
def file(request, tmp_path):
    return tmp_path / request.param


def uris(records):
    return [r.where for r in records if isinstance(r, Raw)]


# --- Real archives ---------------------------------------------------------------------


DAMAGED = {'resiliparse_clipped.warc.gz': ['read.truncated'], 'warcio_example-trunc.warc': ['read.wrong_length']}


def test_every_record_of_real_archives_is_accounted_for(shared_data):
    """Against the counts of another reader (warcio), of which the damaged files' pages are Broken here."""
    for known in json.loads((shared_data / 'web/warc/warc_index.json').read_text()):
        if known['file'].endswith('.json'):
            continue
        found = read(shared_data / 'web/warc' / known['file'])
        assert len(found) == sum(known['records'].values()), known['file']
        broken = [r.reason for r in found if isinstance(r, Broken)]
        html = [r for r in found if isinstance(r, Raw) and r.kind == 'html']
        assert len(html) + len(broken) == known['html_2xx'], known['file']
        assert broken == DAMAGED.get(known['file'], [])
        assert all(isinstance(r.content, bytes) and b'<' in r.content for r in html)
        assert len({r.id for r in found if isinstance(r, Raw)}) == sum(isinstance(r, Raw) for r in found)


def test_chunks_and_compression_of_real_pages(shared_data):
    (page,) = [r for r in read(shared_data / 'web/warc/warcio_example-iana-chunked.warc') if isinstance(r, Raw)]
    assert page.content.startswith(b'<!doctype html>') and page.content.rstrip().endswith(b'</html>')
    (page,) = [r for r in read(shared_data / 'web/warc/warcio_example.warc.gz') if isinstance(r, Raw)]
    assert b'<h1>Example Domain</h1>' in page.content and page.where == 'http://example.com/'


def test_wet_is_the_text_of_its_warc(shared_data):
    (text,) = [r for r in read(shared_data / 'web/warc/commoncrawl_whirlwind.warc.wet.gz') if isinstance(r, Raw)]
    (page,) = [r for r in read(shared_data / 'web/warc/commoncrawl_whirlwind.warc.gz') if isinstance(r, Raw)]
    assert text.kind == 'text' and isinstance(text.content, str) and text.where == page.where
    html = page.content.decode()
    lines = [line for line in text.content.split('\n') if len(line) > 20 and line.isalnum()]
    assert 'Escopete' in text.content and all(line in html for line in lines)


# --- What is a page --------------------------------------------------------------------


def test_what_is_a_page_and_what_is_passed_over(file):
    records = [
        entry(answer(), 0),
        entry(answer(status=b'404 Not Found'), 1),
        entry(answer(status=b'301 Moved'), 2),
        entry(answer(media=b'image/png'), 3),
        entry(answer(media=b'application/xhtml+xml'), 4),
        entry(answer('naïve café'.encode('latin-1'), media=b'Text/Plain;charset=ISO-8859-1'), 5),
        entry(answer(b'User-agent: *', media=b'text/plain'), uri=b'http://site/robots.txt'),
        entry(b'GET / HTTP/1.1\r\n\r\n', 6, b'request'),
        entry(b'fetched', 7, b'metadata'),
        entry(answer(), 8, b'revisit'),
        entry(answer(b''), 9),
        entry(answer(b'\x89PNG\r\n\x1a\n'), 10),
        entry(answer(media=b''), 11, headers=b'WARC-Identified-Payload-Type: text/html\r\n'),
        entry(answer(), 12, headers=b'WARC-Truncated: length\r\n'),
        entry(b'no answer at all', 13),
        entry(b'a log', kind=b'resource', uri=b'metadata://gnu.org/wget.log'),
        entry(b'kept', 14, b'resource'),
        entry(b'HTTP/1.1 200 OK\nContent-Type: text/html\n\n<p>of a sloppy server', 15),
    ]
    found = read(write(file, records))
    assert len(found) == len(records)
    short = [r.kind if isinstance(r, Raw) else r.reason for r in found]
    assert short == [
        'html', 'skip.status_404', 'skip.status_301', 'skip.media_type', 'html', 'text', 'skip.robots',
        'skip.warc_request', 'skip.warc_metadata', 'skip.warc_revisit', 'skip.empty', 'read.binary', 'html',
        'read.truncated', 'skip.status_none', 'skip.warc_resource', 'text', 'html',
    ]  # fmt: skip
    assert found[5].content == 'naïve café' and found[0].charset == 'utf-8'
    assert found[-1].content == b'<p>of a sloppy server'


def test_wet_languages(tmp_path):
    records = [entry(b'words', 0, b'conversion', headers=b'WARC-Identified-Content-Language: deu,eng\r\n')]
    (found,) = read(write(tmp_path / 'a.warc.wet.gz', records))
    assert found.language == 'de' and found.content == 'words'


BODY = b'<p>' + b'many words ' * 500


def chunked(body):
    return b'%x;x=y\r\n' % 100 + body[:100] + b'\r\n%X\r\n' % len(body[100:]) + body[100:] + b'\r\n0\r\n\r\n'


@pytest.mark.parametrize(
    ('headers', 'body', 'expected'),
    [
        (b'Content-Encoding: gzip', gzip.compress(BODY, mtime=0), BODY),
        (b'Content-Encoding: gzip', gzip.compress(BODY[:9], mtime=0) + gzip.compress(BODY[9:], mtime=0), BODY),
        (b'Content-Encoding: gzip', BODY, BODY),  # undone by the crawler
        (b'Content-Encoding: deflate', zlib.compress(BODY), BODY),
        (b'Content-Encoding: deflate', zlib.compress(BODY)[2:-4], BODY),
        (b'Content-Encoding: br', brotli.compress(BODY), BODY),
        (b'Content-Encoding: br', BODY, BODY),
        (b'Content-Encoding: zstd', zstandard.compress(BODY), BODY),
        (b'Content-Encoding: deflate, gzip', gzip.compress(zlib.compress(BODY), mtime=0), BODY),
        (b'Transfer-Encoding: chunked', chunked(BODY), BODY),
        (b'Transfer-Encoding: chunked', BODY, BODY),
        (b'Transfer-Encoding: chunked\r\nContent-Encoding: gzip', chunked(gzip.compress(BODY * 9, mtime=0)), BODY * 9),
        (b'Content-Encoding: identity', BODY, BODY),
        (b'Content-Encoding: gzip', gzip.compress(BODY, mtime=0)[:-20], 'read.truncated'),
        (b'Content-Encoding: br', brotli.compress(BODY)[:-5], 'read.truncated'),
        (b'Transfer-Encoding: chunked', chunked(BODY)[:-10], 'read.truncated'),
        (b'Content-Encoding: gzip', b'\x1f\x8b\x08\0' + bytes(range(256)), 'read.content_encoding'),
        (b'Content-Encoding: rot13', BODY, 'read.content_encoding'),
        (b'Content-Encoding: gzip', gzip.compress(BODY * 100, mtime=0), 'read.too_large'),
        (b'Content-Encoding: br', brotli.compress(BODY * 100), 'read.too_large'),
    ],
)  # fmt: skip
def test_codings_of_the_body(tmp_path, headers, body, expected):
    file = write(tmp_path / 'a.warc.gz', [entry(answer(body, headers=headers + b'\r\n')), entry(answer(), 1)])
    found, after = read(file, max_bytes=100_000)
    assert (found.content if isinstance(found, Raw) else found.reason) == expected
    assert after.where == 'http://site/1'


# --- Damage ----------------------------------------------------------------------------


@pytest.mark.parametrize('change', [-10, -1, 5, 40, 5000, 10**9])
def test_wrong_lengths_cost_one_record(file, change):
    blocks = pages(6)
    lengths = {2: len(blocks[2]) + change}
    found = read(write(file, [entry(b, i, length=lengths.get(i)) for i, b in enumerate(blocks)]))
    assert uris(found) == [f'http://site/{i}' for i in (0, 1, 3, 4, 5)]
    assert len([r for r in found if isinstance(r, Broken)]) == 1 and len(found) == 6


@pytest.mark.parametrize('place', range(5))
def test_garbage_between_records(file, place):
    records = [entry(b, i) for i, b in enumerate(pages(4))]
    parts = [gzip.compress(r) if file.suffix == '.gz' else r for r in records]
    parts.insert(place, b'\x01garbage\r\n' * 5)
    file.write_bytes(b''.join(parts))
    found = read(file)
    broken = [r for r in found if isinstance(r, Broken)]
    assert len(broken) == 1
    # In a plain file nothing tells garbage from the end of the record before it.
    lost = {f'http://site/{place - 1}'} if file.suffix == '.warc' else set()
    assert set(uris(found)) == {f'http://site/{i}' for i in range(4)} - lost


def test_a_damaged_member_costs_itself(tmp_path):
    members = [gzip.compress(entry(b, i)) for i, b in enumerate(pages(5))]
    for where in (3, 15, len(members[2]) // 2, len(members[2]) - 6):
        damaged = bytearray(members[2])
        damaged[where] ^= 0x55
        (tmp_path / 'a.warc.gz').write_bytes(b''.join([*members[:2], bytes(damaged), *members[3:]]))
        found = read(tmp_path / 'a.warc.gz')
        assert [u for u in uris(found) if u != 'http://site/2'] == [f'http://site/{i}' for i in (0, 1, 3, 4)]
        # A flipped bit of the header or of the checksum may leave the content as it was, or a wrong checksum.
        assert len(found) == 5 and (where <= 15 or isinstance(found[2], Broken))


def test_cut_off_anywhere(file):
    data = write(file, [entry(b, i) for i, b in enumerate(pages(3))]).read_bytes()
    mark = b'\x1f\x8b\x08' if file.suffix == '.gz' else b'WARC/1.0'
    starts = [i for i in range(len(data)) if data.startswith(mark, i)]
    rng = random.Random(1)
    for size in sorted({1, 5, *(rng.randrange(1, len(data)) for _ in range(60))}):
        file.write_bytes(data[:size])
        found = read(file)
        # The two line ends after a plain record are none of its content.
        slack = 4 if file.suffix == '.warc' else 0
        whole = sum(end - slack <= size for end in [*starts[1:], len(data)])
        assert uris(found) == [f'http://site/{i}' for i in range(whole)], size
        is_cut = whole < 3 and size > starts[whole]
        assert [type(r) for r in found[whole:]] == [Broken] * is_cut, size


def test_random_damage_is_never_fatal_nor_silent(file):
    data = write(file, [entry(b, i) for i, b in enumerate(pages(8))]).read_bytes()
    rng = random.Random(2)
    for _ in range(60):
        changed = bytearray(data)
        at, kind = rng.randrange(len(data)), rng.randrange(3)
        if kind == 0:
            del changed[at : at + rng.randrange(1, 500)]
        elif kind == 1:
            changed[at:at] = rng.randbytes(rng.randrange(1, 500))
        else:
            changed[at : at + 20] = rng.randbytes(len(changed[at : at + 20]))
        file.write_bytes(bytes(changed))
        found = read(file)
        kinds = Counter(type(r) for r in found)
        assert kinds[Raw] + kinds[Broken] + kinds[Skipped] >= 7
        if kinds[Raw] < 8:
            assert kinds[Broken] + kinds[Skipped] > 0


def test_no_archive_at_all(tmp_path):
    for data in (b'some text\n' * 100, gzip.compress(b'some text\n'), b'\x1f\x8b', b'WARC/1.0\r\n'):
        for name in ('a.warc', 'a.warc.gz'):
            (tmp_path / name).write_bytes(data)
            assert [type(r) for r in read(tmp_path / name)] == [Broken]
    (tmp_path / 'a.warc').write_bytes(b'')
    assert read(tmp_path / 'a.warc') == []


# --- Units -----------------------------------------------------------------------------


def test_parts_together_are_the_whole(file, monkeypatch):
    write(file, [entry(b, i) for i, b in enumerate(pages(60))])
    whole = read(file)
    assert len(whole) == 60
    for size in (700, 5_000, 30_000):
        monkeypatch.setattr(unit, 'UNIT_BYTES', size)
        inputs = open_source('web', Source(path=str(file)))
        assert len(inputs) > 2 and read(file) == whole
        assert sum(one.bytes for one in inputs) == file.stat().st_size


def test_one_gzip_member_for_all(tmp_path, monkeypatch):
    file = tmp_path / 'a.warc.gz'
    file.write_bytes(gzip.compress(b''.join(entry(b, i) for i, b in enumerate(pages(30)))))
    whole = read(file)
    assert uris(whole) == [f'http://site/{i}' for i in range(30)] and len({r.id for r in whole}) == 30
    monkeypatch.setattr(unit, 'UNIT_BYTES', 5000)
    assert len(open_source('web', Source(path=str(file)))) > 2 and read(file) == whole


def test_a_page_that_holds_an_archive(tmp_path, monkeypatch):
    inner = b''.join(entry(b, 100 + i) for i, b in enumerate(pages(3, seed=5)))
    blocks = [answer(inner if i % 4 == 1 else b'<p>%d' % i) for i in range(20)]
    file = write(tmp_path / 'a.warc.gz', [entry(b, i) for i, b in enumerate(blocks)])
    monkeypatch.setattr(unit, 'UNIT_BYTES', 900)
    assert uris(read(file)) == [f'http://site/{i}' for i in range(20)]


def test_zstd(tmp_path):
    file = tmp_path / 'a.warc.zst'
    buffer = io.BytesIO()
    for i, block in enumerate(pages(5)):
        buffer.write(zstandard.compress(entry(block, i)))
    file.write_bytes(buffer.getvalue())
    assert uris(read(file)) == [f'http://site/{i}' for i in range(5)]
