"""Train an experiment, or go on with it: train experiments/quickstart.py [--config.a.b=value ...]"""

import argparse
import pathlib
import sys

from llm_jax import cli


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='train', description=__doc__, allow_abbrev=False)
    parser.add_argument('experiment', help='the experiment file, e.g. experiments/quickstart.py')
    parser.add_argument('--workdir', help='the run directory; default runs/<name of the experiment>')
    cli.add_debug(parser)
    known, rest = parser.parse_known_args(argv)
    config = cli.experiment(known.experiment, rest)
    from llm_jax.train.loop import train  # imports JAX: errors in the config come first, and at once

    train(config, known.workdir or pathlib.Path('runs') / config.name, experiment=known.experiment)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
