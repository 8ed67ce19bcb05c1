"""Benchmarks and bits per byte: evaluate runs/X --tasks hellaswag,piqa --data DIR, or --text code=text:FILE"""

from collections.abc import Mapping
import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError


def main(argv: list[str]) -> None:
    parser = cli.Parser('evaluate', __doc__)
    parser.add_argument('run_dir', help='of a run, e.g. runs/quickstart, or a Hugging Face directory')
    parser.add_argument(
        '--text', action='append', default=[], metavar='NAME=SOURCE', help='as in data.sources: wiki=text:FILE'
    )
    parser.add_argument(
        '--max_bytes', type=cli.at_least(0), default=0, help='of each text, from its beginning; default all'
    )
    parser.add_argument('--seq_len', type=cli.at_least(0), default=0, help='tokens of a row; default as in training')
    parser.add_argument('--step', type=cli.at_least(0), help='of the checkpoint; default the newest')
    parser.add_argument('--json', type=pathlib.Path, help='a file to write the figures to as well')
    parser.add_argument('--tasks', default='', help='benchmarks by name, separated by commas')
    parser.add_argument(
        '--data', action='append', default=[], metavar='DIR', help='files of the benchmarks: DIR or hf:OWNER/NAME'
    )
    parser.add_argument('--limit', type=cli.at_least(0), default=0, help='first items of each task; 0 takes all (0)')
    parser.add_argument('--shots', type=cli.at_least(0), help="examples before each question; default the task's own")
    parser.add_argument(
        '--samples', type=cli.at_least(1), default=1, help='texts of each prompt, for pass@k, maj@k (1)'
    )
    parser.add_argument('--temperature', type=float, help='of the draws; default 0 for one sample, else 0.8')
    parser.add_argument('--max_new_tokens', type=cli.at_least(1), help="of a text; default the task's own")
    parser.add_argument('--seed', type=cli.at_least(0), default=0, help='the same seed draws the same texts (0)')
    parser.add_argument(
        '--rolling', action='append', default=[], metavar='NAME=SOURCE', help='as --text, each document by itself'
    )
    parser.add_argument('--out', type=pathlib.Path, help='where items and results go; default RUN/evals')
    args, fields = parser.parse_with_config(argv)
    specs = cli.named(args.text, '--text') if args.text else {}
    rolling = cli.named(args.rolling, '--rolling') if args.rolling else {}
    tasks = [name for name in args.tasks.split(',') if name]
    if not tasks and not specs and not rolling:
        raise ConfigError('nothing to evaluate: give --tasks with --data, or --text or --rolling NAME=SOURCE')
    if tasks and not args.data:
        raise ConfigError(f'--tasks {args.tasks} needs --data DIR, the directory with the files of the benchmarks')
    out = args.out or pathlib.Path(args.run_dir) / 'evals'
    if tasks and not args.out and not pathlib.Path(args.run_dir).is_dir():
        raise ConfigError(f'--tasks: {args.run_dir} is no directory here that could keep results; give --out DIR')

    from llm_jax.evals import texts  # imports JAX: a mistake in the arguments comes first, and at once
    from llm_jax.evals.devices import open_model
    from llm_jax.evals.run import Evaluation, Options
    from llm_jax.evals.sources import Sources
    from llm_jax.evals.tasks import find_task
    from llm_jax.interop.hf import is_hf
    from llm_jax.report import write_report
    from llm_jax.runs import load

    chosen = {name: find_task(name) for name in tasks}
    read = texts.read_texts(specs, args.max_bytes)
    documents = texts.read_texts(rolling, args.max_bytes)
    where = {'step': args.step, 'max_seq_len': args.seq_len or None}
    report: dict[str, Any] = {}
    if read:
        loaded = load(args.run_dir, **where)
        scores = {name: texts.score(loaded, some, seq_len=args.seq_len) for name, some in read.items()}
        report |= {name: dataclasses.asdict(score) for name, score in scores.items()}
        rows = [
            [name, f'{s.bits_per_byte:.4f}', f'{s.perplexity:.2f}', f'{s.bytes:,}', f'{s.tokens:,}', f'{s.documents:,}']
            for name, s in scores.items()
        ]
        header = ['text', 'bits per byte', 'perplexity of a token', 'bytes', 'tokens', 'documents']
        cli.print_table(f'{args.run_dir}, step {loaded.step}', [header, *rows])
    if documents or chosen:
        options = Options(args.limit, args.shots, args.samples, args.temperature, args.max_new_tokens, args.seed)
        with open_model(args.run_dir, cli.overrides(fields), **where) as loaded:
            evaluation = Evaluation(loaded, Sources(args.data), options)
            for name, some in documents.items():
                size = sum(len(text.encode()) for text in some)
                bits = -sum(evaluation.roll(some)) / math.log(2) / size
                report[name] = {'bits_per_byte': bits, 'bytes': size, 'documents': len(some)}
            report |= {name: evaluation.run(task, out) for name, task in chosen.items()}
            title = f'{args.run_dir}, step {loaded.step}'
            if not evaluation.writes:
                return
    for name in documents:
        print(f'{name}: {report[name]["bits_per_byte"]:.4f} bits per byte, {len(documents[name]):,} documents alone')
    if chosen:
        table = [['task', 'metric', 'score', 'stderr', '95 %', 'chance', 'items', 'cut']]
        table += [_row(name, metric, report[name]) for name in chosen for metric in report[name]['main']]
        cli.print_table(title, table)
        for name in chosen:
            if missing := report[name].get('missing'):
                done = len(report[name]['tasks'])
                print(f'{name}: the mean of {done} of {done + len(missing)} tasks; no data of {", ".join(missing)}')
        if not args.out and not is_hf(args.run_dir):
            write_report(out.parent)
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


def _row(name: str, metric: str, results: Mapping[str, Any]) -> list[str]:
    entry = results['metrics'][metric]
    interval = ' to '.join(f'{bound:.3f}' for bound in entry.get('interval', []))
    chance = '' if results['chance'] is None else f'{results["chance"]:g}'
    stderr = '' if entry['stderr'] is None else f'{entry["stderr"]:.4f}'
    return [
        name,
        metric,
        f'{entry["value"]:.4f}',
        stderr,
        interval,
        chance,
        f'{results["n"]:,}',
        str(results['truncated']),
    ]


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
