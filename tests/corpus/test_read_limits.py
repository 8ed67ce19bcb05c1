"""The memory of a process that reads what is far larger than any record may be."""

import gzip
import io
import json
import subprocess
import sys
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.read.source import Source, open_source
from llm_jax.data import files

_PEAK = """
import collections, resource, sys
from llm_jax.corpus.read.source import Source, open_source
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
readers = open_source('s', Source(path=sys.argv[1]))
found = collections.Counter(getattr(r, 'reason', 'text') for one in readers for r in one.read())
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before >> 10, dict(found))
"""
_SIZE = 192 << 20
_GOOD = (json.dumps({'text': 'A short text.'}) + '\n').encode()


class _Zeros(io.RawIOBase):
    def __init__(self, size):
        self._left = size

    def readable(self):
        return True

    def readinto(self, buffer):
        size = min(len(buffer), self._left)
        buffer[:size] = bytes(size)
        self._left -= size
        return size


def _fill(stream, before, byte, after):
    stream.write(before)
    for _ in range(_SIZE >> 20):
        stream.write(byte * (1 << 20))
    stream.write(after)


def _write(path):
    if path.name == 'image.tar.zst':
        with (
            path.open('wb') as raw,
            zstandard.ZstdCompressor().stream_writer(raw) as stream,
            tarfile.open(fileobj=stream, mode='w|') as tar,
        ):
            for name, size in (('a.txt', 9), ('disk.img', _SIZE), ('b.txt', 9)):
                info = tarfile.TarInfo(name)
                info.size = size
                tar.addfile(info, io.BytesIO(b'some text') if size < 10 else io.BufferedReader(_Zeros(size)))
    elif path.suffix == '.parquet':
        # One string of 4 MiB that all rows share: 640 MiB if each had its own.
        shared = pyarrow.DictionaryArray.from_arrays([0] * 160, pyarrow.array(['a' * (4 << 20)]))
        ends = pyarrow.DictionaryArray.from_arrays([0], pyarrow.array(['end']))
        for array in (shared, ends):
            table = pyarrow.table({'text': array})
            if array is shared:
                writer = pyarrow.parquet.ParquetWriter(path, table.schema, store_schema=path.name == 'arrow.parquet')
            writer.write_table(table)
        writer.close()
    elif path.suffix == '.zst':
        with path.open('wb') as raw, zstandard.ZstdCompressor().stream_writer(raw) as stream:
            _fill(stream, _GOOD, b'\n', _GOOD)
    else:
        with gzip.open(path, 'wb', 1) as stream:
            _fill(stream, _GOOD + b'{"text": "', b'a', b'"}\n' + _GOOD)


@pytest.mark.parametrize(
    ('name', 'expected'),
    [
        ('blank.jsonl.zst', {'text': 2}),
        ('line.jsonl.gz', {'text': 2, 'skip.too_large': 1}),
        ('image.tar.zst', {'text': 2, 'skip.suffix': 1}),
        ('strings.parquet', {'text': 161}),
        ('arrow.parquet', {'text': 161}),
    ],
)
def test_peak_of_a_process(tmp_path, name, expected):
    _write(tmp_path / name)
    done = subprocess.run([sys.executable, '-c', _PEAK, tmp_path / name], capture_output=True, text=True, check=True)
    peak, _, found = done.stdout.partition(' ')
    assert eval(found) == expected
    assert int(peak) < 260  # MiB; a line is held up to 64 MiB


def test_rows_of_parquet_that_are_too_long_are_counted_without_becoming_python_objects(tmp_path):
    texts = ['short', 'b' * 90_000, None, 'é' * 600, 'end']
    column = pyarrow.array(texts)
    for i, array in enumerate((column, column.dictionary_encode())):
        for nested in (False, True):
            table = {'body': pyarrow.StructArray.from_arrays([array], ['text'])} if nested else {'text': array}
            path = tmp_path / f'{i}{nested}.parquet'
            pyarrow.parquet.write_table(pyarrow.table(table), path)
            options = Source(path=str(path), max_bytes=1000, text_field='body.text' if nested else 'text')
            found = [(r.where.partition('#')[2], getattr(r, 'reason', '')) for r in read(options)]
            wanted = ['', 'skip.too_large', 'skip.empty', 'skip.too_large', '']
            assert found == [(str(key), reason) for key, reason in enumerate(wanted)]


def read(source):
    return [record for one in open_source('s', source) for record in one.read()]


def blocks(path):
    file = files.find(str(path), 'field')[0]
    return b''.join(file.blocks())


@pytest.mark.parametrize('compress', [gzip.compress, zstandard.compress], ids=['gz', 'zst'])
def test_frames_one_after_another_are_read_and_a_cut_one_is_not(tmp_path, compress):
    path = tmp_path / f'a.{"gz" if compress is gzip.compress else "zst"}'
    data = compress(b'one' * 100_000) + compress(b'') + compress(b'two')
    path.write_bytes(data)
    assert blocks(path) == b'one' * 100_000 + b'two'
    for cut in (len(data) - 1, len(data) - 5, len(data) // 2):
        path.write_bytes(data[:cut])
        with pytest.raises(files.Damaged, match='cut off|cannot be decompressed'):
            blocks(path)


def test_gzip_padded_with_zeros(tmp_path):
    (tmp_path / 'a.gz').write_bytes(gzip.compress(b'text') + bytes(700))
    assert blocks(tmp_path / 'a.gz') == b'text'


@pytest.mark.parametrize('name', ['a::b.txt', 'a[1].txt', 'odd [x]/c::d[2].txt'])
def test_names_with_colons_and_brackets(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('text')
    assert blocks(tmp_path / name) == b'text'
    if '/' in name:
        assert len(files.find(f'{tmp_path}/odd [x]/*.txt', 'field')) == 1
    with pytest.raises(ConfigError, match='no file matches'):
        files.find(f'{tmp_path}/none::none.txt', 'field')
