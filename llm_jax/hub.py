"""Repositories of the Hugging Face Hub, named 'hf:OWNER/NAME', through `huggingface_hub`.

Cache, token and endpoint are that library's: HF_HOME or HF_HUB_CACHE, HF_TOKEN or `hf auth login`, HF_ENDPOINT,
HF_HUB_OFFLINE. Models and tokenizers are downloaded into the cache, files of data sets are read as streams.
"""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import re
from typing import Any, BinaryIO

from llm_jax.config.schema import ConfigError

PREFIX = 'hf:'
_NAME = r'(?P<name>[\w.-]+/[\w.-]+)'
_REVISION = r'(@(?P<revision>[^\s:]+))?'
_MODEL = re.compile(f'{_NAME}{_REVISION}')
_DATA_SET = re.compile(rf'{_NAME}(/(?P<config>[^\s/@:]+))?{_REVISION}(:(?P<split>\w+(\.\w+)*))?')
# Files of a repository's root that a tokenizer or a config may be made of.
_SMALL = ('*.json', '*.model', '*.tiktoken', '*.txt', '*.bpe', '*.jinja', 'tok*.bin')
# What is left alone: directories (other formats, older copies) but additional_chat_templates/, whose first letters
# these patterns let pass, and Mistral's second set of weights.
_LEFT = ('[!a]*/*', 'a[!d]*/*', 'ad[!d]*/*', 'consolidated*')
# Bytes that a stream asks for at once, at least.
_BLOCK_BYTES = 1 << 20
# Downloads that begin again from nothing, of a server that ignores ranges.
_RESTARTS = 5


class HubError(ConfigError):
    """A repository that is missing, closed or out of reach, or a transfer that broke off."""


@dataclasses.dataclass(frozen=True)
class Repo:
    """A model or a data set of the Hub.

    Attributes:
      spec: as the user wrote it, for errors.
      kind: 'model' or 'dataset'.
      name: 'OWNER/NAME'.
      revision: branch, tag or commit; '' is the main branch.
      config: name of a subset of a data set; '' is its default.
      split: name of a split of a data set; '' is its training split, and what it holds out.
    """

    spec: str
    kind: str
    name: str
    revision: str = ''
    config: str = ''
    split: str = ''


@dataclasses.dataclass(frozen=True)
class Entry:
    """One file of a repository.

    Attributes:
      path: within the repository.
      size: in bytes.
      stamp: hash of the content.
    """

    path: str
    size: int
    stamp: str


def is_spec(path: str | os.PathLike) -> bool:
    """Whether this is 'hf:...', the name of a repository or of a Hugging Face directory."""
    return str(path).startswith(PREFIX)


def parse_data_set(spec: str, field: str) -> Repo:
    """Parses 'hf:OWNER/NAME[/CONFIG][@REVISION][:SPLIT]'.

    Raises:
      HubError: naming `field`, of another form.
    """
    match = _DATA_SET.fullmatch(spec.removeprefix(PREFIX))
    if not match:
        raise HubError(f'{field} = {spec!r}: write hf:OWNER/NAME, or hf:OWNER/NAME/CONFIG@REVISION:SPLIT')
    return Repo(spec, 'dataset', **{name: value or '' for name, value in match.groupdict().items()})


def fetch_model(path: str | os.PathLike) -> str | os.PathLike:
    """Downloads config.json, safetensors and tokenizer of a model, unless they are in the cache.

    Args:
      path: 'hf:OWNER/NAME[@REVISION]', 'hf:DIRECTORY', or any other path, which is given back as it is.

    Returns:
      a local directory.

    Raises:
      HubError: no such repository, no way to it, or no safetensors in it.
    """
    repo = _model(path)
    if not isinstance(repo, Repo):
        return repo
    directory = _snapshot(repo, (*_SMALL, '*.safetensors'))
    if not any(pathlib.Path(directory).glob('*.safetensors')):
        names = ', '.join(sorted(entry.path for entry in list_files(repo)[1]))
        raise HubError(f'{repo.spec} has no *.safetensors, the only weights that can be read; its files are {names}')
    return directory


def fetch_tokenizer(path: str | os.PathLike) -> str | os.PathLike:
    """Downloads the files of a tokenizer; otherwise as `fetch_model`."""
    repo = _model(path)
    return _snapshot(repo, _SMALL) if isinstance(repo, Repo) else repo


def short_name(path: str | os.PathLike) -> str:
    """NAME of 'hf:OWNER/NAME@REVISION'; the last part of any other path."""
    path = str(path).removeprefix(PREFIX) if is_spec(path) else os.path.abspath(path)
    return os.path.basename(path.partition('@')[0].rstrip('/'))


