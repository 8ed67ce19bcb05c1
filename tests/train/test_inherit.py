"""A stage that says no model has that of the run which it begins with."""

import dataclasses

from etils import epath
import pytest
from tiny import LLAMA, tiny_config

from llm_jax import config as config_lib
from llm_jax import runs, tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.train.inherit import inherit


@pytest.fixture
def base(tmp_path):
    """A run directory with a config and a tokenizer."""
    directory = epath.Path(tmp_path / 'base')
    runs.write_config(directory, tiny_config(**LLAMA, max_seq_len=64, dropout=0.1), None)
    recipe = schema.Tokenizer(kind='bytes')
    tokenizer.train(recipe, iter(['a']), 0).save(directory / 'tokenizer')
    return directory


def stage(base, form='pairs', **fields):
    config = config_lib.default()
    config.init_from, config.data.sources, config.data.seq_len = str(base), {'s': f'{form}:x'}, 64
    config_lib.apply_overrides(config, {key: str(value) for key, value in fields.items()})
    return config_lib.validate(config)


def test_model_and_tokenizer(base, tmp_path):
    config = inherit(stage(base, **{'model.adapter.kind': 'lora', 'model.remat': 'full'}), tmp_path / 'new')
    theirs = runs.read_config(base).model
    own = {'adapter': config.model.adapter, 'remat': 'full', 'dropout': 0.0}
    assert config.model == dataclasses.replace(theirs, **own)
    assert config.model.adapter.kind == 'lora'
    assert config.data.tokenizer.path == str(base / 'tokenizer')
    # A run that has begun needs the other no more.
    runs.write_config(epath.Path(tmp_path / 'new'), config, None)
    (tmp_path / 'new/checkpoints/1').mkdir(parents=True)
    base.rmtree()
    again = stage(base, **{'model.adapter.kind': 'lora', 'model.remat': 'full'})
    assert inherit(again, tmp_path / 'new') == config


def test_a_context_of_its_own(base, tmp_path):
    assert inherit(stage(base, **{'model.max_seq_len': 128}), tmp_path).model.max_seq_len == 128
    with pytest.raises(ConfigError, match='model.max_seq_len = 64: it must be 0 or at least data.seq_len = 65'):
        inherit(stage(base, **{'data.seq_len': 65}), tmp_path)


def test_a_model_that_is_said_stays(base, tmp_path):
    config = stage(base, 'text', **{'model.d_model': 128})
    assert inherit(config, tmp_path) is config
    config = stage(base, **{'model.d_model': 128})
    assert inherit(config, tmp_path).model == config.model


def test_what_is_no_run(tmp_path):
    with pytest.raises(ConfigError, match='is not a run directory'):
        inherit(stage(tmp_path / 'nothing'), tmp_path / 'new')
