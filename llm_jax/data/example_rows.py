"""Examples to rows: read, rendered with the weight of each token, packed whole, kept in the cache.

A row is stored as int32[C (L+1)], C columns of L+1 numbers one after the other. For each part of its form (see
`data.examples`) they are tokens, segments, and the bits of float32 weights; then, for a form that has them, the bits of
float32 values, that of an example at the first token of its first segment. Segments of a part count from 1; 0 is
padding. They are stored because no token tells conversations apart: in many templates BOS also ends a turn.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
import pathlib
import re
from typing import Any

import numpy as np

from llm_jax import chat as chat_lib
from llm_jax import tokenizer as tokenizer_lib
from llm_jax.config import schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.digest import digest
from llm_jax.corpus.packing import Counts
from llm_jax.corpus.read.records import Record, Records, open_records
from llm_jax.corpus.splits import SPLITS, split_of
from llm_jax.data import array_record, pack, store
from llm_jax.data.examples import FORMS, Example, Form, Renderer, form_of

# Changes when the same inputs would give other files.
_FORMAT = 2


@dataclasses.dataclass
class Tally(Counts):
    """Counts of a split, and of the examples that were too long, had no token to train on, or were no real pair."""

    dropped: int = 0
    cut: int = 0
    untrained: int = 0
    unequal: int = 0


def build(config: schema.Data, template: str) -> tuple[pathlib.Path, tokenizer_lib.Tokenizer, dict[str, Any]]:
    """Builds, or finds in the cache, the rows of examples.

    Args:
      config: sources of one of `FORMS`, tokenizer.path, splits, seq_len, too_long, cache_dir.
      template: what `config.chat.template` says.

    Returns:
      (directory of the rows, tokenizer, manifest) as `corpus.plain.build`.

    Raises:
      ConfigError: no tokenizer or template, records of another form, or a split without any.
    """
    name = form_of(config)
    if not config.tokenizer.path:
        raise ConfigError(
            f'data.tokenizer.path is empty, but {name} are written in the tokens of a trained model; name its '
            'tokenizer, for example runs/quickstart/tokenizer'
        )
    tok = tokenizer_lib.load(config.tokenizer.path)
    chat = chat_lib.open_chat(tok, template) if FORMS[name].is_chat else None
    opened = {source: open_records(spec.partition(':')[2], field) for source, field, spec in _specs(config)}
    inputs = [[source, records.fingerprint] for source, records in opened.items()]
    held_out = sorted(config.validation_sources)
    options = [config.seq_len, config.too_long, config.examples_per_row, config.classes, config.text_field]
    fractions = [config.validation_fraction, config.test_fraction]
    templates = {source: one.source for source, one in chat.templates.items()} if chat else {}
    key = digest([_FORMAT, name, inputs, held_out, fractions], templates, options, tok.fingerprint)
    write = lambda directory: _write(directory, config, FORMS[name], name, Renderer(config, tok, chat), opened)
    directory = store.cached(config.cache_dir, f'{name}-{key}', write)
    return directory, tok, json.loads((directory / 'manifest.json').read_text())


def _specs(config: schema.Data) -> list[tuple[str, str, str]]:
    """(name, its field, spec) of every source."""
    if both := sorted(set(config.sources) & set(config.validation_sources)):
        raise ConfigError(f'data.sources and data.validation_sources both name {both[0]!r}; rename one')
    fields = {'data.sources': config.sources, 'data.validation_sources': config.validation_sources}
    return [(name, f'{field}.{name}', spec) for field, specs in fields.items() for name, spec in specs.items()]


def _write(
    directory: pathlib.Path,
    config: schema.Data,
    form: Form,
    form_name: str,
    renderer: Renderer,
    opened: dict[str, Records],
) -> None:
    splits: dict[str, dict[str, Any]] = {split: {} for split in SPLITS}
    row_hash, width = hashlib.sha256(), form.columns * (config.seq_len + 1)
    for i, (name, records) in enumerate(opened.items()):
        place = f'{i:02d}-{re.sub("[^A-Za-z0-9_]", "_", name)}'
        rows: dict[str, list[np.ndarray]] = {}
        for split in SPLITS:
            tally, examples = Tally(), []
            found = _records_of(records, split, config, name in config.validation_sources)
            for where, example in form.examples(renderer, found):
                if (fitted := _fit(example, form, tally, config, where)) is not None:
                    tally.add(fitted.n_bytes, sum(len(segment.ids) for segment in fitted.segments) - 1)
                    examples.append(fitted)
            rows[split] = list(pack_examples(examples, config.seq_len, form, config.examples_per_row))
            for row in rows[split]:
                row_hash.update(row.data)
            tally.rows = len(rows[split])
            splits[split][name] = dataclasses.asdict(tally) | {'directory': place}
        streams = {split: [(row.view(np.uint32), width) for row in some] for split, some in rows.items()}
        array_record.write(directory / place, streams, seq_len=width - 1, dtype=np.uint32)
    total = lambda split, what: sum(entry[what] for entry in splits[split].values())
    for split in ('train', 'validation'):
        if not total(split, 'rows'):
            raise ConfigError(
                f'none of the {form_name} of data.sources = {dict(config.sources)} is in the {split} split: '
                f'{total(split, "dropped")} were longer than data.seq_len = {config.seq_len}, '
                f'{total(split, "untrained")} had nothing of an assistant to train on, and {total(split, "unequal")} '
                'were answers to different prompts; change data.seq_len, data.too_long, data.validation_fraction or '
                'data.validation_sources'
            )
    manifest = {
        'format': _FORMAT,
        'form': form_name,
        'columns': form.columns,
        'seq_len': config.seq_len,
        'vocab_size': renderer.tokenizer.vocab_size,
        'tokenizer': renderer.tokenizer.fingerprint,
        'splits': splits,
        'bytes_per_token': total('train', 'bytes') / total('train', 'tokens'),
        'gzip': {'bits_per_byte': None, 'bytes': 0},  # it compresses all turns, the loss is of some
        'digest': row_hash.hexdigest(),
    }
    (directory / 'manifest.json').write_text(json.dumps(manifest, indent=1))


def _records_of(records: Records, split: str, config: schema.Data, held_out: bool) -> Iterator[Record]:
    """Yields the records of a source that are in a split: as the data set says, else by a hash of their content."""
    if held_out:
        if split == 'validation':
            yield from records.parts.get('validation', records.parts.get('all', records.parts.get('train')))()
        return
    if split != 'train' and split in records.parts:
        if split == 'test' or not config.validation_sources:
            yield from records.parts[split]()
        return
    validation = 0.0 if config.validation_sources or 'validation' in records.parts else config.validation_fraction
    test = 0.0 if 'test' in records.parts else config.test_fraction
    for where, record in records.parts.get('all', records.parts.get('train'))():
        if split_of(json.dumps(record, sort_keys=True, ensure_ascii=True), validation, test) == split:
            yield where, record


def _fit(example: Example | None, form: Form, tally: Tally, config: schema.Data, where: str) -> Example | None:
    """The example as rows take it, None if they do not; what is left out is counted."""
    if example is None:
        tally.unequal += 1
        return None
    room = _room(form, config.seq_len)
    if (size := max(_sizes(example, form))) > room:
        if config.too_long == 'error':
            raise ConfigError(
                f'{where} has {size} tokens, but a row has {room}; raise data.seq_len, or set data.too_long to '
                '"drop" or "cut"'
            )
        if config.too_long == 'drop':
            tally.dropped += 1
            return None
        tally.cut += 1
        share = room * form.parts // form.segments  # of a pair, each side gets half
        example = dataclasses.replace(example, segments=tuple(segment.cut(share) for segment in example.segments))
    if not all(segment.weights[1:].any() for segment in example.segments):  # the first token is no target
        tally.untrained += 1
        return None
    return example


def _room(form: Form, seq_len: int) -> int:
    """Tokens that a row takes: where examples have a value, the model reads the last of them, too."""
    return seq_len if form.has_value else seq_len + 1


def _sizes(example: Example, form: Form) -> list[int]:
    """Tokens that an example takes in each part."""
    return [sum(len(segment.ids) for segment in example.segments[part :: form.parts]) for part in range(form.parts)]


def pack_examples(
    examples: Sequence[Example], seq_len: int, form: Form, examples_per_row: int = 0
) -> Iterator[np.ndarray]:
    """Yields rows int32[C (L+1)] of whole examples, the longest first, each in the fullest row with room for it.

    Args:
      examples: none is longer than a row.
      seq_len: L.
      form: of the examples.
      examples_per_row: how many with a value a row holds, at most; 0 means as many as there is room for.
    """
    sizes = np.array([max(_sizes(example, form)) for example in examples], np.int64)
    order = np.argsort(-sizes, kind='stable')
    most = examples_per_row if form.has_value else 0
    for places in pack.fill_bins(sizes[order].tolist(), _room(form, seq_len), most):
        row = np.zeros((form.columns, seq_len + 1), np.int32)
        row[0 : 3 * form.parts : 3] = array_record.PADDING
        ends, counts = [0] * form.parts, [0] * form.parts
        for place in places:
            example = examples[order[place]]
            if form.has_value:
                row[-1, ends[0]] = np.float32(example.value).view(np.int32)
            for i, segment in enumerate(example.segments):
                part = i % form.parts
                span = slice(ends[part], ends[part] + len(segment.ids))
                ends[part], counts[part] = span.stop, counts[part] + 1
                row[3 * part, span], row[3 * part + 1, span] = segment.ids, counts[part]
                row[3 * part + 2, span] = np.asarray(segment.weights, np.float32).view(np.int32)
        yield row.ravel()
