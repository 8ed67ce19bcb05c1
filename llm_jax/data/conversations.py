"""Conversations to rows: read, rendered with the weight of each token, packed whole, kept in the cache.

A row is stored as int32[3 (L+1)]: its tokens, their segments, and the bits of their float32 weights. Segments count the
conversations of a row from 1; 0 is padding. They are stored because no token tells conversations apart: in many
templates BOS also ends a turn.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import datetime
import hashlib
import json
import pathlib
import re
from typing import Any

import numpy as np

from llm_jax import chat as chat_lib
from llm_jax import tokenizer as tokenizer_lib
from llm_jax.chat.messages import ChatError
from llm_jax.chat.records import read_record
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.packing import Counts
from llm_jax.corpus.splits import SPLITS, split_of
from llm_jax.data import array_record, files, pack, store

KIND = 'conversations:'
COLUMNS = 3
# Changes when the same inputs would give other files.
_FORMAT = 1
# The date that templates write, so that the same records give the same rows on any day.
_NOW = datetime.datetime(2026, 1, 1)


@dataclasses.dataclass(frozen=True)
class Example:
    """A rendered conversation: `ids` of its n tokens, and their `weights` float32[n] as targets."""

    ids: list[int]
    weights: np.ndarray
    n_bytes: int


@dataclasses.dataclass
class Tally(Counts):
    """Counts of a split, and of the conversations that were too long, or had no token to train on."""

    dropped: int = 0
    cut: int = 0
    untrained: int = 0


def is_conversations(config: schema.Data) -> bool:
    """Whether the sources are conversations.

    Raises:
      ConfigError: only some of them are.
    """
    specs = {**config.sources, **config.validation_sources}
    found = [name for name, spec in specs.items() if spec.startswith(KIND)]
    if found and len(found) < len(specs):
        other = next(name for name in specs if name not in found)
        raise ConfigError(
            f'data.sources.{found[0]} has conversations and data.sources.{other} = {specs[other]!r} has documents; a '
            'stage trains on one or the other, so remove one'
        )
    return bool(found)


def build(config: schema.Data, template: str) -> tuple[pathlib.Path, tokenizer_lib.Tokenizer, dict[str, Any]]:
    """Builds, or finds in the cache, the rows of conversations.

    Args:
      config: sources, tokenizer.path, splits, seq_len, too_long, cache_dir.
      template: what `config.chat.template` says.

    Returns:
      (directory of the rows, tokenizer, manifest) as `corpus.plain.build`.

    Raises:
      ConfigError: no tokenizer or template, records that are no conversations, or a split without any.
    """
    if not config.tokenizer.path:
        raise ConfigError(
            'data.tokenizer.path is empty, but conversations are written in the tokens of a trained model; name its '
            'tokenizer, for example runs/quickstart/tokenizer'
        )
    tok = tokenizer_lib.load(config.tokenizer.path)
    chat = chat_lib.open_chat(tok, template)
    found = {name: files.find(spec.removeprefix(KIND), f'data.sources.{name}') for name, spec in _specs(config)}
    inputs = [[name, file.path, f'{file.size} {file.stamp}'] for name, some in found.items() for file in some]
    sources = {name: one.source for name, one in chat.templates.items()}
    held_out = sorted(config.validation_sources)
    fractions = [config.validation_fraction, config.test_fraction]
    key = digest([_FORMAT, inputs, held_out, fractions], sources, config.seq_len, config.too_long, tok.fingerprint)
    write = lambda directory: _write(directory, config, chat)
    directory = store.cached(config.cache_dir, f'conversations-{key}', write)
    return directory, tok, json.loads((directory / 'manifest.json').read_text())


def _specs(config: schema.Data) -> list[tuple[str, str]]:
    if both := sorted(set(config.sources) & set(config.validation_sources)):
        raise ConfigError(f'data.sources and data.validation_sources both name {both[0]!r}; rename one')
    return [*config.sources.items(), *config.validation_sources.items()]


def _write(directory: pathlib.Path, config: schema.Data, chat: chat_lib.Chat) -> None:
    splits: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    row_hash = hashlib.sha256()
    for i, (name, spec) in enumerate(_specs(config)):
        tallies = {split: Tally() for split in SPLITS}
        examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
        for where, record in _records(spec, f'data.sources.{name}'):
            text = json.dumps(record, sort_keys=True, ensure_ascii=True)
            split = _split(config, name, text)
            example = _fit(render(chat, record, where), tallies[split], config, where)
            if example is None:
                continue
            tallies[split].add(example.n_bytes, len(example.ids) - 1)
            examples[split].append(example)
        place = f'{i:02d}-{re.sub("[^A-Za-z0-9_]", "_", name)}'
        rows = {split: list(pack_examples(some, config.seq_len)) for split, some in examples.items()}
        width = COLUMNS * (config.seq_len + 1)
        streams = {split: [(row.view(np.uint32), width) for row in some] for split, some in rows.items()}
        array_record.write(directory / place, streams, seq_len=width - 1, dtype=np.uint32)
        for split, tally in tallies.items():
            for row in rows[split]:
                row_hash.update(row.data)
            tally.rows = len(rows[split])
            splits[split][name] = dataclasses.asdict(tally) | {'directory': place}
    total = lambda split, what: sum(entry[what] for entry in splits[split].values())
    for split in ('train', 'validation'):
        if not total(split, 'rows'):
            raise ConfigError(
                f'no conversation of data.sources = {dict(config.sources)} is in the {split} split: '
                f'{total(split, "dropped")} were longer than data.seq_len = {config.seq_len}, and '
                f'{total(split, "untrained")} had nothing of an assistant to train on; change data.seq_len, '
                'data.too_long, data.validation_fraction or data.validation_sources'
            )
    manifest = {
        'format': _FORMAT,
        'columns': COLUMNS,
        'seq_len': config.seq_len,
        'vocab_size': chat.tokenizer.vocab_size,
        'tokenizer': chat.tokenizer.fingerprint,
        'splits': splits,
        'bytes_per_token': total('train', 'bytes') / total('train', 'tokens'),
        'gzip': {'bits_per_byte': None, 'bytes': 0},  # it compresses all turns, the loss is of some
        'digest': row_hash.hexdigest(),
    }
    (directory / 'manifest.json').write_text(json.dumps(manifest, indent=1))


def _records(spec: str, field: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (place for errors, record)."""
    for i, record in enumerate(files.read_json_lines(spec.removeprefix(KIND), field), 1):
        yield f'{field}: record {i} of {spec.removeprefix(KIND)}', record


