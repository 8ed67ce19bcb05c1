"""Print an experiment: its model as a tree with shapes, counts, costs and sharding, and its config.

./tools/run show experiments/gpt2_124m.py --devices 8
"""

import argparse
import sys

import rich.console

from llm_jax import cli
from llm_jax import config as config_lib
from llm_jax.report import show
from llm_jax.report.model import summarise


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='show', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('experiment', help='the experiment file, e.g. experiments/quickstart.py')
    parser.add_argument(
        '--devices', type=int, default=1, help='how many devices the mesh is laid over (none is needed)'
    )
    cli.add_debug(parser)
    known, rest = parser.parse_known_args(argv)
    experiment = config_lib.load_experiment(known.experiment)
    config_lib.apply_overrides(experiment, cli.overrides(rest))
    config = config_lib.validate(experiment)
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 160  # what goes into a file is not cut
    console.print(show.config_table(config))
    vocab_size = config.model.vocab_size or config.data.tokenizer.vocab_size
    console.print(show.model_tree(summarise(config, known.devices, vocab_size)))


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
