"""The tool, from its command line to its end."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys

import httpx2
import pytest
from tiny import LLAMA, random_params, tiny_config

from llm_jax import runs
from llm_jax.checkpoint import Checkpoints
from llm_jax.config import schema
from llm_jax.nn.transformer import build

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope='module')
def run_dir(chat, tmp_path_factory):
    directory = tmp_path_factory.mktemp('served') / 'small'
    size = chat.tokenizer.vocab_size
    config = tiny_config(**(LLAMA | {'vocab_size': size}), data__seq_len=256)
    directory.mkdir()
    runs.write_config(directory, config, None)
    chat.tokenizer.save(directory / 'tokenizer')
    checkpoints = Checkpoints(directory, schema.Checkpoint())
    checkpoints.save(1, {'params': random_params(build(config.model, vocab_size=size, seq_len=256))}, {'step': 1})
    checkpoints.close()
    return directory


def start(*arguments):
    command = [sys.executable, str(ROOT / 'tools/serve.py'), *map(str, arguments)]
    environment = os.environ | {'JAX_PLATFORMS': 'cpu'}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def free_port():
    with socket.socket() as one:
        one.bind(('127.0.0.1', 0))
        return one.getsockname()[1]


def test_serves_until_sigterm_and_finishes_what_it_began(run_dir):
    server = start(run_dir, '--port', free_port(), '--slots', 2, '--host', '0.0.0.0')
    try:
        url = next(found[1] for line in server.stderr if (found := re.search(r'served at (http\S+)/v1', line)))
        assert 'no --api_key' in server.stderr.readline()
        with httpx2.Client(base_url=url, transport=httpx2.HTTPTransport(retries=20), timeout=60) as client:
            assert client.get('/v1/models').json()['data'][0]['id'] == 'small'
            body = {'prompt': 'a', 'max_tokens': 250, 'logit_bias': {'70': 100}, 'stream': True}
            with client.stream('POST', '/v1/completions', json=body) as answer:
                lines = answer.iter_lines()
                next(lines)
                server.send_signal(signal.SIGTERM)
                *_, last = (line for line in lines if line)
        assert last == 'data: [DONE]'
        assert server.wait(30) == 0
        assert server.stderr.read() == ''
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--port', '70000'], '--port'),
        (['--host', 'no.such.host.invalid'], 'cannot listen'),
        (['--slots', '0'], 'slots'),
        (['--template', 'chatlm'], 'chatlm'),
    ],
)
def test_a_mistake_is_one_line(run_dir, arguments, message):
    _, error = (server := start(run_dir, *arguments)).communicate()
    assert server.returncode not in (0, None)
    assert message in error
    assert 'Traceback' not in error
