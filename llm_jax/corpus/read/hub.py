"""Data sets of the Hugging Face Hub: which files are a split, and their records, read as a stream."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import importlib
import re
import types
from typing import Any, BinaryIO

import yaml

from llm_jax import hub
from llm_jax.config import parts
from llm_jax.corpus.read import licences
from llm_jax.corpus.read.unit import Input, Source
from llm_jax.data import files
from llm_jax.hub import HubError, Repo

# Formats that are read, the best first: the module, and names of its files.
_FORMATS = (
    ('parquet', re.compile(r'\.(parquet|pq)$', re.I)),
    ('rows', re.compile(r'\.(jsonl|ndjson|jsonlines|jl|json)(\.(gz|zst|bz2|xz))?$', re.I)),
)
# JSON that describes a data set and holds none.
_BESIDE = re.compile(r'(^|/)(dataset_infos?|state|.*\.index|.*config)\.json$', re.I)
# Where the Hub keeps Parquet of the data sets that come as something else: CONFIG/SPLIT/0000.parquet.
_CONVERTED = 'refs/convert/parquet'
# Words in a path by which a file is of a split, as the library `datasets` has them.
_SPLIT_WORDS = {
    'train': ('train', 'training'),
    'validation': ('validation', 'valid', 'val', 'dev'),
    'test': ('test', 'testing', 'eval', 'evaluation'),
}


@dataclasses.dataclass(frozen=True)
class HubFile(files.File):
    """A file of a data set on the Hub; opened, it is a stream."""

    _repo: Repo | None = dataclasses.field(default=None, repr=False, compare=False)
    _commit: str = dataclasses.field(default='', repr=False, compare=False)
    _entry: hub.Entry | None = dataclasses.field(default=None, repr=False, compare=False)

    def open(self) -> BinaryIO:
        return hub.open_file(self._repo, self._commit, self._entry)


@dataclasses.dataclass(frozen=True)
class DataSet:
    """The files of one config of a data set.

    Attributes:
      splits: name -> files, in order of their path.
      licence: of its card; '' if it states none.
    """

    splits: Mapping[str, Sequence[HubFile]]
    licence: str


def inputs(name: str, source: Source) -> list[Input]:
    """Lists the units of one split of a data set: 'train', or that at the end of the path.

    Raises:
      ConfigError: no such data set, config, split, or text field; or no way to the Hub.
    """
    field = f'sources.{name}.path'
    repo = hub.parse_data_set(source.path, field)
    found = open_data_set(repo, field)
    source = dataclasses.replace(source, licence=source.licence or found.licence)
    chosen = pick_split(found, repo, field)
    module, first = _reader(chosen[0]), chosen[0]  # mistakes in the options show in the first file
    check = module.check if _format(first.path) == 'parquet' else module.check_json
    check(name, source, first.path, first)
    return units(name, source, chosen)


def open_data_set(repo: Repo, field: str) -> DataSet:
    """Lists the files of a data set's config, by split.

    A card that says which files are what is believed; else the names of files and directories say it, as in
    the library `datasets`. A data set without Parquet or JSON is read as the Hub converted it.

    Args:
      repo: the data set.
      field: of the config, for errors.

    Raises:
      ConfigError: no such data set or config, or nothing in it that can be read.
    """
    commit, entries = hub.list_files(repo)
    card = _card(repo, commit, entries)
    splits = _splits(repo, field, [entry.path for entry in entries], _configs(repo, card))
    if not splits and not repo.revision:
        repo = dataclasses.replace(repo, revision=_CONVERTED)
        try:
            commit, entries = hub.list_files(repo)
        except HubError as error:
            raise HubError(
                f'{field} = {repo.spec!r} has no Parquet or JSON lines, and the Hub has not converted it'
            ) from error
        splits = _splits(repo, field, [entry.path for entry in entries], {})
    if not splits:
        raise HubError(f'{field} = {repo.spec!r} has no Parquet or JSON lines that could be read')
    by_path = {entry.path: entry for entry in entries}
    place = f'{hub.PREFIX}{repo.name}'
    made = lambda path: HubFile(
        f'{place}/{path}', by_path[path].size, by_path[path].stamp, None, repo, commit, by_path[path]
    )
    return DataSet({split: [made(path) for path in paths] for split, paths in splits.items()}, licences.of_card(card))


def pick_split(found: DataSet, repo: Repo, field: str) -> Sequence[HubFile]:
    """The files of the split that the spec names, else of 'train' or of the only one.

    Raises:
      HubError: there is no such split.
    """
    split = repo.split or ('train' if 'train' in found.splits or len(found.splits) != 1 else next(iter(found.splits)))
    if split not in found.splits:
        known = ', '.join(found.splits)
        raise HubError(
            f'{field} = {repo.spec!r} has no split {split!r}{parts.nearest(split, list(found.splits))} '
            f'There are: {known}; name one at the end, as in hf:{repo.name}:{next(iter(found.splits))}'
        )
    return found.splits[split]


def units(name: str, source: Source, found: Iterable[HubFile]) -> list[Input]:
    """Lists the units of work of some files."""
    return [one for file in found for one in _reader(file).inputs(name, source, file.path, file)]


def _reader(file: HubFile) -> types.ModuleType:
    return importlib.import_module(f'llm_jax.corpus.read.{_format(file.path)}')  # Parquet's is slow to import


def _format(path: str) -> str:
    """The module that reads a file; '' if none does."""
    return next((name for name, pattern in _FORMATS if pattern.search(path) and not _BESIDE.search(path)), '')


# --- Which files ------------------------------------------------------------------------


def _card(repo: Repo, commit: str, entries: Sequence[hub.Entry]) -> str:
    """README.md of a data set; '' if it has none."""
    entry = next((entry for entry in entries if entry.path == 'README.md'), None)
    if entry is None:
        return ''
    with hub.open_file(repo, commit, entry) as stream:
        return stream.read().decode(errors='replace')


def _configs(repo: Repo, card: str) -> dict[str, dict[str, Any]]:
    """Name -> entry of the list 'configs' in the header of a card."""
    header = re.match(r'---[ \t]*\r?\n(.*?)\n---', card, re.S)
    if not header:
        return {}
    try:
        stated = yaml.safe_load(header[1])
    except yaml.YAMLError as error:
        raise HubError(
            f'{repo.spec}: the header of its README.md is not YAML: {" ".join(str(error).split())}'
        ) from error
    listed = stated.get('configs') if isinstance(stated, dict) else None
    entries = [entry for entry in listed or [] if isinstance(entry, dict)]
    return {str(entry.get('config_name', 'default')): entry for entry in entries}


def _splits(
    repo: Repo, field: str, paths: Sequence[str], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Split -> paths of its files, for the wanted config; empty if there is nothing to read."""
    readable = sorted(path for path in paths if _format(path))
    if configs:
        splits = _stated_splits(configs[_pick_config(repo, field, configs)], readable)
    elif readable:
        splits = _named_splits(_of_directory(repo, field, readable))
    else:
        return {}
    for form, _ in _FORMATS:  # of a config in several formats, the best is read
        best = {split: [path for path in found if _format(path) == form] for split, found in splits.items()}
        if best := {split: found for split, found in best.items() if found}:
            return best
    return {}


