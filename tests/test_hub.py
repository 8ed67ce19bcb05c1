"""Models of the Hub, and what goes wrong on the way to them, against a stand-in of its HTTP API."""

from awkward import write_pair
import families
from huggingface_hub import constants
import numpy as np
import pytest

import llm_jax
from llm_jax import hub as hub_lib
from llm_jax import tokenizer
from llm_jax.config.schema import ConfigError
from llm_jax.hub import HubError
from llm_jax.interop import convert, hf, tensors

LLAMA = families.CASES['llama.tied_biased_narrow_heads'] | {'vocab_size': 512}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """A Hugging Face directory with drawn weights and a tokenizer."""
    path = tmp_path_factory.mktemp('weights') / 'tiny'
    path.mkdir()
    families.write_weights(path, LLAMA, {})
    family, config = hf.read_config(path)
    families.write_weights(path, LLAMA, {t.name: t.shape for t in tensors.tensors(config.model, family)})
    write_pair(path, 'vocab.json', 'merges.txt')
    return path


def files_of(directory):
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_a_model_is_loaded_by_its_name(hub, weights):
    others = {'original/consolidated.00.pth': b'x', 'consolidated.safetensors': b'not read', 'onnx/model.json': b'{}'}
    hub.repos['models/some/tiny'] = {'main': files_of(weights) | others, 'refs/pr/1': {}}
    loaded, local = llm_jax.load('hf:some/tiny'), llm_jax.load(weights)
    tokens = np.arange(8)[None]
    np.testing.assert_array_equal(
        loaded.model.apply({'params': loaded.params}, tokens), local.model.apply({'params': local.params}, tokens)
    )
    assert loaded.tokenizer.fingerprint == local.tokenizer.fingerprint
    asked = ' '.join(hub.requests)
    assert 'model.safetensors' in asked and 'original' not in asked and 'onnx' not in asked
    assert '/consolidated' not in asked
    # A second time everything is in the cache, and needs no network once it is not allowed.
    hub.requests.clear()
    assert hub_lib.fetch_model('hf:some/tiny@main').endswith(hub_lib.list_files(repo('some/tiny'))[0])
    assert not [request for request in hub.requests if request.startswith('GET /some')]


def repo(name, revision=''):
    return hub_lib.Repo(f'hf:{name}', 'model', name, revision)


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub, weights):
    hub.repos['models/some/tiny'] = {'main': {'config.json': b'{}'}, 'refs/pr/1': files_of(weights)}
    assert llm_jax.load('hf:some/tiny@refs/pr/1').model.config.d_model == LLAMA['hidden_size']
    with pytest.raises(HubError, match=r"hf:some/tiny@v2: the model has no revision 'v2'"):
        llm_jax.load('hf:some/tiny@v2')
    with pytest.raises(HubError, match=r'hf:some/tiny has no \*.safetensors.*its files are config.json'):
        llm_jax.load('hf:some/tiny')


def test_a_tokenizer_comes_without_the_weights(hub, weights):
    hub.repos['models/some/tiny'] = {'main': files_of(weights)}
    assert tokenizer.load('hf:some/tiny').fingerprint == tokenizer.load(weights).fingerprint
    assert not [request for request in hub.requests if 'safetensors' in request]


def test_chat_templates_come_with_it(hub, weights):
    files = files_of(weights) | {
        'chat_template.jinja': b'a',
        'additional_chat_templates/rag.jinja': b'b',
        'old/x.jinja': b'',
    }
    hub.repos['models/some/tiny'] = {'main': files}
    assert tokenizer.load('hf:some/tiny').chat_templates == {'default': 'a', 'rag': 'b'}
    assert not [request for request in hub.requests if 'old/' in request]


def test_a_directory_is_itself(hub, weights, monkeypatch):
    assert hub_lib.fetch_model(f'hf:{weights}') == str(weights)
    assert hub_lib.fetch_model('runs/quickstart') == 'runs/quickstart'
    monkeypatch.chdir(weights.parent.parent)
    nearby = f'{weights.parent.name}/{weights.name}'
    assert hub_lib.fetch_model(f'hf:{nearby}') == nearby
    assert not hub.requests
    for wrong in ('hf:nowhere', 'hf:/not/here', 'hf:a/b/c', 'hf:'):
        with pytest.raises(HubError, match='there is no directory .*OWNER/NAME'):
            hub_lib.fetch_model(wrong)
    assert [hub_lib.short_name(p) for p in ('hf:some/tiny@refs/pr/1', 'a/b/', 'hf:x/y')] == ['tiny', 'b', 'y']


def message(spec):
    with pytest.raises(ConfigError) as error:
        llm_jax.load(spec)
    assert '\n' not in str(error.value) and spec in str(error.value)
    return str(error.value)


def test_a_missing_repository(hub):
    assert "has no model 'some/nothing', or it is private; correct the name" in message('hf:some/nothing')
    assert 'correct the name' in message('hf:some/..nothing..')


def test_a_gated_repository(hub, weights, monkeypatch):
    hub.repos['models/some/tiny'] = {'main': files_of(weights)}
    hub.gated.add('models/some/tiny')
    assert 'is gated: accept its terms at http' in message('hf:some/tiny')
    monkeypatch.setenv('HF_TOKEN', 'let-me-in')
    assert llm_jax.load('hf:some/tiny').step == 0


@pytest.mark.parametrize('ranges', [True, False])
def test_a_transfer_that_breaks_off_resumes_or_is_an_error(hub, weights, ranges):
    hub.repos['models/some/tiny'] = {'main': files_of(weights)}
    hub.ranges = ranges
    hub.broken['model.safetensors'] = 2
    assert llm_jax.load('hf:some/tiny').step == 0
    if not ranges:  # for ever, and the server cannot resume it
        hub.repos['models/some/other'] = {'main': files_of(weights) | {'model.safetensors': bytes(4000)}}
        hub.broken['model.safetensors'] = 1000
        assert 'the transfer broke off' in message('hf:some/other')


def test_no_way_to_the_hub(hub, monkeypatch):
    monkeypatch.setenv('HF_ENDPOINT', 'http://127.0.0.1:9')
    assert 'look at the network, HF_ENDPOINT and HF_HUB_OFFLINE' in message('hf:some/tiny')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    assert 'HF_HUB_OFFLINE' in message('hf:some/tiny')


def test_convert_takes_a_model_of_the_hub(hub, weights, tmp_path):
    hub.repos['models/some/tiny'] = {'main': files_of(weights)}
    assert convert.from_hf('hf:some/tiny', tmp_path / 'run').fingerprint == tokenizer.load(weights).fingerprint
    assert llm_jax.load(tmp_path / 'run').config.name == 'tiny'
