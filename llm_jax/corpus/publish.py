"""What becomes of the final documents: a data set, a tokenizer, packed rows, a manifest."""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import tempfile
from typing import Any

import sentencepiece

from llm_jax import config as config_lib
from llm_jax import tokenizer as tokenizer_lib
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import chain, manifest, mixing, shards, steps
from llm_jax.corpus.digest import digest
from llm_jax.corpus.packing import GZIP_BYTES, GzipMeasure
from llm_jax.corpus.read.source import Input
from llm_jax.corpus.run import Run
from llm_jax.corpus.schema import Corpus
from llm_jax.corpus.shards import Shard
from llm_jax.corpus.splits import SPLITS, split_of
from llm_jax.corpus.steps import DONE, Group
from llm_jax.corpus.storage import Store
from llm_jax.data import array_record, pack
from llm_jax.report import corpus as report
from llm_jax.report.page import encode
from llm_jax.tokenizer import training

# Text of each source on which two tokenizers are compared.
_COMPARED_BYTES = 1_000_000
Counts = dict[str, dict[str, Any]]  # source -> counts


def publish(run: Run, out: Store, final: Sequence[Shard], inputs: Mapping[str, Sequence[Input]]) -> dict[str, Any]:
    """Fills the corpus directory.

    Returns:
      the manifest.

    Raises:
      ConfigError: nothing is left to train on; the report says where it went.
    """
    code = [chain.code_of(f'llm_jax.corpus.{name}') for name in ('steps', 'tally', 'document')]
    splits = dataclasses.asdict(run.config.splits)
    groups = run.groups('publish', final, splits, code)
    done = run.step('documents', steps.Publish(run.recipe), groups)
    run.count(done, [group.source for group in groups])
    funnel = run.funnel()
    result: dict[str, Any] = {
        'format': manifest.FORMAT,
        'name': run.config.name,
        'config': manifest.config_of(run.config),
        'versions': manifest.versions(),
        'models': run.models,
        'inputs': manifest.inputs_of(inputs),
        'sources': {source: funnel.counts(source) for source in run.config.sources},
    }
    held = {split: _sum(groups, [one['splits'][split] for one in done]) for split in SPLITS}
    out.remove('manifest.json')
    result['documents'] = _link(run, out, 'documents', steps.DOCUMENTS, groups, done, steps.document_features())
    train_bytes = {source: held['train'].get(source, (0, 0))[1] for source in run.config.sources}
    if not sum(train_bytes.values()):
        _report(run, out, result)
        raise ConfigError(
            f'no document is left to train on; {out.path("report.html")} says what took them out. Loosen the stages, '
            'or add sources'
        )
    tokenizer_dir, sample = _tokenizer(run, groups, train_bytes)
    tok = steps.load_tokenizer(tokenizer_dir)
    result['tokenizer'] = _describe_tokenizer(run, tok, sample)
    result['rows'], result['mixture'] = _rows(run, out, final, held, tokenizer_dir, tok)
    with tempfile.TemporaryDirectory() as local:
        tok.save(local)
        for name in os.listdir(local):
            out.take(f'tokenizer/{name}', os.path.join(local, name))
    _report(run, out, result)
    out.write_json('manifest.json', result, indent=1)
    return result


def _report(run: Run, out: Store, result: Mapping[str, Any]) -> None:
    defaults = config_lib.to_dict(Corpus())
    for file, text in report.render(result, run.funnel().tallies, defaults).items():
        out.write(file, encode(text))


def _sum(groups: Sequence[Group], counts: Sequence[Sequence[int]]) -> dict[str, tuple[int, int]]:
    """Source -> documents and bytes."""
    out: dict[str, tuple[int, int]] = {}
    for group, (documents, n_bytes) in zip(groups, counts, strict=True):
        before = out.get(group.source, (0, 0))
        out[group.source] = (before[0] + documents, before[1] + n_bytes)
    return out


