"""From the sources of a config to a corpus directory.

    OUT/documents/SOURCE/   cleaned documents, for TFDS: train, validation and test
        tokenizer/          trained on the mixture
        rows/SOURCE/        packed rows, which training reads
        manifest.json       what it was made of and what became of it; the same for the same inputs
        report.html         the same for people, with examples
        timing.json         how long it took here
        work/               intermediate shards

Each step puts what it makes of an item into a directory of WORK that is called by the hash of
all that it depends on. What is there is not made again: a killed run goes on where it
was, and a change of the config or of an input makes anew what follows from it.
"""

from collections.abc import Iterator
import contextlib
import fcntl
import resource
import sys
import time
from typing import Any

from llm_jax.config.schema import ConfigError
from llm_jax.corpus import publish
from llm_jax.corpus.engines import Engine
from llm_jax.corpus.progress import Console
from llm_jax.corpus.read.source import open_source
from llm_jax.corpus.run import Run
from llm_jax.corpus.schema import Corpus
from llm_jax.corpus.storage import Store


def build(config: Corpus, engine: Engine, console: Console | None = None) -> dict[str, Any]:
    """Makes a corpus, or goes on with it.

    Args:
      config: validated.
      engine: where the steps run.
      console: where progress is shown; None shows nothing.

    Returns:
      the manifest.

    Raises:
      ConfigError: inputs that are not there, an output that cannot be written, a stage that
        does not do what it has to, or nothing that is left to train on. What is finished is
        kept.
    """
    start = time.monotonic()
    console = console or Console(enabled=False)
    out = Store(config.out)
    with _alone(Store(config.work)) as store:
        run = Run(config, store, engine, console)
        inputs = {name: open_source(name, source) for name, source in config.sources.items()}
        shards = run.documents(inputs)
        result = publish.publish(run, out, shards, inputs)
        if config.work == f'{config.out.rstrip("/")}/work':  # else other corpora may use it
            run.prune_stale_outputs()
        timing = {
            'seconds': {name: round(seconds, 3) for name, seconds in console.seconds.items()},
            'total_seconds': round(time.monotonic() - start, 3),
            'stage_cpu_seconds': {name: round(seconds, 3) for name, seconds in sorted(run.cpu_seconds.items())},
            'peak_bytes_of_a_process': _peak_memory(),
        }
        out.write_json('timing.json', timing, indent=1)
    return result


@contextlib.contextmanager
def _alone(store: Store) -> Iterator[Store]:
    """The work directory, which one run at a time may use.

    Raises:
      ConfigError: another run uses it.
    """
    if not store.is_local:  # buckets have no locks: two runs would do the same work twice, with the same result
        yield store
        return
    store.write('.gitignore', b'*\n')
    with open(store.path('.lock'), 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system however the process ends
        except OSError as error:
            raise ConfigError(f'another run is building this corpus in {store.path("")}; wait for it') from error
        yield store


def _peak_memory() -> int:
    """Of the largest of this process and its workers, in bytes."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return unit * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
