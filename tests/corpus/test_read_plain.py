"""Sources give their documents whole, in order, each in one split; mistakes are said plainly."""

import gzip
import importlib.util
import json
import random

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
import zstandard

from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.read import plain
from llm_jax.corpus.splits import SPLITS, split_of


def opened(spec, **fields):
    fields = {'validation_fraction': 0.2, 'test_fraction': 0.2} | fields
    (source,), _ = plain.open_sources(schema.Data(sources={'s': str(spec)}, **fields))
    return source


def everything(source):
    return [text for split in SPLITS for text in source.documents(split)]


def in_order(spec, **fields):
    """All documents, in the source's order."""
    return list(opened(spec, validation_fraction=0.0, test_fraction=0.0, **fields).documents('train'))


# --- Splits ----------------------------------------------------------------------------


def test_splits_are_disjoint_complete_and_of_the_right_size(tmp_path):
    texts = [f'document {i} of many' for i in range(4000)] * 2
    (tmp_path / 'a.jsonl').write_text(''.join(json.dumps({'text': t}) + '\n' for t in texts))
    source = opened(f'jsonl:{tmp_path}/a.jsonl', validation_fraction=0.1, test_fraction=0.3)
    found = {split: list(source.documents(split)) for split in SPLITS}
    assert sorted(sum(found.values(), [])) == sorted(texts)
    unique = [set(found[split]) for split in SPLITS]
    assert not unique[0] & unique[1] and not unique[0] & unique[2] and not unique[1] & unique[2]
    assert abs(len(found['validation']) / 8000 - 0.1) < 0.03 and abs(len(found['test']) / 8000 - 0.3) < 0.03


def test_a_document_keeps_its_split_wherever_it_comes_from():
    assert {split_of('same', 0.5, 0.2) for _ in range(3)} == {split_of('same', 0.5, 0.2)}
    # A growing validation share only takes documents over: nothing goes back to training.
    before = {t for t in map(str, range(500)) if split_of(t, 0.1, 0) == 'validation'}
    assert before < {t for t in map(str, range(500)) if split_of(t, 0.2, 0) == 'validation'}


def test_validation_sources_replace_the_held_out_share(tmp_path):
    for i in range(40):
        (tmp_path / f'{i:02d}.txt').write_text(f'text {i}')
    (tmp_path / 'held.out').write_text('held out')
    config = schema.Data(
        sources={'s': f'text:{tmp_path}/*.txt'},
        validation_sources={'v': f'text:{tmp_path}/held.out'},
        validation_fraction=0.9,
        test_fraction=0.0,
    )
    (main,), (held,) = plain.open_sources(config)
    assert len(list(main.documents('train'))) == 40 and not list(main.documents('validation'))
    assert list(held.documents('validation')) == ['held out'] and not list(held.documents('train'))


def test_fractions_must_leave_something():
    with pytest.raises(ConfigError, match='leaves nothing to train on'):
        opened('stdlib', validation_fraction=0.6, test_fraction=0.5)


# --- Cutting ---------------------------------------------------------------------------


@pytest.mark.parametrize('block', [1, 3, 1000])
@pytest.mark.parametrize('limit', [0, 1, 5, 12, 10_000])
def test_cut_keeps_all_text_and_ends_at_lines(block, limit):
    rng = random.Random(0)
    text = ''.join(rng.choice(['ab', 'cdefg', '\n', ' ']) for _ in range(300))
    pieces = list(plain.cut((text[i : i + block] for i in range(0, len(text), block)), limit))
    assert ''.join(pieces) == text
    if limit:
        assert max(map(len, pieces)) <= limit
        # As long as it can be, and cut inside a line only when no line end is in reach.
        start = 0
        for piece in pieces[:-1]:
            reach = text[start : start + limit]
            assert piece == reach[: reach.rfind('\n') + 1] or ('\n' not in reach and piece == reach)
            start += len(piece)
    else:
        assert pieces == [text]


def test_documents_are_cut(tmp_path):
    (tmp_path / 'play.txt').write_text('line one\nline two\nline three\n')
    assert in_order(f'text:{tmp_path}/play.txt', max_document_chars=20) == ['line one\nline two\n', 'line three\n']


# --- Kinds -----------------------------------------------------------------------------


def test_stdlib():
    source = opened('stdlib')
    names = [where for where, _ in source.readers['all']()]
    assert any(n.endswith('/argparse.py') for n in names) and any(n.endswith('/json/decoder.py') for n in names)
    for absent in ('/test/', '/tests/', 'site-packages', 'idlelib', 'cp1252.py', 'iso8859_1.py', 'topics.py'):
        assert not any(absent in n for n in names), absent
    texts = everything(source)
    assert len(texts) > 300 and sum(map(len, texts)) > 4_000_000
    assert any('class ArgumentParser' in text for text in texts)
    assert opened('stdlib').fingerprint == source.fingerprint