def _split(config: schema.Data, name: str, text: str) -> str:
    if name in config.validation_sources:
        return 'validation'
    held_out = 0.0 if config.validation_sources else config.validation_fraction
    return split_of(text, held_out, config.test_fraction)


def render(chat: chat_lib.Chat, record: dict[str, Any], where: str) -> Example:
    """Renders a record of instruction data.

    Raises:
      ChatError: naming `where`.
    """
    messages, tools = read_record(record, where)
    try:
        rendered = chat.render(messages, tools=tools, weights=True, now=_NOW)
    except ChatError as error:
        raise ChatError(f'{where}: {error}') from error
    return Example(rendered.ids, rendered.weights, len(rendered.text.encode()))


def _fit(example: Example, tally: Tally, config: schema.Data, where: str) -> Example | None:
    """The example as rows take it, None if they do not; what is left out is counted."""
    room = config.seq_len + 1
    if len(example.ids) > room:
        if config.too_long == 'error':
            raise ConfigError(
                f'{where} has {len(example.ids)} tokens, but a row has {room}; raise data.seq_len, or set '
                'data.too_long to "drop" or "cut"'
            )
        if config.too_long == 'drop':
            tally.dropped += 1
            return None
        tally.cut += 1
        example = Example(example.ids[:room], example.weights[:room], example.n_bytes)
    if not example.weights[1:].any():  # the first token is no target
        tally.untrained += 1
        return None
    return example


def pack_examples(examples: Sequence[Example], seq_len: int) -> Iterator[np.ndarray]:
    """Yields rows int32[3 (L+1)] of whole examples, the longest first, each in the fullest row with room for it."""
    sizes = np.array([len(example.ids) for example in examples], np.int64)
    order = np.argsort(-sizes, kind='stable')
    for places in pack.fill_bins(sizes[order].tolist(), seq_len + 1):
        row = np.zeros((COLUMNS, seq_len + 1), np.int32)
        row[0] = array_record.PADDING
        end = 0
        for segment, place in enumerate(places, 1):
            example = examples[order[place]]
            span = slice(end, end + len(example.ids))
            row[0, span], row[1, span] = example.ids, segment
            row[2, span] = np.asarray(example.weights, np.float32).view(np.int32)
            end = span.stop
        yield row.ravel()
