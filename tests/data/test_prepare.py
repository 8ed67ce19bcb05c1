"""Preparation: rows hold the corpus, caching is by content, and a killed one leaves nothing."""

import dataclasses
import gzip
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds

from llm_jax import config as config_lib
from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import plain
from llm_jax.corpus.packing import GzipMeasure
from llm_jax.corpus.read.plain import open_sources
from llm_jax.corpus.splits import SPLITS
from llm_jax.data import array_record, files, prepare, store


def write_corpus(directory, names='ab', documents=60):
    rng = np.random.default_rng(0)
    words = ['def', 'return', 'value', '    indented', 'größe', '😀', 'x = 1\n', '\t\tif y:', 'print(value)\n']
    for name in names:
        with open(directory / f'{name}.jsonl', 'w') as file:
            for i in range(documents):
                text = f'{name} {i}: ' + ' '.join(rng.choice(words, rng.integers(1, 60)))
                file.write(json.dumps({'text': text}) + '\n')


def make_config(directory, names='ab', **fields):
    fields = {
        'sources': {name: f'jsonl:{directory}/{name}.jsonl' for name in names},
        'validation_fraction': 0.2,
        'test_fraction': 0.1,
        'seq_len': 16,
        'tokenizer': schema.Tokenizer(vocab_size=300),
        'cache_dir': str(directory / 'cache'),
    } | fields
    return schema.Data(**fields)


@pytest.fixture
def config(tmp_path):
    write_corpus(tmp_path)
    return make_config(tmp_path)


def documents_of(config, split):
    main, held = open_sources(config)
    return {s.name: list(s.documents(split)) for s in main + held}


@pytest.mark.parametrize('split', SPLITS)
def test_rows_hold_the_documents(config, split):
    prepared = prepare.prepare(config, seed=0)
    tok = prepared.tokenizer
    assert list(prepared.rows(split)) == ['a', 'b']
    for name, texts in documents_of(config, split).items():
        stream = [t for text in texts for t in [tok.bos_id, *tok.encode(text)]]
        rows = prepared.rows(split)[name]
        got = rows.read(range(len(rows)))
        assert got.dtype == np.int32 and got.shape == (len(rows), 17)
        targets = got[:, 1:][got[:, 1:] >= 0].tolist()
        assert got[0, 0] == stream[0] and (got[1:, 0] == got[:-1, -1]).all()
        if split == 'train':
            assert targets == stream[1 : 1 + len(targets)] and len(stream) - 1 - len(targets) < 16
            assert (got >= 0).all()
        else:
            assert targets == stream[1:]
        entry = prepared.manifest['splits'][split][name]
        assert entry['documents'] == len(texts) and entry['rows'] == len(rows)
        assert entry['bytes'] == sum(len(t.encode()) for t in texts) == tok.token_bytes[stream].sum()
        assert entry['tokens'] == len(stream)


def test_manifest(config):
    prepared = prepare.prepare(config, seed=0)
    manifest = prepared.manifest
    text = ''.join(t for texts in documents_of(config, 'validation').values() for t in texts).encode()
    assert manifest['gzip']['bytes'] == len(text) == prepared.count('validation', 'bytes')
    expected = 8 * len(gzip.compress(text, 9)) / len(text)
    assert manifest['gzip']['bits_per_byte'] == pytest.approx(expected, rel=1e-3)
    assert manifest['tokenizer'] == prepared.tokenizer.fingerprint and manifest['seq_len'] == 16
    assert manifest['bytes_per_token'] == prepared.count('train', 'bytes') / prepared.count('train', 'tokens')


def test_gzip_is_capped():
    measure = GzipMeasure(1000)
    for _ in range(5):
        measure.add(os.urandom(300))
    assert measure.bytes == 1000 and 8 < measure.bits_per_byte() < 8.5


