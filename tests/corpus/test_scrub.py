"""What is scrubbed and what is left: a labelled set of invented values, and real prose and code."""

from collections import Counter
import dataclasses
import ipaddress
import json
import pathlib
import random
import string
import sysconfig

from awkward import AWKWARD, cases
import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.corpus import scrub
from llm_jax.corpus.document import Document
from llm_jax.corpus.scrub import Scrub, find_all, make
from llm_jax.corpus.scrub.contacts import ip_addresses
from llm_jax.corpus.scrub.numbers import passes_luhn
from llm_jax.corpus.scrub.secrets import entropy


def document(text: str, kind: str = 'text', **fields) -> Document:
    return Document(id='s/f#0', source='s', where='f', text=text, kind=kind, **fields)


def labelled() -> list[dict]:
    """The set: text, kind (prose or code) and what is to be found in it.

    '¦' stands in the invented secrets so that nothing that scans the repository takes them for real ones.
    """
    file = pathlib.Path(__file__).with_name('pii.jsonl')
    return [json.loads(line.replace('¦', '')) for line in file.read_text().splitlines()]


def found(text: str, kind: str = 'prose') -> list[tuple[str, str]]:
    return [(name, text[start:end]) for start, end, name in find_all(text, kind == 'code')]


def test_labelled_set():
    total, hit, false_alarms, clean = Counter(), Counter(), [], 0
    for case in labelled():
        wanted, got = [tuple(pair) for pair in case['find']], found(case['text'], case['kind'])
        for pair in wanted:
            total[pair[0]] += 1
            hit[pair[0]] += pair in got
        clean += not wanted
        if set(got) - set(wanted):
            false_alarms.append((case['text'], got))
    assert set(total) == set(scrub.FINDERS) and min(total.values()) >= 40 and clean >= 350
    assert all(hit[name] / total[name] >= 0.97 for name in total), (hit, total)
    assert len(false_alarms) / clean <= 0.005, false_alarms


def test_placeholders_and_counts():
    text = 'Mail a.b@firm.net or c@firm.net, ring +44 20 7946 0018, from 84.17.203.9, card 4111 1111 1111 1111.'
    out = make(Scrub())(document(text, signals={'other': 1.0}))
    assert out.text == (
        'Mail <EMAIL> or <EMAIL>, ring <PHONE_NUMBER>, from <IP_ADDRESS>, card <CARD_NUMBER>.'
    )  # fmt: skip
    assert out.signals == {'other': 1, 'scrub.email': 2, 'scrub.phone': 1, 'scrub.ip': 1, 'scrub.card': 1}


def test_clean_document_is_returned_as_it_is():
    clean = document('Nothing here but 1066 and all that.')
    assert make(Scrub())(clean) is clean


def test_where_each_type_is_scrubbed():
    text = 'from 84.17.203.9 to a@firm.net'
    for where, prose, code in (('prose', True, False), ('code', False, True), ('none', False, False)):
        stage = make(Scrub(email=where))
        assert ('<EMAIL>' in stage(document(text)).text) == prose
        for kind in scrub.CODE:
            assert ('<EMAIL>' in stage(document(text, kind)).text) == code
            assert '<IP_ADDRESS>' in stage(document(text, kind)).text


def test_own_placeholders():
    mine = dict(scrub.PLACEHOLDERS, email='[mail]')
    assert make(Scrub(placeholders=mine))(document('to a@firm.net')).text == 'to [mail]'


@pytest.mark.parametrize(
    ('options', 'names'),
    [
        (Scrub(ip='both'), 'scrub.ip'),
        (Scrub(placeholders={'email': '<E>'}), 'scrub.placeholders'),
        (Scrub(placeholders=dict(scrub.PLACEHOLDERS, email='me@firm.net')), 'scrub.placeholders.email'),
    ],
)
def test_mistakes_in_the_options(options, names):
    with pytest.raises(ConfigError, match=names):
        make(options)


@pytest.mark.parametrize('kind', ['text', 'code'])
def test_idempotent(kind):
    rng = random.Random(0)
    texts = [case['text'] for case in labelled()]
    stage = make(Scrub())
    # Glued together without a space, too, where a placeholder changes what stands beside it.
    mixed = [rng.choice(['', ' ', '\n']).join(rng.sample(texts, 4)) for _ in range(500)]
    for text in [*mixed, *cases(200)]:
        once = stage(document(text, kind))
        assert stage(once) is once


