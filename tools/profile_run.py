"""Trace steps of a run for xprof and print its longest operations: profile_run runs/quickstart --steps 10:15"""

import os
import sys

from llm_jax.config import cli


def main(argv: list[str]) -> None:
    parser = cli.Parser('profile_run', __doc__)
    parser.add_argument('run_dir', help='a run directory with a checkpoint')
    parser.add_argument('--steps', type=cli.span, default=(3, 5), metavar='10:15', help='counted from the checkpoint')
    parser.add_argument('--top', type=cli.at_least(1), default=15, help='operations to print')
    args = parser.parse(argv)
    from llm_jax.metrics import profile
    from llm_jax.train.profiling import profile_run

    first, last = args.steps
    ops = profile_run(args.run_dir, first, last)
    cli.print_table(f'steps {first} to {last}', profile.table(ops, last - first + 1, args.top))
    print(f'for the timeline: xprof --logdir {os.path.join(args.run_dir, "profile")}')


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
