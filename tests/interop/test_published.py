"""Experiments that train a published model, named by family, by its directory or on the Hub; and their parameters."""

import json

from awkward import write_pair
import families
import pytest

from llm_jax import config as config_lib
from llm_jax.config import cli
from llm_jax.config.schema import ConfigError
from llm_jax.data.prepare import model_vocab_size
from llm_jax.interop import published

VALUES = families.CASES['llama.tied_biased_narrow_heads'] | {'vocab_size': 512}


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
    """config.json and a tokenizer, without weights: nothing here needs them."""
    path = tmp_path_factory.mktemp('published') / 'tiny'
    path.mkdir()
    (path / 'config.json').write_text(json.dumps(VALUES))
    write_pair(path, 'vocab.json', 'merges.txt')
    return path


@pytest.mark.parametrize('spec', ['{}', 'hf:{}'])
def test_a_directory_is_a_model(directory, spec):
    config = cli.experiment(spec.format(directory), [], published.experiment)
    assert (config.model.d_model, config.model.vocab_size) == (VALUES['hidden_size'], 512)
    assert config.data.seq_len == config.model.max_seq_len == VALUES['max_position_embeddings']
    assert config.name == 'tiny' and model_vocab_size(config) == 512


def test_a_model_of_the_hub_is_one_and_its_weights_stay_there(hub, directory):
    hub.repos['models/some/tiny'] = {
        'main': {file.name: file.read_bytes() for file in directory.iterdir()} | {'model.safetensors': b'large'}
    }
    config = cli.experiment('hf:some/tiny', ['--config.model.n_layers=1'], published.experiment)
    assert (config.model.d_model, config.model.n_layers) == (VALUES['hidden_size'], 1)
    assert not [request for request in hub.requests if 'safetensors' in request]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('quickstart', "'quickstart' is no experiment: name a file that ends in .py, a published model such as"),
        ('llama:9', 'llama:'),
        ('no.py', 'there is no file no.py'),
    ],
)
def test_other_names(name, message):
    with pytest.raises(ConfigError, match='^[^\n]*$') as error:
        published.experiment(name)
    assert message in str(error.value)


def test_rows_of_the_embedding_are_those_of_the_tokenizer_where_the_model_says_none(directory):
    config = config_lib.default()
    config.data.tokenizer.path = str(directory)
    sizes = [model_vocab_size(config_lib.validate(config))]
    config.model.vocab_size = 4096
    sizes.append(model_vocab_size(config_lib.validate(config)))
    assert sizes[0] == len(json.loads((directory / 'vocab.json').read_text())) and sizes[1] == 4096
