"""Objects of JSON lines, and what is said of lines that are none."""

import gzip

import pytest

from llm_jax.config.schema import ConfigError
from llm_jax.data import files


def test_objects_of_compressed_lines(tmp_path):
    (tmp_path / 'a.jsonl').write_text('{"text": "one", "n": 1}\n\n  \n{"text": "two"}\n')
    (tmp_path / 'b.jsonl.gz').write_bytes(gzip.compress(b'{"text": "three"}'))
    read = list(files.read_json_lines(f'{tmp_path}/*', 'FILE', ('text',)))
    assert [line['text'] for line in read] == ['one', 'two', 'three'] and read[0]['n'] == 1


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{"text": 1}\n[1]\n', ":2 is no object with 'text'"),
        ('\n{"words": 1}\n', ":2 is no object with 'text'"),
        ('{"text": \n', ':1 is not JSON'),
    ],
)
def test_other_lines(tmp_path, text, message):
    (tmp_path / 'a.jsonl').write_text(text)
    with pytest.raises(ConfigError) as error:
        list(files.read_json_lines(f'{tmp_path}/a.jsonl', 'FILE', ('text',)))
    assert f'{tmp_path}/a.jsonl{message}' in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r'FILE: no file matches .*; put files there, or name others$'):
        list(files.read_json_lines(f'{tmp_path}/a.jsonl', 'FILE'))
