"""TFDS data sets by name or directory, by ranges of their records."""

from collections.abc import Iterator
import functools

from llm_jax.config.schema import ConfigError
from llm_jax.corpus.read import rows
from llm_jax.corpus.read.unit import Input, Record, Source, digest, numbered, ranges
from llm_jax.data import datasets


def inputs(name: str, source: Source) -> list[Input]:
    """Units of the 'train' split of a data set, or of the split at the end of its path.

    Raises:
      ConfigError: no such data set, split, or text field.
    """
    where = source.path.removeprefix('tfds:')
    field = f'sources.{name}.path = {source.path!r}'
    builder, split = datasets.open_builder(where, field)
    split = split or 'train'
    features = list(builder.info.features)
    for option in ('text_field', 'id_field'):
        wanted = getattr(source, option)
        if wanted and wanted.partition('.')[0] not in features and wanted not in features:
            raise rows.no_field(f'sources.{name}.{option}', wanted, where, features)
    try:
        info = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise ConfigError(f'{field} has no split {split!r} but {sorted(builder.info.splits)}; add ":SPLIT"') from error
    count, size = info.num_examples, getattr(info, 'num_bytes', 0)
    cuts = ranges(size)
    edges = [count * i // len(cuts) for i in range(len(cuts) + 1)]
    mark = datasets.fingerprint(builder)
    return [
        Input(
            numbered(split, i, len(cuts)),
            digest(where, split, mark, edges[i], edges[i + 1]),
            size // len(cuts),
            functools.partial(_read, name, source, where, split, edges[i], edges[i + 1]),
        )
        for i in range(len(cuts))
    ]


def _read(name: str, source: Source, where: str, split: str, start: int, stop: int) -> Iterator[Record]:
    builder, _ = datasets.open_builder(where, f'sources.{name}.path')
    found, rows_ = builder.as_data_source(split=split), rows.Rows(name, source, split)
    for i in range(start, stop):
        yield rows_.record(found[i], i)
