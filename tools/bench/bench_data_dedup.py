"""Speed and memory of the exchanges that find duplicates, against other libraries in the same run.

    ./tools/run bench_data_dedup FILE.jsonl[.gz|.zst] [--peers=PYTHON]

FILE has one document per line, its text under "text". MB/s are of UTF-8 text per CPU second
of one core, all rounds of an exchange together; the index is what is stored at once on the
way, sorted by key. Memory is the peak of a process that takes shards of the texts one
by one and keeps records on disk: once of FILE, once of ten times as much, with other words.
PYTHON is an interpreter with datatrove, datasketch and rensa (tools/bench/peers/minhash.py).
"""

import argparse
from collections.abc import Iterator
import itertools
import json
import pathlib
import string
import subprocess
import sys
import tempfile
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import dedup
from llm_jax.corpus.document import Document
from llm_jax.corpus.exchange import ADDRESSED, Exchange, in_order
from llm_jax.data import files

_PEER_BYTES, _SHARD_BYTES, _ROUNDS = 4_000_000, 4_000_000, 3


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_data_dedup', __doc__)
    parser.add_argument('file', type=pathlib.Path, help='JSON lines with a text under "text"')
    parser.add_argument('--peers', help='interpreter that has the peers')
    parser.add_argument('--peak', help=argparse.SUPPRESS)  # NAME:COPIES, in a process of its own
    args = parser.parse(argv)
    if args.peak:
        name, copies = args.peak.split(':')
        print(json.dumps(peak(args.file, name, int(copies))))
        return
    texts = list(read(args.file))
    if not texts:
        raise ConfigError(f'no text in {args.file}')
    Console().print(speeds(texts), memory(args.file))
    if args.peers:
        Console().print(against(texts, args.peers))


def read(file: pathlib.Path) -> Iterator[str]:
    """The texts of a file."""
    return (line['text'] for line in files.read_json_lines(str(file), 'FILE', ('text',)))


def shards(texts: Iterator[str]) -> Iterator[list[Document]]:
    shard, size = [], 0
    for i, text in enumerate(texts):
        shard.append(Document(str(i), 'bench', '', text, 'text'))
        size += len(text)
        if size >= _SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def speeds(texts: list[str]) -> Table:
    """MB/s of whole exchanges, and what each stores."""
    table = Table('exchange', 'MB/s/core', 'index bytes a document', 'a word', 'share dropped')
    n_words = sum(len(text.split()) for text in texts)
    for name in dedup.EXCHANGES:
        speed, stored, dropped = speed_of(name, texts)
        cells = f'{speed:.1f}', f'{stored / len(texts):.0f}', f'{stored / n_words:.2f}'
        table.add_row(name, *cells, f'{dropped / len(texts):.4f}')
    return table


def speed_of(name: str, texts: list[str]) -> tuple[float, int, int]:
    """(MB per CPU second of a whole exchange, bytes stored at once, documents dropped)."""
    exchange, parts = dedup.EXCHANGES[name](dedup.OPTIONS[name]()), list(shards(iter(texts)))
    best = float('inf')
    for _ in range(_ROUNDS):
        start = time.process_time()
        stored, dropped = in_memory(exchange, parts)
        best = min(best, time.process_time() - start)
    return sum(len(text.encode()) for text in texts) / 1e6 / best, stored, dropped


def in_memory(exchange: Exchange, parts: list[list[Document]]) -> tuple[int, int]:
    """(bytes of the round that stores most, documents dropped)."""
    received = [np.empty(0, ADDRESSED) for _ in parts]
    stored = 0
    for step in exchange.rounds:
        records = np.concatenate([step.emit(i, part, received[i]) for i, part in enumerate(parts)])
        stored = max(stored, records.nbytes)
        messages = in_order(step.resolve(in_order(records)))
        edges = np.searchsorted(messages['shard'], np.arange(len(parts) + 1))
        received = [messages[a:b] for a, b in itertools.pairwise(edges)]
    out = [x for i, part in enumerate(parts) for x in exchange.apply(i, part, received[i])]
    return stored, sum(not isinstance(x, Document) for x in out)


def memory(file: pathlib.Path) -> Table:
    """Peak memory at one and at ten times the data."""
    table = Table('exchange', 'peak MB', 'at ten times the data', 'growth', 'of which all pairs at once')
    for name in dedup.EXCHANGES:
        command = [sys.executable, __file__, str(file), '--peak']
        once, tenfold = (
            json.loads(subprocess.run([*command, f'{name}:{n}'], check=True, stdout=subprocess.PIPE).stdout)
            for n in (1, 10)
        )
        cells = f'{once[0]:.0f}', f'{tenfold[0]:.0f}', f'{tenfold[0] / once[0]:.2f}', f'{tenfold[1]:.1f} MB'
        table.add_row(name, *cells)
    return table


