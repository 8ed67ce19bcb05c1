"""Speed of the input pipeline, against limits measured in the same run.

    ./tools/run bench_input

Reading: packed rows of the standard library in training order, tokens per second of
one core, against gathering the same rows from a memory-mapped array. Preparing: bytes
per second of encoding and packing on one thread, against encoding alone.
"""

from collections.abc import Callable, Iterator
import pathlib
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from llm_jax.config import cli, schema

if TYPE_CHECKING:
    from llm_jax.data.prepare import Prepared

_BATCH, _SECONDS, _ROUNDS = 64, 1.0, 3


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_input', __doc__)
    parser.add_argument('--source', default='stdlib', help="of the rows, as in data.sources: 'text:FILE' (stdlib)")
    args = parser.parse(argv)
    from rich.console import Console
    from rich.table import Table

    from llm_jax.data import prepare

    table = Table('input pipeline', 'measured', 'limit', 'limit is', 'ratio')
    with tempfile.TemporaryDirectory() as directory:
        for seq_len in (256, 1024):
            config = schema.Data(sources={'text': args.source}, seq_len=seq_len, cache_dir=f'{directory}/cache')
            prepared = prepare.prepare(config, seed=0)
            mine, limit = read_speeds(prepared, pathlib.Path(directory) / f'{seq_len}.npy')
            table.add_row(f'read rows, L = {seq_len}', *_cells(mine, limit, 'Mtok/s/core', 'memmap gather'))
        mine, limit = prepare_speeds(prepared, config)
        table.add_row('tokenise and pack', *_cells(mine, limit, 'MB/s/core', 'encoding alone'))
    Console().print(table)


def read_speeds(prepared: 'Prepared', path: pathlib.Path) -> tuple[float, float]:
    """(tokens per CPU second of training batches, of the same gather from a memory map), in millions."""
    import numpy as np

    from llm_jax.data import batches as batches_lib

    rows = batches_lib.TrainRows(prepared, {}, seed=0, batch_size=_BATCH)
    (stored,) = prepared.rows('train').values()
    np.save(path, stored.read(np.arange(len(stored))).astype(np.uint16))
    memory = np.load(path, mmap_mode='r')
    order = np.random.default_rng(0).permutation(len(memory))
    gather = lambda i: memory[np.take(order, range(i * _BATCH, (i + 1) * _BATCH), mode='wrap')].astype(np.int32)
    group = rows.steps_per_read
    ours = lambda i: rows.read(i * group, (i + 1) * group)
    limit = lambda i: [gather(step) for step in range(i * group, (i + 1) * group)]
    return _alternating(ours, limit, group * _BATCH * prepared.manifest['seq_len'] / 1e6)


def prepare_speeds(prepared: 'Prepared', config: schema.Data) -> tuple[float, float]:
    """(bytes per CPU second of encoding and packing, of encoding alone), in millions."""
    from llm_jax.corpus.read.plain import open_sources
    from llm_jax.data import pack

    tok = prepared.tokenizer
    ((source,), _) = open_sources(config)
    texts = list(source.documents('test'))

    def encode() -> Iterator[list[int]]:
        yield from tok.encode_batch(texts)

    def rows(_: int) -> None:
        options = {'seq_len': config.seq_len, 'bos_id': tok.bos_id, 'vocab_size': tok.vocab_size}
        for _row in pack.pack(encode(), keep_tail=False, **options):
            pass

    return _alternating(rows, lambda _: list(encode()), sum(len(text.encode()) for text in texts) / 1e6)


def _alternating(ours: Callable, limit: Callable, amount: float) -> tuple[float, float]:
    """Best amount per CPU second of both, measured in turns so that a busy machine slows both."""
    best = [0.0, 0.0]
    for _ in range(_ROUNDS):
        for k, work in enumerate((ours, limit)):
            work(0)
            start, calls = time.process_time(), 0
            while (spent := time.process_time() - start) < _SECONDS / _ROUNDS:
                work(calls)
                calls += 1
            best[k] = max(best[k], calls * amount / spent)
    return best[0], best[1]


def _cells(mine: float, limit: float, unit: str, name: str) -> tuple[str, ...]:
    return f'{mine:.1f} {unit}', f'{limit:.1f} {unit}', name, f'{mine / limit:.2f}'


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
