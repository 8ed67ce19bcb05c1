"""Records with all their fields: the same from every kind of file, and the first mistake is an error."""

import gzip
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.read.records import open_records

RECORDS = [
    {'messages': [{'role': 'user', 'content': 'ö?'}, {'role': 'assistant', 'content': f'{i}'}], 'score': i}
    for i in range(5)
]


def read(place, part='all'):
    return [record for _, record in open_records(str(place), 'data.sources.a').parts[part]()]


class Records(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
        message = {'role': tfds.features.Text(), 'content': tfds.features.Text()}
        features = tfds.features.FeaturesDict({'messages': tfds.features.Sequence(message), 'score': np.int64})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {'train': enumerate(RECORDS), 'test': enumerate(RECORDS[:2])}

    def _generate_examples(self):
        raise NotImplementedError


def test_every_kind_gives_the_same(tmp_path):
    lines = ''.join(json.dumps(record) + '\n' for record in RECORDS)
    (tmp_path / 'a.jsonl').write_text(lines)
    with gzip.open(tmp_path / 'b.jsonl.gz', 'wt') as file:
        file.write(lines)
    (tmp_path / 'c.json').write_text(json.dumps(RECORDS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), tmp_path / 'd.parquet')
    for file in sorted(tmp_path.iterdir()):
        assert read(file) == RECORDS, file.name
    builder = Records(data_dir=tmp_path / 'tfds', file_format='array_record')
    builder.download_and_prepare()
    opened = open_records(f'tfds:{builder.data_dir}', 'data.sources.a')
    assert set(opened.parts) == {'train', 'test'}
    key = lambda record: record['score']
    assert sorted(read(f'tfds:{builder.data_dir}', 'train'), key=key) == RECORDS
    assert sorted(read(f'tfds:{builder.data_dir}:test'), key=key) == RECORDS[:2]


def test_splits_of_a_data_set_of_the_hub(hub):
    content = lambda some: ''.join(json.dumps(record) + '\n' for record in some).encode()
    files = {'train.jsonl': content(RECORDS), 'test.jsonl': content(RECORDS[:1])}
    hub.repos['datasets/o/pairs'] = {'main': files}
    assert read('hf:o/pairs', 'train') == RECORDS
    assert read('hf:o/pairs', 'test') == RECORDS[:1]
    assert read('hf:o/pairs:test') == RECORDS[:1]


@pytest.mark.parametrize(
    ('name', 'content', 'message'),
    [
        ('a.jsonl', b'{"a": 1}\n{"a": \n', r'a.jsonl, line 2 is not JSON'),
        ('a.jsonl', b'{"a": 1}\n[1]\n', r'a.jsonl, record 2 is list, not an object'),
        ('a.parquet', b'PAR1', r'a.parquet is no Parquet file'),
    ],
)
def test_what_cannot_be_read(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read(tmp_path / name)
