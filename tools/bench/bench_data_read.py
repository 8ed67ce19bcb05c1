"""Speed of the corpus readers, against what the libraries below them do with the same files.

    ./tools/run bench_data_read

Each format holds the texts of the standard library; megabytes of text and documents
per CPU second of one core, in turns with the peer in the same run. The peer only gets
at the bytes: it finds no encoding, counts nothing, and stops at damage.
"""

from collections.abc import Callable, Iterator
import gzip
import io
import json
import pathlib
import sys
import tarfile
import tempfile
import time

from fastwarc.warc import ArchiveIterator
import pyarrow
import pyarrow.parquet
from rich.console import Console
from rich.table import Table
import zstandard

from llm_jax.config import cli
from llm_jax.corpus.document import Raw
from llm_jax.corpus.read.source import Source, open_source

_ROUNDS = 5


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_data_read', __doc__)
    parser.add_argument('--path', default='stdlib', help='what the formats hold the texts of, as sources.X.path')
    parser.add_argument('--rounds', type=cli.at_least(1), default=_ROUNDS, help='timed runs of each (5)')
    args = parser.parse(argv)
    records = (record for one in open_source('s', Source(path=args.path)) for record in one.read())
    texts = [record.content for record in records if isinstance(record, Raw)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    table = Table('reader', 'documents/s', 'MB/s', 'peer MB/s', 'peer', 'ratio')
    with tempfile.TemporaryDirectory() as directory:
        root = pathlib.Path(directory)
        for name, peer_name, source, peer in _cases(root, texts):
            mine, theirs = _in_turns(lambda source=source: _count(source), peer, args.rounds)
            speeds = f'{size / mine:.0f}', f'{size / theirs:.0f}', peer_name, f'{theirs / mine:.2f}'
            table.add_row(name, f'{len(texts) / mine:,.0f}', *speeds)
    Console().print(table)


def _cases(root: pathlib.Path, texts: list[str]) -> Iterator[tuple[str, str, Source, Callable[[], object]]]:
    """(format, name of the peer, source, the peer's run) of each."""
    pages = [f'<html><body><pre>{text}</pre></body></html>'.encode() for text in texts]
    for name in ('a.warc.gz', 'b.warc'):
        _write_warc(root / name, pages)
        peer = lambda path=root / name: [record.reader.read() for record in ArchiveIterator(path.open('rb'))]
        yield f'WARC ({name[1:]})', 'FastWARC', Source(path=str(root / name)), peer
        try:
            import warcio
        except ImportError:
            continue
        peer = lambda path=root / name: [r.content_stream().read() for r in warcio.ArchiveIterator(path.open('rb'))]
        yield f'WARC ({name[1:]})', 'warcio', Source(path=str(root / name)), peer
    lines = ''.join(json.dumps({'text': text}) + '\n' for text in texts).encode()
    for suffix, data in (('', lines), ('.gz', gzip.compress(lines)), ('.zst', zstandard.compress(lines))):
        path = root / f'c.jsonl{suffix}'
        path.write_bytes(data)
        yield f'JSON lines{suffix}', 'json', Source(path=str(path)), lambda path=path: [*map(json.loads, _lines(path))]
    pyarrow.parquet.write_table(pyarrow.table({'text': texts}), root / 'd.parquet', compression='zstd')
    peer = lambda: pyarrow.parquet.read_table(root / 'd.parquet')['text'].to_pylist()
    yield 'Parquet', 'pyarrow', Source(path=str(root / 'd.parquet')), peer
    _write_tar(root / 'e.tar.zst', texts)
    yield 'tar.zst of code', 'tarfile', Source(path=str(root / 'e.tar.zst')), lambda: _members(root / 'e.tar.zst')
    (root / 'tree').mkdir()
    for i, text in enumerate(texts):
        (root / f'tree/{i}.py').write_text(text)
    peer = lambda: [path.read_text() for path in (root / 'tree').iterdir()]
    yield 'tree of code', 'read_text', Source(path=str(root / 'tree')), peer


def _count(source: Source) -> int:
    return sum(isinstance(record, Raw) for one in open_source('s', source) for record in one.read())


def _in_turns(ours: Callable[[], object], peer: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Least CPU seconds of both."""
    best = [float('inf')] * 2
    for _ in range(rounds):
        for k, work in enumerate((ours, peer)):
            start = time.process_time()
            work()
            best[k] = min(best[k], time.process_time() - start)
    return best[0], best[1]


def _write_warc(path: pathlib.Path, pages: list[bytes]) -> None:
    with path.open('wb') as file:
        for i, page in enumerate(pages):
            block = b'HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n' + page
            header = (
                f'WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{i:012}>\r\n'
                f'WARC-Target-URI: http://x/{i}\r\nContent-Type: application/http; msgtype=response\r\n'
                f'Content-Length: {len(block)}\r\n\r\n'
            )
            record = header.encode() + block + b'\r\n\r\n'
            file.write(gzip.compress(record) if path.suffix == '.gz' else record)


def _write_tar(path: pathlib.Path, texts: list[str]) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as tar:
        for i, text in enumerate(texts):
            info = tarfile.TarInfo(f'{i}.py')
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    path.write_bytes(zstandard.compress(buffer.getvalue()))


def _members(path: pathlib.Path) -> list[str]:
    with (
        path.open('rb') as file,
        zstandard.ZstdDecompressor().stream_reader(file) as plain,
        tarfile.open(fileobj=plain, mode='r|', bufsize=1 << 16) as tar,
    ):
        return [tar.extractfile(member).read().decode() for member in tar]


def _lines(path: pathlib.Path) -> Iterator[bytes]:
    opener = {'.gz': gzip.open, '.zst': zstandard.open}.get(path.suffix, open)
    with opener(path, 'rb') as file:
        yield from io.BufferedReader(file, 1 << 20) if path.suffix == '.zst' else file


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