def test_text_plain_and_compressed(tmp_path):
    text = 'größe\r\n\ttab \0 \u2581 😀\n' * 5
    data = text.encode()
    (tmp_path / 'a.txt').write_bytes(data)
    (tmp_path / 'b.txt.gz').write_bytes(gzip.compress(data) + gzip.compress(b'second member'))
    compress = zstandard.ZstdCompressor().compress
    (tmp_path / 'c.txt.zst').write_bytes(compress(data) + compress(b'second frame'))
    (tmp_path / 'empty.txt').write_bytes(b'')
    assert in_order(f'text:{tmp_path}/*') == [text, text + 'second member', text + 'second frame']


def test_characters_across_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr('llm_jax.data.files._BLOCK_BYTES', 3)
    text = 'a😀ö中文\n\n' * 20
    (tmp_path / 'a.txt').write_text(text)
    assert in_order(f'text:{tmp_path}/a.txt') == [text]
    (tmp_path / 'a.jsonl').write_text(json.dumps({'text': text}, ensure_ascii=False))
    assert in_order(f'jsonl:{tmp_path}/a.jsonl') == [text]


@pytest.mark.parametrize('suffix', ['jsonl', 'jsonl.gz', 'jsonl.zst', 'json', 'json.gz'])
def test_json(tmp_path, suffix):
    rows = [{'text': 'one\u2028line', 'other': 1}, {'text': ''}, {'text': 'two'}]
    text = json.dumps(rows) if suffix.startswith('json') and 'jsonl' not in suffix else ''
    text = text or '\n'.join(json.dumps(row, ensure_ascii=False) for row in rows) + '\n\n'
    pack = {'gz': gzip.compress, 'zst': zstandard.ZstdCompressor().compress}.get(suffix.split('.')[-1], bytes)
    (tmp_path / f'a.{suffix}').write_bytes(pack(text.encode()))
    assert in_order(f'jsonl:{tmp_path}/a.{suffix}') == ['one\u2028line', 'two']


def test_one_json_object_over_several_lines(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps({'text': 'one', 'other': [1, 2]}, indent=1))
    assert in_order(f'jsonl:{tmp_path}/a.json') == ['one']


def test_parquet(tmp_path):
    for part in range(2):
        table = pyarrow.table({'body': [f'{part} {i}' for i in range(2000)], 'n': list(range(2000))})
        pyarrow.parquet.write_table(table, tmp_path / f'{part}.parquet')
    found = in_order(f'parquet:{tmp_path}/*.parquet', text_field='body')
    assert found == [f'{part} {i}' for part in range(2) for i in range(2000)]
    with pytest.raises(ConfigError, match=r"no field 'text'.*It has: body, n; set data.text_field"):
        in_order(f'parquet:{tmp_path}/*.parquet')


def test_files_of_another_file_system():
    fs = fsspec.filesystem('memory')
    fs.pipe_file('/sources/b.txt', b'bb')
    fs.pipe_file('/sources/a.txt', b'aa')
    assert in_order('text:memory://sources/*.txt') == ['aa', 'bb']


