"""Items of benchmarks: reading their files, and which of their fields are text that can leak.

A benchmark is a path or glob; files are JSON lines, JSON, CSV, TSV, Parquet, plain text (an item
a line), or tar archives of such, each perhaps compressed (.gz, .zst).
"""

from collections.abc import Iterator, Mapping, Sequence
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import tarfile
from typing import Any

from pyarrow import parquet

from llm_jax.config.schema import ConfigError
from llm_jax.data import files

# The texts of an item, by the fields that it has; the first entry whose fields are all there. A text
# is some fields joined; of a field marked with '*', a list, each value makes a text of its own. What
# is asked stands alone, too: a page may have the question without the answers.
TEXTS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (('prompt',), ('canonical_solution',)),  # HumanEval
    (('text',), ('code',)),  # MBPP
    (('question',), ('answer',)),  # GSM8K
    (('problem',), ('solution',)),  # MATH
    (('context',), ('chain_of_thought',)),  # MATH, as in llm-foundry
    (('ctx',), ('ctx', 'endings*')),  # HellaSwag
    (('query',), ('query', 'choices')),  # ARC, BoolQ, COPA, OpenBookQA, PIQA as in llm-foundry
    (('context_options*', 'continuation'),),  # Winograd, WinoGrande as in llm-foundry
    (('context', 'continuation'),),  # Jeopardy, LAMBADA as in llm-foundry
    (('sentence_good',), ('sentence_bad',)),  # BLiMP
    (('Question',), ('Question', 'Best Answer')),  # TruthfulQA
    (('input',), ('input', 'target')),  # BIG-Bench Hard
    (('0',), ('0', '1', '2', '3', '4')),  # MMLU: CSV without names; question, four choices (, answer)
)
# Where a JSON file of one object keeps its items.
_LISTS = ('examples', 'data', 'items', 'questions', 'rows', 'test')
_COMPRESSED = ('.gz', '.zst')


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """One item of a benchmark.

    Attributes:
      benchmark: its name.
      name: 'FILE#RECORD', counted from 0, or 'FILE:MEMBER#RECORD'.
      texts: what to look for; each alone would give the item away.
    """

    benchmark: str
    name: str
    texts: tuple[str, ...]


def read(name: str, where: str | Mapping[str, Any]) -> Iterator[Item]:
    """Items of a benchmark, in the order of its files.

    Args:
      name: of the benchmark.
      where: path or glob, or {'path': ..., 'fields': [...]}: the fields of each text of an item, as
        one list of names, or as a list of lists for several texts.

    Raises:
      ConfigError: no such file, one that cannot be read, or without such fields.
    """
    path, texts = _entry(name, where)
    for file in files.find(path, f'decontaminate.benchmarks.{name}'):
        base = os.path.basename(file.path)
        for member, record, values in _records(base, b''.join(file.blocks()), file.path, texts):
            yield Item(name, f'{base}{member}#{record}', _texts(values, texts, f'{file.path}{member}#{record}'))


def fingerprint(benchmarks: Mapping[str, Any]) -> str:
    """A hash of all that `read` depends on: names, fields and contents of the files."""
    seen = hashlib.sha256(repr(TEXTS).encode())
    for name, where in sorted(benchmarks.items()):
        path, texts = _entry(name, where)
        seen.update(repr((name, texts)).encode())
        for file in files.find(path, f'decontaminate.benchmarks.{name}'):
            content = b''.join(file.blocks())
            seen.update(f'{os.path.basename(file.path)} {len(content)} '.encode() + content)
    return seen.hexdigest()


def _entry(name: str, where: str | Mapping[str, Any]) -> tuple[str, tuple[tuple[str, ...], ...] | None]:
    field = f'decontaminate.benchmarks.{name}'
    if isinstance(where, str):
        return where, None
    if not isinstance(where, Mapping) or set(where) - {'path', 'fields'} or not isinstance(where.get('path'), str):
        raise ConfigError(f"{field} = {where!r}: it must be a path, or a table of 'path' and 'fields'")
    fields = where.get('fields') or ()
    if fields and all(isinstance(part, str) for part in fields):
        fields = (fields,)
    return where['path'], tuple(map(tuple, fields)) or None


