"""Documents of benchmarks, from local directories or a data set of the Hub: JSONL, JSON, CSV, tar, gzipped or not."""

from collections.abc import Sequence
import csv
import functools
import gzip
import hashlib
import io
import json
import pathlib
import tarfile

from llm_jax import hub
from llm_jax.config.schema import ConfigError
from llm_jax.evals.tasks.task import Document


class Sources:
    """Files of benchmarks, each read once."""

    def __init__(self, places: Sequence[str | pathlib.Path]) -> None:
        """Args:
        places: directories, and data sets of the Hub ('hf:OWNER/NAME[@REVISION]') that hold files of the same names.
          The first that has a file gives it.
        """
        self._places = [str(place) for place in places]
        self._archives: dict[str, tuple[dict[str, bytes], str]] = {}

    def has(self, files: Sequence[str]) -> bool:
        """Whether one of these files is there."""
        return any(self._find(name) for name in files)

    def read(self, files: Sequence[str], name: str) -> tuple[list[Document], str]:
        """The documents of the first of these files that is there, and its SHA-256.

        Args:
          files: 'FILE', or 'FILE:MEMBER' of a tar archive.
          name: of the task, for errors.

        Raises:
          ConfigError: none is there, or it cannot be read.
        """
        for file in files:
            if found := self._find(file):
                data, digest = found
                try:
                    return parse_documents(data, file.rpartition(':')[2]), digest
                except (ValueError, KeyError, IndexError, OSError) as error:
                    raise ConfigError(f'{file}: {error}; it is no data of {name}, get another copy') from error
        places = ' or '.join(self._places)
        raise ConfigError(f'--data {places} has no {" or ".join(files)}, the data of {name}; put it there')

    def _find(self, name: str) -> tuple[bytes, str] | None:
        """The bytes of a file or a member, and the digest of the file."""
        file, _, member = name.partition(':')
        for place in self._places:
            read = _read_remote if hub.is_spec(place) else _read_local
            if (data := read(place, file)) is None:
                continue
            if not member:
                return data, hashlib.sha256(data).hexdigest()
            key = f'{place}/{file}'
            if key not in self._archives:
                self._archives[key] = _members(data, key), hashlib.sha256(data).hexdigest()
            members, digest = self._archives[key]
            if member in members:
                return members[member], digest
        return None


@functools.lru_cache(maxsize=8)
def _read_local(place: str, file: str) -> bytes | None:
    path = pathlib.Path(place) / file
    return path.read_bytes() if path.is_file() else None


@functools.lru_cache(maxsize=8)
def _list_remote(place: str) -> tuple[hub.Repo, str, dict[str, hub.Entry]]:
    repo = hub.parse_data_set(place, '--data')
    commit, entries = hub.list_files(repo)
    return repo, commit, {entry.path: entry for entry in entries}


@functools.lru_cache(maxsize=8)
def _read_remote(place: str, file: str) -> bytes | None:
    repo, commit, entries = _list_remote(place)
    if file not in entries:
        return None
    with hub.explain_errors(repo, file), hub.open_file(repo, commit, entries[file]) as stream:
        return stream.read()


def _members(data: bytes, name: str) -> dict[str, bytes]:
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            return {one.name: archive.extractfile(one).read() for one in archive if one.isfile()}  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ConfigError(f'{name} is no tar archive that can be read; get another copy') from error


def parse_documents(data: bytes, name: str) -> list[Document]:
    """The documents of a file, by its name: .jsonl, .json (a list, or BBH's 'examples'), .csv; .gz of each.

    A CSV without a header, as MMLU's, has a question, choices and the letter of the right one in each row.

    Raises:
      ValueError: the bytes are something else.
    """
    data = gzip.decompress(data) if name.endswith('.gz') else data
    text, name = data.decode('utf-8-sig'), name.removesuffix('.gz')
    if name.endswith('.csv'):
        rows = list(csv.reader(io.StringIO(text)))
        if rows and all(row[-1] in 'ABCDEFGHIJ' and row[-1] for row in rows):
            return [{'question': row[0], 'choices': row[1:-1], 'gold': ord(row[-1]) - ord('A')} for row in rows]
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    if name.endswith('.json'):
        found = json.loads(text)
        return found['examples'] if isinstance(found, dict) else found
    return [json.loads(line) for line in text.splitlines() if line.strip()]
