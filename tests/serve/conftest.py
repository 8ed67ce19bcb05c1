import contextlib
import re
import socket
import threading
import time

import httpx2
import pytest
from tiny import LLAMA, random_params, tiny_config
import uvicorn

from llm_jax import chat as chat_lib
from llm_jax import tokenizer as tokenizer_lib
from llm_jax.config import schema
from llm_jax.generate.engine import Engine
from llm_jax.nn.transformer import build
from llm_jax.serve.app import Server
from llm_jax.serve.limits import Limits
from llm_jax.serve.scripted import ScriptedEngine
from llm_jax.serve.service import Service

CONTEXT = 512


class Live:
    """A server that listens."""

    def __init__(self, server, port, thread):
        self.server, self.port, self.url = server, port, f'http://127.0.0.1:{port}'
        self._clock = time.pthread_getcpuclockid(thread.ident)

    def cpu_seconds(self):
        """CPU time of the thread that answers requests."""
        return time.clock_gettime(self._clock)

    def wait_for(self, is_so, seconds=20.0):
        end = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < end, (self.server.gate.rows, self.server.engine.is_idle)
            time.sleep(0.01)

    def wait_until_idle(self):
        self.wait_for(lambda: not self.server.gate.rows and self.server.engine.is_idle)

    def read_counter(self, name):
        """A counter of /metrics, without the prefix of its name; 0 while it is not there."""
        text = httpx2.get(self.url + '/metrics').text
        found = re.search(rf'^llm_jax_{re.escape(name)} (.*)$', text, re.MULTILINE)
        return float(found[1]) if found else 0.0


@pytest.fixture(scope='session')
def chat():
    config = schema.Tokenizer(kind='bytes', reserved=chat_lib.FORMATS['llm_jax'].marks)
    return chat_lib.open_chat(tokenizer_lib.train(config, [], seed=0), 'llm_jax')


@pytest.fixture(scope='session')
def make_engine(chat):
    size = chat.tokenizer.vocab_size
    model = build(
        tiny_config(**(LLAMA | {'vocab_size': size}), data__seq_len=CONTEXT).model, vocab_size=size, seq_len=CONTEXT
    )
    params = random_params(model)
    return lambda **options: Engine(model, params, **({'n_slots': 4, 'prefix_tokens': CONTEXT} | options))


@pytest.fixture(scope='session')
def make_scripted(chat):
    """Makes a `ScriptedEngine` that answers `answer(what the user said last)`."""
    tokenizer = chat.tokenizer
    user, end = tokenizer.special['<|user|>'], tokenizer.special['<|end|>']

    def make(answer, context=CONTEXT, **options):
        def reply(ids):
            ids = list(ids)
            if user in ids:
                ids = ids[len(ids) - ids[::-1].index(user) :]
                ids = ids[: ids.index(end)]
            return tokenizer.encode(answer(tokenizer.decode(ids)))

        return ScriptedEngine(reply, context=context, vocab_size=tokenizer.vocab_size, **options)

    return make


@contextlib.contextmanager
def listen(server):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    runner = uvicorn.Server(uvicorn.Config(server.app, '127.0.0.1', port, log_level='warning', access_log=False))
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
        while not runner.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Live(server, port, thread)
    finally:
        runner.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture(scope='session')
def make_live(chat, make_engine):
    def make(limits, *, api_key='', engine=None, chat=chat):
        engine = engine or make_engine()
        return listen(Server(Service('tiny', chat.tokenizer, engine.context, chat), engine, limits, api_key))

    return make


@pytest.fixture(scope='session')
def live(make_live):
    with make_live(Limits(slots=4, queue=60, body=1 << 20)) as one:
        yield one
