"""Quality and speed of the extraction of main text from web pages, by method.

    ./tools/run bench_data_extract DIR [--every=1]

DIR holds `web/` with the three collections of pages whose main text is known: word F1 by
kind of page on the Web Content Extraction Benchmark's development pages; word F1 on the
test pages of Mozilla's Readability; and on trafilatura's own pages the share of segments
that were to be found and were, and of those that were not and were not. The default
method was fitted to the first of the three, so there its figures are too good: what it
reaches on pages it has not seen is what `tools/run train_main_text` prints.

Speed is CPU time per page, methods and the libraries under them taking turns page by page.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
import gzip
import io
import json
import pathlib
import re
import sys
import tarfile
import time

import numpy as np
from rich.console import Console
from rich.table import Table
import zstandard

from llm_jax.config import cli
from llm_jax.corpus.document import Document, Raw
from llm_jax.corpus.extract import EXTRACTORS, Extract
from llm_jax.corpus.extract.html import METHODS
from llm_jax.data import files

_WORD = re.compile(r'\w+')
_TAG = re.compile(r'<[^>]+>')
_TIMED = 100


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_data_extract', __doc__)
    parser.add_argument('data', type=pathlib.Path, help='directory that holds web/')
    parser.add_argument('--every', type=cli.at_least(1), default=1, help='only every n-th page')
    parser.add_argument('--methods', nargs='+', choices=list(METHODS), default=list(METHODS), help='methods to compare')
    arguments = parser.parse(argv)
    web, console = arguments.data / 'web', Console()
    methods = {name: method(name) for name in arguments.methods}
    pages = list(wcxb(web))[:: arguments.every]
    table = Table('word F1', *methods, title=f'Web Content Extraction Benchmark, {len(pages)} pages')
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for page in pages:
        if page['main_content']:
            for name, extract in methods.items():
                score = f1(extract(page['html'], page['url'] or ''), page['main_content'])
                scores[page['page_type']][name].append(score)
                scores['all'][name].append(score)
    for kind, by_method in sorted(scores.items()):
        table.add_row(kind, *(f'{np.mean(by_method[name]):.3f}' for name in methods))
    console.print(table)

    known = list(readability(web))[:: arguments.every]
    table = Table('word F1', *methods, title=f'Readability, {len(known)} pages')
    cells = [np.mean([f1(extract(page, ''), truth) for page, truth in known]) for extract in methods.values()]
    table.add_row('all', *(f'{cell:.3f}' for cell in cells))
    console.print(table)

    marked = list(segments(web))[:: arguments.every]
    table = Table('segments', *methods, title=f"trafilatura's pages, {len(marked)} pages")
    found = {name: np.zeros(4) for name in methods}
    for page, present, absent in marked:
        for name, extract in methods.items():
            text = ' '.join(extract(page, '').split())
            hits = sum(' '.join(s.split()) in text for s in present)
            kept = sum(' '.join(s.split()) in text for s in absent)
            found[name] += hits, len(present), kept, len(absent)
    table.add_row('wanted, found', *(f'{f[0] / f[1]:.3f}' for f in found.values()))
    table.add_row('unwanted, left out', *(f'{1 - f[2] / f[3]:.3f}' for f in found.values()))
    table.add_row('F1', *(f'{2 * f[0] / (f[0] + f[1] + f[2]):.3f}' for f in found.values()))
    console.print(table)
    console.print(speeds([page['html'] for page in pages[:: max(1, len(pages) // _TIMED)]]))


def method(name: str) -> Callable[[str, str], str]:
    """The whole extractor with this method: (page, address) -> text."""
    extract = EXTRACTORS['html'](Extract(html=name))

    def text(page: str, url: str) -> str:
        result = extract(Raw('bench#0', 'bench', url, page, 'html'))
        return result.text if isinstance(result, Document) else ''

    return text


def speeds(pages: list[str]) -> Table:
    spent = race(pages)
    characters = sum(map(len, pages))
    columns = ('ms per page', 'MB/s', "library's own ms", 'speed / library', 'speed / trafilatura')
    table = Table('method', *columns, title=f'{len(pages)} pages, {characters / len(pages) / 1e3:.0f} kB each')
    for name in METHODS:
        alone = spent.get(f'{name} alone')
        table.add_row(
            name, f'{spent[name] / len(pages) * 1e3:.1f}', f'{characters / spent[name] / 1e6:.1f}',
            f'{alone / len(pages) * 1e3:.1f}' if alone else '', f'{alone / spent[name]:.2f}' if alone else '',
            f'{spent["trafilatura alone"] / spent[name]:.2f}',
        )  # fmt: skip
    return table


def race(pages: list[str]) -> dict[str, float]:
    """CPU seconds over all pages of each method, and as 'METHOD alone' of the library under it."""
    from resiliparse.extract.html2text import extract_plain_text
    import trafilatura

    libraries = {
        'trafilatura': trafilatura.extract,
        'trafilatura_fast': lambda page: trafilatura.extract(page, fast=True),
        'resiliparse': lambda page: extract_plain_text(page, main_content=True),
        'visible': extract_plain_text,
    }
    ours = {name: method(name) for name in METHODS}
    spent: Counter[str] = Counter()
    for page in pages:
        for name, extract in ours.items():
            spent[name] += seconds(lambda extract=extract, page=page: extract(page, ''))
            if name in libraries:
                spent[f'{name} alone'] += seconds(lambda page=page, name=name: libraries[name](page))
    return spent


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def f1(text: str, truth: str) -> float:
    found, true = (Counter(_WORD.findall(t.lower())) for t in (text, truth))
    both = (found & true).total()
    return 2 * both / (found.total() + true.total()) if both else 0.0


def wcxb(web: pathlib.Path) -> Iterator[dict]:
    fields = 'html', 'url', 'main_content', 'page_type'
    return files.read_json_lines(str(web / 'wcxb_dev.jsonl.zst'), 'DIR', fields)


def readability(web: pathlib.Path) -> Iterator[tuple[str, str]]:
    """(page, text of what Firefox's reader shows of it)."""
    pages = dict(members(web / 'readability_test_pages.tar.zst'))
    for name in sorted(pages):
        if name.endswith('/source.html'):
            expected = pages[name.replace('source.html', 'expected.html')].decode()
            yield pages[name].decode('utf-8', 'replace'), _TAG.sub(' ', expected)


def segments(web: pathlib.Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """(page, segments that are of its main text, segments that are not)."""
    pages = {name.rsplit('/', 1)[-1]: data for name, data in members(web / 'trafilatura_eval_html.tar.zst')}
    known = json.loads(gzip.decompress((web / 'trafilatura_eval_annotations.json.gz').read_bytes()))
    for _, entry in sorted(known.items()):
        if entry['file'] in pages:
            yield pages[entry['file']].decode('utf-8', 'replace'), entry['with'], entry['without']


def members(path: pathlib.Path) -> Iterator[tuple[str, bytes]]:
    with path.open('rb') as file, tarfile.open(fileobj=unpacked(file), mode='r|') as tar:
        for member in tar:
            if member.isfile():
                yield member.name, tar.extractfile(member).read()


def unpacked(file: io.BufferedReader) -> io.RawIOBase:
    return zstandard.ZstdDecompressor(max_window_size=1 << 28).stream_reader(file)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
