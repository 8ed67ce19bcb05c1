"""Data sets of the Hub: which files are read, as a stream, and what is wrong with the others."""

import io
import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.document import Raw
from llm_jax.corpus.read.plain import open_sources
from llm_jax.corpus.read.source import Source, open_source
from llm_jax.hub import HubError


def parquet(*texts, groups=1):
    out = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({'text': list(texts)}), out, row_group_size=-(-len(texts) // groups), compression='none'
    )
    return out.getvalue()


def lines(*texts):
    return ''.join(json.dumps({'text': text}) + '\n' for text in texts).encode()


def card(text):
    return f'---\n{text}---\n# A data set\n'.encode()


def read(path, **options):
    units = open_source('s', Source(path=path, **options))
    records = [record for one in pickle.loads(pickle.dumps(units)) for record in one.read()]
    assert all(isinstance(record, Raw) for record in records)
    return [record.content for record in records]


def plain(spec, **fields):
    (source,), _ = open_sources(schema.Data(sources={'s': spec}, **fields))
    return {split: list(source.documents(split)) for split in ('train', 'validation', 'test')}


def test_files_are_of_the_split_that_their_names_say(hub):
    hub.repos['datasets/some/stories'] = {
        'main': {
            'README.md': card('license: mit\n'),
            'dataset_infos.json': b'{}',
            'data/train-00000-of-00002.parquet': parquet('a', 'b'),
            'data/train-00001-of-00002.parquet': parquet('c'),
            'data/validation-00000-of-00001.parquet': parquet('v'),
        },
        'v1': {'train.jsonl': lines('old'), 'test.jsonl': lines('old test')},
    }
    assert read('hf:some/stories') == ['a', 'b', 'c']
    assert read('hf:some/stories:validation') == ['v']
    assert read('hf:some/stories@v1') == ['old']
    assert read('hf:some/stories@v1:test', limit=5) == ['old test']
    (unit, *_) = open_source('s', Source(path='hf:some/stories'))
    assert next(iter(unit.read())).licence == 'MIT'
    found = plain('hf:some/stories', validation_fraction=0.5, test_fraction=0.0)
    assert found == {'train': ['a', 'b', 'c'], 'validation': ['v'], 'test': []}
    assert plain('hf:some/stories:validation', validation_fraction=0.0, test_fraction=0.0)['train'] == ['v']
    with pytest.raises(HubError, match=r"no split 'valid'; did you mean 'validation'\?|no split 'valid'.*validation"):
        read('hf:some/stories:valid')


def test_the_card_says_which_files_are_a_config(hub):
    header = (
        'configs:\n- config_name: en\n  default: true\n  data_files:\n  - split: train\n    path: en/*.parquet\n'
        '  - split: heldout\n    path: [en/held/**]\n- config_name: de\n  data_files: "de/part-?.jsonl"\n'
    )
    hub.repos['datasets/some/languages'] = {
        'main': {
            'README.md': card(header),
            'en/one.parquet': parquet('one'),
            'en/held/deep/two.parquet': parquet('two'),
            'de/part-1.jsonl': lines('other format'),
            'de/part-12.jsonl': lines('not meant'),
        }
    }
    assert read('hf:some/languages') == ['one']
    assert read('hf:some/languages/en:heldout') == ['two']
    assert read('hf:some/languages/de') == ['other format']
    with pytest.raises(HubError, match="no config 'eng'.*There are: en, de"):
        read('hf:some/languages/eng')
    hub.repos['datasets/some/languages']['main']['README.md'] = card('configs: [{\n')
    with pytest.raises(HubError, match='README.md is not YAML'):
        read('hf:some/languages')


def test_directories_are_configs_where_no_card_says_it(hub):
    files = {'en/train/0.parquet': parquet('en'), 'de/train/0.parquet': parquet('de')}
    hub.repos['datasets/some/two'] = {'main': files}
    assert read('hf:some/two/de') == ['de']
    with pytest.raises(HubError, match='several configs and no default. There are: de, en; name one'):
        read('hf:some/two')
    files |= {'default/train/0.parquet': parquet('default')}
    assert read('hf:some/two') == ['default']


def test_what_the_hub_converted_is_read_where_a_data_set_is_a_script(hub):
    hub.repos['datasets/some/script'] = {
        'main': {'script.py': b'pass', 'README.md': b'no header'},
        'refs/convert/parquet': {'default/train/0000.parquet': parquet('converted')},
    }
    assert read('hf:some/script') == ['converted']
    with pytest.raises(HubError, match='no Parquet or JSON lines that could be read'):
        read('hf:some/script@main')
    del hub.repos['datasets/some/script']['refs/convert/parquet']
    with pytest.raises(HubError, match='the Hub has not converted it'):
        read('hf:some/script')


def test_parquet_is_a_stream(hub):
    texts = [f'{i} ' * 400_000 for i in range(8)]
    hub.repos['datasets/some/large'] = {'main': {'train.parquet': parquet(*texts, groups=8)}}
    size = len(hub.repos['datasets/some/large']['main']['train.parquet'])
    hub.requests.clear()
    assert read('hf:some/large', limit=1) == texts[:1]
    ranges = [r.rpartition('bytes=')[2].split('-') for r in hub.requests if 'bytes=' in r]
    assert ranges and sum(int(stop) - int(start) + 1 for start, stop in ranges) < size / 2


def test_names_that_are_none(hub):
    for spec in ('hf:some', 'hf:a/b/c/d', 'hf:a/b:', 'hf:a/b@'):
        with pytest.raises(HubError, match=r'sources.s.path = .*write hf:OWNER/NAME'):
            read(spec)
        with pytest.raises(HubError, match=r'data.sources.s = .*write hf:OWNER/NAME'):
            plain(spec)
    with pytest.raises(ConfigError, match="has no data set 'some/nothing', or it is private"):
        plain('hf:some/nothing')
    hub.repos['datasets/some/other'] = {'main': {'train.jsonl': json.dumps({'txet': 'a'}).encode()}}
    with pytest.raises(ConfigError, match="sources.s.text_field = 'text'.*'txet'"):
        read('hf:some/other')


def test_a_gated_data_set_and_a_broken_transfer(hub, monkeypatch):
    hub.repos['datasets/some/secret'] = {'main': {'train.parquet': parquet('a', 'b')}}
    hub.gated.add('datasets/some/secret')
    with pytest.raises(HubError, match=r'hf:some/secret \(train.parquet\) is gated: accept its terms at http'):
        plain('hf:some/secret')
    monkeypatch.setenv('HF_TOKEN', 'let-me-in')
    hub.broken['train.parquet'] = 2
    assert read('hf:some/secret') == ['a', 'b']
    units = open_source('s', Source(path='hf:some/secret'))
    hub.broken['train.parquet'] = 1000
    with pytest.raises(HubError, match=r'hf:some/secret \(train.parquet\): the transfer broke off'):
        list(units[0].read())  # and not a document less
