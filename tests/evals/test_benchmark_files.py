"""Files of benchmarks: formats, members of archives, several places, the Hub, and what is broken."""

import csv
import gzip
import hashlib
import io
import json
import tarfile

import pytest

from llm_jax import hub
from llm_jax.config.schema import ConfigError
from llm_jax.evals.sources import Sources, parse_documents


def test_formats_give_the_same_documents():
    documents = [{'a': 'x, "y"', 'b': '1'}, {'a': 'line\nbreak', 'b': '2'}]
    lines = '\n'.join(map(json.dumps, documents)).encode()
    table = io.StringIO()
    writer = csv.DictWriter(table, ['a', 'b'])
    writer.writeheader()
    writer.writerows(documents)
    for data, name in (
        (lines, 'x.jsonl'),
        (gzip.compress(lines), 'x.jsonl.gz'),
        (json.dumps(documents).encode(), 'x.json'),
        (json.dumps({'canary': '', 'examples': documents}).encode(), 'x.json'),
        (('\ufeff' + table.getvalue()).encode(), 'x.csv'),
        (gzip.compress(table.getvalue().encode()), 'x.csv.gz'),
    ):
        assert parse_documents(data, name) == documents, name


def test_a_table_without_header_has_questions_choices_and_letters():
    data = b'Is it?,yes,no,C and,D,B\n"a, b",1,2,3,4,D\n'
    assert parse_documents(data, 'x_test.csv') == [
        {'question': 'Is it?', 'choices': ['yes', 'no', 'C and', 'D'], 'gold': 1},
        {'question': 'a, b', 'choices': ['1', '2', '3', '4'], 'gold': 3},
    ]


def test_the_first_file_of_the_first_place_is_read_and_has_its_digest(tmp_path):
    for place, text in (('one', '{"n": 1}'), ('two', '{"n": 2}')):
        (tmp_path / place).mkdir()
        (tmp_path / place / 'b.jsonl').write_text(text)
    (tmp_path / 'two' / 'a.jsonl').write_text('{"n": 3}')
    sources = Sources([tmp_path / 'one', tmp_path / 'two'])
    assert sources.read(['a.jsonl', 'b.jsonl'], 'x') == ([{'n': 3}], hashlib.sha256(b'{"n": 3}').hexdigest())
    assert sources.read(['b.jsonl'], 'x')[0] == [{'n': 1}]
    assert sources.has(['c.jsonl', 'a.jsonl']) and not sources.has(['c.jsonl'])


def test_a_member_of_an_archive_is_a_file(tmp_path):
    with tarfile.open(tmp_path / 'all.tar.gz', 'w:gz') as archive:
        data = b'{"n": 1}'
        info = tarfile.TarInfo('dir/x.jsonl')
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    sources = Sources([tmp_path])
    found, digest = sources.read(['all.tar.gz:dir/x.jsonl'], 'x')
    assert found == [{'n': 1}] and digest == hashlib.sha256((tmp_path / 'all.tar.gz').read_bytes()).hexdigest()
    assert not sources.has(['all.tar.gz:dir/y.jsonl'])


def test_what_is_missing_or_broken_is_one_error_that_names_the_file(tmp_path):
    (tmp_path / 'bad.jsonl').write_text('{"n": ')
    (tmp_path / 'bad.jsonl.gz').write_bytes(b'no gzip')
    (tmp_path / 'bad.tar.gz').write_bytes(b'no tar')
    sources = Sources([tmp_path])
    with pytest.raises(ConfigError, match=r'has no a.jsonl or b.jsonl, the data of x; put it there'):
        sources.read(['a.jsonl', 'b.jsonl'], 'x')
    for name in ('bad.jsonl', 'bad.jsonl.gz', 'bad.tar.gz:m'):
        with pytest.raises(ConfigError, match=r'bad.*get another copy'):
            sources.read([name], 'x')


def test_a_data_set_of_the_hub_gives_files_of_the_same_names(monkeypatch):
    entries = [hub.Entry('dir/a.jsonl', 8, 'x')]
    monkeypatch.setattr(hub, 'list_files', lambda repo: ('c0ffee', entries))
    monkeypatch.setattr(hub, 'open_file', lambda repo, commit, entry: io.BytesIO(b'{"n": 5}'))
    sources = Sources(['hf:owner/benchmarks-of-a-test'])
    assert sources.read(['missing.jsonl', 'dir/a.jsonl'], 'x')[0] == [{'n': 5}]
