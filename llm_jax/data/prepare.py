"""Preparation: what training reads, made or found: rows of tokens and the tokenizer they were made with.

Rows come from `corpus/` alone: those of a corpus that `prepare_data` made ('corpus:DIR') are opened
as they are, those of plain sources are built into the cache by `corpus.plain`. Rows of post-training (conversations,
pairs, labelled texts) are built by `data.example_rows`.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import pathlib
from typing import Any

import jax
import numpy as np

from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import plain
from llm_jax.corpus.plain import Progress
from llm_jax.corpus.read.plain import open_sources
from llm_jax.data import array_record, example_rows, files, store
from llm_jax.data.examples import form_of


class WiderRows:
    """Rows of a split with further columns, the bits of float32[N, k (L+1)]; read as `array_record.Rows`."""

    def __init__(self, rows: array_record.Rows, more: np.ndarray):
        self._rows, self._more = rows, more.view(np.int32)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """int32[n, C (L+1)] of the rows at `indices`."""
        return np.concatenate([self._rows.read(indices), self._more[np.asarray(indices)]], 1)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows of tokens, and the tokenizer they were made with.

    Attributes:
      directory: local directory of the rows.
      tokenizer: with `vocab_size` V.
      manifest: 'splits' has documents, bytes, tokens and rows per split and source;
        'gzip' has what `gzip -9` does to the validation text (bits_per_byte, and of how
        many bytes); 'bytes_per_token' is that of the training split; 'digest' is the
        hash of all rows; 'form' is that of the records of post-training, and 'columns' how many
        arrays [L+1] a row holds, one if it is not there;
        'mixture' has the weights by rows that a corpus was made for.
      more: further columns, from `widen`.
    """

    directory: pathlib.Path
    tokenizer: tokenizer.Tokenizer
    manifest: dict[str, Any]
    more: Mapping[tuple[str, str], np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def form(self) -> str:
        """'documents', or the form of the examples of post-training."""
        return self.manifest.get('form', 'documents')

    @property
    def columns(self) -> int:
        """Arrays [L+1] that a row has, one after the other."""
        return self.manifest.get('columns', 1)

    def rows(self, split: str) -> dict[str, 'array_record.Rows | WiderRows']:
        """Opens the rows of 'train', 'validation' or 'test': name of the source -> rows, in order of the names."""
        entries = sorted(self.manifest['splits'][split].items())
        opened = {name: array_record.Rows(self.directory / e['directory'], split) for name, e in entries if e['rows']}
        wider = lambda name, rows: WiderRows(rows, more) if (more := self.more.get((split, name))) is not None else rows
        return {name: wider(name, rows) for name, rows in opened.items()}

    def widen(self, more: Mapping[tuple[str, str], np.ndarray]) -> 'Prepared':
        """The same rows with further columns.

        Args:
          more: (split, source) -> float32[rows, k (L+1)], k columns, of all that have rows.
        """
        (k,) = {array.shape[1] // (self.manifest['seq_len'] + 1) for array in more.values()}
        return dataclasses.replace(self, manifest=self.manifest | {'columns': self.columns + k}, more=more)

    def count(self, split: str, what: str = 'rows') -> int:
        """How many 'documents', 'bytes', 'tokens' or 'rows' a split has over all sources."""
        return sum(entry[what] for entry in self.manifest['splits'][split].values())


def prepare(config: schema.Data, seed: int, progress: Progress | None = None, *, template: str = '') -> Prepared:
    """Makes, or finds, the tokenizer and the rows of a config.

    With several JAX processes the first one prepares and the others then read what it
    wrote; one that does not see it (no shared file system) prepares its own copy, which
    is equal.

    Args:
      config: sources, splits, tokenizer, seq_len, cache_dir.
      seed: chooses the tokenizer's training sample.
      progress: called now and then.
      template: what `config.chat.template` says, for sources of conversations.

    Raises:
      ConfigError: inputs that are missing or unreadable, a split with nothing in it, or
        hosts whose data differ.
    """
    from jax.experimental import multihost_utils

    several, first = jax.process_count() > 1, jax.process_index() == 0
    try:
        prepared = _prepare(config, seed, progress, template) if first else None
    finally:
        if several:  # also after an error, which the others then meet themselves
            multihost_utils.sync_global_devices('data prepared')
    prepared = prepared or _prepare(config, seed, progress, template)
    if several:
        digest = np.frombuffer(bytes.fromhex(prepared.manifest['digest'][:16]), np.uint32)
        if (multihost_utils.process_allgather(digest) != digest).any():
            raise ConfigError('the hosts prepared different rows: their sources differ, or their Python versions')
    return prepared


def _prepare(config: schema.Data, seed: int, progress: Progress | None, template: str) -> Prepared:
    if form_of(config) != 'documents':
        return Prepared(*example_rows.build(config, template))
    if is_corpus(config):
        return _open_corpus(config)
    return Prepared(*plain.build(config, seed, progress or (lambda stage, done: None)))


def read_documents(specs: Mapping[str, str]) -> dict[str, Iterator[str]]:
    """Opens plain sources whole, without a split: name -> texts.

    Raises:
      ConfigError: an unknown kind, or inputs that do not exist.
    """
    opened, _ = open_sources(schema.Data(sources=dict(specs), validation_fraction=0.0, test_fraction=0.0))
    return {source.name: source.documents('train') for source in opened}


def is_corpus(config: schema.Data) -> bool:
    """Whether the data is one corpus, whose rows are there already."""
    return len(config.sources) == 1 and next(iter(config.sources.values())).startswith('corpus:')


def vocab_size(config: schema.Data) -> int:
    """How many tokens there will be, as far as that is known before the data is prepared.

    Raises:
      ConfigError: the tokenizer or the corpus that the config names cannot be read.
    """
    if is_corpus(config):
        return _open_corpus(config).tokenizer.vocab_size
    if config.tokenizer.path:
        return tokenizer.load(config.tokenizer.path).vocab_size
    return tokenizer.expected_size(config.tokenizer)


def model_vocab_size(config: schema.Config) -> int:
    """Rows of the embedding that a model gets: those that the config names, else as many as there are tokens."""
    return config.model.vocab_size or vocab_size(config.data)


def _open_corpus(config: schema.Data) -> Prepared:
    """The rows and the tokenizer of a corpus; what is in a bucket is copied to the cache first.

    Raises:
      ConfigError: it is not complete, or was made for other rows than the config wants.
    """
    (spec,) = config.sources.values()
    where = spec.partition(':')[2]
    field = f'data.sources = {spec!r}'
    fs, path = files.filesystem(where)
    if not fs.exists(f'{path}/manifest.json'):
        raise ConfigError(
            f'{field}: there is no complete corpus; ./tools/run prepare_data writes its manifest.json last'
        )
    manifest = json.loads(fs.cat_file(f'{path}/rows/manifest.json'))
    if config.validation_sources:
        raise ConfigError(f'{field} has a validation split of its own; leave data.validation_sources empty')
    if config.split_by != 'hash':
        raise ConfigError(f'{field} has splits of its own; leave data.split_by at "hash"')
    if config.seq_len != manifest['seq_len']:
        raise ConfigError(
            f'{field} has rows of {manifest["seq_len"]} tokens, but data.seq_len = {config.seq_len}; set it to '
            f'{manifest["seq_len"]}, or build the corpus with --config.packing.seq_len={config.seq_len}'
        )
    if unknown := sorted(set(config.mixture) - set(manifest['splits']['train'])):
        known = ', '.join(sorted(manifest['splits']['train']))
        raise ConfigError(f'data.mixture names {unknown}; the sources of the corpus are {known}')
    directory = pathlib.Path(path)
    if not store.is_local(fs):
        fetch = lambda to: [
            fs.get(f'{path}/{part}/', f'{to}/{part}/', recursive=True) for part in ('rows', 'tokenizer')
        ]
        directory = store.cached(config.cache_dir, f'corpus-{manifest["digest"]}', fetch)
    tok = tokenizer.load(directory / 'tokenizer')
    if config.tokenizer.path and tokenizer.load(config.tokenizer.path).fingerprint != tok.fingerprint:
        raise ConfigError(f'{field} was made with another tokenizer than data.tokenizer.path; leave that empty')
    for split in ('train', 'validation'):
        if not any(entry['rows'] for entry in manifest['splits'][split].values()):
            raise ConfigError(f'{field} has no row in its {split} split; raise splits.{split}, or add sources to it')
    return Prepared(directory / 'rows', tok, manifest)
