"""Records with fields are read one by one, in parts as well as whole; a broken one costs itself."""

import gzip
import json
import random

import awkward
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
import zstandard

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.document import Broken, Raw
from llm_jax.corpus.read import unit, wikipedia
from llm_jax.corpus.read.source import Skipped, Source, open_source


def read(path, **options):
    return [record for one in open_source('s', Source(path=str(path), **options)) for record in one.read()]


def texts(records):
    return [r.content for r in records if isinstance(r, Raw)]


def reasons(records):
    return [r.reason for r in records if not isinstance(r, Raw)]


TEXTS = [text for text in awkward.AWKWARD + awkward.TEXTS if text.strip()]
SHORT = [text for text in TEXTS if len(text) < 100][-30:]


def packed(suffix, data):
    if suffix == '.zst':  # as `zstd --long=27` writes it
        parameters = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
        return zstandard.ZstdCompressor(compression_params=parameters).compress(data)
    return gzip.compress(data) if suffix == '.gz' else data


# --- JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize('end', ['\n', '\r\n', '\n\n  \n'])
@pytest.mark.parametrize('suffix', ['', '.gz', '.zst'])
def test_lines(tmp_path, suffix, end):
    file = tmp_path / f'a.jsonl{suffix}'
    file.write_bytes(packed(suffix, ''.join(json.dumps({'text': t}) + end for t in TEXTS).encode()))
    found = read(file)
    assert texts(found) == TEXTS and len({r.id for r in found}) == len(TEXTS)
    assert found[0].id == f's/a.jsonl{suffix}#0' and found[0].kind == 'text'


@pytest.mark.parametrize('size', [50, 700, 5000])
def test_ranges_of_lines_together_are_the_file(tmp_path, monkeypatch, size):
    rng = random.Random(0)
    lines = [json.dumps({'text': 'x' * rng.randrange(1, 300)}) for _ in range(200)]
    lines[50:50] = ['', '{"broken', ' ']
    (tmp_path / 'a.jsonl').write_text('\n'.join(lines))
    whole = read(tmp_path / 'a.jsonl')
    assert len(whole) == 201
    monkeypatch.setattr(unit, 'UNIT_BYTES', size)
    assert len(open_source('s', Source(path=str(tmp_path / 'a.jsonl')))) > 4
    assert read(tmp_path / 'a.jsonl') == whole


def test_broken_lines_are_counted_and_the_rest_is_read(tmp_path):
    lines = [
        b'{"text": "one"}', b'{"text": "cut o', b'null', b'["a"]', b'{"other": 1}', b'{"text": 5}', b'{"text": ""}',
        b'{"text": "\xff"}', b'[' * 100_000, b'{"text": ' + b'9' * 5000 + b'}', b'{"text": "two"}',
    ]  # fmt: skip
    (tmp_path / 'a.jsonl').write_bytes(b'\n'.join(lines))
    found = read(tmp_path / 'a.jsonl')
    assert texts(found) == ['one', 'two'] and len(found) == len(lines)
    assert reasons(found) == [
        'read.no_json', 'read.no_object', 'read.no_object', 'read.no_text', 'read.no_text', 'skip.empty',
        'read.no_json', 'read.no_json', 'read.no_json',
    ]  # fmt: skip
    assert 'other' in found[4].detail


