"""The steps of a build, each a function of one item: what it reads is given, what it writes has a name of its own.

    Extract    an input of a source   -> shards of documents
    Clean      a shard                -> the shard after the stages
    Dedup      all shards             -> the shards after an exchange (see exchange.py)
    Publish    some shards            -> ArrayRecord files of documents, by split
    Sample     some shards            -> pieces of text for the tokenizer
    Rows       some shards            -> ArrayRecord files of packed rows, by split

A step writes DONE last: with it, the item is finished. Nothing in it depends on where or
when the step ran, but for 'seconds'.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import time
from typing import Any

import numpy as np

from llm_jax import tokenizer as tokenizer_lib
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import shards
from llm_jax.corpus.chain import Chain, label, make, text_bytes
from llm_jax.corpus.document import Broken, Document, Dropped, Raw
from llm_jax.corpus.exchange import Exchange
from llm_jax.corpus.extract import EXTRACTORS
from llm_jax.corpus.packing import Counts, tokenise
from llm_jax.corpus.read.source import Input
from llm_jax.corpus.registry import EXCHANGES, STAGES
from llm_jax.corpus.schema import Corpus
from llm_jax.corpus.shards import Shard
from llm_jax.corpus.splits import SPLITS, split_of
from llm_jax.corpus.storage import Store
from llm_jax.corpus.tally import Tally
from llm_jax.data import array_record, pack
from llm_jax.tokenizer import training

DONE = 'done.json'
READ, EXTRACT = 'read', 'extract'
DOCUMENTS = 'documents'


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The config that a step works by, and where; equal ones have the same key.

    Attributes:
      key: everything that the step depends on, as a hash.
      store: the work directory.
    """

    key: str
    store: Store
    config: Corpus = dataclasses.field(compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Unit:
    """An input of a source, and the directory of what becomes of it."""

    directory: str
    source: str
    input: Input


@dataclasses.dataclass(frozen=True)
class Group:
    """Successive shards of one source, and the directory of what is made of them."""

    directory: str
    source: str
    shards: tuple[Shard, ...]


# --- Documents -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Extract:
    """Reads an input and takes the text out of its records."""

    recipe: Recipe

    def __call__(self, unit: Unit) -> None:
        config, store = self.recipe.config, self.recipe.store
        tally, chain = Tally(config.seed), Chain([])
        start = time.process_time()
        documents = self._documents(unit, tally)
        written = shards.write_parts(
            store, lambda i: f'{unit.directory}/{i:05d}.jsonl.zst', unit.source, documents, config.shard_bytes
        )
        chain.seconds[EXTRACT] = time.process_time() - start
        _done(store, unit.directory, tally, chain.seconds, shards=written)

    def _documents(self, unit: Unit, tally: Tally) -> Iterator[tuple[Document, int]]:
        for record in unit.input.read():
            if isinstance(record, Broken):
                tally.cannot_read(record)
            elif isinstance(record, Raw):
                tally.arrived(READ, _size(record.content))
                out = _checked(_extractor(self.recipe, record.kind)(record))
                if isinstance(out, Document):
                    n_bytes = text_bytes(out, 'the extractor')
                    tally.arrived(EXTRACT, n_bytes)
                    yield out, n_bytes
                else:
                    tally.drop(EXTRACT, out, _size(record.content))
            else:
                tally.skip(record.reason)


def _size(content: bytes | str) -> int:
    return len(content if isinstance(content, bytes) else content.encode('utf-8', 'surrogatepass'))


def _checked(out: Document | Dropped) -> Document | Dropped:
    """A text that no encoding can write is no text."""
    if isinstance(out, Document):
        try:
            out.text.encode()
        except UnicodeEncodeError as error:
            clean = dataclasses.replace(out, text=out.text.encode('utf-8', 'backslashreplace').decode())
            return Dropped(clean, 'extract.not_unicode', repr(error.object[error.start]))
    return out


@functools.lru_cache(maxsize=64)
def _extractor(recipe: Recipe, kind: str) -> Callable[[Raw], Document | Dropped]:
    if kind not in EXTRACTORS:
        raise ConfigError(f'there is no extractor for records of kind {kind!r}; kinds: {", ".join(EXTRACTORS)}')
    return EXTRACTORS[kind](recipe.config.extract)


@dataclasses.dataclass(frozen=True)
class Clean:
    """Sends the documents of a shard through the stages of a field of the config, 'stages' or 'finish'."""

    recipe: Recipe
    field: str

    def __call__(self, group: Group) -> None:
        config, store = self.recipe.config, self.recipe.store
        tally, (shard,) = Tally(config.seed), group.shards
        chain = Chain(_stages(self.recipe, self.field, group.source))
        documents = chain.run(shards.read(store, shard), tally)
        written = shards.write(store, f'{group.directory}/00000.jsonl.zst', group.source, documents)
        _done(store, group.directory, tally, chain.seconds, shards=[written])


@functools.lru_cache(maxsize=64)
def _stages(recipe: Recipe, field: str, source: str) -> list[tuple[str, Any]]:
    config = recipe.config
    named = config.stages_of(source) if field == 'stages' else config.finish
    return [(label(part), make(field, part, STAGES, config)) for part in named]


@dataclasses.dataclass(frozen=True)
class Dedup:
    """One exchange over all shards; an `engines.ExchangeStep`."""

    recipe: Recipe
    part: Any
    directory: str
    shards: tuple[Shard, ...] = dataclasses.field(repr=False)

    @property
    def name(self) -> str:
        return label(self.part)

    @property
    def store(self) -> Store:
        return self.recipe.store.inside(self.directory)

    def make(self) -> Exchange:
        return _exchange(self.recipe, self.part)

    def documents(self, index: int) -> list[Document]:
        return list(shards.read(self.recipe.store, self.shards[index]))

    def is_applied(self, index: int) -> bool:
        return self.store.exists(f'{index:06d}/{DONE}')

    def apply(self, index: int, received: np.ndarray) -> None:
        tally, start = Tally(self.recipe.config.seed), time.process_time()
        before = self.documents(index)
        source, directory = self.shards[index].source, f'{self.directory}/{index:06d}'
        results = self.make().apply(index, before, received)
        written = shards.write(
            self.recipe.store, f'{directory}/00000.jsonl.zst', source, self._kept(before, results, tally)
        )
        seconds = {self.name: time.process_time() - start}
        _done(self.recipe.store, directory, tally, seconds, shards=[written])

    def _kept(self, before: Sequence[Document], results: Iterator, tally: Tally) -> Iterator[tuple[Document, int]]:
        for document, out in zip(before, results, strict=True):
            if isinstance(out, Dropped):
                tally.drop(self.name, out, text_bytes(document, self.name))
            else:
                n_bytes = text_bytes(out, self.name)
                tally.arrived(self.name, n_bytes)
                yield out, n_bytes


@functools.lru_cache(maxsize=4)
def _exchange(recipe: Recipe, part: Any) -> Exchange:
    return make('dedup', part, EXCHANGES, recipe.config)


# --- What is published -----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Publish:
    """Writes the final documents of some shards, by split."""

    recipe: Recipe

    def __call__(self, group: Group) -> None:
        store, config = self.recipe.store, self.recipe.config
        store.remove(group.directory)  # what a killed run left
        tally, serialise = Tally(config.seed), array_record.serialiser(document_features())
        counts = {split: [0, 0] for split in SPLITS}
        writers: dict[str, array_record.FileWriter] = {}
        with _local_directory(store, group.directory) as local:
            for document, split in _split(self.recipe, group):
                n_bytes = text_bytes(document, 'the stages')
                tally.keep(document, n_bytes)
                counts[split][0] += 1
                counts[split][1] += n_bytes
                if split not in writers:
                    writers[split] = array_record.FileWriter(os.path.join(local, split), 'group_size:1')
                writers[split].add(serialise(_example(document)))
            files = {}
            for split, writer in sorted(writers.items()):
                writer.close()
                files[split] = _taken(store, group.directory, split, local, (writer.records, writer.bytes))
        _done(store, group.directory, tally, {}, files=files, splits=counts)


def _taken(store: Store, directory: str, split: str, local: str, size: tuple[int, int]) -> dict[str, Any]:
    """Moves a file that is complete in; what is known of it."""
    path = os.path.join(local, split)
    with open(path, 'rb') as stream:
        digest = hashlib.file_digest(stream, 'sha256').hexdigest()
    store.take(f'{directory}/{split}', path)
    return {'records': size[0], 'bytes': size[1], 'sha256': digest}


def document_features() -> Any:
    """What a record of the corpus holds, for TFDS."""
    import tensorflow_datasets as tfds

    names = [field.name for field in dataclasses.fields(Document)]
    return tfds.features.FeaturesDict({name: tfds.features.Text() for name in names})


def _example(document: Document) -> dict[str, str]:
    """The fields as text; the signals, whose names differ, as JSON."""
    fields = {field.name: getattr(document, field.name) for field in dataclasses.fields(Document)}
    signals = {name: float(value) for name, value in document.signals.items()}
    return fields | {'signals': json.dumps(signals, sort_keys=True)}


def _split(recipe: Recipe, group: Group) -> Iterator[tuple[Document, str]]:
    """Documents with their split: by cluster, so that near-duplicates are on one side."""
    splits = recipe.config.splits
    for shard in group.shards:
        for document in shards.read(recipe.store, shard):
            yield document, split_of(document.cluster or document.text, splits.validation, splits.test)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Takes a share of the training text of some shards, for the tokenizer.

    Attributes:
      parts: source -> share of its text.
    """

    recipe: Recipe
    parts: tuple[tuple[str, float], ...]

    def __call__(self, group: Group) -> None:
        store, part = self.recipe.store, dict(self.parts)[group.source]
        texts = (document.text for document, split in _split(self.recipe, group) if split == 'train')
        lines = [json.dumps(item) for item in training.share(texts, part, self.recipe.config.seed)]
        store.write(f'{group.directory}/pieces.jsonl', '\n'.join(lines).encode())
        store.write_json(f'{group.directory}/{DONE}', {'pieces': len(lines)})


def pieces(store: Store, directory: str) -> list[tuple[int, str]]:
    """(rank, piece) that `Sample` took."""
    return [tuple(json.loads(line)) for line in store.read(f'{directory}/pieces.jsonl').decode().split('\n') if line]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Tokenises and packs the documents of some shards, by split.

    Attributes:
      tokenizer: its directory.
    """

    recipe: Recipe
    tokenizer: str

    def __call__(self, group: Group) -> None:
        store, packing = self.recipe.store, self.recipe.config.packing
        store.remove(group.directory)
        tok = load_tokenizer(self.tokenizer)
        counts = {split: Counts() for split in SPLITS}
        documents: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
        dtype = pack.row_dtype(tok.vocab_size)
        for batch in tokenise(_split(self.recipe, group), lambda item: item[0].text, tok):
            for (document, split), ids in batch:
                counts[split].add(text_bytes(document, 'the stages'), len(ids))
                documents[split].append(np.asarray(ids, dtype))
        results, files = {}, {}
        how = {'seq_len': packing.seq_len, 'bos_id': tok.bos_id, 'vocab_size': tok.vocab_size}
        with _local_directory(store, group.directory) as local:
            for split, tokens in documents.items():
                if packing.method == 'best_fit':
                    rows = pack.best_fit(tokens, **how)
                else:
                    rows = pack.pack(tokens, **how, keep_tail=split != 'train')
                filled: list[int] = []
                path = os.path.join(local, split)
                size = array_record.write_rows(path, _noted(rows, filled), seq_len=packing.seq_len, dtype=dtype)
                if filled:
                    files[split] = _taken(store, group.directory, split, local, size)
                counts[split].rows = len(filled)
                results[split] = dataclasses.asdict(counts[split]) | {'filled': sum(filled)}
        store.write_json(f'{group.directory}/{DONE}', {'splits': results, 'files': files})


def _noted(rows: Iterator[tuple[np.ndarray, int]], lengths: list[int]) -> Iterator[tuple[np.ndarray, int]]:
    """The rows as they are; their lengths are remembered."""
    for row, length in rows:
        lengths.append(int(length))
        yield row, length


@functools.lru_cache(maxsize=2)
def load_tokenizer(directory: str) -> tokenizer_lib.Tokenizer:
    return tokenizer_lib.load(directory)


def _local_directory(store: Store, directory: str) -> tempfile.TemporaryDirectory:
    """A place for files that only a local disk can hold, beside where they go if that is local."""
    if not store.is_local:
        return tempfile.TemporaryDirectory(prefix='corpus-')
    os.makedirs(store.path(directory), exist_ok=True)
    return tempfile.TemporaryDirectory(dir=store.path(directory), prefix='.partial-')


def _done(store: Store, directory: str, tally: Tally, seconds: dict[str, float], **results: Any) -> None:
    plain = {
        name: [dataclasses.asdict(shard) for shard in value] if name == 'shards' else value
        for name, value in results.items()
    }
    store.write_json(f'{directory}/{DONE}', {'tally': tally.to_json(), 'seconds': seconds, **plain})