def test_tfds_reads_the_rows(config):
    prepared = prepare.prepare(config, seed=0)
    for split in SPLITS:
        entry = prepared.manifest['splits'][split]['a']
        builder = tfds.builder_from_directory(str(prepared.directory / entry['directory']))
        examples = builder.as_data_source(split=split)
        rows = prepared.rows(split)['a'].read(range(entry['rows']))
        assert len(examples) == entry['rows']
        for example, row in zip(examples, rows, strict=True):
            n = int(example['length'])
            assert example['tokens'].dtype == np.uint16
            assert example['tokens'][:n].tolist() == row[:n].tolist() and (row[n:] == -1).all()


def test_second_call_reads_the_cache(config, monkeypatch):
    calls = []
    first = prepare.prepare(config, seed=0, progress=lambda stage, done: calls.append((stage, done)))
    stages = [stage for stage, _ in calls]
    assert stages[0] == 'tokenizer' and {'a train', 'b validation'} <= set(stages)
    assert dict(calls)['a train'] == first.manifest['splits']['train']['a']['bytes']
    monkeypatch.setattr(tokenizer, 'train', None)
    monkeypatch.setattr(plain, 'write_rows', None)
    again = prepare.prepare(config, seed=0)
    assert again.directory == first.directory and again.manifest == first.manifest
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_everything_that_matters_makes_another_directory(config, tmp_path):
    base = prepare.prepare(config, seed=0)
    longer = prepare.prepare(dataclasses.replace(config, seq_len=24), seed=0)
    assert longer.directory != base.directory and longer.tokenizer.fingerprint == base.tokenizer.fingerprint
    found = [
        prepare.prepare(dataclasses.replace(config, **change), seed=0).directory
        for change in (
            {'validation_fraction': 0.3},
            {'test_fraction': 0.2},
            {'max_document_chars': 100},
            {'tokenizer': schema.Tokenizer(vocab_size=310)},
            {'sources': {'a': config.sources['a']}},
        )
    ]
    with open(tmp_path / 'a.jsonl', 'a') as file:
        file.write('{"text": "one more"}\n')
    found.append(prepare.prepare(config, seed=0).directory)
    assert len({base.directory, longer.directory, *found}) == 8
    kept = dataclasses.replace(config, mixture={'a': 1.0, 'b': 2.0}, prefetch=3)  # these do not matter
    assert prepare.prepare(kept, seed=0).directory == found[-1]


def test_the_same_inputs_give_the_same_rows_elsewhere(config, tmp_path):
    first = prepare.prepare(config, seed=0)
    other = prepare.prepare(dataclasses.replace(config, cache_dir=str(tmp_path / 'elsewhere')), seed=0)
    assert other.manifest == first.manifest and other.directory != first.directory


def test_a_tokenizer_that_is_given(config, tmp_path):
    trained = prepare.prepare(config, seed=0)
    trained.tokenizer.save(tmp_path / 'tok')
    given = dataclasses.replace(config, tokenizer=schema.Tokenizer(path=str(tmp_path / 'tok')))
    assert prepare.prepare(given, seed=1).manifest['digest'] == trained.manifest['digest']


def test_a_tokenizer_of_another_model(config, tmp_path):
    from awkward import write_pair  # here, as the hosts below import this file alone

    write_pair(tmp_path / 'gpt2', 'vocab.json', 'merges.txt')
    given = dataclasses.replace(config, tokenizer=schema.Tokenizer(path=str(tmp_path / 'gpt2' / 'merges.txt')))
    prepared = prepare.prepare(given, seed=0)
    tok = prepared.tokenizer
    rows = prepared.rows('validation')['a']
    first = rows.read([0])[0]
    stream = np.concatenate([first[:1], *(row[1:] for row in rows.read(range(len(rows))))])
    stream = stream[stream >= 0]
    assert stream[0] == tok.bos_id == 500
    starts = np.flatnonzero(stream == tok.bos_id)
    texts = [tok.decode(part) for part in np.split(stream, starts[1:])]
    assert texts == documents_of(config, 'validation')['a']
    assert tok.token_bytes[stream].sum() == sum(len(text.encode()) for text in texts)


