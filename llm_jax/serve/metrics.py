"""Counters of a server, as Prometheus reads them."""

from collections.abc import Callable

import prometheus_client as prometheus

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counters of one server, in a registry of its own.

    Attributes:
      requests: answered, by path and status; 499 where the client went away.
      prompt_tokens, completion_tokens, cached_tokens: of the answers that ended, as their usage says.
      first_token: seconds from a request's arrival to its first token.
      duration: seconds from a request's arrival to the end of its answer.
    """

    def __init__(self, rows: Callable[[], int], tokens: Callable[[], int]) -> None:
        """Args:
        rows: gives the choices under way.
        tokens: gives the prompt tokens that wait.
        """
        self._registry = registry = prometheus.CollectorRegistry()
        count = lambda name, text, labels=(): prometheus.Counter(f'llm_jax_{name}', text, labels, registry=registry)
        self.requests = count('requests', 'Requests by path and status', ('path', 'status'))
        self.prompt_tokens = count('prompt_tokens', 'Tokens of prompts')
        self.completion_tokens = count('completion_tokens', 'New tokens')
        self.cached_tokens = count('cached_tokens', 'Tokens of prompts that were kept')
        time = lambda name, text: prometheus.Histogram(f'llm_jax_{name}', text, buckets=_SECONDS, registry=registry)
        self.first_token = time('time_to_first_token_seconds', 'From arrival to the first token')
        self.duration = time('request_seconds', 'From arrival to the end of the answer')
        for name, text, read in (
            ('choices_active', 'Choices under way, waiting ones included', rows),
            ('prompt_tokens_waiting', 'Tokens of prompts without their first new token', tokens),
        ):
            prometheus.Gauge(f'llm_jax_{name}', text, registry=registry).set_function(read)

    def add_usage(self, usage: dict) -> None:
        self.prompt_tokens.inc(usage['prompt_tokens'])
        self.completion_tokens.inc(usage['completion_tokens'])
        self.cached_tokens.inc(usage['prompt_tokens_details']['cached_tokens'])

    def write(self) -> bytes:
        """Returns all of them as text."""
        return prometheus.generate_latest(self._registry)
