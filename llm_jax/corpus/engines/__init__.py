"""Where the steps of a corpus run: the same pure functions in a pool of processes, or on Apache Beam.

An engine has two moves. `map` calls a function on each item, which writes what it makes
to the work directory; `exchange` brings the records of all shards together by key. What
comes out does not depend on the engine, nor on the number of workers.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from llm_jax.corpus.exchange import Exchange
from llm_jax.corpus.shards import Shard
from llm_jax.corpus.storage import Store


class Step(Protocol):
    """A function of one item that writes its results; it can be pickled."""

    def __call__(self, item: Any) -> None: ...


class ExchangeStep(Protocol):
    """An exchange over shards in files; it can be pickled.

    Attributes:
      name: of the exchange.
      store: where its intermediate files go.
      shards: of the whole corpus, in order.
    """

    name: str
    store: Store
    shards: Sequence[Shard]

    def make(self) -> Exchange:
        """The exchange; made once per process."""
        ...

    def documents(self, index: int) -> list:
        """Documents of a shard."""
        ...

    def is_applied(self, index: int) -> bool:
        """Whether the result of a shard is there already."""
        ...

    def apply(self, index: int, received: Any) -> None:
        """Writes what becomes of the documents of a shard."""
        ...


# Told how many of how many parts of a step are done.
Progress = Callable[[int, int], None]


class Engine(Protocol):
    """Runs steps."""

    def map(self, step: Step, items: Sequence[Any], progress: Progress) -> None:
        """Calls `step` on every item.

        Raises:
          ConfigError: of a step, or a worker was killed.
        """
        ...

    def exchange(self, step: ExchangeStep, progress: Progress) -> None:
        """Runs the rounds of an exchange, then `step.apply` for every shard."""
        ...

    def close(self) -> None:
        """Lets go of workers."""
        ...
