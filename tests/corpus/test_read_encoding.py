"""Text comes out of bytes as it went in, in whichever encoding, declared or not."""

import gzip
import json
import random
import tarfile

import pytest
import zstandard

from llm_jax.corpus.read import encoding

FRENCH = 'Été comme hiver, l’élève naïf mangeait des œufs à la coque — ça coûtait déjà 3 € !\n' * 5
RUSSIAN = 'Все люди рождаются свободными и равными в своём достоинстве и правах.\n' * 5
JAPANESE = 'すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。\n' * 5


@pytest.mark.parametrize('text', [FRENCH, RUSSIAN, JAPANESE, 'plain\r\nascii\r'])
@pytest.mark.parametrize('codec', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32'])
def test_unicode_with_and_without_mark(text, codec):
    found, _, certain = encoding.decode(text.encode(codec))
    assert found == text and certain


def test_nothing():
    assert encoding.decode(b'') == ('', 'ascii', True)


def test_line_ends_are_left_to_normalisation():
    assert encoding.decode(b'a\r\nb\rc\n')[0] == 'a\r\nb\rc\n'


@pytest.mark.parametrize(
    ('label', 'codec'),
    [
        ('ISO-8859-1', 'windows-1252'), ('latin1', 'windows-1252'), ('us-ascii', 'windows-1252'),
        (' Windows-1252 ', 'windows-1252'), ('ISO-8859-9', 'windows-1254'), ('GB2312', 'gb18030'), ('gbk', 'gb18030'),
        ('Shift_JIS', 'cp932'), ('x-sjis', 'cp932'), ('EUC-KR', 'cp949'), ('ks_c_5601-1987', 'cp949'),
        ('Big5', 'big5hkscs'), ('KOI8-R', 'koi8-r'), ('windows-1251', 'cp1251'), ('cp1251', 'cp1251'),
        ('tis-620', 'cp874'), ('ISO-8859-2', 'iso8859-2'), ('utf8', 'utf-8'), ('UTF-16', 'utf-16-le'),
        ('rot13', ''), ('hex', ''), ('idna', ''), ('unicode_escape', ''), ('nonsense', ''), ('', ''), ('a\0b', ''),
    ],
)  # fmt: skip
def test_labels_mean_what_browsers_read(label, codec):
    assert encoding.lookup(label) == codec


def test_what_is_declared_is_read_with_its_superset():
    # 0x93 and 0x80 are control characters in ISO 8859-1; pages mean quotation marks and the euro.
    data = b'<p>\x93caf\xe9\x94 \x80'
    assert encoding.decode(data, 'iso-8859-1') == ('<p>“café” €', 'windows-1252', True)
    assert encoding.decode('歡迎朱镕基'.encode('gb18030'), 'gb2312')[0] == '歡迎朱镕基'


@pytest.mark.parametrize(
    'head',
    [
        b'<meta charset="windows-1251">',
        b"<meta http-equiv='Content-Type' content='text/html; charset=windows-1251'>",
        b'<?xml version="1.0" encoding="windows-1251"?>',
        b'<script charset="utf-8" src="x"></script><META CHARSET=windows-1251 >',
    ],
)
def test_declarations_within_a_page(head):
    text, codec, certain = encoding.decode(head + RUSSIAN.encode('cp1251'), html=True)
    assert (codec, certain) == ('cp1251', True) and text.endswith(RUSSIAN)


def test_a_wrong_declaration_does_not_win():
    assert encoding.decode(RUSSIAN.encode('utf-8'), 'iso-8859-1') == (RUSSIAN, 'utf-8', True)
    # The default of a server, against what the page says, and against the text itself.
    page = '<meta charset=koi8-r>' + RUSSIAN
    assert encoding.decode(page.encode('koi8-r'), 'iso-8859-1', html=True)[0] == page
    assert encoding.decode(RUSSIAN.encode('koi8-r'), 'iso-8859-1')[:2] == (RUSSIAN, 'koi8-r')
    assert encoding.decode(FRENCH.encode('cp1252'), 'utf-8')[0] == FRENCH


def test_a_few_errors_do_not_change_the_encoding():
    data = RUSSIAN.encode() + b'\xff' + RUSSIAN.encode()[:-3]
    text, codec, certain = encoding.decode(data)
    assert codec == 'utf-8' and not certain and text.count('\ufffd') <= 2


def test_files_of_two_encodings_joined():
    """Three lines of UTF-8 and one of Windows-1252 are four equal lines."""
    german = 'Der Müller möchte größere Brötchen für die schöne Bäckerei über dem Fluß verkaufen.\n'
    spanish = 'El niño comió piñas y después se fue a la montaña con su compañía, ¡qué día más bonito!\n'
    for line in (FRENCH.splitlines(keepends=True)[0], german, spanish):
        text, codec, certain = encoding.decode(3 * line.encode() + line.encode('cp1252'))
        assert (text, codec, certain) == (4 * line, 'utf-8', False)


def test_short_text_that_is_unicode_by_accident():
    data = '小模'.encode('gbk')
    assert data.decode('utf-8') != '小模' and encoding.decode(data, 'gbk')[0] == '小模'


def test_binary():
    rng = random.Random(0)
    noise = rng.randbytes(5000)
    for data in (
        b'\x89PNG\r\n\x1a\n',
        b'%PDF-1.4 text',
        noise,
        b'\0' * 100,
        gzip.compress(FRENCH.encode()),
        b'PK\x03\x04',
    ):
        assert encoding.is_binary(data)
    numbers = b''.join(rng.randrange(3000).to_bytes(4, 'little') for _ in range(500))
    assert encoding.is_binary(numbers)
    for text in (FRENCH, RUSSIAN, JAPANESE, '', '\x1b[31mred', 'form\ffeed'):
        for codec in ('utf-8', 'utf-16', 'utf-16-le' if text and len(text) > 20 else 'utf-8'):
            assert not encoding.is_binary(text.encode(codec))
    assert not encoding.is_binary(RUSSIAN.encode('koi8-r')) and not encoding.is_binary(JAPANESE.encode('iso2022_jp'))


LANGUAGES = {
    'cp1252': ('en', 'fr', 'de-1996', 'es', 'it', 'pt-PT', 'nl', 'sv', 'da', 'fi', 'is', 'ca'),
    'cp1250': ('pl', 'cs', 'hu', 'sk', 'sl', 'hr'),
    'iso-8859-2': ('pl', 'cs', 'hu', 'sk', 'sl', 'hr'),
    'cp1251': ('ru', 'uk', 'bg', 'sr-Cyrl', 'mk', 'be'),
    'koi8-r': ('ru', 'bg'),
    'koi8-u': ('uk',),
    'iso-8859-5': ('ru', 'bg'),
    'cp866': ('ru',),
    'cp1253': ('el-monoton',),
    'cp1254': ('tr',),
    'cp1255': ('he',),
    'cp1256': ('ar', 'fa'),
    'cp1257': ('lt', 'lv', 'et'),
    'cp874': ('th',),
    'cp932': ('ja',),
    'euc-jp': ('ja',),
    'iso2022_jp': ('ja',),
    'cp949': ('ko',),
    'gb18030': ('zh',),
    'cp850': ('fr', 'de-1996', 'es'),
    'mac-roman': ('fr', 'de-1996', 'es'),
    'utf-16-le': ('en', 'ru', 'ja', 'ko', 'fr'),
    'utf-16-be': ('en', 'ru', 'ja', 'ko', 'fr'),
}


def test_undeclared_encodings_of_declared_languages(shared_data):
    """The Declaration of Human Rights, in each language's legacy encodings: the encoding is known by construction."""
    with gzip.open(shared_data / 'multilingual/udhr_articles_1_20.jsonl.gz', 'rt') as lines:
        texts = {row['bcp47']: row['text'] for row in map(json.loads, lines)}
    wrong, count = [], 0
    for codec, languages in LANGUAGES.items():
        for language in languages:
            if language in texts:
                data = texts[language].encode(codec, 'ignore')[:2000]
                text = data.decode(codec, 'ignore')
                found = encoding.decode(data)[0]
                count += 1
                if found.rstrip('\ufffd') != text:
                    wrong.append((codec, language))
    assert count >= 50 and not wrong


def test_books_are_read_in_the_encoding_of_the_index(shared_data):
    rows = list(map(json.loads, (shared_data / 'books/books_index.jsonl').read_text().splitlines()))
    known = {row['file']: row['encoding'] for row in rows}
    codecs = {'ascii': 'ascii', 'utf-8': 'utf-8', 'utf-8-sig': 'utf-8-sig', 'latin-1/cp1252': 'cp1252'}
    seen = 0
    with open(shared_data / 'books/books.tar.zst', 'rb') as file:
        plain = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(file)
        with tarfile.open(fileobj=plain, mode='r|') as tar:
            for member in tar:
                name = member.name.rpartition('/')[2]
                if name in known:
                    data = tar.extractfile(member).read()
                    found, _, certain = encoding.decode(data)
                    assert found == data.decode(codecs[known[name]]), name
                    assert certain == (known[name] != 'latin-1/cp1252')
                    seen += 1
    assert seen == len(known) == 176


def test_pages_without_unicode(shared_data):
    """What a browser shows: no replaced characters but for broken ones, and the text's own words."""
    replaced, legacy = {}, {}
    with open(shared_data / 'web/trafilatura_eval_html.tar.zst', 'rb') as file:
        plain = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(file)
        with tarfile.open(fileobj=plain, mode='r|') as tar:
            for member in tar:
                data = tar.extractfile(member).read() if member.isfile() else b''
                text, codec, _ = encoding.decode(data, html=True)
                replaced[member.name] = text.count('\ufffd') - data.count('\ufffd'.encode())
                if codec not in ('utf-8', 'ascii'):
                    legacy[member.name] = (codec, text)
    assert sum(map(bool, replaced.values())) <= 4 and max(replaced.values()) <= 5
    assert {codec for codec, _ in legacy.values()} == {'windows-1252', 'cp1250', 'gb18030'} and len(legacy) == 18
    words = ' '.join(text for _, text in legacy.values())
    for word in ('zagłosował', 'Käufer', 'preisgekrönten', '话剧《约定无期限》', 'können'):
        assert word in words
    assert not any(mark in words for mark in ('Ã¤', 'ï»¿', '³o'))


def test_a_guess_looks_at_a_bounded_sample():
    data = (b'x' * 100 + 'é'.encode('cp1252')) * 100_000
    assert encoding.detect(data)[0] == 'windows-1252'


@pytest.mark.parametrize(
    'line', ['Der Müller möchte größere Brötchen.\n', 'El niño comió en la montaña, mañana será otro día.\n']
)
def test_files_of_two_encodings_are_not_read_as_a_third(line):
    text, found, sure = encoding.decode(line.encode() * 3 + line.encode('cp1252'))
    assert found == 'utf-8' and not sure and text.startswith(line * 3)


@pytest.mark.parametrize('name', ['cp1250', 'iso8859-2'])
def test_encodings_of_the_same_languages_are_told_apart(name):
    text = 'Příliš žluťoučký kůň úpěl ďábelské ódy, řekl šťastný dědeček večer při měsíci.\n'
    assert encoding.decode(text.encode(name))[:2] == (text, name)


def test_few_quotation_marks_are_those_of_windows():
    page = '<p>Everyone’s first page, and it isn’t long. © 2015–2016</p>'
    assert encoding.decode(page.encode('cp1252'), html=True)[0] == page
