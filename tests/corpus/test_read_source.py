"""What a source's options mean, and that its units are what an engine can hand out."""

import gzip
import json
import pathlib
import pickle

import fsspec
import pytest

from llm_jax import config
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.document import Raw
from llm_jax.corpus.read import python, unit
from llm_jax.corpus.read.source import Source, open_source


def read(**options):
    return [record for one in open_source('s', Source(**options)) for record in one.read()]


def texts(records):
    return [r.content for r in records if isinstance(r, Raw)]


def write_each(directory):
    """A file of each kind that the name tells."""
    (directory / 'a.jsonl').write_text(json.dumps({'text': 'line'}) + '\n')
    (directory / 'b.json').write_text(json.dumps([{'text': 'element'}]))
    (directory / 'c.txt.gz').write_bytes(gzip.compress(b'words'))
    (directory / 'd.md').write_text('# Title')
    (directory / 'e.html').write_text('<p>page')
    (directory / 'f.py').write_text('pass')
    (directory / 'g.ipynb').write_text('{}')


def test_auto_goes_by_names(tmp_path):
    write_each(tmp_path)
    found = read(path=f'{tmp_path}/*')
    assert {r.where.partition('#')[0]: r.kind for r in found} == {
        'a.jsonl': 'text', 'b.json': 'text', 'c.txt.gz': 'text', 'd.md': 'markdown', 'e.html': 'html', 'f.py': 'code',
        'g.ipynb': 'notebook',
    }  # fmt: skip
    # In a tree, files of records are data that belong to the code.
    kinds = {r.where: getattr(r, 'kind', getattr(r, 'reason', '')) for r in read(path=str(tmp_path))}
    assert (kinds['a.jsonl'], kinds['b.json'], kinds['f.py']) == ('skip.suffix', 'code', 'code')
    assert texts(read(path=str(tmp_path), format='jsonl')) == ['line', 'element']


def test_cloud(tmp_path):
    write_each(tmp_path)
    memory = fsspec.filesystem('memory')
    memory.put(str(tmp_path), '/corpus', recursive=True)
    assert texts(read(path='memory://corpus/*.jsonl')) == ['line']
    assert len(read(path='memory://corpus')) == len(read(path=str(tmp_path)))


def test_ids_do_not_depend_on_where_the_data_lie(tmp_path):
    for name in ('one', 'two'):
        (tmp_path / name / 'deep').mkdir(parents=True)
        (tmp_path / name / 'deep/a.txt').write_text('x')
        (tmp_path / name / 'deep/b.jsonl').write_text('{"text": "y"}')
    for pattern in ('{}', '{}/*/*', '{}/deep/b*'):
        one, two = (read(path=str(tmp_path / pattern.format(name))) for name in ('one', 'two'))
        ids = [r.id for r in one if isinstance(r, Raw)]
        assert ids and ids == [r.id for r in two if isinstance(r, Raw)]


def test_units_can_be_sent_to_other_processes(tmp_path):
    write_each(tmp_path)
    for path in (f'{tmp_path}/*', str(tmp_path), 'stdlib'):
        for one in open_source('s', Source(path=path, limit=0)):
            sent = pickle.loads(pickle.dumps(one))
            assert sent == one and list(sent.read()) == list(one.read())