def _records(name: str, content: bytes, path: str, texts: Sequence | None) -> Iterator[tuple[str, int, dict]]:
    """(member, number, fields) of each record of a file."""
    stem, kind = os.path.splitext(name)
    while kind in _COMPRESSED:
        stem, kind = os.path.splitext(stem)
    if kind in ('.tar', '.tgz'):
        if kind == '.tgz':
            raise ConfigError(f'{path}: name it .tar.gz')
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            for member in archive:
                if member.isfile():
                    inside = archive.extractfile(member).read()
                    for _, i, values in _records(member.name, inside, f'{path}:{member.name}', texts):
                        yield f':{member.name}', i, values
        return
    if kind not in _READERS:
        raise ConfigError(f'{path}: a benchmark has to be one of {", ".join(_READERS)}, .tar, perhaps with .gz or .zst')
    try:
        for i, values in enumerate(_READERS[kind](content, texts)):
            yield '', i, values
    except (ValueError, OSError, csv.Error) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ConfigError(f'{path} cannot be read as {kind}: {error}') from error


def _json_lines(content: bytes, texts: Sequence | None) -> Iterator[dict]:
    for line in content.decode('utf-8-sig').split('\n'):
        if line.strip():
            yield _named(json.loads(line))


def _json(content: bytes, texts: Sequence | None) -> Iterator[dict]:
    value = json.loads(content.decode('utf-8-sig'))
    if isinstance(value, dict):
        value = next((value[key] for key in _LISTS if isinstance(value.get(key), list)), [value])
    return map(_named, value)


def _rows(delimiter: str):
    def read_rows(content: bytes, texts: Sequence | None) -> Iterator[dict]:
        rows = csv.reader(io.StringIO(content.decode('utf-8-sig'), newline=''), delimiter=delimiter,
                          quoting=csv.QUOTE_MINIMAL if delimiter == ',' else csv.QUOTE_NONE)  # fmt: skip
        first = next(rows, [])
        known = [_names(entry) for entry in ((texts,) if texts else TEXTS)]
        # A first row that has the fields of some benchmark names the columns.
        header = first if any(names <= set(first) for names in known) else None
        for row in rows if header else itertools.chain([first], rows):
            yield dict(zip(header, row, strict=False)) if header else {str(i): cell for i, cell in enumerate(row)}

    return read_rows


def _parquet(content: bytes, texts: Sequence | None) -> Iterator[dict]:
    return iter(parquet.read_table(io.BytesIO(content)).to_pylist())


def _lines(content: bytes, texts: Sequence | None) -> Iterator[dict]:
    return ({'text': line} for line in content.decode('utf-8-sig').split('\n') if line.strip())


_READERS = {
    '.jsonl': _json_lines, '.ndjson': _json_lines, '.json': _json, '.csv': _rows(','), '.tsv': _rows('\t'),
    '.parquet': _parquet, '.txt': _lines,
}  # fmt: skip


def _named(value: Any) -> dict:
    return value if isinstance(value, dict) else {'text': value}


def _names(texts: Sequence[Sequence[str]]) -> set[str]:
    return {name.rstrip('*') for parts in texts for name in parts}


def _texts(values: dict, texts: Sequence[Sequence[str]] | None, where: str) -> tuple[str, ...]:
    if texts:
        missing = _names(texts) - set(values)
        if missing:
            raise ConfigError(f'{where} has no field {", ".join(sorted(missing))}; it has {", ".join(values)}')
    else:
        texts = next((entry for entry in TEXTS if _names(entry) <= set(values)), None)
    if texts is None:  # nothing that is known: all strings that it has
        return (' '.join(_strings(values)),)
    out = []
    for parts in texts:
        choices = [_strings(values[name[:-1]]) if name.endswith('*') else [' '.join(_strings(values[name]))]
                   for name in parts]  # fmt: skip
        out += [' '.join(choice) for choice in itertools.product(*choices)]
    return tuple(dict.fromkeys(out))


def _strings(value: Any) -> list[str]:
    """All strings within a value, in order."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    return (
        [text for part in value for text in _strings(part)] if isinstance(value, Sequence | type({}.values())) else []
    )
