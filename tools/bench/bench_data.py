"""Speed and memory of the corpus pipeline against its targets, in one table: bench_data DIR [--peers=PYTHON]

DIR is laid out as LLM_JAX_DATA for experiments/data/mixed.py: web/ has pages, wikipedia/ prose, bench/ benchmarks.
MB/s are of UTF-8 text (of pages, characters of HTML) per CPU second of one core. A peer takes turns with
llm_jax on the same texts in the same run; PYTHON is an interpreter with datatrove, spacy, datasketch and rensa,
and without it the peers are left out. Memory is the peak of one worker in each step of a whole build, once of some
text and once of ten times as much with other words.

The parts by themselves say more: bench_data_read, bench_data_extract, bench_data_filter, bench_data_dedup.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import bench_data_dedup
import bench_data_extract
import bench_data_filter
import numpy as np
from rich.console import Console
from rich.table import Table
import sentencepiece

from llm_jax import tokenizer
from llm_jax.config import cli, schema
from llm_jax.config.schema import ConfigError
from llm_jax.corpus import chain, decontaminate
from llm_jax.corpus import schema as corpus_schema
from llm_jax.corpus.document import Document
from llm_jax.corpus.engines import ExchangeStep, Progress, Step
from llm_jax.corpus.engines.local import Local
from llm_jax.data import pack

_TEXT_BYTES, _PEER_BYTES, _MEMORY_BYTES, _SHARD_BYTES = 8_000_000, 1_000_000, 4_000_000, 1_000_000
_PAGES, _ROUNDS, _VOCAB, _SEQ_LEN = 60, 3, 8192, 512
# Peak memory at ten times the data over that at once that counts as the same.
_GROWTH = 1.25


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_data', __doc__)
    parser.add_argument('data', type=pathlib.Path, help='laid out as for experiments/data/mixed.py')
    parser.add_argument('--peers', default='', help='interpreter that has the peers')
    parser.add_argument('--only', nargs='+', choices=list(PARTS), default=list(PARTS), help='parts to measure')
    parser.add_argument(
        '--peak', type=cli.at_least(1), help=argparse.SUPPRESS
    )  # copies of a file, in a process of its own
    args = parser.parse(argv)
    if args.peak:
        print(json.dumps(peaks(args.data, args.peak)))
        return
    files = sorted((args.data / 'wikipedia').glob('*.jsonl.zst'))
    if not files:
        raise ConfigError(f'{args.data}/wikipedia/*.jsonl.zst: there is no such file; name a directory as for mixed.py')
    texts = bench_data_dedup.first(list(bench_data_dedup.read(files[0])), _TEXT_BYTES)
    table = Table('part', 'measured', 'target', 'peer', 'ratio', 'target', 'met')
    for name in args.only:
        for row in PARTS[name](args.data, texts, args.peers):
            table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


Row = tuple[str, str, str, str, str, str, str]


def row(part: str, speed: float, wanted: float, peer: str = '', ratio: float = 0.0, wanted_ratio: float = 0.0) -> Row:
    """A line of the table; a wanted figure of 0 is none."""
    met = speed >= wanted and (not peer or ratio >= wanted_ratio)
    cells = f'{ratio:.2f}' if peer else '', f'{wanted_ratio:g}' if peer and wanted_ratio else ''
    return part, f'{speed:.2f} MB/s', f'{wanted:g} MB/s' if wanted else '', peer, *cells, 'yes' if met else 'NO'


def extraction(data: pathlib.Path, texts: Sequence[str], peers: str) -> Iterator[Row]:
    pages = [page['html'] for page in bench_data_extract.wcxb(data / 'web')]
    pages = pages[:: max(1, len(pages) // _PAGES)]
    spent, size = bench_data_extract.race(pages), sum(map(len, pages)) / 1e6
    for name in bench_data_extract.METHODS:
        # The default one is no library's: it is compared with the one that people use.
        peer = name if f'{name} alone' in spent else 'trafilatura'
        ratio = spent[f'{peer} alone'] / spent[name]
        yield row(f'extraction, {name}', size / spent[name], 0, f'{peer} itself', ratio, 0.95)


def filters(data: pathlib.Path, texts: Sequence[str], peers: str) -> Iterator[Row]:
    some = bench_data_dedup.first(texts, _PEER_BYTES)
    stages = [module.make(module.Options()) for module in bench_data_filter.GROUPS.values()]
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / 'texts.json').write_text(json.dumps(some))
        peer = bench_data_filter.start_peer(peers, directory) if peers else None
        for _ in range(_ROUNDS):
            ours.append(bench_data_filter.all_filters(stages, some))
            if peer:
                print('time', file=peer.stdin, flush=True)
                theirs.append(json.loads(peer.stdout.readline()))
        if peer:
            peer.stdin.close()
            peer.wait()
    ratio = min(theirs) / min(ours) if peers else 0.0
    name = f'filters: {", ".join(bench_data_filter.GROUPS)}'
    yield row(name, _size(some) / min(ours), 2.5, peers and 'datatrove', ratio, 15)


def near_duplicates(data: pathlib.Path, texts: Sequence[str], peers: str) -> Iterator[Row]:
    some = bench_data_dedup.first(texts, _PEER_BYTES)
    spent = bench_data_dedup.race(some, peers) if peers else {}
    speed, stored, _ = bench_data_dedup.speed_of('near', list(texts))
    ratio = spent['datatrove'] / spent['llm_jax'] if peers else 0.0
    yield row('near duplicates, all rounds', speed, 8, peers and 'datatrove', ratio, 10)
    yield 'index of near duplicates', f'{stored / len(texts):.0f} bytes a document', '', '', '', '', ''


def other_duplicates(data: pathlib.Path, texts: Sequence[str], peers: str) -> Iterator[Row]:
    for name in ('exact', 'lines', 'substrings'):
        yield row(f'duplicates: {name}', bench_data_dedup.speed_of(name, list(texts))[0], 0)


def benchmarks(data: pathlib.Path, texts: Sequence[str], peers: str) -> Iterator[Row]:
    found = {file.name.partition('.')[0]: str(file) for file in sorted((data / 'bench').glob('*.jsonl.gz'))}
    with tempfile.TemporaryDirectory() as directory:
        stage = decontaminate.make(decontaminate.Decontaminate(benchmarks=found, cache_dir=directory))
        documents = _documents(texts)
        yield row(f'decontamination, {len(found)} files', _size(texts) / _best(lambda: _consume(stage, documents)), 8)


def rows(data: pathlib.Path, texts: Sequence[str], peers: str) -> Iterator[Row]:
    tok = tokenizer.train(schema.Tokenizer(vocab_size=_VOCAB, sample_bytes=2_000_000), texts, seed=0)
    with tempfile.TemporaryDirectory() as directory:
        tok.save(directory)
        # As a worker does it: in batches, from a tokenizer that has seen no text yet.
        batches = [bench_data_dedup.first(texts[i : i + 500], _TEXT_BYTES) for i in range(0, len(texts), 500)]
        model = sentencepiece.SentencePieceProcessor(model_file=f'{directory}/tokenizer.model')

        def ours() -> None:
            fresh = tokenizer.load(directory)
            ids = (np.asarray(one, np.uint16) for batch in batches for one in fresh.encode_batch(batch))
            for _ in pack.best_fit(ids, seq_len=_SEQ_LEN, bos_id=fresh.bos_id, vocab_size=fresh.vocab_size):
                pass

        mine, theirs = _best(ours), _best(lambda: [model.encode(batch) for batch in batches])
    yield row('tokenise and pack', _size(texts) / mine, 5, 'SentencePiece alone', theirs / mine, 1)


def memory(data: pathlib.Path, texts: Sequence[str], peers: str) -> Iterator[Row]:
    some = bench_data_dedup.first(texts, _MEMORY_BYTES)
    with tempfile.NamedTemporaryFile('w', suffix='.jsonl') as file:
        file.writelines(json.dumps({'text': text}) + '\n' for text in some)
        file.flush()
        command = [sys.executable, __file__, file.name, '--peak']
        once, tenfold = (
            json.loads(subprocess.run([*command, str(n)], check=True, stdout=subprocess.PIPE).stdout) for n in (1, 10)
        )
    for step, before in once.items():
        growth = tenfold[step] / before
        cells = f'{tenfold[step]:.0f} MB', '', f'{before:.0f} MB for a tenth', f'{growth:.2f}', f'{_GROWTH:g}'
        yield f'peak memory: {step}', *cells, 'yes' if growth <= _GROWTH else 'NO'


class _Measured(Local):
    """One worker, this process itself; remembers the peak of memory of each step."""

    def __init__(self):
        super().__init__(1)
        self.peaks: dict[str, float] = {}

    def map(self, step: Step, items: Sequence[Any], progress: Progress) -> None:
        name = getattr(step, 'field', type(step).__name__)
        if name.startswith('_'):  # a part of an exchange
            super().map(step, items, progress)
        else:
            self._measured(name, lambda: super(_Measured, self).map(step, items, progress))

    def exchange(self, step: ExchangeStep, progress: Progress) -> None:
        self._measured(step.name, lambda: super(_Measured, self).exchange(step, progress))

    def _measured(self, name: str, work: Callable[[], None]) -> None:
        pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak begins anew
        work()
        status = pathlib.Path('/proc/self/status').read_text()
        self.peaks[name] = int(status.split('VmHWM:')[1].split()[0]) / 1e3


def peaks(file: pathlib.Path, copies: int) -> dict[str, float]:
    """Step -> peak MB of a build of so many copies of the texts, each with other letters."""
    from llm_jax.corpus.build import build

    with tempfile.TemporaryDirectory() as directory:
        source = pathlib.Path(directory) / 'texts.jsonl'
        with source.open('w') as lines:
            lines.writelines(json.dumps({'text': text}) + '\n' for text in bench_data_dedup.many(file, copies))
        config = corpus_schema.default()
        config.name, config.out = 'bench', f'{directory}/out'
        config.sources = {'texts': {'path': str(source)}}
        config.stages = ('normalise', 'language', 'scrub')
        config.language.keep, config.language.min_score = (), 0.0  # with other letters, words are of no language
        config.dedup = ('exact', 'near', 'lines', 'substrings')
        config.shard_bytes = _SHARD_BYTES
        config.tokenizer.vocab_size, config.tokenizer.sample_bytes = 2048, 1_000_000
        config.packing.seq_len = _SEQ_LEN
        engine = _Measured()
        build(corpus_schema.validate(config), engine)
    return engine.peaks


def _size(texts: Sequence[str]) -> float:
    return sum(len(text.encode()) for text in texts) / 1e6


def _documents(texts: Sequence[str]) -> list[Document]:
    return [Document(str(i), 'bench', '', text, 'text') for i, text in enumerate(texts)]


def _consume(stage: Any, documents: Sequence[Document]) -> None:
    for start in range(0, len(documents), 500):
        chain.through(stage, documents[start : start + 500])


def _best(work: Callable[[], object]) -> float:
    """Least CPU seconds."""
    best = float('inf')
    for _ in range(_ROUNDS):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


PARTS = {
    'extraction': extraction, 'filters': filters, 'near': near_duplicates, 'duplicates': other_duplicates,
    'decontamination': benchmarks, 'rows': rows, 'memory': memory,
}  # fmt: skip


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
