"""Plain sources to rows: a corpus without stages, built in one pass and one process into a directory of the cache.

    sources -> train / validation / test by hash -> tokenizer -> tokens -> rows -> ArrayRecord

Documents are read again for each split and never written, so that a small experiment
starts in seconds. Where there is something to clean, `build.build` is the road; readers,
splits, tokenizer, packing and files are the same.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import sentencepiece

from llm_jax import tokenizer as tokenizer_lib
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.packing import Counts, GzipMeasure, tokenise
from llm_jax.corpus.read.plain import PlainSource, open_sources
from llm_jax.corpus.splits import SPLITS
from llm_jax.data import array_record, pack, store

# Changes when the same inputs would give other files.
_FORMAT = 1
_REPORTED_BYTES = 1 << 20

# Receives a stage and how many bytes of text it has done.
Progress = Callable[[str, int], None]


@dataclasses.dataclass(frozen=True)
class Part:
    """One split of one source, and the directory of its rows."""

    split: str
    source: PlainSource
    directory: str

    def documents(self) -> Iterator[str]:
        """Yields the texts of the split."""
        return self.source.documents(self.split)


def build(
    config: schema.Data, seed: int, report: Progress
) -> tuple[pathlib.Path, tokenizer_lib.Tokenizer, dict[str, Any]]:
    """Builds, or finds in the cache, the tokenizer and the rows of plain sources.

    The cache has `tokenizer-<hash>/` and `rows-<hash>/`; a hash covers everything that its
    directory depends on. `rows-*` holds a TFDS data set per source and `manifest.json`.

    Args:
      config: sources, splits, tokenizer, seq_len, cache_dir.
      seed: chooses the tokenizer's training sample.
      report: receives progress.

    Returns:
      (directory of the rows, tokenizer, manifest).

    Raises:
      ConfigError: inputs that are missing or unreadable, or a split without text.
    """
    parts = _parts(config)
    inputs = [[part.split, part.source.name, part.source.fingerprint, part.source.fractions] for part in parts]
    common = [_FORMAT, inputs, config.max_document_chars]
    if config.split_by != 'hash':
        common.append(config.split_by)
    if config.tokenizer.path:
        tok = tokenizer_lib.load(config.tokenizer.path)
    else:
        recipe = dataclasses.asdict(config.tokenizer) | {'seed': seed, 'version': sentencepiece.__version__}
        train = lambda directory: train_tokenizer(config, parts, seed, report).save(directory)
        tok = tokenizer_lib.load(store.cached(config.cache_dir, f'tokenizer-{digest(common, recipe)}', train))
    name = f'rows-{digest(common, config.seq_len, tok.fingerprint)}'
    write = lambda directory: write_rows(directory, config, parts, tok, report)
    directory = store.cached(config.cache_dir, name, write)
    return directory, tok, json.loads((directory / 'manifest.json').read_text())


def _parts(config: schema.Data) -> list[Part]:
    main, held_out = open_sources(config)
    directory = lambda i, source: f'{i:02d}-{re.sub("[^A-Za-z0-9_]", "_", source.name)}'
    splits = ('train', 'test') if held_out else SPLITS
    parts = [Part(split, s, directory(i, s)) for i, s in enumerate(main) for split in splits]
    return parts + [Part('validation', s, directory(i, s)) for i, s in enumerate(held_out, len(main))]


# --- Tokenizer -------------------------------------------------------------------------


def train_tokenizer(config: schema.Data, parts: list[Part], seed: int, report: Progress) -> tokenizer_lib.Tokenizer:
    """Trains a tokenizer on the training split."""
    for split in ('train', 'validation'):  # before the minutes that follow
        some = [part for part in parts if part.split == split]
        _require_documents(config, parts, split, any(True for part in some for _ in part.documents()))
    texts = (text for part in parts if part.split == 'train' for text in part.documents())
    return tokenizer_lib.train(config.tokenizer, _report_bytes(texts, 'tokenizer', report), seed)


def _report_bytes(texts: Iterable[str], stage: str, report: Progress) -> Iterator[str]:
    done = shown = 0
    for text in texts:
        yield text
        done += len(text.encode())
        if done - shown >= _REPORTED_BYTES:
            shown = done
            report(stage, done)
    report(stage, done)


def _require_documents(config: schema.Data, parts: list[Part], split: str, found: bool) -> None:
    if found:
        return
    for source in {part.source.name: part.source for part in parts if part.split == split}.values():
        if not source.has_text():
            specs = dict(config.sources) | dict(config.validation_sources)
            raise ConfigError(f'there is no text in {specs[source.name]!r} (source {source.name!r})')
    if split == 'validation' and config.validation_sources:
        raise ConfigError(f'data.validation_sources = {dict(config.validation_sources)} hold no text')
    cause = {'validation': f', data.validation_fraction = {config.validation_fraction}'}.get(split, '')
    raise ConfigError(
        f'no document of data.sources = {dict(config.sources)} is in the {split} split{cause}. Cut the documents '
        'with data.max_document_chars (such as 10000), hold out the end of the text with data.split_by = "place", add '
        'sources, change the fractions, or name data.validation_sources'
    )


# --- Rows ------------------------------------------------------------------------------


def write_rows(
    directory: pathlib.Path, config: schema.Data, parts: list[Part], tok: tokenizer_lib.Tokenizer, report: Progress
) -> None:
    """Fills the directory of rows, with one batch of documents in memory at a time."""
    gzip, row_hash = GzipMeasure(), hashlib.sha256()
    splits: dict[str, dict[str, dict]] = {split: {} for split in SPLITS}
    dtype = pack.row_dtype(tok.vocab_size)
    packing = {'seq_len': config.seq_len, 'bos_id': tok.bos_id, 'vocab_size': tok.vocab_size}

    def rows(part: Part, count: Counts) -> Iterator[tuple[np.ndarray, int]]:
        tokens = _tokens(part, tok, count, gzip, report)
        for row, length in pack.pack(tokens, **packing, keep_tail=part.split != 'train'):
            row_hash.update(row.data)
            count.rows += 1
            yield row, length

    for subdirectory in dict.fromkeys(part.directory for part in parts):
        some = [(part, Counts()) for part in parts if part.directory == subdirectory]
        streams = {part.split: rows(part, count) for part, count in some}
        array_record.write(directory / subdirectory, streams, seq_len=config.seq_len, dtype=dtype)
        for part, count in some:
            entry = dataclasses.asdict(count) | {'directory': subdirectory}
            splits[part.split][part.source.name] = entry
    _require_rows(config, parts, splits)
    manifest = {
        'format': _FORMAT,
        'seq_len': config.seq_len,
        'vocab_size': tok.vocab_size,
        'tokenizer': tok.fingerprint,
        'inputs': {f'{part.split}/{part.source.name}': part.source.fingerprint for part in parts},
        'splits': splits,
        'bytes_per_token': _total(splits, 'train', 'bytes') / _total(splits, 'train', 'tokens'),
        'gzip': {'bits_per_byte': gzip.bits_per_byte(), 'bytes': gzip.bytes},
        'digest': row_hash.hexdigest(),
    }
    (directory / 'manifest.json').write_text(json.dumps(manifest, indent=1))


def _tokens(
    part: Part, tok: tokenizer_lib.Tokenizer, count: Counts, gzip: GzipMeasure, report: Progress
) -> Iterator[list[int]]:
    """Yields the tokens of the documents of one part, counting them as they pass."""
    for batch in tokenise(part.documents(), lambda text: text, tok, os.cpu_count() or 1):
        for text, ids in batch:
            data = text.encode()
            if part.split == 'validation':
                gzip.add(data)
            count.add(len(data), len(ids))
            yield ids
        report(f'{part.source.name} {part.split}', count.bytes)


def _total(splits: Mapping[str, Mapping[str, Mapping[str, int]]], split: str, what: str) -> int:
    return sum(entry[what] for entry in splits[split].values())


def _require_rows(
    config: schema.Data, parts: list[Part], splits: Mapping[str, Mapping[str, Mapping[str, int]]]
) -> None:
    for split in ('train', 'validation'):
        _require_documents(config, parts, split, _total(splits, split, 'documents') > 0)
    if not _total(splits, 'train', 'rows'):
        raise ConfigError(
            f'the training split has {_total(splits, "train", "tokens")} tokens, which make no row of '
            f'data.seq_len = {config.seq_len} + 1; lower data.seq_len or add text to data.sources'
        )
    if not _total(splits, 'validation', 'rows'):
        raise ConfigError('the validation split has no token to predict; add text or raise data.validation_fraction')