def _link(
    run: Run, out: Store, directory: str, name: str, groups: Sequence[Group], done: Sequence[Mapping], features: Any
) -> dict[str, Any]:
    """Puts the files of a step into the corpus as one TFDS data set per source.

    Returns:
      source -> file -> records, bytes and hash.
    """
    partial = f'.{directory}.partial'
    out.remove(partial)
    files: dict[str, dict[str, Any]] = {source: {} for source in run.config.sources}
    sizes: dict[str, dict[str, list]] = {source: {s: [] for s in SPLITS} for source in run.config.sources}
    for group, one in zip(groups, done, strict=True):
        for split, file in one['files'].items():
            found = sizes[group.source][split]
            file_name = array_record.file_name(name, split, len(found))
            found.append((file['records'], file['bytes']))
            run.store.copy_to(f'{group.directory}/{split}', out, f'{partial}/{group.source}/{file_name}')
            files[group.source][file_name] = file
    for source in run.config.sources:
        with tempfile.TemporaryDirectory() as local:
            array_record.write_info(local, name, features, sizes[source], f'{run.config.name}: {source}')
            for file_name in sorted(os.listdir(local)):
                out.take(f'{partial}/{source}/{file_name}', os.path.join(local, file_name))
    out.replace(partial, directory)
    return files


# --- Tokenizer -------------------------------------------------------------------------


def _tokenizer(run: Run, groups: Sequence[Group], train_bytes: Mapping[str, int]) -> tuple[str, dict[str, list[str]]]:
    """The directory of the tokenizer, and pieces of training text by source."""
    config, store = run.config.tokenizer, run.store
    amounts = mixing.amounts(run.config.mixture, train_bytes, mixing.BYTES_PER_TOKEN)
    scale = min(1.0, config.sample_bytes / sum(amounts.values()))
    # What is seen several times in training is here once at most.
    wanted = {source: max(scale * amount, _COMPARED_BYTES) for source, amount in amounts.items()}
    parts = {source: min(1.0, wanted[source] / max(train_bytes[source], 1)) for source in wanted}
    code = [chain.code_of('llm_jax.tokenizer.training'), chain.code_of('llm_jax.corpus.steps')]
    splits = dataclasses.asdict(run.config.splits)
    shard_groups = [shard for group in groups for shard in group.shards]
    sampled = run.groups('sample', shard_groups, parts, splits, code)
    run.step('sample', steps.Sample(run.recipe, tuple(sorted(parts.items()))), sampled)
    pieces: dict[str, list[tuple[int, str]]] = {source: [] for source in run.config.sources}
    for group in sampled:
        pieces[group.source] += steps.pieces(store, group.directory)
    compared = {source: _first(some, _COMPARED_BYTES) for source, some in pieces.items()}
    if config.path:
        tok = tokenizer_lib.load(config.path)
        directory = f'tokenizer/{run.key(tok.fingerprint)}'
        run.keep(directory)
        if not store.exists(f'{directory}/{DONE}'):
            tok.save(f'{store.root}/{directory}')
            store.write_json(f'{directory}/{DONE}', {})
        return f'{store.root}/{directory}', compared
    options = dataclasses.asdict(config) | {'library': sentencepiece.__version__}
    directory = f'tokenizer/{run.key(options, [group.directory for group in sampled], run.config.mixture)}'
    run.keep(directory)
    if not store.exists(f'{directory}/{DONE}'):
        with run.console.step('tokenizer') as progress:
            progress(0, 1)
            chosen = [
                item for source, some in pieces.items() for item in _first(some, scale * amounts[source], ranked=True)
            ]
            chunks = [piece for _, piece in sorted(chosen)]
            tok = training.train_on(config, chunks, 'tokenizer', 'sources')
            tok.save(f'{store.root}/{directory}')
            store.write_json(f'{directory}/{DONE}', {})
            progress(1, 1)
    return f'{store.root}/{directory}', compared


def _first(pieces: Sequence[tuple[int, str]], n_bytes: float, *, ranked: bool = False) -> list:
    """The pieces of smallest rank, until they are so many bytes."""
    out, size = [], 0
    for rank, piece in sorted(pieces):
        if size >= n_bytes:
            break
        out.append((rank, piece) if ranked else piece)
        size += len(piece.encode())
    return out


def _describe_tokenizer(run: Run, tok: tokenizer_lib.Tokenizer, sample: Mapping[str, list[str]]) -> dict[str, Any]:
    """The tokenizer and the bytes of each of its tokens, beside those of another one on the same text."""
    fertility: Counts = {}
    other = tokenizer_lib.load(run.config.compare_tokenizer) if run.config.compare_tokenizer else None
    for source, texts in sample.items():
        if texts:
            size = sum(len(text.encode()) for text in texts)
            per_token = lambda t, size=size, texts=texts: round(size / sum(map(len, t.encode_batch(texts))), 4)
            fertility[source] = {'bytes': size, 'bytes_per_token': per_token(tok)}
            if other:
                fertility[source]['compared'] = per_token(other)
    return {
        'fingerprint': tok.fingerprint,
        'vocab_size': tok.vocab_size,
        'reserved': getattr(tok, 'reserved', {}),
        'compared_with': {'fingerprint': other.fingerprint, 'vocab_size': other.vocab_size} if other else None,
        'fertility': fertility,
    }