def write_plain(directory):
    """One file of each kind, with what readers may treat differently."""
    write_corpus(directory, 'a')
    (directory / 'b.txt').write_text('größe\r\n\ttab 😀\n' * 300)
    (directory / 'c.json').write_text(json.dumps([{'text': f'{i} \u2028 line\n' * (i % 7)} for i in range(80)]))
    table = pyarrow.table({'text': [f'row {i}' * (i % 5) for i in range(200)], 'title': ['t'] * 200})
    pyarrow.parquet.write_table(table, directory / 'd.parquet')
    with gzip.open(directory / 'e.jsonl.gz', 'wt') as file:
        file.write('\n\n'.join(json.dumps({'body': 'x', 'text': f'\n {i} \n\n'}) for i in range(50)))


@pytest.mark.parametrize(
    ('fields', 'digest'),
    [
        ({}, '4abcacb179f7c79b'),
        ({'validation_sources': {'e': 'jsonl:{}/e.jsonl.gz'}}, '278dd2a560041b9a'),
    ],
)
def test_rows_of_plain_sources_stay_the_same_bytes(tmp_path, fields, digest):
    """Digests that were recorded when plain sources had readers of their own."""
    from awkward import TEXTS, write_pair  # here, as the hosts below import this file alone

    write_plain(tmp_path)
    # Without the first text, which is the source of a module and so differs between Pythons.
    write_pair(tmp_path / 'gpt2', 'vocab.json', 'merges.txt', TEXTS[1:])
    kinds = {'a': 'jsonl:{}/a.jsonl', 'b': 'text:{}/b.txt', 'c': 'jsonl:{}/c.json', 'd': 'parquet:{}/d.parquet'}
    place = lambda specs: {name: spec.format(tmp_path) for name, spec in specs.items()}
    config = make_config(
        tmp_path,
        sources=place(kinds),
        max_document_chars=500,
        tokenizer=schema.Tokenizer(path=str(tmp_path / 'gpt2' / 'merges.txt')),
        **{name: place(specs) for name, specs in fields.items()},
    )
    assert prepare.prepare(config, seed=0).manifest['digest'][:16] == digest


def test_validation_sources(tmp_path):
    write_corpus(tmp_path, 'abv')
    config = make_config(tmp_path, validation_sources={'a': f'jsonl:{tmp_path}/v.jsonl'}, test_fraction=0.0)
    prepared = prepare.prepare(config, seed=0)
    assert list(prepared.rows('train')) == ['a', 'b'] and list(prepared.rows('validation')) == ['a']
    assert prepared.manifest['splits']['validation']['a']['documents'] == 60
    assert prepared.count('train', 'documents') == 120 and prepared.rows('test') == {}
    assert prepared.tokenizer.decode(prepared.rows('validation')['a'].read([0])[0, 1:5]).startswith('v')


# --- Rows on disk ----------------------------------------------------------------------


@pytest.mark.parametrize('dtype, top', [(np.uint16, 1 << 16), (np.uint32, 1 << 20)])
def test_rows_of_several_shards(tmp_path, monkeypatch, dtype, top):
    monkeypatch.setattr(array_record, '_SHARD_BYTES', 7 * 9 * np.dtype(dtype).itemsize)
    tokens = np.random.default_rng(0).integers(0, top, (40, 9)).astype(dtype)
    tokens[5] = tokens[6] = 0
    lengths = np.full(40, 9)
    lengths[[0, 17, 39]] = [2, 5, 8]  # also in the first row, whose layout is the pattern
    rows = ((t, n) for t, n in zip(tokens, lengths, strict=True))
    array_record.write(tmp_path, {'validation': rows, 'test': iter(())}, seq_len=8, dtype=dtype)
    assert len(list(tmp_path.glob('*validation*'))) == 6 and not list(tmp_path.glob('*test*'))
    stored = array_record.Rows(tmp_path, 'validation')
    expected = np.where(np.arange(9) < lengths[:, None], tokens.astype(np.int64), -1)
    order = np.random.default_rng(1).integers(0, 40, 300)
    assert len(stored) == 40 and (stored.read(order) == expected[order]).all()
    assert stored.read([]).shape == (0, 9)
    for bad in ([40], [-1]):
        with pytest.raises(IndexError):
            stored.read(bad)