def peak(file: pathlib.Path, name: str, copies: int) -> tuple[float, float]:
    """(peak MB, MB of records that had to be in one place), with shards read one by one and records on disk."""
    exchange = dedup.EXCHANGES[name](dedup.OPTIONS[name]())
    count = sum(1 for _ in shards(many(file, copies)))
    together = 0
    with tempfile.TemporaryDirectory() as directory:
        store = pathlib.Path(directory)
        for number, step in enumerate(exchange.rounds):
            ranges = 1 if step.together else count
            for i, part in enumerate(shards(many(file, copies))):
                received = gather(store, f'{number - 1}-*-to-{i}') if number else np.empty(0, ADDRESSED)
                records = in_order(step.emit(i, part, received))
                to = ((records['key'] >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32)).astype(np.int64)
                scatter(store, f'{number}-{i}-range', records, to, ranges)
            for k in range(ranges):
                records = in_order(gather(store, f'{number}-*-range-{k}'))
                together = max(together, records.nbytes if step.together else 0)
                messages = in_order(step.resolve(records))
                scatter(store, f'{number}-{k}-to', messages, messages['shard'].astype(np.int64), count)
        for i, part in enumerate(shards(many(file, copies))):
            for _ in exchange.apply(i, part, in_order(gather(store, f'{number}-*-to-{i}'))):
                pass
    # Not getrusage's figure, which a process takes over from the one that started it.
    status = pathlib.Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) / 1e3, together / 1e6


def scatter(store: pathlib.Path, name: str, records: np.ndarray, to: np.ndarray, count: int) -> None:
    edges = np.searchsorted(to, np.arange(count + 1))
    for k, (a, b) in enumerate(itertools.pairwise(edges)):
        np.save(store / f'{name}-{k}.npy', records[a:b])


def gather(store: pathlib.Path, pattern: str) -> np.ndarray:
    return np.concatenate([np.load(path) for path in sorted(store.glob(f'{pattern}.npy'))])


def many(file: pathlib.Path, copies: int) -> Iterator[str]:
    """The texts again and again, each time with other letters, so that all are new."""
    letters = string.ascii_lowercase
    for i in range(copies):
        table = str.maketrans(letters, letters[i:] + letters[:i])
        for text in read(file):
            yield text.translate(table) if i else text


def against(texts: list[str], python: str) -> Table:
    """MB/s of signatures, measured in turns."""
    part = first(texts, _PEER_BYTES)
    size = sum(len(text.encode()) for text in part) / 1e6
    seconds = race(part, python)
    table = Table('signatures, 112 hashes of word 5-grams', 'MB/s/core', 'documents/s/core', 'llm_jax is')
    for name, best in seconds.items():
        ratio = f'{best / seconds["llm_jax"]:.1f} × as fast'
        table.add_row(name, f'{size / best:.2f}', f'{len(part) / best:.0f}', ratio)
    return table


def first(texts: list[str], most: int) -> list[str]:
    """The first texts, of so many bytes."""
    part, size = [], 0
    while size < most and len(part) < len(texts):
        part.append(texts[len(part)])
        size += len(part[-1].encode())
    return part


def race(texts: list[str], python: str) -> dict[str, float]:
    """Least CPU seconds of the signatures of all texts, by 'llm_jax' and by each peer."""
    with tempfile.NamedTemporaryFile('w', suffix='.jsonl') as file:
        file.writelines(json.dumps({'text': text}) + '\n' for text in texts)
        file.flush()
        peer = subprocess.Popen(
            [python, str(pathlib.Path(__file__).parent / 'peers' / 'minhash.py'), file.name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        seconds = {name: [] for name in ['llm_jax', *json.loads(peer.stdout.readline())]}
        step = dedup.EXCHANGES['near'](dedup.Near()).rounds[0]
        documents = [Document(str(i), 'bench', '', text, 'text') for i, text in enumerate(texts)]
        for _ in range(_ROUNDS):
            for name, measured in seconds.items():
                if name == 'llm_jax':
                    start = time.process_time()
                    in_order(step.emit(0, documents, np.empty(0, ADDRESSED)))
                    measured.append(time.process_time() - start)
                else:
                    print(name, file=peer.stdin, flush=True)
                    measured.append(float(peer.stdout.readline()))
        peer.stdin.close()
        peer.wait()
    return {name: min(measured) for name, measured in seconds.items()}


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
