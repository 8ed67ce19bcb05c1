"""Writes report.html and report.md of a run: `report runs/quickstart`."""

import argparse
import sys

from llm_jax import report
from llm_jax.config.schema import ConfigError


def main() -> int:
    parser = argparse.ArgumentParser(prog='report', description=__doc__)
    parser.add_argument('run_dir', help='the directory that train wrote, such as runs/quickstart')
    run_dir = parser.parse_args().run_dir
    try:
        report.write_report(run_dir)
    except ConfigError as error:
        print(f'report: {error}', file=sys.stderr)
        return 2
    print(f'wrote {run_dir.rstrip("/")}/report.html and report.md')
    return 0


if __name__ == '__main__':
    sys.exit(main())
