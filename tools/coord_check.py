"""Check muP: do activations change alike at every width? coord_check experiments/X.py [--widths 64,128,256]"""

import pathlib
import shlex
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('coord_check', __doc__)
    parser.add_argument('experiment', help='the experiment file; its optimizer and peak learning rate are used')
    parser.add_argument('--widths', type=cli.sizes, default=[64, 128, 256, 512], help='values of model.d_model')
    parser.add_argument('--steps', type=cli.at_least(1), default=6, help='training steps')
    parser.add_argument('--seeds', type=cli.at_least(1), default=2, help='how many initial values')
    parser.add_argument('--grow', choices=('heads', 'd_head'), default='heads', help='more heads, or wider ones')
    parser.add_argument('--workdir', help='where coord_check.html is written; default runs/<name of the experiment>')
    known, fields = parser.parse_with_config(argv)
    config = cli.experiment(known.experiment, fields)
    from llm_jax.data.prepare import prepare  # imports JAX: errors in the config come first, and at once
    from llm_jax.lab.coord_check import check
    from llm_jax.lab.widths import training_batches
    from llm_jax.report import coord_check as report

    prepared = prepare(config.data, config.seed)
    result = check(
        config, training_batches(prepared, config, known.steps + 1), vocab_size=prepared.tokenizer.vocab_size,
        bos_id=prepared.tokenizer.bos_id, widths=known.widths, seeds=known.seeds, grow=known.grow,
        progress=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    directory = pathlib.Path(known.workdir or pathlib.Path('runs') / config.name)
    command = shlex.join(['./tools/run', 'coord_check', *argv])
    page = report.write(directory, result.numbers, sentence=result.sentence, command=command)
    table = report.tabulate(result.numbers)
    cli.print_table(table.title, table.lines)
    print(result.sentence)
    print(f'wrote {page}')
    if not result.passed:
        sys.exit(1)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
