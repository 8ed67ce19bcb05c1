"""Training reads a corpus as it is: its rows, its tokenizer, its mixture."""

import dataclasses
import json
import pathlib

import building
import fsspec
import numpy as np
import pytest
import tensorflow_datasets as tfds

from llm_jax import config as config_lib
from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.build import build
from llm_jax.corpus.engines.local import Local
from llm_jax.data import batches as batches_lib
from llm_jax.data import prepare, store


@pytest.fixture(scope='module', params=['best_fit', 'concat'])
def corpus(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp(request.param)
    building.write(directory, {'a': building.texts(150, 1), 'b': building.texts(60, 2)})
    mixture = {'a': '1 epochs', 'b': '3 epochs'}
    config = building.config(directory, dedup=('exact',), packing__method=request.param, mixture=mixture)
    return config, build(config, Local(1))


def data_config(config, **fields):
    return schema.Data(**({'sources': {'corpus': f'corpus:{config.out}'}, 'seq_len': 32} | fields))


def test_rows_hold_the_documents(corpus):
    config, manifest = corpus
    prepared = prepare.prepare(data_config(config), seed=0)
    tok = prepared.tokenizer
    assert tok.vocab_size == 320 and tok.fingerprint == manifest['tokenizer']['fingerprint']
    for split in ('train', 'validation', 'test'):
        for name, rows in prepared.rows(split).items():
            builder = tfds.builder_from_directory(f'{config.out}/documents/{name}')
            documents = builder.as_data_source(split=split)
            texts = [documents[i]['text'].decode() for i in range(len(documents))]
            got = rows.read(range(len(rows)))
            entry = manifest['rows']['splits'][split][name]
            assert entry['documents'] == len(texts) and entry['rows'] == len(got)
            assert entry['bytes'] == sum(len(text.encode()) for text in texts)
            assert entry['tokens'] == sum(len(tok.encode(text)) + 1 for text in texts)
            assert entry['fill'] == pytest.approx((got >= 0).mean(), abs=1e-6)
            if config.packing.method == 'concat':
                stream = [token for text in texts for token in [tok.bos_id, *tok.encode(text)]]
                assert got[0, 0] == stream[0]
                targets = got[:, 1:][got[:, 1:] >= 0].tolist()
                assert targets == stream[1 : 1 + len(targets)] and len(stream) - len(targets) <= 33
            else:
                pieces = sorted(text[i : i + 32] for text in map(tok.encode, texts) for i in range(0, len(text), 32))
                assert sorted(_segments(got, tok.bos_id)) == pieces


def _segments(rows, bos_id):
    for row in rows:
        row = row[row >= 0]
        assert row[0] == bos_id
        starts = [*np.flatnonzero(row == bos_id).tolist(), len(row)]
        yield from (row[a + 1 : b].tolist() for a, b in zip(starts[:-1], starts[1:], strict=True))


def test_the_mixture_is_that_of_the_corpus(corpus):
    config, manifest = corpus
    prepared = prepare.prepare(data_config(config), seed=0)
    rows = {name: entry['rows'] for name, entry in manifest['rows']['splits']['train'].items()}
    train = batches_lib.TrainRows(prepared, {}, 0, 16)
    everything = np.concatenate([prepared.rows('train')[name].read(range(rows[name])) for name in ('a', 'b')])
    place = {row.tobytes(): i < rows['a'] for i, row in enumerate(everything)}
    drawn = [place[row.tobytes()] for step in range(200) for row in train[step]]
    expected = rows['a'] / (rows['a'] + 3 * rows['b'])
    assert np.mean(drawn) == pytest.approx(expected, abs=0.01)
    entry = manifest['mixture']
    assert entry['a']['epochs'] == 1 and entry['b']['epochs'] == 3
    assert entry['a']['weight'] == pytest.approx(expected, abs=1e-5)
    # Weights of the experiment stand above it.
    other = batches_lib.TrainRows(prepared, {'a': 1, 'b': 0}, 0, 16)
    assert all(place[row.tobytes()] for row in other.read(0, 20).reshape(-1, 33))


def test_an_experiment_with_a_corpus_is_valid(corpus):
    config, _ = corpus
    experiment = config_lib.default()
    config_lib.apply_overrides(
        experiment, {'data.sources': f'corpus:{config.out}', 'data.seq_len': '32', 'data.mixture': "{'a': 1, 'b': 2}"}
    )
    data = config_lib.validate(experiment).data
    assert prepare.is_corpus(data) and prepare.vocab_size(data) == 320


@pytest.mark.parametrize(
    ('fields', 'message'),
    [
        ({'seq_len': 64}, r'rows of 32 tokens, but data\.seq_len = 64; set it to 32'),
        ({'validation_sources': {'x': 'stdlib'}}, 'validation split of its own'),
        ({'mixture': {'c': 1.0}}, r"data\.mixture names \['c'\]; the sources of the corpus are a, b"),
    ],
)
def test_what_does_not_fit(corpus, fields, message):
    with pytest.raises(ConfigError, match=message):
        prepare.prepare(data_config(corpus[0], **fields), seed=0)


def test_what_is_no_corpus(tmp_path, corpus):
    with pytest.raises(ConfigError, match='there is no complete corpus'):
        prepare.prepare(schema.Data(sources={'corpus': f'corpus:{tmp_path}'}), seed=0)
    both = schema.Data(sources={'corpus': f'corpus:{corpus[0].out}', 'std': 'stdlib'})
    with pytest.raises(ConfigError, match='make it the only source'):
        prepare.prepare(both, seed=0)


def test_a_corpus_in_a_bucket_is_copied_once(corpus, tmp_path, monkeypatch):
    config, _ = corpus
    memory = fsspec.filesystem('memory')
    memory.put(f'{config.out}/', 'memory://bucket/corpus/', recursive=True)
    monkeypatch.chdir(tmp_path)
    data = data_config(config, sources={'corpus': 'corpus:memory://bucket/corpus'}, cache_dir=str(tmp_path / 'cache'))
    there, here = prepare.prepare(data, seed=0), prepare.prepare(data_config(config), seed=0)
    assert there.manifest == here.manifest and there.tokenizer.fingerprint == here.tokenizer.fingerprint
    assert (there.rows('train')['a'].read([0, 1]) == here.rows('train')['a'].read([0, 1])).all()
    monkeypatch.setattr(store, 'cached', lambda directory, name, fetch: tmp_path / 'cache' / name)
    assert prepare.prepare(data, seed=0).manifest == here.manifest


def test_another_tokenizer_is_refused(corpus, tmp_path):
    config, _ = corpus
    made = dataclasses.replace(config.tokenizer, vocab_size=300)
    tokenizer.train(made, building.texts(50, 9), seed=0).save(tmp_path)
    with pytest.raises(ConfigError, match=r'another tokenizer than data\.tokenizer\.path'):
        prepare.prepare(data_config(config, tokenizer=schema.Tokenizer(path=str(tmp_path))), seed=0)


def test_the_manifest_is_json_that_says_everything(corpus):
    config, manifest = corpus
    stored = json.loads(pathlib.Path(config.out, 'manifest.json').read_text())
    assert stored == manifest and str(config.out) not in json.dumps(manifest)
    assert set(manifest) >= {'config', 'versions', 'inputs', 'sources', 'documents', 'tokenizer', 'rows', 'mixture'}