def test_overlaps_are_one_find():
    assert found('postgres://app:Zq8@kL2m@db.corp.net/x')[0][0] == 'secret'
    for text in ('https://joe:s3cr3tPa55@mail.firm.net/a', 'x 4111-1111-1111-1111 y', 'Tel. 4111 1111 1111 1111'):
        spans = find_all(text, False)
        assert len(spans) == 1
    shuffled = find_all('a@firm.net ' * 3 + '+44 20 7946 0018', False)
    assert [name for *_, name in shuffled] == ['email'] * 3 + ['phone']
    assert all(a[1] <= b[0] for a, b in zip(shuffled, shuffled[1:], strict=False))


def test_awkward_text_is_left():
    stage = make(Scrub())
    for text in AWKWARD + [
        '@',
        '@@',
        'a@',
        '@b.com',
        '+',
        '(',
        '+(',
        '0' * 5000,
        '1.' * 5000,
        ': ' * 5000,
        '\ud800@b.com',
    ]:
        assert stage(document(text)).text == text
    assert stage(document('')).text == ''


def test_ipv4_against_the_standard_library():
    """Large addresses are found exactly where `ipaddress` says that they are global."""
    rng = random.Random(1)
    # 192.88.99.0/24 was given back, and is still on the registry's list.
    for _ in range(3000):
        address = ipaddress.IPv4Address(rng.getrandbits(32))
        if max(address.packed) < 50 or address in ipaddress.ip_network('192.88.99.0/24'):
            continue
        expected = address.is_global and not address.is_multicast and not address.is_reserved
        assert (list(ip_addresses(f'at {address} now', False)) != []) == expected, address


def test_ipv6_forms_of_one_address():
    for text in ('2A01:04F8:0C17:0B8F:0000:0000:0000:0002', '2a01:4f8:c17:b8f::2', '2a01:4f8:c17:b8f:0:0:0:2'):
        assert found(f'[{text}]:443') == [('ip', text)]


def test_luhn():
    # Examples of payment processors' documentation; changing any digit breaks the check.
    for number in ('4242424242424242', '378282246310005', '30569309025904', '6011111111111117'):
        assert passes_luhn(number)
        for i, digit in enumerate(number):
            assert not passes_luhn(number[:i] + str((int(digit) + 1) % 10) + number[i + 1 :])


def test_entropy():
    assert entropy('aaaa') == 0
    assert entropy('abcd') == 2
    assert entropy(string.printable[:64]) == 6


def test_cut_off_private_key_goes_as_far_as_it_is_there():
    text = 'key = """-----BEGIN RSA PRI' + 'VATE KEY-----\nMIIEow\nIBAAKC==\n'
    assert make(Scrub())(document(text, 'code')).text == 'key = """<SECRET>'


def test_licence_lines_keep_all_but_the_address():
    text = '# Copyright (c) 2019 Ida Holm <ida@holm-labs.dk>\n# Licensed under the MIT licence.\n'
    assert make(Scrub())(document(text, 'code')).text == text.replace('ida@holm-labs.dk', '<EMAIL>')


def test_standard_library_keeps_its_code():
    """Without its tests it has authors' addresses, a few documented hosts, and no secrets or cards."""
    root = pathlib.Path(sysconfig.get_paths()['stdlib'])
    hits = Counter()
    for file in sorted(root.rglob('*.py')):
        if not {'test', 'tests', 'site-packages', 'idlelib', 'lib2to3'} & set(file.relative_to(root).parts):
            hits.update(name for name, _ in found(file.read_text(errors='replace'), 'code'))
    assert hits['email'] >= 50
    # A password in a docstring, a URL with one in a test of .
    assert hits['secret'] <= 2 and hits['card'] == 0
    assert hits['phone'] <= 1
    assert hits['ip'] <= 10


def test_books_and_articles_keep_their_numbers(shared_data):
    import zstandard  # a dependency of reading, not of scrubbing

    file = shared_data / 'wikipedia' / 'enwiki_2021_slice.jsonl.zst'
    with file.open('rb') as stream, zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(stream) as reader:
        lines = reader.read(8_000_000).decode(errors='ignore').split('\n')[:-1]
    hits = Counter(name for line in lines for name, _ in found(json.loads(line)['text']))
    # Numbers abound in 3,000 encyclopaedia articles; those of machines and people hardly.
    assert len(lines) > 3000
    assert sum(hits.values()) <= 10, hits


def test_other_fields_stay():
    before = document('a@firm.net', title='t', licence='MIT', language='en', cluster='c')
    after = make(Scrub())(before)
    assert dataclasses.replace(after, text=before.text, signals=before.signals) == before
