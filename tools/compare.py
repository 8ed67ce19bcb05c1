"""Scores of runs side by side, with paired differences: compare runs/A runs/B (evaluated on the same tasks)"""

import pathlib
import sys

from llm_jax.config import cli
from llm_jax.config.schema import ConfigError


def main(argv: list[str]) -> None:
    parser = cli.Parser('compare', __doc__)
    parser.add_argument('runs', nargs='+', type=pathlib.Path, help='run directories, or what evaluate --out wrote')
    args = parser.parse(argv)
    if len(args.runs) < 2:
        raise ConfigError('one run alone is nothing to compare; give two or more')
    from llm_jax.evals.compare import compare_runs

    found = compare_runs(args.runs)
    header = ['task', 'metric', str(args.runs[0])]
    for run in args.runs[1:]:
        header += [str(run), 'difference', '95 %', 'wins : losses']
    table = [header]
    for (task, metric), entries in found.items():
        row = [task, metric, f'{entries[0][0]["value"]:.4f}']
        for entry, difference in entries[1:]:
            row.append(f'{entry["value"]:.4f}')
            if difference is None:
                row += ['', '', '']
                continue
            low, high = difference.interval
            mark = ' *' if difference.is_clear else ''
            row += [
                f'{difference.value:+.4f}{mark}', f'{low:+.3f} to {high:+.3f}',
                f'{difference.wins} : {difference.losses}',
            ]  # fmt: skip
        table.append(row)
    cli.print_table('differences to the first run, over the same items; * its interval leaves 0 out', table)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
