"""One run of the pipeline: which steps there are to do, on what, and what they counted."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

from llm_jax import config as config_lib
from llm_jax.corpus import chain, manifest, steps
from llm_jax.corpus.digest import digest
from llm_jax.corpus.engines import Engine
from llm_jax.corpus.progress import Console
from llm_jax.corpus.read.source import Input
from llm_jax.corpus.registry import EXCHANGES, STAGES
from llm_jax.corpus.schema import Corpus
from llm_jax.corpus.shards import Shard
from llm_jax.corpus.steps import DONE, Group, Recipe, Unit
from llm_jax.corpus.storage import Store
from llm_jax.corpus.tally import total

# Text in one file of documents or rows. More shards are put together than one worker holds, but rows are packed of all.
GROUP_BYTES = 64_000_000


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
        self.recipe = Recipe(digest(config_lib.to_dict(self.config)), self.store, self.config)
        named = [part for name in self.config.sources for part in self.config.stages_of(name)] + [*self.config.finish]
        models = {chain.label(part): chain.model_of(part, STAGES, self.config) for part in named}
        self.models = {name: model for name, model in sorted(models.items()) if model}
        self._base = [manifest.FORMAT, manifest.versions(), self.config.seed]
        self._used: set[str] = set()

    def key(self, *items: Any) -> str:
        """The name of what depends on these, and on the versions of everything."""
        return digest(self._base, *items)

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

    def keep(self, directory: str) -> None:
        """Marks a directory that no step made as in use, so that it is not pruned."""
        self._used.add(directory)

    def prune_stale_outputs(self) -> None:
        """Removes what other versions of this config have left."""
        for kind in self.store.names():
            if kind.startswith('.'):
                continue
            for name in self.store.names(kind):
                if f'{kind}/{name}' not in self._used:
                    self.store.remove(f'{kind}/{name}')


def _size(item: Unit | Group) -> int:
    return item.input.bytes if isinstance(item, Unit) else sum(shard.bytes for shard in item.shards)
