"""Every experiment of data loads, validates, and reads what it says where that is there."""

import pathlib

import pytest

from llm_jax import config as config_lib
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import schema
from llm_jax.corpus.read.source import open_source

FILES = sorted((pathlib.Path(__file__).parents[2] / 'experiments' / 'data').glob('*.py'))


@pytest.mark.parametrize('file', FILES, ids=lambda file: file.stem)
def test_experiment(file, monkeypatch, tmp_path):
    monkeypatch.setenv('LLM_JAX_DATA', str(tmp_path))
    config = schema.validate(config_lib.load_experiment(file, schema.Corpus))
    assert config.name == file.stem and config.sources


def test_mixed_says_what_it_misses(monkeypatch, tmp_path):
    (file,) = (file for file in FILES if file.stem == 'mixed')
    monkeypatch.setenv('LLM_JAX_DATA', str(tmp_path / 'nowhere'))
    with pytest.raises(ConfigError, match='LLM_JAX_DATA = .*is no directory'):
        config_lib.load_experiment(file, schema.Corpus)


def test_mixed_finds_its_sources(monkeypatch, shared_data):
    (file,) = (file for file in FILES if file.stem == 'mixed')
    monkeypatch.setenv('LLM_JAX_DATA', str(shared_data))
    config = schema.validate(config_lib.load_experiment(file, schema.Corpus))
    for name, source in config.sources.items():
        assert open_source(name, source), name


def test_the_standard_library_needs_no_data():
    (file,) = (file for file in FILES if file.stem == 'stdlib')
    config = schema.validate(config_lib.load_experiment(file, schema.Corpus))
    assert all(open_source(name, source) for name, source in config.sources.items())