class Texts(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')
    SPLITS = ('train', 'test')

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({'text': tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in self.SPLITS}

    def _generate_examples(self, split):
        yield from ((i, {'text': f'{split} {i} ö'}) for i in range(100))


@pytest.fixture(scope='module')
def tfds_directory(tmp_path_factory):
    builder = Texts(data_dir=tmp_path_factory.mktemp('tfds'), file_format='array_record')
    builder.download_and_prepare()
    return builder.data_dir


def test_tfds_directory_and_its_own_splits(tfds_directory):
    source = opened(f'tfds:{tfds_directory}')
    found = {split: list(source.documents(split)) for split in SPLITS}
    assert sorted(found['test']) == sorted(f'test {i} ö' for i in range(100))  # its own, whole
    assert sorted(found['train'] + found['validation']) == sorted(f'train {i} ö' for i in range(100))
    assert 5 < len(found['validation']) < 40
    assert in_order(f'tfds:{tfds_directory}') == in_order(f'tfds:{tfds_directory}')


def test_tfds_split_by_name(tfds_directory):
    assert sorted(in_order(f'tfds:{tfds_directory}:test')) == sorted(f'test {i} ö' for i in range(100))
    assert len(in_order(f'tfds:{tfds_directory}:train[:10%]')) == 10


def test_tfds_errors(tfds_directory):
    with pytest.raises(ConfigError, match=r"no field 'body'.*It has: text"):
        opened(f'tfds:{tfds_directory}', text_field='body')
    with pytest.raises(ConfigError, match='cannot be opened'):
        opened('tfds:no_such_data_set_at_all')


def test_fingerprint_follows_the_inputs(tmp_path):
    (tmp_path / 'a.txt').write_text('one')
    before = opened(f'text:{tmp_path}/*.txt').fingerprint
    assert opened(f'text:{tmp_path}/*.txt').fingerprint == before
    (tmp_path / 'b.txt').write_text('two')
    more = opened(f'text:{tmp_path}/*.txt').fingerprint
    (tmp_path / 'a.txt').write_text('another')
    assert len({before, more, opened(f'text:{tmp_path}/*.txt').fingerprint}) == 3


# --- Mistakes --------------------------------------------------------------------------


def test_nothing_matches(tmp_path):
    with pytest.raises(ConfigError, match=r'data.sources.s: no file matches'):
        opened(f'text:{tmp_path}/*.txt')
    with pytest.raises(ConfigError, match=r'it is a directory: write .*/\*'):
        opened(f'text:{tmp_path}')


@pytest.mark.parametrize('spec, says', [
    ('jsnl:a', "no kind of source 'jsnl'; did you mean 'jsonl'"),
    ('notes.txt', 'a text file is "text:notes.txt"'),
    ('text', 'and where it is'),
    ('stdlib:x', 'write "stdlib"'),
    ('text:gs://bucket/*.txt', 'gcsfs'),
    ('text:nope://bucket/*.txt', 'Protocol not known'),
])  # fmt: skip
def test_a_spec_that_is_wrong(spec, says):
    if says == 'gcsfs' and importlib.util.find_spec('gcsfs'):
        pytest.skip('gcsfs is installed here')
    with pytest.raises(ConfigError, match=says):
        opened(spec)


@pytest.mark.parametrize('block', [2, 1 << 20])
def test_bytes_that_are_not_utf8(tmp_path, monkeypatch, block):
    monkeypatch.setattr('llm_jax.data.files._BLOCK_BYTES', block)
    (tmp_path / 'a.txt').write_bytes('abcö'.encode() + b'\xff\xfe')
    with pytest.raises(ConfigError, match=r'a.txt is not UTF-8: byte 0xFF at offset 5'):
        in_order(f'text:{tmp_path}/a.txt')
    (tmp_path / 'cut.txt').write_bytes('abc😀'.encode()[:-1])
    with pytest.raises(ConfigError, match=r'cut.txt is not UTF-8: byte 0xF0 at offset 3'):
        in_order(f'text:{tmp_path}/cut.txt')


@pytest.mark.parametrize('line, says', [
    ('{"body": "x", "id": 1}', r"a.jsonl, record 2 has no field 'text'.*It has: body, id"),
    ('{"text": 3}', r"record 2: 'text' is int, not text"),
    ('{"text": "x"', r'line 2 is not JSON'),
    ('[1]', r'record 2 is list'),
    (r'{"text": "\ud800"}', r'record 2: surrogates not allowed'),
])  # fmt: skip
def test_records_that_are_wrong(tmp_path, line, says):
    (tmp_path / 'a.jsonl').write_text('{"text": "fine"}\n' + line + '\n')
    with pytest.raises(ConfigError, match=says):
        in_order(f'jsonl:{tmp_path}/a.jsonl')


@pytest.mark.parametrize('suffix', ['gz', 'zst'])
def test_a_file_that_is_cut_off(tmp_path, suffix):
    data = random.Random(0).randbytes(10_000).hex().encode()
    packed = gzip.compress(data) if suffix == 'gz' else zstandard.ZstdCompressor().compress(data)
    (tmp_path / f'a.{suffix}').write_bytes(packed[:-100])
    with pytest.raises(ConfigError, match='is cut off'):
        in_order(f'text:{tmp_path}/a.{suffix}')
    (tmp_path / f'b.{suffix}').write_bytes(b'this is not compressed')
    with pytest.raises(ConfigError, match='cannot be decompressed'):
        in_order(f'text:{tmp_path}/b.{suffix}')


def test_real_files(shared_data):
    stories = in_order(f'jsonl:{shared_data}/tinystories/valid.jsonl.gz')
    assert len(stories) > 100 and all(stories)
    (play,) = in_order(f'text:{shared_data}/misc/tinyshakespeare.txt.gz')
    pieces = in_order(f'text:{shared_data}/misc/tinyshakespeare.txt.gz', max_document_chars=10_000)
    assert ''.join(pieces) == play and len(play) == 1_115_394


def test_a_text_is_split_by_place(tmp_path):
    text = ''.join(f'line {i}\n' for i in range(1000))
    (tmp_path / 'a.txt').write_text(text[:3000])
    (tmp_path / 'b.txt').write_text(text[3000:])
    fields = {'validation_fraction': 0.1, 'test_fraction': 0.05, 'split_by': 'place'}
    for more in ({}, {'max_document_chars': 100}):  # cutting does not move the edges
        source = opened(f'text:{tmp_path}/*.txt', **fields, **more)
        found = [''.join(source.documents(split)) for split in SPLITS]
        n = len(text)
        assert found == [text[: int(n * 0.85)], text[int(n * 0.85) : int(n * 0.95)], text[int(n * 0.95) :]]
    whole = opened(f'text:{tmp_path}/*.txt', **fields | {'validation_fraction': 0.1, 'test_fraction': 0.0})
    assert ''.join(whole.documents('train')) == text[: int(len(text) * 0.9)]  # as nanoGPT cuts it
    assert list(whole.documents('test')) == []