def test_rows_are_found_after_a_move(config, tmp_path):
    prepared = prepare.prepare(config, seed=0)
    before = prepared.rows('train')['a'].read([1, 0])
    shutil.move(prepared.directory, tmp_path / 'moved')
    moved = dataclasses.replace(prepared, directory=tmp_path / 'moved')
    assert (moved.rows('train')['a'].read([1, 0]) == before).all()


# --- Cache -----------------------------------------------------------------------------

CHILD = """
import sys, time, pathlib
from llm_jax.config import schema
from llm_jax.data import prepare
sys.path.insert(0, {tests!r})
from test_prepare import make_config
directory = pathlib.Path({directory!r})
def progress(stage, done):
    if stage == {stage!r}:
        (directory / 'reached').touch()
        time.sleep(60)
prepare.prepare(make_config(directory), 0, progress)
"""


@pytest.mark.parametrize('stage', ['tokenizer', 'a train', 'b validation'])
def test_killed_in_the_middle(config, tmp_path, stage):
    code = CHILD.format(tests=str(pathlib.Path(__file__).parent), directory=str(tmp_path), stage=stage)
    child = subprocess.Popen([sys.executable, '-c', textwrap.dedent(code)])
    deadline = time.monotonic() + 60
    while not (tmp_path / 'reached').exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    cache = tmp_path / 'cache'
    assert not list(cache.glob('rows-*')) and list(cache.glob('.*.partial'))
    assert len(list(cache.glob('tokenizer-*'))) == (stage != 'tokenizer')
    after = prepare.prepare(config, seed=0)
    clean = prepare.prepare(dataclasses.replace(config, cache_dir=str(tmp_path / 'clean')), seed=0)
    assert after.manifest == clean.manifest and not list(cache.glob('.*.partial'))


HOST = """
import dataclasses, pathlib, sys
import jax
from llm_jax.data import prepare
sys.path.insert(0, {tests!r})
from test_prepare import make_config
jax.distributed.initialize('localhost:{port}', 2, {host}, initialization_timeout=60)
config = dataclasses.replace(make_config(pathlib.Path({directory!r})), cache_dir={cache!r})
stages = []
prepared = prepare.prepare(config, 0, lambda stage, done: stages.append(stage))
print('\\nRESULT', prepared.manifest['digest'], len(set(stages)))
"""


