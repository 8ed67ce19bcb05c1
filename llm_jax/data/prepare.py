"""Preparation: sources of text become a tokenizer and rows of tokens, once, cached by content.

    sources -> train / validation / test by hash -> tokenizer -> tokens -> rows -> ArrayRecord

The cache has `tokenizer-<hash>/` and `rows-<hash>/`; a hash covers everything that its
directory depends on, so that a change of any of it is another directory. `rows-*`
holds a TFDS directory per source and `manifest.json`, which counts what is in it.
A corpus that `prepare_data` made has all this, and is used as it is.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from typing import Any
import zlib

import jax
import numpy as np
import sentencepiece

from llm_jax import tokenizer
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.data import array_record, files, pack, store
from llm_jax.data.documents import SPLITS, Source, open_sources

# Changes when the same inputs would give other files.
_FORMAT = 1
_BATCH_CHARS = 1 << 20
_GZIP_BYTES = 32_000_000

# Told the stage, and how many bytes of text it has done.
Progress = Callable[[str, int], None]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """Rows of tokens, and the tokenizer they were made with.

    Attributes:
      directory: local directory of the rows.
      tokenizer: with `vocab_size` V.
      manifest: 'splits' has documents, bytes, tokens and rows per split and source;
        'gzip' has what `gzip -9` does to the validation text (bits_per_byte, and of how
        many bytes); 'bytes_per_token' is that of the training split; 'digest' is the
        hash of all rows; 'mixture' has the weights by rows that a corpus was made for.
    """

    directory: pathlib.Path
    tokenizer: tokenizer.Tokenizer
    manifest: dict[str, Any]

    def rows(self, split: str) -> dict[str, array_record.Rows]:
        """Opens the rows of 'train', 'validation' or 'test': name of the source -> rows, in order of the names."""
        entries = sorted(self.manifest['splits'][split].items())
        return {name: array_record.Rows(self.directory / e['directory'], split) for name, e in entries if e['rows']}

    def count(self, split: str, what: str = 'rows') -> int:
        """How many 'documents', 'bytes', 'tokens' or 'rows' a split has over all sources."""
        return sum(entry[what] for entry in self.manifest['splits'][split].values())


def prepare(config: schema.Data, seed: int, progress: Progress | None = None) -> Prepared:
    """Makes, or finds, the tokenizer and the rows of a config.

    With several JAX processes the first one prepares and the others then read what it
    wrote; one that does not see it (no shared file system) prepares its own copy, which
    is equal.

    Args:
      config: sources, splits, tokenizer, seq_len, cache_dir.
      seed: chooses the tokenizer's training sample.
      progress: called now and then.

    Raises:
      ConfigError: inputs that are missing or unreadable, a split with nothing in it, or
        hosts whose data differ.
    """
    from jax.experimental import multihost_utils

    several, first = jax.process_count() > 1, jax.process_index() == 0
    try:
        prepared = _prepare(config, seed, progress) if first else None
    finally:
        if several:  # also after an error, which the others then meet themselves
            multihost_utils.sync_global_devices('data prepared')
    prepared = prepared or _prepare(config, seed, progress)
    if several:
        digest = np.frombuffer(bytes.fromhex(prepared.manifest['digest'][:16]), np.uint32)
        if (multihost_utils.process_allgather(digest) != digest).any():
            raise ConfigError('the hosts prepared different rows: their sources differ, or their Python versions')
    return prepared


def _prepare(config: schema.Data, seed: int, progress: Progress | None) -> Prepared:
    if is_corpus(config):
        return _open_corpus(config)
    report = progress or (lambda stage, done: None)
    parts = _parts(config)
    inputs = [[part.split, part.source.name, part.source.fingerprint, part.source.fractions] for part in parts]
    common = [_FORMAT, inputs, config.max_document_chars]
    if config.tokenizer.path:
        tok = tokenizer.load(config.tokenizer.path)
    else:
        recipe = dataclasses.asdict(config.tokenizer) | {'seed': seed, 'version': sentencepiece.__version__}
        build = lambda directory: _train_tokenizer(config, parts, seed, report).save(directory)
        tok = tokenizer.load(store.cached(config.cache_dir, f'tokenizer-{_hash(common, recipe)}', build))
    name = f'rows-{_hash(common, config.seq_len, tok.fingerprint)}'
    build = lambda directory: _write(directory, config, parts, tok, report)
    directory = store.cached(config.cache_dir, name, build)
    return Prepared(directory, tok, json.loads((directory / 'manifest.json').read_text()))


def is_corpus(config: schema.Data) -> bool:
    """Whether the data is one corpus, whose rows are there already."""
    return len(config.sources) == 1 and next(iter(config.sources.values())).startswith('corpus:')


def vocab_size(config: schema.Data) -> int:
    """How many tokens there will be, as far as that is known before the data is prepared."""
    if is_corpus(config):
        return _open_corpus(config).tokenizer.vocab_size
    return tokenizer.load(config.tokenizer.path).vocab_size if config.tokenizer.path else config.tokenizer.vocab_size


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


@dataclasses.dataclass(frozen=True)
class _Part:
    """One split of one source, and the directory of its rows."""

    split: str
    source: Source
    directory: str

    def documents(self) -> Iterator[str]:
        return self.source.documents(self.split)


def _parts(config: schema.Data) -> list[_Part]:
    main, held_out = open_sources(config)
    directory = lambda i, source: f'{i:02d}-{re.sub("[^A-Za-z0-9_]", "_", source.name)}'
    splits = ('train', 'test') if held_out else SPLITS
    parts = [_Part(split, s, directory(i, s)) for i, s in enumerate(main) for split in splits]
    return parts + [_Part('validation', s, directory(i, s)) for i, s in enumerate(held_out, len(main))]


def _hash(*items: Any) -> str:
    return hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]


# --- Tokenizer -------------------------------------------------------------------------


def _train_tokenizer(config: schema.Data, parts: list[_Part], seed: int, report: Progress) -> tokenizer.Tokenizer:
    for split in ('train', 'validation'):  # before the minutes that follow
        _require_documents(config, split, any(True for p in parts if p.split == split for _ in p.documents()))
    texts = (text for part in parts if part.split == 'train' for text in part.documents())
    return tokenizer.train(config.tokenizer, _reported(texts, 'tokenizer', report), seed)


def _reported(texts: Iterable[str], stage: str, report: Progress) -> Iterator[str]:
    done = shown = 0
    for text in texts:
        yield text
        done += len(text.encode())
        if done - shown >= _BATCH_CHARS:
            shown = done
            report(stage, done)
    report(stage, done)


def _require_documents(config: schema.Data, split: str, found: bool) -> None:
    if found:
        return
    if split == 'validation' and config.validation_sources:
        raise ConfigError(f'data.validation_sources = {dict(config.validation_sources)} hold no text')
    cause = {'validation': f', data.validation_fraction = {config.validation_fraction}'}.get(split, '')
    raise ConfigError(
        f'no document of data.sources = {dict(config.sources)} is in the {split} split{cause}. Cut the documents '
        'with data.max_document_chars (such as 10000), add sources, change the fractions, '
        'or name data.validation_sources'
    )


# --- Rows ------------------------------------------------------------------------------


@dataclasses.dataclass
class _Counts:
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    rows: int = 0


class _Gzip:
    """What `gzip -9` makes of the first bytes of a text."""

    def __init__(self, limit: int):
        self._compressor = zlib.compressobj(9, wbits=31)
        self._left, self._size, self.bytes = limit, 0, 0

    def add(self, data: bytes) -> None:
        data = data[: self._left - self.bytes]
        self._size += len(self._compressor.compress(data))
        self.bytes += len(data)

    def bits_per_byte(self) -> float:
        self._size += len(self._compressor.flush())
        return 8 * self._size / self.bytes


def _write(
    directory: pathlib.Path,
    config: schema.Data,
    parts: list[_Part],
    tok: tokenizer.Tokenizer,
    report: Progress,
) -> None:
    """Fills the directory of rows, one document batch in memory at a time."""
    gzip, digest = _Gzip(_GZIP_BYTES), hashlib.sha256()
    splits: dict[str, dict[str, dict]] = {split: {} for split in SPLITS}
    for subdirectory in dict.fromkeys(part.directory for part in parts):
        here = [part for part in parts if part.directory == subdirectory]
        counts = {part.split: _Counts() for part in here}

        def rows(part: _Part, count: _Counts) -> Iterator[tuple[np.ndarray, int]]:
            tokens = _tokens(part, tok, count, gzip, report)
            keep_tail = part.split != 'train'
            for row, length in pack.pack(
                tokens, seq_len=config.seq_len, bos_id=tok.bos_id, vocab_size=tok.vocab_size, keep_tail=keep_tail
            ):
                digest.update(row.data)
                count.rows += 1
                yield row, length

        dtype = pack.row_dtype(tok.vocab_size)
        streams = {part.split: rows(part, counts[part.split]) for part in here}
        array_record.write(directory / subdirectory, streams, seq_len=config.seq_len, dtype=dtype)
        for part in here:
            entry = dataclasses.asdict(counts[part.split]) | {'directory': subdirectory}
            splits[part.split][part.source.name] = entry
    _require_rows(config, splits)
    total = lambda what: sum(entry[what] for entry in splits['train'].values())
    manifest = {
        'format': _FORMAT,
        'seq_len': config.seq_len,
        'vocab_size': tok.vocab_size,
        'tokenizer': tok.fingerprint,
        'inputs': {f'{part.split}/{part.source.name}': part.source.fingerprint for part in parts},
        'splits': splits,
        'bytes_per_token': total('bytes') / total('tokens'),
        'gzip': {'bits_per_byte': gzip.bits_per_byte(), 'bytes': gzip.bytes},
        'digest': digest.hexdigest(),
    }
    (directory / 'manifest.json').write_text(json.dumps(manifest, indent=1))


def _tokens(
    part: _Part, tok: tokenizer.Tokenizer, count: _Counts, gzip: _Gzip, report: Progress
) -> Iterator[list[int]]:
    """Tokens of the documents of one part; counts them as they pass."""
    for batch in _batches(part.documents()):
        for text, ids in zip(batch, tok.encode_batch(batch, num_threads=os.cpu_count() or 1), strict=True):
            data = text.encode()
            if part.split == 'validation':
                gzip.add(data)
            count.documents += 1
            count.bytes += len(data)
            count.tokens += len(ids) + 1
            yield ids
        report(f'{part.source.name} {part.split}', count.bytes)


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _require_rows(config: schema.Data, splits: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    total = lambda split, what: sum(entry[what] for entry in splits[split].values())
    for split in ('train', 'validation'):
        _require_documents(config, split, total(split, 'documents') > 0)
    if not total('train', 'rows'):
        raise ConfigError(
            f'the training split has {total("train", "tokens")} tokens, which make no row of '
            f'data.seq_len = {config.seq_len} + 1; lower data.seq_len or add text to data.sources'
        )
    if not total('validation', 'rows'):
        raise ConfigError('the validation split has no token to predict; add text or raise data.validation_fraction')