def _pick_config(repo: Repo, field: str, configs: Mapping[str, Mapping[str, Any]]) -> str:
    default = [name for name, entry in configs.items() if entry.get('default')]
    wanted = repo.config or next(iter(default), 'default' if 'default' in configs or len(configs) > 1 else '')
    wanted = wanted or next(iter(configs))
    if wanted not in configs:
        raise _no_config(repo, field, wanted, list(configs))
    return wanted


def _no_config(repo: Repo, field: str, wanted: str, known: list[str]) -> HubError:
    hint = parts.nearest(wanted, known) if repo.config else '.'
    what = f'no config {wanted!r}' if repo.config else 'several configs and no default'
    return HubError(
        f'{field} = {repo.spec!r} has {what}{hint} There are: {", ".join(known)}; name one as in '
        f'hf:{repo.name}/{known[0] if known else "CONFIG"}'
    )


def _stated_splits(entry: Mapping[str, Any], paths: Sequence[str]) -> dict[str, list[str]]:
    """The splits of an entry of 'configs': `data_files` is a pattern, some of them, or splits with theirs."""
    root = f'{entry["data_dir"].strip("/")}/' if entry.get('data_dir') else ''
    stated = entry.get('data_files')
    if not stated:
        return _named_splits([path for path in paths if path.startswith(root)])
    if isinstance(stated, Mapping):
        by_split = dict(stated)
    elif isinstance(stated, list) and all(isinstance(one, Mapping) for one in stated):
        by_split = {one.get('split', 'train'): one.get('path') for one in stated}
    else:
        by_split = {'train': stated}
    out = {}
    for split, patterns in by_split.items():
        listed = [patterns] if isinstance(patterns, str) else list(patterns or [])
        wanted = [_glob(root + pattern.removeprefix('./')) for pattern in listed]
        if found := [path for path in paths if any(pattern.fullmatch(path) for pattern in wanted)]:
            out[split] = found
    return out


def _glob(pattern: str) -> re.Pattern:
    """A pattern of paths: '*' stays within a directory, '**' does not."""
    tokens = re.split(r'(\*\*/|\*\*|\*|\?|\[[^\]]*\])', pattern)
    made = {'**/': '(?:.*/)?', '**': '.*', '*': '[^/]*', '?': '[^/]'}
    return re.compile(''.join(made.get(t, t if t.startswith('[') else re.escape(t)) for t in tokens))


def _of_directory(repo: Repo, field: str, paths: Sequence[str]) -> list[str]:
    """The paths of a config: a directory that is not named after a split is a config."""
    config_of = lambda path: next(
        (part for part in path.split('/')[:-1] if part != 'data' and not _split_of(f'{part}/')), ''
    )
    known = sorted({config_of(path) for path in paths})
    if repo.config:
        wanted = repo.config
    elif len(known) == 1 or '' in known:
        wanted = known[0]
    else:
        wanted = 'default'
    if wanted not in known:
        raise _no_config(repo, field, wanted, [name for name in known if name])
    return [path for path in paths if config_of(path) == wanted]


def _named_splits(paths: Iterable[str]) -> dict[str, list[str]]:
    """Splits by the words in paths; without such a word everywhere, all files are for training."""
    out: dict[str, list[str]] = {}
    for path in paths:
        out.setdefault(_split_of(path), []).append(path)
    if unnamed := out.pop('', []):
        return out or {'train': unnamed}
    return out


def _split_of(path: str) -> str:
    """The split whose word is in a path, nearest to its end; '' if there is none."""
    words = re.split(r'[^a-z]+', path.lower())
    return next((split for word in reversed(words) for split, known in _SPLIT_WORDS.items() if word in known), '')