def list_files(repo: Repo) -> tuple[str, list[Entry]]:
    """(commit, files) of a repository.

    Raises:
      HubError: no such repository or revision, or no way to it.
    """
    from huggingface_hub.hf_api import RepoFile

    with explain_errors(repo):
        api = _api()
        commit = api.repo_info(repo.name, repo_type=repo.kind, revision=repo.revision or None).sha
        tree = api.list_repo_tree(repo.name, recursive=True, revision=commit, repo_type=repo.kind)
        files = [file for file in tree if isinstance(file, RepoFile)]
    return commit, [Entry(file.path, file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in files]


def open_file(repo: Repo, commit: str, entry: Entry) -> BinaryIO:
    """Opens a file of a repository: from the cache if it is there, else as a stream of ranges.

    Args:
      repo: where it is.
      commit: at which it was listed.
      entry: from `list_files`.
    """
    import huggingface_hub

    cached = huggingface_hub.try_to_load_from_cache(repo.name, entry.path, revision=commit, repo_type=repo.kind)
    if isinstance(cached, str):
        return open(cached, 'rb')
    return io.BufferedReader(_Stream(repo, commit, entry), _BLOCK_BYTES)


@contextlib.contextmanager
def explain_errors(repo: Repo, path: str = '') -> Iterator[None]:
    """Turns the library's errors into one line.

    Args:
      repo: that is read.
      path: of the file, if it is one.

    Raises:
      HubError: instead of them. A full disk stays an OSError.
    """
    from huggingface_hub import errors

    where = f'{repo.spec} ({path})' if path else repo.spec
    kind, endpoint = repo.kind.replace('dataset', 'data set'), _api().endpoint
    page = f'{endpoint}/{"datasets/" if repo.kind == "dataset" else ""}{repo.name}'
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f'{where} is gated: accept its terms at {page}, and set HF_TOKEN to a token of that account '
            '(or `hf auth login`)'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f'{where}: {endpoint} has no {kind} {repo.name!r}, or it is private; correct the name, or set HF_TOKEN'
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f'{where}: the {kind} has no revision {repo.revision!r}; {page}/tree/main lists them') from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError(f'{where} has to be asked for at {endpoint}, but HF_HUB_OFFLINE is set; unset it') from error
    except errors.LocalEntryNotFoundError as error:
        from huggingface_hub import constants

        cause = _first_line(error.__cause__ or error)
        raise HubError(
            f'{where} is not in the cache {constants.HF_HUB_CACHE}, and {endpoint} does not give it: {cause}; '
            'look at the network, HF_ENDPOINT and HF_HUB_OFFLINE, and try again'
        ) from error
    except errors.HfHubHTTPError as error:
        raise HubError(f'{where}: {endpoint} answers {_first_line(error)}; try again later') from error
    except errors.HFValidationError as error:
        raise HubError(f'{where}: {_first_line(error)}; correct the name') from error
    except (errors.HTTPError, errors.FileMetadataError, errors.XetDownloadError) as error:
        raise _broken(where, _first_line(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise _broken(where, _first_line(error)) from error


def _model(path: str | os.PathLike) -> Repo | str | os.PathLike:
    """The repository that a path names; else the path, without 'hf:' if it names a directory."""
    if not is_spec(path):
        return path
    spec = str(path)
    directory = os.path.expanduser(spec.removeprefix(PREFIX))
    if os.path.isdir(directory):
        return directory
    match = _MODEL.fullmatch(spec.removeprefix(PREFIX))
    if not match:
        raise HubError(
            f'{spec!r}: there is no directory {directory!r}, and models of the Hub are called hf:OWNER/NAME or '
            'hf:OWNER/NAME@REVISION'
        )
    return Repo(spec, 'model', match['name'], match['revision'] or '')


def _snapshot(repo: Repo, patterns: tuple[str, ...]) -> str:
    import huggingface_hub

    with explain_errors(repo):
        return huggingface_hub.snapshot_download(
            repo.name,
            repo_type=repo.kind,
            revision=repo.revision or None,
            allow_patterns=list(patterns),
            ignore_patterns=list(_LEFT),
            tqdm_class=_bounded_progress(),
            endpoint=_api().endpoint,
        )


@functools.cache
def _bounded_progress() -> type:
    """A progress bar that ends a download which begins again and again, as the library never would."""
    from huggingface_hub.utils import tqdm

    class Progress(tqdm):
        restarts = 0

        def update(self, n: float | None = 1) -> bool | None:
            if n is not None and n < 0:  # what had come was thrown away
                self.restarts += 1
                if self.restarts > _RESTARTS:
                    raise OSError(f'the transfer broke off {_RESTARTS} times, and the server cannot resume it')
            return super().update(n)

    return Progress


class _Stream(io.RawIOBase):
    """The content of one file of a repository, by requests for ranges; repeated when they fail."""

    def __init__(self, repo: Repo, commit: str, entry: Entry):
        import huggingface_hub

        self._repo, self._entry, self._position = repo, entry, 0
        self._url = huggingface_hub.hf_hub_url(
            repo.name, entry.path, repo_type=repo.kind, revision=commit, endpoint=_api().endpoint
        )

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._entry.size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        start, stop = self._position, min(self._position + len(buffer), self._entry.size)
        if start >= stop:
            return 0
        data = self._fetch(start, stop)
        buffer[: len(data)] = data
        self._position = stop
        return len(data)

    def _fetch(self, start: int, stop: int) -> bytes:
        from huggingface_hub import constants, utils

        headers: Mapping[str, str] = {**utils.build_hf_headers(), 'Range': f'bytes={start}-{stop - 1}'}
        with explain_errors(self._repo, self._entry.path):
            response = utils.http_backoff('GET', self._url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
            utils.hf_raise_for_status(response)
            data = response.content if response.status_code == 206 else response.content[start:stop]
            if len(data) != stop - start:
                raise OSError(f'bytes {start} to {stop} were asked for and {len(data)} came')
        return data


def _api() -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi(endpoint=os.environ.get('HF_ENDPOINT', '').rstrip('/') or None)


def _broken(where: str, cause: str) -> HubError:
    return HubError(f'{where}: the transfer broke off: {cause}; start again: what is in the cache is kept')


def _first_line(error: BaseException) -> str:
    """What an error says before it explains itself over several lines."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip('.') if lines else type(error).__name__
