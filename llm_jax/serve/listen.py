"""The address at which a server listens; imports no JAX, so that a mistake is said before anything is loaded."""

import socket

from llm_jax.config.schema import ConfigError

_LOOPBACK = ('127.0.0.1', '::1', 'localhost')


def bind(host: str, port: int) -> socket.socket:
    """Takes an address; clients that come there wait until a server answers.

    Args:
      host: a name or an address; '' is all.
      port: 0 is any that is free.

    Raises:
      ConfigError: an address that cannot be taken.
    """
    if port > 65535:
        raise ConfigError(f'--port = {port} must be at most 65535')
    try:
        family, *_, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        taken = socket.socket(family)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen()  # only then does another program not get it, too
    except OSError as error:
        raise ConfigError(f'cannot listen at {host}:{port}: {error}; choose another --host or --port') from error
    return taken


def url_of(host: str, taken: socket.socket) -> str:
    """Returns the address as a browser has it."""
    name = f'[{host}]' if ':' in host else host
    return f'http://{name}:{taken.getsockname()[1]}'


def is_open_to_others(host: str) -> bool:
    return host not in _LOOPBACK
