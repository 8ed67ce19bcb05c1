"""Trace steps of a run for xprof and print its longest operations: profile_run runs/quickstart --steps 10:15"""

import argparse
import os
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='profile_run', description=__doc__, allow_abbrev=False)
    parser.add_argument('run_dir', help='a run directory with a checkpoint')
    parser.add_argument('--steps', type=cli.span, default=(3, 5), metavar='10:15', help='counted from the checkpoint')
    parser.add_argument('--top', type=int, default=15, help='operations to print')
    cli.add_debug(parser)
    args = parser.parse_args(argv)
    from llm_jax.metrics import profile
    from llm_jax.train.profiling import profile_run

    first, last = args.steps
    ops = profile_run(args.run_dir, first, last)
    cli.print_table(f'steps {first} to {last}', profile.table(ops, last - first + 1, args.top))
    print(f'for the timeline: xprof --logdir {os.path.join(args.run_dir, "profile")}')


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
