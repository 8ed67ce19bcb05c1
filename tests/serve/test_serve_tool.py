"""The tool, from its command line to its end."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import documented
import httpx2
import jax
import pytest
from tiny import LLAMA, random_params, tiny_config

from llm_jax import runs
from llm_jax.checkpoint import Checkpoints
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.generate.engine import generate
from llm_jax.nn.transformer import build
from llm_jax.serve.limits import Limits
from llm_jax.serve.listen import bind, url_of
from llm_jax.serve.run import make_server

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def run_dir(chat, tmp_path_factory):
    directory = tmp_path_factory.mktemp('served') / 'small'
    size = chat.tokenizer.vocab_size
    config = tiny_config(**(LLAMA | {'vocab_size': size, 'n_layers': 1, 'n_kv_heads': 4}), data__seq_len=128)
    directory.mkdir()
    runs.write_config(directory, config, None)
    chat.tokenizer.save(directory / 'tokenizer')
    checkpoints = Checkpoints(directory, schema.Checkpoint())
    checkpoints.save(1, {'params': random_params(build(config.model, vocab_size=size, seq_len=128))}, {'step': 1})
    checkpoints.close()
    return directory


def decode_alone(run_dir, prompt, n_tokens, seed):
    """The text that one device gives."""
    loaded = runs.load(run_dir)
    ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(prompt)]
    (new,) = generate(
        loaded.model, loaded.params, [ids], max_new_tokens=n_tokens, seed=seed, vocab_size=loaded.tokenizer.vocab_size
    )
    return loaded.tokenizer.decode(new)


def test_serves_a_mesh_until_sigterm_and_finishes_what_it_began(run_dir):
    # Few programs: of one slot, and of one length. The vocabulary, 262, does not divide.
    arguments = ['--port', '0', '--slots', '1', '--context', '32', '--tensor', '4', '--host', '0.0.0.0']
    command = [sys.executable, str(ROOT / 'tools/serve.py'), str(run_dir), *arguments]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert 'compiling small' in server.stderr.readline()
        assert 'small has no chat template' in server.stderr.readline()
        assert 'no --api_key' in server.stderr.readline()
        port = re.search(r'small is served at http://0.0.0.0:(\d+)$', server.stderr.readline())[1]
        with httpx2.Client(base_url=f'http://127.0.0.1:{port}', timeout=60) as client:  # at once: it listens
            assert client.get('/v1/models').json()['data'][0]['id'] == 'small'
            assert '<title>' in client.get('/').text
            body = {'prompt': 'abc', 'max_tokens': 20, 'seed': 5, 'logit_bias': {'256': -100, '261': -100}}
            text = client.post('/v1/completions', json=body).json()['choices'][0]['text']
            talk = {'messages': [{'role': 'user', 'content': 'a'}], 'max_tokens': 2}
            assert client.post('/v1/chat/completions', json=talk).status_code == 200
            body = {'prompt': 'a', 'max_tokens': 30, 'logit_bias': {'70': 100}, 'stream': True}
            with client.stream('POST', '/v1/completions', json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                server.send_signal(signal.SIGTERM)
                *_, last = (line for line in lines if line)
        assert last == 'data: [DONE]'
        assert server.wait(30) == 0
        assert server.stderr.read() == ''
        assert text == decode_alone(run_dir, 'abc', 20, seed=5)
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--port', '70000'], '--port = 70000'),
        (['--host', 'no.such.host.invalid'], 'cannot listen at no.such.host.invalid'),
        (['--template', 'chatlm'], 'chatlm'),
        (['--tensor', '8'], 'model.n_heads = 4 cannot be split over mesh tensor 8'),
        (['--fsdp', '16'], 'needs 16 devices; there are 8'),
    ],
)
def test_a_mistake_is_one_error(run_dir, arguments, message):
    with pytest.raises(ConfigError, match=message):
        documented.load_tool('serve').main([str(run_dir), '--port', '0', *arguments])


def test_several_hosts_are_refused(run_dir, monkeypatch):
    loaded = runs.load(run_dir)
    monkeypatch.setattr(jax, 'process_count', lambda: 4)
    with pytest.raises(ConfigError, match='answers from one host, and this job has 4; write the model with convert'):
        make_server(loaded, 'small', Limits(slots=1))


def test_a_port_is_taken_before_a_model_is_loaded():
    with bind('127.0.0.1', 0) as taken, pytest.raises(ConfigError, match='already in use'):
        bind('127.0.0.1', taken.getsockname()[1])


@pytest.mark.parametrize(('host', 'url'), [('127.0.0.1', r'http://127\.0\.0\.1:\d+'), ('::1', r'http://\[::1\]:\d+')])
def test_an_address_as_a_browser_has_it(host, url):
    if host == '::1' and not socket.has_dualstack_ipv6():
        pytest.skip('there is no IPv6')
    with bind(host, 0) as taken:
        assert re.fullmatch(url, url_of(host, taken))
