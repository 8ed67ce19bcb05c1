"""Write report.html and report.md of a run: report runs/quickstart"""

import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('report', __doc__)
    parser.add_argument('run_dir', help='the directory that train wrote, such as runs/quickstart')
    args = parser.parse(argv)
    from llm_jax import report  # imports JAX and matplotlib: a mistake in the arguments comes first, and at once

    report.write_report(args.run_dir)
    print(f'wrote {args.run_dir.rstrip("/")}/report.html and report.md')


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
