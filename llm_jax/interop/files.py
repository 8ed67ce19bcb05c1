"""safetensors directories: one file or numbered shards with an index."""

from collections.abc import Iterable
import json
import math
import os
import pathlib
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from llm_jax.config.schema import ConfigError
from llm_jax.models.layouts import Shape

INDEX = 'model.safetensors.index.json'
DTYPES = {'float32': np.dtype(np.float32), 'bfloat16': np.dtype(ml_dtypes.bfloat16)}
_READABLE = ('F32', 'BF16', 'F16')


class Reader:
    """The tensors of a directory; only what is asked for is read.

    Attributes:
      shapes: by name.
    """

    def __init__(self, directory: str | os.PathLike, *, only: str = ''):
        """Opens all files, or only the one of this name.

        Raises:
          ConfigError: no weights, a damaged file, or a dtype that is not a plain float.
        """
        self.directory = pathlib.Path(directory)
        self.shapes: dict[str, Shape] = {}
        self._files: dict[str, safe_open] = {}
        for file in [only] if only else self._names():
            path = self.directory / file
            try:
                opened = safe_open(path, framework='numpy')
            except (SafetensorError, FileNotFoundError) as error:
                raise ConfigError(f'{path} cannot be read as safetensors: {error}') from error
            for name in opened.keys():  # noqa: SIM118 - it is no dict
                if name in self._files:
                    raise ConfigError(
                        f'tensor {name!r} is in {file} and in another file of {self.directory}, and no {INDEX} says '
                        'which counts: move one of the two sets of weights elsewhere'
                    )
                piece = opened.get_slice(name)
                if piece.get_dtype() not in _READABLE:
                    raise ConfigError(
                        f'tensor {name!r} of {path} is {piece.get_dtype()}; only {", ".join(_READABLE)} can be read: '
                        'take the weights before they were quantised'
                    )
                self.shapes[name] = tuple(piece.get_shape())
                self._files[name] = opened

    def fetch(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """A piece of a tensor, in its own dtype."""
        return self._files[name].get_slice(name)[index]

    def _names(self) -> list[str]:
        index = self.directory / INDEX
        if index.exists():
            where = read_object(index).get('weight_map')
            if not isinstance(where, dict) or not where or not all(_is_file_name(name) for name in where.values()):
                raise ConfigError(
                    f'{index} has no "weight_map" from names of tensors to names of files beside it; copy it again'
                )
            return sorted(set(where.values()))
        found = sorted(path.name for path in self.directory.glob('*.safetensors'))
        if not found:
            others = sorted(p.name for p in self.directory.glob('*') if p.suffix in ('.bin', '.pt', '.pth', '.gguf'))
            hint = f'; {", ".join(others)} cannot be read' if others else ''
            raise ConfigError(f'{self.directory} has no *.safetensors{hint}')
        return found


def read_object(file: pathlib.Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      ConfigError: it holds something else.
    """
    try:
        value = json.loads(file.read_text(encoding='utf-8'))
    except ValueError as error:
        raise ConfigError(f'{file} is not valid JSON: {error}; copy it again') from error
    if not isinstance(value, dict):
        raise ConfigError(f'{file} holds no JSON object but a {type(value).__name__}; copy it again')
    return value


def _is_file_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ('', '.', '..') and pathlib.PurePath(name).name == name


def write(
    directory: str | os.PathLike, shapes: dict[str, Shape], tensors: Iterable[tuple[str, np.ndarray]], dtype: str,
    max_bytes: int,
) -> None:  # fmt: skip
    """Writes tensors as they come, one file in memory at a time.

    Args:
      directory: where to.
      shapes: of all tensors, in their order: how many files there are is in their names.
      tensors: (name, array) in the same order.
      dtype: of what is written, 'float32' or 'bfloat16'.
      max_bytes: largest file, unless one tensor is larger.

    Raises:
      ConfigError: an unknown dtype.
    """
    if dtype not in DTYPES:
        raise ConfigError(f'dtype {dtype!r} cannot be written; use {" or ".join(DTYPES)}')
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    files: list[dict[str, int]] = [{}]
    for name, shape in shapes.items():
        size = math.prod(shape) * DTYPES[dtype].itemsize
        if files[-1] and sum(files[-1].values()) + size > max_bytes:
            files.append({})
        files[-1][name] = size
    file_name = lambda i: 'model.safetensors' if len(files) == 1 else f'model-{i + 1:05}-of-{len(files):05}.safetensors'
    stream = iter(tensors)
    for i, names in enumerate(files):
        held = {}
        for wanted in names:
            name, value = next(stream)
            assert name == wanted, (name, wanted)
            held[name] = np.ascontiguousarray(value.astype(DTYPES[dtype]))
        save_file(held, directory / file_name(i), metadata={'format': 'pt'})
    if len(files) > 1:
        total = sum(sum(names.values()) for names in files)
        where = {name: file_name(i) for i, names in enumerate(files) for name in names}
        index = {'metadata': {'total_size': total}, 'weight_map': where}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + '\n')
