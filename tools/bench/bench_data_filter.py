"""Speed and verdicts of the prose filters against datatrove's, in turns on the same texts.

    ./tools/run bench_data_filter [--texts=FILE.jsonl.gz ...] [--limit=1000] [--peer=PYTHON]

A file has one JSON object with a 'text' per line. Without one, the standard library's
documentation strings stand in. datatrove is installed once into an environment of its
own, or --peer names a Python that has it. CPU time of one process each; the two take
turns, so that a busy machine slows both.
"""

import inspect
import itertools
import json
import os
import pathlib
import pkgutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError
from llm_jax.corpus.document import Document, Dropped, Stage
from llm_jax.corpus.filter import c4, fineweb, gopher, repetition
from llm_jax.data import files

ROOT = pathlib.Path(__file__).resolve().parents[2]
PEERS = ROOT / '.venv-peers-datatrove'
GROUPS = {'gopher': gopher, 'repetition': repetition, 'c4': c4, 'fineweb': fineweb}


def read_texts(texts: list[pathlib.Path], limit: int) -> list[str]:
    """The first `limit` texts of each file."""
    out = []
    for file in texts:
        records = itertools.islice(files.read_json_lines(str(file), '--texts'), limit)
        out += [record.get('text') or record.get('main_content') or '' for record in records]
    return out


def documentation_strings() -> list[str]:
    """What the modules of the standard library say about themselves."""
    names = [module.name for module in pkgutil.iter_modules([os.path.dirname(inspect.__file__)])]
    sources = [pathlib.Path(inspect.__file__).with_name(f'{name}.py') for name in names]
    return ['\n\n'.join(s.read_text(encoding='utf-8').split('"""')[1::2]) for s in sources if s.is_file()]


def all_filters(stages: list[Stage], texts: list[str]) -> float:
    """CPU seconds of the stages over the texts, each until one drops it."""
    start = time.process_time()
    for text in texts:
        document = _document(text)
        for stage in stages:
            document = stage(document)
            if isinstance(document, Dropped):
                break
    return time.process_time() - start


def verdicts(texts: list[str]) -> dict[str, list[str]]:
    """For each group, why it drops each text; '' where it does not."""
    stages = {name: module.make(module.Options()) for name, module in GROUPS.items()}
    found = {name: [stage(_document(text)) for text in texts] for name, stage in stages.items()}
    return {k: [f'{d.reason} {d.detail}' if isinstance(d, Dropped) else '' for d in v] for k, v in found.items()}


def start_peer(python: str, directory: str) -> subprocess.Popen:
    """datatrove in an environment of its own, waiting for its tasks."""
    if not python:
        python = str(PEERS / 'bin' / 'python')
        if not (PEERS / '.installed').exists():
            print(f'setting up {PEERS} with datatrove (once)', file=sys.stderr)
            venv.create(PEERS, with_pip=True, clear=True)
            packages = ['datatrove[processing]', 'spacy']
            subprocess.run([python, '-m', 'pip', 'install', '-q', *packages], check=True)
            (PEERS / '.installed').touch()
    environment = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    command = [python, ROOT / 'tools/bench/peers/datatrove_filters.py', directory]
    peer = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if not (name := peer.stdout.readline().strip()):
        raise ConfigError('the peer did not start; see its message above')
    print(name)
    return peer


def main(argv: list[str]) -> None:
    parser = cli.Parser('bench_data_filter', __doc__)
    parser.add_argument('--texts', type=pathlib.Path, action='append', default=[], help='JSON lines')
    parser.add_argument('--limit', type=cli.at_least(1), default=1000, help='texts of each file (1000)')
    parser.add_argument('--rounds', type=cli.at_least(1), default=3, help='timed runs of each (3)')
    parser.add_argument('--peer', default='', help='a Python with datatrove')
    parser.add_argument(
        '--differences', type=cli.at_least(0), default=0, help='how many differing texts to show per group'
    )
    args = parser.parse(argv)
    texts = read_texts(args.texts, args.limit) if args.texts else documentation_strings()
    size = sum(len(text.encode()) for text in texts) / 1e6

    with tempfile.TemporaryDirectory() as directory:
        (pathlib.Path(directory) / 'texts.json').write_text(json.dumps(texts))
        peer = start_peer(args.peer, directory)

        def ask(task: str):
            print(task, file=peer.stdin, flush=True)
            return json.loads(peer.stdout.readline())

        stages = [module.make(module.Options()) for module in GROUPS.values()]
        all_filters(stages, texts[:20])
        times = [(all_filters(stages, texts), ask('time')) for _ in range(args.rounds)]
        ours, theirs = verdicts(texts), {words: ask(f'verdicts {words}') for words in ('own', 'whitespace')}
        peer.stdin.close()
        peer.wait()

    for name, column in zip(('llm_jax', 'datatrove'), zip(*times, strict=True), strict=True):
        print(f'{name:>10} {len(texts) / min(column):8.0f} documents/s {size / min(column):8.2f} MB/s of CPU time')
    ratio = statistics.median(peer_time / own for own, peer_time in times)
    print(f'llm_jax / datatrove, median of {args.rounds} rounds: {ratio:.1f}')
    print(f'{"same verdict":>14} {"own words":>12} {"same words":>12}   dropped by llm_jax, of {len(texts)}')
    for group, reasons in ours.items():
        same = {w: sum((r == '') == k for r, k in zip(reasons, theirs[w][group], strict=True)) for w in theirs}
        shares = [f'{n / len(texts):12.4f}' for n in same.values()]
        print(f'{group:>14} {" ".join(shares)}   {sum(map(bool, reasons))}')
        differing = [i for i, r in enumerate(reasons) if (r == '') != theirs['whitespace'][group][i]]
        for i in differing[: args.differences]:
            print(f'    {reasons[i] or "kept"}: {texts[i][:200]!r}')


def _document(text: str) -> Document:
    return Document(id='', source='', where='', text=text, kind='html')


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
