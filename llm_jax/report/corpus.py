"""The report of a corpus: what was read, what was dropped and why, what is left; with examples of both."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from llm_jax.metrics import format as fmt
from llm_jax.report import corpus_charts
from llm_jax.report.corpus_charts import KEPT
from llm_jax.report.page import Card
from llm_jax.report.page import render as render_template
from llm_jax.report.tables import Table, table_of

_MOST_LANGUAGES = 12
Manifest = Mapping[str, Any]
Tallies = Mapping[str, Mapping[str, Any]]


class Reason(NamedTuple):
    """What was dropped for one reason, over all sources."""

    name: str
    stage: str
    documents: int
    bytes: int
    by_source: dict[str, int]
    examples: list[dict[str, str]]


class Bar(NamedTuple):
    """One line of a funnel."""

    stage: str
    documents: str
    size: str
    tokens: str
    lost: str
    share: float  # of the bytes of the first line, in percent


def render(manifest: Manifest, tallies: Tallies, defaults: Mapping[str, Any]) -> dict[str, str]:
    """report.html and report.md.

    Args:
      manifest: of the corpus; of one with nothing left, without 'tokenizer' and 'rows'.
      tallies: source -> its tally, with the examples.
      defaults: the config with every field at its default.

    Returns:
      file name -> text.
    """
    rows = manifest.get('rows') or {}
    reasons = reasons_of(manifest, tallies)
    unread = _unread(manifest)
    values = {
        'name': manifest['name'],
        'manifest': manifest,
        'headline': _headline(manifest),
        'cards': _cards(manifest),
        'funnels': {source: _funnel(manifest, source) for source in manifest['sources']},
        'reasons': reasons,
        'unread': unread,
        'n_unread': sum(_unread_counts(manifest)),
        'splits': _splits(rows),
        'mixture': _mixture(manifest),
        'languages': _languages(tallies),
        'duplicates': _duplicates(manifest, tallies),
        'counted': _counted(tallies),
        'kept': {source: _examples(tally, KEPT) for source, tally in tallies.items() if _examples(tally, KEPT)},
        'files': _inputs(manifest),
        'config': _changed(manifest, defaults),
        'size': fmt.size,
        'percent': fmt.percent,
    }
    page = render_template('corpus.html.jinja', charts=corpus_charts.draw_all(tallies), **values)
    return {'report.html': page, 'report.md': render_template('corpus.md.jinja', **values)}


def reasons_of(manifest: Manifest, tallies: Tallies) -> list[Reason]:
    """Every reason for which something was dropped, in the order of the stages, the most frequent first."""
    found: dict[tuple[str, str], dict[str, dict[str, int]]] = {}
    order: dict[str, int] = {}
    for source, counts in manifest['sources'].items():
        for place, row in enumerate(counts['stages']):
            order.setdefault(row['stage'], place)
            for reason, dropped in row['dropped'].items():
                found.setdefault((row['stage'], reason), {})[source] = dropped
    reasons = [
        Reason(
            name=reason,
            stage=stage,
            documents=sum(dropped['documents'] for dropped in by_source.values()),
            bytes=sum(dropped['bytes'] for dropped in by_source.values()),
            by_source={source: dropped['documents'] for source, dropped in by_source.items()},
            examples=_first_ranked(tallies[source]['examples'].get(reason, []) for source in by_source),
        )
        for (stage, reason), by_source in found.items()
    ]
    return sorted(reasons, key=lambda reason: (order[reason.stage], -reason.documents, reason.name))


# --- Numbers ---------------------------------------------------------------------------


def _total(manifest: Manifest, stage: int, what: str) -> int:
    return sum(counts['stages'][stage][what] for counts in manifest['sources'].values())


def count_in_splits(manifest: Manifest, what: str, *names: str) -> int:
    """Sums the `what` of these splits over their sources, or that of all splits."""
    splits = (manifest.get('rows') or {}).get('splits') or {}
    return sum(entry[what] for name in names or splits for entry in splits.get(name, {}).values())


def _headline(manifest: Manifest) -> dict[str, str]:
    read, kept = _total(manifest, 0, 'documents'), _total(manifest, -1, 'documents')
    share = fmt.percent(kept / read) if read else fmt.DASH
    sizes = f'{fmt.size(_total(manifest, 1, "bytes"))} of text became {fmt.size(_total(manifest, -1, "bytes"))}'
    sentence = f'{kept:,} of {read:,} records are in the corpus ({share}); {sizes}.'
    tokens = count_in_splits(manifest, 'tokens', 'train')
    if not tokens:
        return {'value': '', 'unit': '', 'sentence': f'Nothing is left to train on. {sentence}'}
    return {'value': fmt.count(tokens), 'unit': 'tokens to train on', 'sentence': sentence}


def _cards(manifest: Manifest) -> list[Card]:
    rows, tokenizer = manifest.get('rows'), manifest.get('tokenizer')
    inputs = sum(entry['inputs'] for entry in manifest['inputs'].values())
    cards = [('sources', str(len(manifest['sources'])), f'{inputs:,} input{"s" * (inputs != 1)}')]
    if rows and tokenizer:
        train = rows['splits']['train']
        n_rows = sum(entry['rows'] for entry in train.values())
        fill = sum(entry['fill'] * entry['rows'] for entry in train.values()) / n_rows if n_rows else None
        gzip = rows['gzip']['bits_per_byte']
        cards += [
            (
                'documents to train on',
                f'{count_in_splits(manifest, "documents", "train"):,}',
                f'{fmt.size(count_in_splits(manifest, "bytes", "train"))} of text; '
                f'{count_in_splits(manifest, "documents"):,} with validation and test',
            ),
            ('rows to train on', f'{n_rows:,}', f'of {rows["seq_len"]} tokens, {fmt.percent(fill)} full'),
            ('bytes per token', fmt.decimal(rows['bytes_per_token'], 2), f'vocabulary of {tokenizer["vocab_size"]:,}'),
            ('gzip -9', fmt.decimal(gzip), 'bits per byte, validation text'),
        ]
    return [Card(*card) for card in cards]


def _funnel(manifest: Manifest, source: str) -> list[Bar]:
    rows = manifest['sources'][source]['stages']
    fertility = ((manifest.get('tokenizer') or {}).get('fertility') or {}).get(source, {}).get('bytes_per_token')
    # The bytes that were read are those of pages with their mark-up: text begins after 'extract'.
    whole = max([row['bytes'] for row in rows[1:]] or [0])
    bars, before = [], None
    for i, row in enumerate(rows):
        lost = '' if before is None else _lost(before, row)
        tokens = f'≈ {fmt.count(row["bytes"] / fertility)}' if fertility and i else ''
        share = min(100.0, 100 * row['bytes'] / whole) if whole else 0.0
        bars.append(Bar(row['stage'], f'{row["documents"]:,}', fmt.size(row['bytes']), tokens, lost, share))
        before = row
    return bars


def _lost(before: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    documents = before['documents'] - row['documents']
    return f'− {documents:,} ({fmt.percent(documents / before["documents"])})' if documents else ''


def _unread(manifest: Manifest) -> Table | None:
    """Records that are no documents."""
    rows = [
        {'source': source, '': what, 'reason': reason, 'records': f'{count:,}'}
        for source, counts in manifest['sources'].items()
        for what in ('broken', 'skipped')
        for reason, count in counts[what].items()
    ]
    return table_of(rows, texts=3)


def _unread_counts(manifest: Manifest) -> list[int]:
    return [
        count
        for counts in manifest['sources'].values()
        for what in ('broken', 'skipped')
        for count in counts[what].values()
    ]


def _splits(rows: Manifest) -> Table | None:
    found = [
        {
            'split': split,
            'source': source,
            'documents': f'{entry["documents"]:,}',
            'text': fmt.size(entry['bytes']),
            'tokens': fmt.count(entry['tokens']),
            'rows': f'{entry["rows"]:,}',
            'fill': fmt.percent(entry['fill']),
        }
        for split, by_source in (rows.get('splits') or {}).items()
        for source, entry in by_source.items()
        if entry['documents']
    ]
    return table_of(found, texts=2)


def _mixture(manifest: Manifest) -> Table | None:
    fertility = (manifest.get('tokenizer') or {}).get('fertility', {})
    out = []
    for source, entry in (manifest.get('mixture') or {}).items():
        measured = fertility.get(source, {})
        row = {
            'source': source,
            'tokens': fmt.count(entry['tokens']),
            'share': fmt.percent(entry['share']),
            'epochs': f'{entry["epochs"]:.2f}',
            'bytes per token': fmt.decimal(measured.get('bytes_per_token'), 2),
        }
        if manifest['tokenizer']['compared_with']:
            row['compared'] = fmt.decimal(measured.get('compared'), 2)
        out.append(row)
    return table_of(out)


def _languages(tallies: Tallies) -> list[tuple[str, str, str, float]]:
    """(language, documents, bytes, share of the largest in percent)."""
    total: dict[str, list[int]] = {}
    for tally in tallies.values():
        for language, (documents, n_bytes) in tally['languages'].items():
            entry = total.setdefault(language, [0, 0])
            entry[0] += documents
            entry[1] += n_bytes
    ranked = sorted(total.items(), key=lambda item: (-item[1][1], item[0]))
    rest = ranked[_MOST_LANGUAGES:]
    shown = ranked[:_MOST_LANGUAGES]
    if rest:
        shown.append((f'{len(rest)} others', [sum(entry[i] for _, entry in rest) for i in (0, 1)]))
    largest = max((entry[1] for _, entry in shown), default=0) or 1
    named = lambda name: 'unknown' if name == '?' else name
    return [(named(name), f'{n:,}', fmt.size(size), 100 * size / largest) for name, (n, size) in shown]


def _duplicates(manifest: Manifest, tallies: Tallies) -> list[tuple[str, str, str]]:
    names = [_label(part) for part in manifest['config']['dedup']]
    out = []
    for name in names:
        dropped = [
            entry
            for counts in manifest['sources'].values()
            for row in counts['stages']
            if row['stage'] == name
            for entry in row['dropped'].values()
        ]
        documents, n_bytes = (sum(entry[what] for entry in dropped) for what in ('documents', 'bytes'))
        out.append((name, f'{documents:,}', fmt.size(n_bytes)))
    clusters = sum(tally['clusters'] for tally in tallies.values())
    if names:
        out.append(('kept, but alike to others: all on one side of the split', f'{clusters:,}', ''))
    return out


def _label(part: str) -> str:
    """The name of a stage as the config writes it down."""
    return part.rpartition(':')[2]


def _counted(tallies: Tallies) -> list[tuple[str, str, str]]:
    """What was replaced within documents: (what, times, documents)."""
    total: dict[str, list[float]] = {}
    for tally in tallies.values():
        for name, (documents, times) in tally['signals'].items():
            if name.startswith('scrub.'):
                entry = total.setdefault(name, [0, 0])
                entry[0] += times
                entry[1] += documents
    return [(name.partition('.')[2], f'{round(n):,}', f'{round(m):,}') for name, (n, m) in sorted(total.items())]


def _examples(tally: Mapping[str, Any], name: str) -> list[dict[str, str]]:
    return _first_ranked([tally['examples'].get(name, [])])


def _first_ranked(lists: Any, n: int = 20) -> list[dict[str, str]]:
    """Of lists of (rank, example), the n of lowest rank."""
    everything = [item for some in lists for item in some]
    return [example for _, example in sorted(everything, key=lambda item: (item[0], str(item[1])))[:n]]


def _inputs(manifest: Manifest) -> Table | None:
    rows = [
        {
            'source': source,
            'hash': entry['digest'],
            'inputs': f'{entry["inputs"]:,}',
            'bytes': fmt.size(entry['bytes']),
        }
        for source, entry in manifest['inputs'].items()
    ]
    return table_of(rows, texts=2)


def _changed(manifest: Manifest, defaults: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Lists the fields of the config that are not at their default."""
    out: list[tuple[str, str]] = []

    def walk(values: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str) -> None:
        for name, value in values.items():
            standard = defaults.get(name)
            if isinstance(value, Mapping) and isinstance(standard, Mapping) and standard:
                walk(value, standard, f'{prefix}{name}.')
            elif value != standard:
                out.append((prefix + name, str(value)))

    plain = dict(manifest['config'])
    for source, table in plain.pop('sources').items():
        out += [(f'sources.{source}.{name}', str(value)) for name, value in table.items() if value]
    walk(plain, defaults, '')
    return out
