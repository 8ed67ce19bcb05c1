"""A peer of bench_decode: llama2.c, compiled from a `run.c` at hand, on random weights of a shape."""

import pathlib
import re
import resource
import struct
import subprocess
from typing import Any

import numpy as np


class Llama2c:
    """The compiled program and its files, in a directory outside of the tree.

    Attributes:
      name: what is compared.
    """

    name = 'llama2.c, gcc -O3 -march=native -ffast-math, one thread'

    def __init__(self, source: pathlib.Path, fields: dict[str, Any], context: int, directory: pathlib.Path) -> None:
        """Compiles `source` and writes a model and a tokenizer for it.

        Raises:
          subprocess.CalledProcessError: the compiler fails.
        """
        self._directory, self._context = directory, context
        command = ['cc', '-O3', '-march=native', '-ffast-math', '-o', directory / 'run', source, '-lm']
        subprocess.run(command, check=True)
        self._write_model(fields)
        self._write_tokenizer(fields['vocab_size'])

    def step(self) -> float:
        """CPU seconds of a token, of those after the first."""
        short, long = self._run(8), self._run(self._context)
        return (long - short) / (self._context - 8)

    def _run(self, n: int) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            ['./run', 'model.bin', '-t', '0', '-n', str(n)], cwd=self._directory, capture_output=True, check=True
        )
        if not re.search(rb'tok/s', done.stderr):
            raise ValueError(f'llama2.c said {done.stderr[-300:]!r}')
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

    def _write_model(self, fields: dict[str, Any]) -> None:
        D, F, N, H, V = (fields[name] for name in ('d_model', 'd_ff', 'n_layers', 'n_heads', 'vocab_size'))
        rng = np.random.default_rng(0)
        sizes = [V * D, N * D, *[N * D * D] * 4, N * D, *[N * D * F] * 3, D, 2 * self._context * (D // H) // 2]
        with (self._directory / 'model.bin').open('wb') as file:
            file.write(struct.pack('7i', D, F, N, H, H, V, self._context))
            for size in sizes:
                file.write(rng.normal(scale=0.02, size=size).astype(np.float32).tobytes())

    def _write_tokenizer(self, vocab_size: int) -> None:
        with (self._directory / 'tokenizer.bin').open('wb') as file:
            file.write(struct.pack('i', 8))
            for i in range(vocab_size):
                text = bytes([i]) if 31 < i < 127 else f'<{i}>'.encode()
                file.write(struct.pack('fi', 0.0, len(text)) + text)
