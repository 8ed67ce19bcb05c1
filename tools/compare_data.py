"""Which corpus makes the better model: compare_data experiments/lab/ablation.py CORPUS ... --held_out NAME=SOURCE"""

import pathlib
import shlex
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('compare_data', __doc__)
    parser.add_argument('experiment', help='what is trained on each corpus')
    parser.add_argument('corpora', nargs='+', help='directories that prepare_data made, with one tokenizer')
    parser.add_argument(
        '--held_out', action='append', required=True, metavar='NAME=SOURCE', help='as in data.sources: wiki=text:FILE'
    )
    parser.add_argument('--seeds', type=cli.at_least(1), default=3, help='runs of each corpus (3)')
    parser.add_argument(
        '--max_bytes', type=cli.at_least(0), default=500_000, help='of each held-out text; 0 takes all (500000)'
    )
    parser.add_argument('--workdir', help='of the runs and the page; default runs/<name of the experiment>')
    args, fields = parser.parse_with_config(argv)
    config = cli.experiment(args.experiment, fields)
    specs = cli.named(args.held_out, '--held_out')

    from llm_jax.evals import texts
    from llm_jax.lab import compare_data  # imports JAX: a mistake in the arguments comes first, and at once
    from llm_jax.report import comparison as report

    directory = pathlib.Path(args.workdir or f'runs/{config.name}')
    result = compare_data.compare(
        config, args.corpora, texts.read_texts(specs, args.max_bytes), directory, seeds=args.seeds,
        progress=lambda text: print(text, flush=True),
    )  # fmt: skip
    page = report.write(directory, result.numbers, command=shlex.join(['./tools/run', 'compare_data', *argv]))
    table = report.tabulate(result.numbers)
    cli.print_table(table.title, table.lines)
    print(f'wrote {page}')


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
