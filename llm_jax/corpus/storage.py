"""Files of a run: whole or not there at all, on a local disk or in a bucket."""

from collections.abc import Iterator
import contextlib
import dataclasses
import functools
import json
import os
import shutil
from typing import Any, BinaryIO

import fsspec
from fsspec.implementations.local import LocalFileSystem

from llm_jax.config.schema import ConfigError
from llm_jax.data import files


@dataclasses.dataclass(frozen=True)
class Store:
    """Files below one directory, named by their path within it.

    A file is written beside its place and then renamed (a bucket has this of itself), so
    that a process killed at any time leaves nothing that looks complete.

    Attributes:
      root: a local directory, or a gs:// or s3:// one.
    """

    root: str

    @functools.cached_property
    def _place(self) -> tuple[fsspec.AbstractFileSystem, str]:
        return files.filesystem(self.root)

    @property
    def is_local(self) -> bool:
        return isinstance(self._place[0], LocalFileSystem)

    def path(self, name: str) -> str:
        """Where a file is, as its file system names it."""
        return f'{self._place[1]}/{name}' if name else self._place[1]

    def inside(self, name: str) -> 'Store':
        """The store of a subdirectory."""
        return Store(f'{self.root.rstrip("/")}/{name}')

    def exists(self, name: str) -> bool:
        return self._place[0].exists(self.path(name))

    def names(self, name: str = '') -> list[str]:
        """What is directly inside a directory, in order; nothing if there is no such directory."""
        fs, path = self._place[0], self.path(name)
        if not fs.exists(path):
            return []
        return sorted(os.path.basename(entry.rstrip('/')) for entry in fs.ls(path, detail=False))

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file for reading; positions can be sought.

        Raises:
          ConfigError: it is not there or cannot be read.
        """
        path = self.path(name)
        try:
            with self._place[0].open(path, 'rb') as stream:
                yield stream
        except OSError as error:
            fix = 'remove it and run the same command again'
            raise ConfigError(f'cannot read {path}: {_reason(error)}; {fix}') from error

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Opens a file for writing; it is there when the block has ended without an error.

        Raises:
          ConfigError: the disk is full, or the place cannot be written to.
        """
        fs, path = self._place[0], self.path(name)
        if not self.is_local:
            with self._explained(path), fs.open(path, 'wb') as stream:
                yield stream
            return
        partial = f'{os.path.dirname(path)}/.{os.path.basename(path)}.{os.getpid()}.partial'
        try:
            with self._explained(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                with open(partial, 'wb') as stream:
                    yield stream
                os.replace(partial, path)
        except BaseException:
            with contextlib.suppress(OSError):  # it was never made
                os.remove(partial)
            raise

    def read(self, name: str) -> bytes:
        with self.reading(name) as stream:
            return stream.read()

    def write(self, name: str, data: bytes) -> None:
        with self.writing(name) as stream:
            stream.write(data)

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except json.JSONDecodeError as error:
            raise ConfigError(
                f'{self.path(name)} is damaged ({error}); remove it and run the same command again'
            ) from error

    def write_json(self, name: str, value: Any, *, indent: int | None = None) -> None:
        text = json.dumps(value, indent=indent, sort_keys=indent is None, ensure_ascii=False)
        self.write(name, (text + '\n').encode('utf-8', 'backslashreplace'))

    def take(self, name: str, local: str) -> None:
        """Moves a local file in."""
        path = self.path(name)
        with self._explained(path):
            if self.is_local:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                shutil.move(local, f'{path}.partial')
                os.replace(f'{path}.partial', path)
            else:
                self._place[0].put_file(local, path)
                os.remove(local)

    def copy_to(self, name: str, other: 'Store', new_name: str) -> None:
        """Puts a file into another store as well: as a second name of it where the disk can do that."""
        source, target = self.path(name), other.path(new_name)
        with self._explained(target):
            if not (self.is_local and other.is_local):
                with self.reading(name) as stream, other.writing(new_name) as out:
                    shutil.copyfileobj(stream, out, 1 << 22)
                return
            os.makedirs(os.path.dirname(target), exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                os.remove(target)
            try:
                os.link(source, target)
            except OSError:  # another disk, or one without links
                shutil.copyfile(source, f'{target}.partial')
                os.replace(f'{target}.partial', target)

    def remove(self, name: str) -> None:
        """Removes a file or a directory with all that is in it; nothing if it is not there."""
        if self.exists(name):
            self._place[0].rm(self.path(name), recursive=True)

    def replace(self, old: str, new: str) -> None:
        """Puts directory `old` in the place of `new`, whatever was there."""
        self.remove(new)
        if self.is_local:
            os.replace(self.path(old), self.path(new))
        else:
            self._place[0].mv(self.path(old), self.path(new), recursive=True)

    @contextlib.contextmanager
    def _explained(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigError(
                f'cannot write {path}: {_reason(error)}; make room, or choose another place with --config.out or '
                '--config.work. What is finished is kept: the same command goes on from there'
            ) from error


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