# --- Rows ------------------------------------------------------------------------------


def _rows(
    run: Run, out: Store, final: Sequence[Shard], held: Mapping, tokenizer_dir: str, tok: tokenizer_lib.Tokenizer
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Packs everything; gives what the manifest says of rows, and of the mixture."""
    config = run.config
    packing, splits = dataclasses.asdict(config.packing), dataclasses.asdict(config.splits)
    code = [chain.code_of(f'llm_jax.{name}') for name in ('corpus.steps', 'data.pack', 'data.array_record')]
    groups = run.groups('rows', final, tok.fingerprint, packing, splits, code)
    done = run.step('rows', steps.Rows(run.recipe, tokenizer_dir), groups)
    dtype = pack.row_dtype(tok.vocab_size)
    features = array_record.row_features(config.packing.seq_len, dtype)
    files = _link(run, out, 'rows', array_record.NAME, groups, done, features)
    counts: dict[str, Counts] = {}
    for split in SPLITS:
        for group, one in zip(groups, done, strict=True):
            entry = counts.setdefault(split, {}).setdefault(group.source, {})
            for name, count in one['splits'][split].items():
                entry[name] = entry.get(name, 0) + count
        for source, entry in counts[split].items():
            places = entry['rows'] * (config.packing.seq_len + 1)
            entry['fill'] = round(entry.pop('filled') / places, 6) if places else 0.0
            entry['directory'] = source
    train = counts['train']
    mixture = _mixture(run, train)
    total = lambda what: sum(entry[what] for entry in train.values())
    rows = {
        'format': manifest.FORMAT,
        'seq_len': config.packing.seq_len,
        'vocab_size': tok.vocab_size,
        'tokenizer': tok.fingerprint,
        'splits': counts,
        'bytes_per_token': total('bytes') / total('tokens'),
        'gzip': _gzip(run, final, held),
        'mixture': {source: entry['weight'] for source, entry in mixture.items()} if config.mixture else {},
        'digest': digest(files),
    }
    out.write_json('rows/manifest.json', rows, indent=1)
    return rows | {'files': files}, mixture


def _mixture(run: Run, train: Counts) -> dict[str, Any]:
    """Of each source: tokens there are, tokens that one pass over the mixture takes, and its weight by rows."""
    available = {source: train.get(source, {}).get('tokens', 0) for source in run.config.sources}
    taken = mixing.amounts(run.config.mixture, available)
    # Rows of some sources are fuller than those of others.
    per_row = {source: available[source] / train[source]['rows'] if available[source] else 1.0 for source in available}
    rows = {source: taken[source] / per_row[source] for source in taken}
    return {
        source: {
            'tokens': available[source],
            'taken': round(taken[source]),
            'epochs': round(taken[source] / available[source], 4) if available[source] else 0.0,
            'share': round(taken[source] / sum(taken.values()), 6),
            'weight': round(rows[source] / sum(rows.values()), 6),
        }
        for source in taken
    }


def _gzip(run: Run, final: Sequence[Shard], held: Mapping) -> dict[str, Any]:
    """What `gzip -9` makes of the first validation documents: what a model's bits per byte are compared with."""
    left = min(GZIP_BYTES, sum(n_bytes for _, n_bytes in held['validation'].values()))
    key = run.key('gzip', [shard.digest for shard in final], dataclasses.asdict(run.config.splits))
    directory = f'gzip/{key}'
    run.keep(directory)
    if run.store.exists(f'{directory}/{DONE}'):
        return run.store.read_json(f'{directory}/{DONE}')
    measure, splits = GzipMeasure(left), run.config.splits
    for shard in final:
        if measure.is_full:
            break
        for document in shards.read(run.store, shard):
            if split_of(document.cluster or document.text, splits.validation, splits.test) == 'validation':
                measure.add(document.text.encode())
                if measure.is_full:
                    break
    found = {'bits_per_byte': measure.bits_per_byte(), 'bytes': measure.bytes}
    run.store.write_json(f'{directory}/{DONE}', found)
    return found