@pytest.mark.parametrize('shared', [True, False])
def test_two_hosts(config, tmp_path, shared):
    with socket.socket() as free:
        free.bind(('localhost', 0))
        port = free.getsockname()[1]
    children = []
    for host in range(2):
        code = HOST.format(
            tests=str(pathlib.Path(__file__).parent), directory=str(tmp_path), port=port, host=host,
            cache=str(tmp_path / ('shared' if shared else f'cache{host}')),
        )  # fmt: skip
        children.append(subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True))
    out = [child.communicate(timeout=120)[0].partition('RESULT')[2].split() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert out[0][0] == out[1][0] == prepare.prepare(config, 0).manifest['digest']
    assert int(out[0][1]) > 0 and (out[1][1] == '0') == shared  # the second worked only where it had to


def test_an_error_leaves_nothing(tmp_path):
    def fail(directory):
        (directory / 'file').touch()
        raise ConfigError('no')

    with pytest.raises(ConfigError):
        store.cached(str(tmp_path), 'x', fail)
    assert not (tmp_path / 'x').exists() and not (tmp_path / '.x.partial').exists()


def test_a_cache_in_the_cloud(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    remote = dataclasses.replace(config, cache_dir='memory://bucket/cache')
    first = prepare.prepare(remote, seed=0)
    assert first.directory.is_relative_to('.cache/data') or '.cache' in first.directory.parts
    fs = fsspec.filesystem('memory')
    assert fs.exists(f'/bucket/cache/{first.directory.name}/COMPLETE')
    shutil.rmtree('.cache')  # another machine
    monkeypatch.setattr(plain, 'write_rows', None)
    monkeypatch.setattr(tokenizer, 'train', None)
    second = prepare.prepare(remote, seed=0)
    assert second.manifest == first.manifest
    assert (second.rows('train')['a'].read([0]) == prepare.prepare(remote, 0).rows('train')['a'].read([0])).all()
    assert isinstance(files.filesystem('memory://bucket')[0], type(fs))


def test_an_unfinished_upload_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fs = fsspec.filesystem('memory')
    fs.pipe_file('/bucket/partial/x/half', b'half')
    path = store.cached('memory://bucket/partial', 'x', lambda d: (d / 'whole').write_text('whole'))
    assert [p.name for p in path.iterdir()] == ['whole']


# --- Mistakes --------------------------------------------------------------------------


def test_too_little_text(tmp_path):
    (tmp_path / 'a.txt').write_text('')
    config = make_config(tmp_path, sources={'a': f'text:{tmp_path}/a.txt'})
    with pytest.raises(ConfigError, match=r"there is no text in 'text:.*/a.txt' \(source 'a'\)"):
        prepare.prepare(config, seed=0)
    (tmp_path / 'a.txt').write_text('some text on the same lines\n' * 50)
    with pytest.raises(ConfigError, match=r'validation split.*data.max_document_chars'):
        prepare.prepare(dataclasses.replace(config, validation_fraction=0.0, test_fraction=0.0), seed=0)


def test_less_than_a_row(config):
    with pytest.raises(ConfigError, match=r'make no row of data.seq_len = 100000 \+ 1; lower data.seq_len'):
        prepare.prepare(dataclasses.replace(config, seq_len=100_000), seed=0)
    assert not list(pathlib.Path(config.cache_dir).glob('rows-*'))


def test_empty_validation_source(config, tmp_path):
    (tmp_path / 'v.txt').write_text('')
    with pytest.raises(ConfigError, match=r"there is no text in 'text:.*/v.txt' \(source 'v'\)"):
        prepare.prepare(dataclasses.replace(config, validation_sources={'v': f'text:{tmp_path}/v.txt'}), seed=0)


@pytest.mark.skipif(not pathlib.Path('/dev/full').exists(), reason='needs /dev/full, a disk without room')
def test_a_full_disk_names_the_directory_and_leaves_nothing(tmp_path):
    def build(directory):
        (directory / 'rows').symlink_to('/dev/full')
        (directory / 'rows').write_text('text')

    with pytest.raises(OSError, match=r'No space left on device; .* data.cache_dir .*/tokenizer-1'):
        store.cached(str(tmp_path), 'tokenizer-1', build)
    assert [path.name for path in tmp_path.iterdir()] == ['.tokenizer-1.lock']


@pytest.mark.parametrize('name', ['gpt2_124m', 'llama3_8b', 'mixtral_8x7b', 'tinystories_10m'])
def test_experiments_for_text_of_your_own_do_not_train_on_another_in_its_place(name):
    config = config_lib.validate(config_lib.load_experiment(f'experiments/pretrain/{name}.py'))
    with pytest.raises(ConfigError, match=r"data.sources\S*: no file matches 'data/.*; put files there"):
        prepare.prepare(config.data, seed=0)
