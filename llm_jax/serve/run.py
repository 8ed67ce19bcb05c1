"""A server from a directory to its end."""

import contextlib
import functools
import signal
import socket
import sys

import jax
import uvicorn

from llm_jax import chat as chat_lib
from llm_jax.config.schema import ConfigError
from llm_jax.generate.engine import Engine
from llm_jax.runs import Loaded
from llm_jax.serve.app import Server
from llm_jax.serve.limits import Limits
from llm_jax.serve.listen import is_open_to_others, url_of
from llm_jax.serve.service import Service


def make_server(
    loaded: Loaded,
    name: str,
    limits: Limits,
    *,
    context: int | None = None,
    template: str = '',
    api_key: str = '',
    prefix_tokens: int | None = None,
) -> Server:
    """Makes the server of a model, with every program compiled.

    Args:
      loaded: the model.
      name: by which clients ask for it.
      limits: of what it takes.
      context: tokens of a prompt and its answer; None: what the model has.
      template: of conversations, as of `chat.open_chat`; '' is the tokenizer's own, or a plain transcript.
      api_key: that clients send; '' is none.
      prefix_tokens: of prompts that are kept; None: 4 contexts.

    Raises:
      ConfigError: a model without a tokenizer, a template that cannot be used, or several hosts.
    """
    if loaded.tokenizer is None:
        raise ConfigError(f'{name} has no tokenizer; give one to convert with --tokenizer')
    if jax.process_count() > 1:
        raise ConfigError(
            f'a server answers from one host, and this job has {jax.process_count()}; write the model with convert '
            '--to hf:DIR, and serve that with vLLM or SGLang-JAX (docs/serving.md)'
        )
    chat, note = chat_lib.open_any_chat(loaded.tokenizer, template)
    if note:
        print(name, note, file=sys.stderr)
    context = loaded.model.config.max_seq_len if context is None else context
    around = contextlib.nullcontext if loaded.mesh is None else functools.partial(jax.set_mesh, loaded.mesh)
    with around():
        engine = Engine(
            loaded.model,
            loaded.params,
            n_slots=limits.slots,
            context=context,
            vocab_size=loaded.tokenizer.vocab_size,
            prefix_tokens=4 * context if prefix_tokens is None else prefix_tokens,
        )
        engine.warm_up()
    return Server(Service(name, loaded.tokenizer, context, chat), engine, limits, api_key, around)


def run(server: Server, host: str, taken: socket.socket, *, api_key: str = '') -> None:
    """Serves until SIGTERM or SIGINT; answers under way are finished, new requests are not taken.

    Args:
      server: with its engine warmed up.
      host: as it was asked for.
      taken: bound to it, by `listen.bind`.
      api_key: that clients send; '' is none.
    """
    if is_open_to_others(host) and not api_key:
        print(f'warning: {host} is open to others, and there is no --api_key: anyone may use it', file=sys.stderr)
    config = uvicorn.Config(server.app, log_level='warning', access_log=False, lifespan='on')
    # uvicorn raises the signal again at its end, where it means no more than that.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _Announced(config, f'{server.service.name} is served at {url_of(host, taken)}').run(sockets=[taken])


class _Announced(uvicorn.Server):
    """Says a line once it listens."""

    def __init__(self, config: uvicorn.Config, line: str) -> None:
        super().__init__(config)
        self._line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(self._line, file=sys.stderr, flush=True)
