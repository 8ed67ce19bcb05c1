"""Perplexity beyond the training length, for each kind of position: extrapolate experiments/lab/extrapolation.py"""

import pathlib
import shlex
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('extrapolate', __doc__)
    parser.add_argument('experiment', help='the experiment file; data.seq_len is the length of training')
    parser.add_argument('--lengths', type=cli.sizes, help='default: the length of training, times 2, 4 and 8')
    parser.add_argument(
        '--rows', type=cli.at_least(1), default=64, help='rows of the longest length that perplexity is taken over'
    )
    parser.add_argument('--workdir', help='where extrapolation.html is written; default runs/<name of the experiment>')
    known, fields = parser.parse_with_config(argv)
    config = cli.experiment(known.experiment, fields)
    from llm_jax.data.prepare import prepare  # imports JAX: errors in the config come first, and at once
    from llm_jax.lab.extrapolate import extrapolate, longer_rows
    from llm_jax.lab.widths import training_batches
    from llm_jax.report import extrapolation as report
    from llm_jax.train.setup import Steps

    prepared = prepare(config.data, config.seed)
    lengths = sorted(known.lengths or [config.data.seq_len * n for n in (1, 2, 4, 8)])
    batches = training_batches(prepared, config, Steps.of(config, prepared.count('train')).total)
    result = extrapolate(
        config, batches, longer_rows(prepared, lengths[-1], known.rows)[:, None],
        vocab_size=prepared.tokenizer.vocab_size, bos_id=prepared.tokenizer.bos_id, lengths=lengths,
        progress=lambda text: print(text, file=sys.stderr),
    )  # fmt: skip
    directory = pathlib.Path(known.workdir or pathlib.Path('runs') / config.name)
    command = shlex.join(['./tools/run', 'extrapolate', *argv])
    page = report.write(directory, result.numbers, sentence=result.sentence, command=command)
    table = report.tabulate(result.numbers)
    cli.print_table(table.title, table.lines)
    print(result.sentence)
    print(f'wrote {page}')


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
