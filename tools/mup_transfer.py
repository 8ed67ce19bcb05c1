"""Best learning rate against width, without muP and with it: mup_transfer experiments/lab/mup_transfer.py"""

import pathlib
import shlex
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('mup_transfer', __doc__)
    parser.add_argument('experiment', help='the experiment file; its schedule, optimizer and data are used')
    parser.add_argument('--widths', type=cli.sizes, default=[64, 128, 256], help='values of model.d_model')
    parser.add_argument(
        '--log2-rates',
        type=cli.integers,
        default=[-10, -9, -8, -7, -6, -5],
        help='of learning rates; --log2-rates=-9,-8,-7',
    )
    parser.add_argument('--held-out', type=cli.at_least(1), default=16, help='batches that the loss is measured on')
    parser.add_argument('--workdir', help='where mup_transfer.html is written; default runs/<name of the experiment>')
    known, fields = parser.parse_with_config(argv)
    config = cli.experiment(known.experiment, fields)
    from llm_jax.data.prepare import prepare  # imports JAX: errors in the config come first, and at once
    from llm_jax.lab.transfer import sweep
    from llm_jax.lab.widths import training_batches
    from llm_jax.report import transfer as report
    from llm_jax.train.setup import Steps

    prepared = prepare(config.data, config.seed)
    steps = Steps.of(config, prepared.count('train')).total
    batches = training_batches(prepared, config, steps + known.held_out)  # the last are not trained on
    result = sweep(
        config, batches[:steps], batches[steps:], vocab_size=prepared.tokenizer.vocab_size,
        bos_id=prepared.tokenizer.bos_id, widths=known.widths, rates=[2.0**k for k in known.log2_rates],
        progress=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    directory = pathlib.Path(known.workdir or pathlib.Path('runs') / config.name)
    command = shlex.join(['./tools/run', 'mup_transfer', *argv])
    page = report.write(directory, result.numbers, sentence=result.sentence, command=command)
    table = report.tabulate(result.numbers)
    cli.print_table(table.title, table.lines)
    print(result.sentence)
    print(f'wrote {page}')


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