def test_a_limit(tmp_path):
    rows = [{'text': f'{i}'} if i % 3 else {'other': i} for i in range(1, 30)]
    for name in 'ab':
        (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    (one,) = open_source('s', Source(path=f'{tmp_path}/*.jsonl', limit=25))
    found = list(one.read())
    assert len(texts(found)) == 25 and found == read(path=f'{tmp_path}/*.jsonl')[: len(found)]
    assert len(texts(read(path=f'{tmp_path}/*.jsonl', limit=1000))) == 40


def test_the_fingerprint_follows_the_content(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": "a"}')
    (before,) = open_source('s', Source(path=f'{tmp_path}/a.jsonl'))
    assert open_source('s', Source(path=f'{tmp_path}/a.jsonl'))[0].fingerprint == before.fingerprint
    (tmp_path / 'a.jsonl').write_text('{"text": "bb"}')
    assert open_source('s', Source(path=f'{tmp_path}/a.jsonl'))[0].fingerprint != before.fingerprint


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({}, 'sources.s.path is empty'),
        ({'path': '/no/such/file.txt'}, "sources.s.path: no file matches '/no/such/file.txt'"),
        ({'path': 'x', 'format': 'jsnl'}, "format = 'jsnl' does not exist.*jsonl"),
        ({'path': 'x', 'kind': 'prose'}, "kind = 'prose' does not exist"),
        ({'path': 'x', 'limit': -1}, 'sources.s.limit = -1'),
        ({'path': 'tfds:no_such_data_set_at_all'}, 'cannot be opened'),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        open_source('s', Source(**options))


def test_mistakes_about_files(tmp_path):
    with pytest.raises(ConfigError, match='directory without files'):
        open_source('s', Source(path=str(tmp_path)))
    (tmp_path / 'a.xyz').write_text('x')
    with pytest.raises(ConfigError, match="'a.xyz' does not say what it is; set the format"):
        open_source('s', Source(path=f'{tmp_path}/a.xyz'))
    assert texts(read(path=f'{tmp_path}/a.xyz', format='text')) == ['x']
    with pytest.raises(ConfigError, match=r'no file in .* is parquet by its name'):
        open_source('s', Source(path=str(tmp_path), format='parquet'))


def test_options_come_from_a_config():
    source = config.build(Source, {'path': 'stdlib', 'limit': 2, 'stages': ('normalise',)}, 'sources.s.')
    assert source.limit == 2 and source.stages == ('normalise',)
    with pytest.raises(ConfigError, match='sources.s.pth'):
        config.build(Source, {'pth': 'x'}, 'sources.s.')


# --- Python's own sources --------------------------------------------------------------


def test_standard_library():
    found = [r for r in read(path='stdlib') if isinstance(r, Raw)]
    by_path = {r.where: r for r in found}
    assert len(found) > 400 and 'argparse.py' in by_path and 'json/decoder.py' in by_path
    assert not any('/test' in path or path.startswith('test') for path in by_path)
    one = by_path['json/decoder.py']
    assert (one.id, one.kind, one.language, one.licence) == ('s/json/decoder.py#0', 'code', 'python', 'PSF-2.0')
    assert one.content == pathlib.Path(json.decoder.__file__).read_text()


def test_standard_library_is_the_same_as_in_training(monkeypatch):
    from llm_jax.config import schema
    from llm_jax.corpus.read.plain import open_sources

    ((theirs,), _) = open_sources(schema.Data(validation_fraction=0.0, test_fraction=0.0))
    assert texts(read(path='stdlib')) == [t for t in theirs.documents('train') if t.strip()]


def test_site_packages(monkeypatch):
    inputs = open_source('s', Source(path='site-packages', include='fsspec/*'))
    found = [r for one in inputs for r in one.read() if isinstance(r, Raw)]
    assert (
        len(found) > 50 and {r.licence for r in found} == {'BSD-3-Clause'} and {r.language for r in found} == {'python'}
    )
    spec = pathlib.Path(fsspec.__file__).parent / 'spec.py'
    assert {r.where: r.content for r in found}['fsspec/spec.py'] == spec.read_text()
    monkeypatch.setattr(unit, 'UNIT_BYTES', 100_000)
    parts = open_source('s', Source(path='site-packages', include='fsspec/*'))
    assert len(parts) > 5 and [r for one in parts for r in one.read() if isinstance(r, Raw)] == found


def test_licences_of_packages():
    import importlib.metadata

    known = {'numpy': 'BSD', 'fsspec': 'BSD-3-Clause', 'jax': 'Apache-2.0', 'rich': 'MIT', 'etils': 'Apache-2.0'}
    for name, licence in known.items():
        assert python.licences.of_metadata(importlib.metadata.metadata(name)).startswith(licence), name
