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

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import fcntl
import resource
import sys
import time
from typing import Any

from llm_jax import config as config_lib
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import chain, manifest, publish, steps
from llm_jax.corpus.engines import Engine
from llm_jax.corpus.progress import Console
from llm_jax.corpus.read.source import Input, open_source
from llm_jax.corpus.registry import EXCHANGES, STAGES
from llm_jax.corpus.schema import Corpus
from llm_jax.corpus.shards import Shard
from llm_jax.corpus.steps import DONE, Group, Recipe, Unit
from llm_jax.corpus.storage import Store
from llm_jax.corpus.tally import total

# Text in one file of documents or rows. More shards are put together than one worker holds, but rows are packed of all.
GROUP_BYTES = 64_000_000


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
            run.forget_the_rest()
        timing = {
            'seconds': {name: round(seconds, 3) for name, seconds in console.seconds.items()},
            'total_seconds': round(time.monotonic() - start, 3),
            'stage_cpu_seconds': {name: round(seconds, 3) for name, seconds in sorted(run.cpu_seconds.items())},
            'peak_bytes_of_a_process': _peak_memory(),
        }
        out.write_json('timing.json', timing, indent=1)
    return result


@dataclasses.dataclass
class Run:
    """One run of the pipeline.

    Attributes:
      tallies: source -> what each step counted, in order.
      cpu_seconds: stage -> seconds of all workers, those of earlier runs included.
      models: stage -> a hash of the model that it applies. They are looked at first: a mistake about one costs no work.
    """

    config: Corpus
    store: Store
    engine: Engine
    console: Console

    def __post_init__(self) -> None:
        self.tallies: dict[str, list[Mapping[str, Any]]] = {name: [] for name in self.config.sources}
        self.cpu_seconds: dict[str, float] = {}
        self.recipe = Recipe(manifest.digest(config_lib.to_dict(self.config)), self.store, self.config)
        named = [part for name in self.config.sources for part in self.config.stages_of(name)] + [*self.config.finish]
        models = {chain.label(part): chain.model_of(part, STAGES, self.config) for part in named}
        self.models = {name: model for name, model in sorted(models.items()) if model}
        self._base = [manifest.FORMAT, manifest.versions(), self.config.seed]
        self._used: set[str] = set()

    def key(self, *items: Any) -> str:
        """The name of what depends on these, and on the versions of everything."""
        return manifest.digest(self._base, *items)

    # --- Documents ---------------------------------------------------------------------

    def documents(self, inputs: Mapping[str, Sequence[Input]]) -> list[Shard]:
        """The final documents of all sources, in order."""
        units = [self._unit(name, one) for name, some in inputs.items() for one in some]
        shards = self._shards(self.step('extract', steps.Extract(self.recipe), units), units)
        shards = self._through_stages('stages', shards)
        for part in self.config.dedup:
            shards = self._exchange(part, shards)
        return self._through_stages('finish', shards)

    def _unit(self, name: str, one: Input) -> Unit:
        options = config_lib.to_dict(self.config.sources[name])
        how = [config_lib.to_dict(self.config.extract), self.config.shard_bytes, {**options, 'stages': None}]
        code = [chain.code_of(f'llm_jax.corpus.{module}') for module in ('read', 'extract', 'shards', 'tally')]
        parts = self.key('extract', name, one.name, one.fingerprint, how, code, self._extract_parts())
        return Unit(f'extract/{parts}', name, one)

    def _extract_parts(self) -> list[Any]:
        """The user's own functions that take text out."""
        values = dataclasses.asdict(self.config.extract).values()
        return [
            chain.depends_on(value, {}, None)
            for value in values
            if callable(value) or (isinstance(value, str) and ':' in value)
        ]

    def _through_stages(self, field: str, shards: list[Shard]) -> list[Shard]:
        """The shards after the stages of a field; those of a source without stages as they are."""
        groups, places = [], []
        for i, shard in enumerate(shards):
            stages = self.config.stages_of(shard.source) if field == 'stages' else self.config.finish
            if stages:
                options = [chain.depends_on(part, STAGES, self.config) for part in stages]
                key = self.key('clean', shard.source, shard.digest, options, chain.code_of('llm_jax.corpus.chain'))
                groups.append(Group(f'clean/{key}', shard.source, (shard,)))
                places.append(i)
        out = list(shards)
        if groups:
            done = self._shards(self.step(field, steps.Clean(self.recipe, field), groups), groups)
            for place, shard in zip(places, done, strict=True):
                out[place] = shard
        return out

    def _exchange(self, part: Any, shards: list[Shard]) -> list[Shard]:
        name = chain.label(part)
        options = chain.depends_on(part, EXCHANGES, self.config)
        key = self.key('dedup', options, [[shard.source, shard.digest] for shard in shards])
        directory = f'dedup/{name}-{key}'
        step = steps.Dedup(self.recipe, part, directory, tuple(shards))
        self._used.add(directory)
        with self.console.step(name, unit='rounds of shards') as progress:
            self.engine.exchange(step, progress)
        done = [self.store.read_json(f'{directory}/{i:06d}/{DONE}') for i in range(len(shards))]
        self.count(done, [shard.source for shard in shards])
        return [Shard(**fields) for one in done for fields in one['shards']]

    def _shards(self, done: list[dict[str, Any]], items: Sequence[Unit | Group]) -> list[Shard]:
        self.count(done, [item.source for item in items])
        return [Shard(**fields) for one in done for fields in one['shards']]

    def count(self, done: list[dict[str, Any]], sources: Sequence[str]) -> None:
        """Adds what items of these sources have in DONE."""
        for one, source in zip(done, sources, strict=True):
            self.tallies[source].append(one['tally'])
            for name, seconds in one['seconds'].items():
                self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + seconds

    # --- Steps -------------------------------------------------------------------------

    def step(self, name: str, step: Callable[[Any], None], items: Sequence[Unit | Group]) -> list[dict[str, Any]]:
        """Runs a step on the items that are not done yet; gives what each of them has in DONE."""
        self._used.update(item.directory for item in items)
        waiting = [item for item in items if not self.store.exists(f'{item.directory}/{DONE}')]
        with self.console.step(name, len(items) - len(waiting)) as progress:
            self.engine.map(step, sorted(waiting, key=_size, reverse=True), progress)
        return [self.store.read_json(f'{item.directory}/{DONE}') for item in items]

    def groups(self, kind: str, shards: Sequence[Shard], *depends: Any) -> list[Group]:
        """Successive shards of a source put together to files of about GROUP_BYTES."""
        found: list[list[Shard]] = []
        size = 0
        for shard in shards:
            if not found or found[-1][0].source != shard.source or size + shard.bytes > GROUP_BYTES:
                found.append([])
                size = 0
            found[-1].append(shard)
            size += shard.bytes
        key = lambda group: self.key(kind, [[shard.source, shard.digest] for shard in group], *depends)
        return [Group(f'{kind}/{key(group)}', group[0].source, tuple(group)) for group in found]

    def funnel(self) -> manifest.Funnel:
        return manifest.Funnel(self.config, {source: total(tallies) for source, tallies in self.tallies.items()})

    def use(self, directory: str) -> None:
        """Keeps a directory that no step made."""
        self._used.add(directory)

    def forget_the_rest(self) -> None:
        """Removes what other versions of this config have left."""
        for kind in self.store.names():
            if kind.startswith('.'):
                continue
            for name in self.store.names(kind):
                if f'{kind}/{name}' not in self._used:
                    self.store.remove(f'{kind}/{name}')


def _size(item: Unit | Group) -> int:
    return item.input.bytes if isinstance(item, Unit) else sum(shard.bytes for shard in item.shards)


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