@pytest.mark.parametrize('suffix', ['.gz', '.zst'])
def test_a_compressed_file_that_is_cut_off(tmp_path, suffix):
    rng = random.Random(0)
    lines = [json.dumps({'text': rng.randbytes(200).hex()}) for _ in range(2000)]
    data = packed(suffix, '\n'.join(lines).encode())
    (tmp_path / f'a.jsonl{suffix}').write_bytes(data[: len(data) // 2])
    found = read(tmp_path / f'a.jsonl{suffix}')
    assert reasons(found)[-1] == 'read.damaged' and len(reasons(found)) <= 2
    kept = texts(found)
    assert kept == [json.loads(line)['text'] for line in lines[: len(kept)]] and (suffix == '.zst' or len(kept) > 500)


def test_fields(tmp_path):
    rows = [
        {'text': 'a', 'meta': {'url': 'http://x', 'id': 7}, 'title': 'T', 'lang': 'en', 'license': 'cc0-1.0'},
        {'text': 'b', 'meta': {}, 'lang': 'English'},
    ]
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    first, second = read(tmp_path / 'a.jsonl', id_field='meta.id', url_field='meta.url')
    assert (first.id, first.where, first.title, first.language, first.licence) == (
        's/a.jsonl#0:7', 'http://x', 'T', 'en', 'cc0-1.0',
    )  # fmt: skip
    assert second.language == '' and second.where.startswith('a.jsonl#')
    (code, _) = read(tmp_path / 'a.jsonl', kind='code', language='python', licence='MIT')
    assert (code.kind, code.language, code.licence) == ('code', 'python', 'MIT')


def test_ids_that_are_not_unique_stay_apart(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": "a", "ind": 1}\n{"text": "b", "ind": 1}\n')
    found = read(tmp_path / 'a.jsonl', id_field='ind')
    assert len({r.id for r in found}) == 2


def test_a_field_that_the_first_record_lacks(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"content": "a", "url": "b"}\n{"text": "c"}\n')
    with pytest.raises(ConfigError, match=r"sources\.s\.text_field = 'text'.* content, url"):
        open_source('s', Source(path=str(tmp_path / 'a.jsonl')))
    with pytest.raises(ConfigError, match=r'sources\.s\.id_field'):
        open_source('s', Source(path=str(tmp_path / 'a.jsonl'), text_field='content', id_field='idd'))


@pytest.mark.parametrize('block', [1, 7, 1 << 20])
def test_arrays(tmp_path, monkeypatch, block):
    from llm_jax.data import files

    monkeypatch.setattr(files, '_BLOCK_BYTES', block)
    file = tmp_path / 'a.json'
    values = [{'text': t, 'n': [1, {'a': ']'}]} for t in SHORT]
    for indent, ascii_only in ((None, True), (2, False)):
        file.write_text(json.dumps(values, indent=indent, ensure_ascii=ascii_only))
        found = read(file)
        assert texts(found) == SHORT and [r.id for r in found] == [f's/a.json#{i}' for i in range(len(SHORT))]
    file.write_text('\ufeff \n[{"text": "a"}, {"text": "b"}, {"text" "c"}, {"text": "d"}]')
    assert texts(read(file)) == ['a', 'b'] and reasons(read(file)) == ['read.no_json']
    file.write_text('[{"text": "a"}, {"text": "b')
    assert texts(read(file)) == ['a'] and reasons(read(file)) == ['read.no_json']
    file.write_text('{"text": "only"}')
    assert texts(read(file)) == ['only']
    file.write_text('[]')
    assert read(file) == []


# --- Parquet ---------------------------------------------------------------------------


def parquet(path, rows, **options):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, **options)


def test_parquet_by_row_groups(tmp_path, monkeypatch):
    rng = random.Random(0)
    rows = [{'text': rng.randbytes(50).hex(), 'url': f'http://{i}', 'x': i} for i in range(1000)]
    rows[17]['text'], rows[500]['text'] = None, ' '
    parquet(tmp_path / 'a.parquet', rows, row_group_size=100)
    whole = read(tmp_path / 'a.parquet')
    assert texts(whole) == [r['text'] for r in rows if (r['text'] or '').strip()]
    # A null is a document without text.
    assert [whole[17].reason, whole[500].reason] == ['skip.empty', 'skip.empty']
    assert whole[999].id == 's/a.parquet#999' and whole[999].where == 'http://999'
    monkeypatch.setattr(unit, 'UNIT_BYTES', 25_000)
    inputs = open_source('s', Source(path=str(tmp_path / 'a.parquet')))
    assert 3 < len(inputs) <= 10 and [r for one in inputs for r in one.read()] == whole


def test_parquet_fields(tmp_path):
    parquet(tmp_path / 'a.parquet', [{'body': {'text': 'deep'}, 'id': 'x1'}])
    (found,) = read(tmp_path / 'a.parquet', text_field='body.text', id_field='id')
    assert found.content == 'deep' and found.id == 's/a.parquet#0:x1'
    with pytest.raises(ConfigError, match=r"text_field = 'text'.* body, id"):
        open_source('s', Source(path=str(tmp_path / 'a.parquet')))


def test_parquet_of_bytes_that_are_no_text_within_other_fields(tmp_path):
    """Strings in Parquet need not be UTF-8; the text beside them is read all the same."""
    strings = pyarrow.array([b'\xff', b'ok']).view(pyarrow.string())
    maps = pyarrow.MapArray.from_arrays([0, 1, 2], strings, strings)
    pairs = pyarrow.FixedSizeListArray.from_arrays(strings, 1)
    body = pyarrow.StructArray.from_arrays([['one', 'two'], maps, pairs], ['text', 'map', 'pair'])
    pyarrow.parquet.write_table(pyarrow.table({'body': body}), tmp_path / 'a.parquet')
    assert texts(read(tmp_path / 'a.parquet', text_field='body.text')) == ['one', 'two']


def test_damaged_parquet(tmp_path):
    rows = [{'text': random.Random(i).randbytes(100).hex()} for i in range(900)]
    parquet(tmp_path / 'a.parquet', rows, row_group_size=300, compression='zstd')
    parquet(tmp_path / 'c.parquet', [{'other': 'x'}] * 5)
    data = bytearray((tmp_path / 'a.parquet').read_bytes())
    (tmp_path / 'b.parquet').write_bytes(data[: len(data) // 2])
    start = (
        pyarrow.parquet.ParquetFile(tmp_path / 'a.parquet').metadata.row_group(1).column(0).dictionary_page_offset + 100
    )
    data[start : start + 2000] = b'\xff' * 2000
    (tmp_path / 'a.parquet').write_bytes(data)
    found = read(tmp_path / '*.parquet')
    assert texts(found) == [r['text'] for r in rows[:300] + rows[600:]]
    assert [(r.reason, r.where.partition('#')[0]) for r in found if isinstance(r, Broken)] == [
        ('read.damaged', 'a.parquet'), ('read.damaged', 'b.parquet'), ('read.no_text', 'c.parquet'),
    ]  # fmt: skip
    assert '300 rows' in found[300].detail and '5 rows' in found[-1].detail


def test_directory_of_a_data_set(tmp_path):
    """As it is on the Hugging Face Hub: a card, and a Parquet file or several per split."""
    (tmp_path / 'data').mkdir()
    (tmp_path / 'README.md').write_text('---\nlanguage:\n- en\nlicense: mit\n---\n# A data set\n')
    (tmp_path / '.gitattributes').write_text('*.parquet filter=lfs')
    for split in ('train-00000-of-00002', 'train-00001-of-00002', 'test-00000-of-00001', 'validation-00000-of-00001'):
        parquet(tmp_path / f'data/{split}.parquet', [{'text': split}])
    found = read(tmp_path)
    assert texts(found) == ['train-00000-of-00002', 'train-00001-of-00002'] and found[0].licence == 'MIT'
    assert texts(read(tmp_path, include='*test*')) == ['test-00000-of-00001']
    for split in ('00000', '00001'):
        (tmp_path / f'data/train-{split}-of-00002.parquet').unlink()
    assert len(read(tmp_path)) == 2


# --- Wikipedia -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('left', 'cleaned'),
    [
        ('a &lt; b &amp;amp; c', 'a < b & c'),
        ('She () is', 'She is'),
        ('He (, born 1988) and (; )', 'He (born 1988) and'),
        ('call main() here', 'call main() here'),
        ('text&lt;ref name="x"/&gt; on&lt;br /&gt;next', 'text on\nnext'),
        ('[[Oxford|Oxford University]] and [[Anne]]', 'Oxford University and Anne'),
        ('x\n[[Category:1898 births]]\n[[Category:1973 deaths]]\n', 'x\n'),
        ('if x &lt; 3 and y &gt; 4', 'if x < 3 and y > 4'),
    ],
)
def test_what_the_extraction_of_wikipedia_left(left, cleaned):
    assert wikipedia.clean(left) == cleaned


def test_wikipedia_lines_and_blocks_are_the_same_articles(tmp_path, monkeypatch):
    articles = [
        {'id': str(i), 'url': f'http://w?curid={i}', 'title': f'T &amp; {i}', 'text': f'T &amp; {i}\n\nOne\ntwo.\n'}
        for i in range(40)
    ]
    articles[3]['text'] = 'T &amp; 3\n'
    (tmp_path / 'wiki_00').write_text(''.join(json.dumps(a) + '\n' for a in articles))
    blocks = ['<doc id="{id}" url="{url}" title="{title}">\n{text}\n</doc>\n'.format(**a) for a in articles]
    (tmp_path / 'wiki_01').write_text(''.join(blocks))
    lines, docs = (read(tmp_path / f'wiki_0{i}', format='wikipedia') for i in (0, 1))
    pick = lambda records: [(r.where, r.title, r.content.strip()) for r in records if isinstance(r, Raw)]
    assert pick(lines) == pick(docs) and len(pick(docs)) == 39
    assert pick(docs)[1] == ('http://w?curid=1', 'T & 1', 'T & 1\n\nOne\ntwo.')
    assert reasons(lines) == reasons(docs) == ['skip.empty']
    monkeypatch.setattr(unit, 'UNIT_BYTES', 333)
    assert len(open_source('s', Source(path=str(tmp_path / 'wiki_01'), format='wikipedia'))) > 5
    assert read(tmp_path / 'wiki_01', format='wikipedia') == docs
    (tmp_path / 'wiki_01').write_text(''.join([blocks[0], blocks[1][:60] + '\n', blocks[2], blocks[4][:70]]))
    cut = read(tmp_path / 'wiki_01', format='wikipedia')
    assert len(texts(cut)) == 2 and reasons(cut) == ['read.truncated'] * 2
    assert len(read(tmp_path, format='wikipedia')) == len(lines) + 4


def test_wikipedia_slice(shared_data):
    found = read(shared_data / 'wikipedia/enwiki_2021_slice.jsonl.zst', format='wikipedia', language='en')
    assert len(found) == 22487
    assert sum(isinstance(r, Skipped) for r in found) == 1257
    together = '\n'.join(texts(found))
    assert not any(mark in together for mark in ('&lt;', '&amp;', '<ref>', '<ref name', '<br', ' () ', '[[Category:'))


# --- TFDS ------------------------------------------------------------------------------


class Told(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({'text': tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {'train': self._generate_examples('train'), 'test': self._generate_examples('test')}

    def _generate_examples(self, split):
        for i in range(50):
            yield i, {'text': f'{split} {i} ' + 'x' * 100}


def test_tfds(tmp_path, monkeypatch):
    builder = Told(data_dir=tmp_path, file_format='array_record')
    builder.download_and_prepare()
    directory = builder.data_dir
    found = read(f'tfds:{directory}')
    assert len(texts(found)) == 50 and {t.split()[0] for t in texts(found)} == {'train'}
    assert {t.split()[0] for t in texts(read(f'tfds:{directory}:test'))} == {'test'}
    monkeypatch.setattr(unit, 'UNIT_BYTES', 1000)
    inputs = open_source('s', Source(path=f'tfds:{directory}'))
    assert len(inputs) > 3 and [r for one in inputs for r in one.read()] == found
    with pytest.raises(ConfigError, match="no split 'dev'"):
        open_source('s', Source(path=f'tfds:{directory}:dev'))
    with pytest.raises(ConfigError, match='It has: text'):
        open_source('s', Source(path=f'tfds:{directory}', text_field='body'))
