"""Print an experiment or a published model as a tree with shapes, counts, costs and sharding.

./tools/run show experiments/pretrain/gpt2_124m.py --devices 8
./tools/run show llama:3.1-8b --devices 8 --config.mesh.tensor=2
"""

import argparse
import sys

import rich.console

from llm_jax import config as config_lib
from llm_jax import models
from llm_jax.config import cli
from llm_jax.data.prepare import model_vocab_size
from llm_jax.report import show
from llm_jax.report.model import summarise


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='show', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('experiment', help='an experiment file, or a published model such as llama:3.1-8b')
    parser.add_argument(
        '--devices', type=int, default=1, help='how many devices the mesh is laid over (none is needed)'
    )
    cli.add_debug(parser)
    known, rest = parser.parse_known_args(argv)
    load = config_lib.load_experiment if known.experiment.endswith('.py') else models.experiment
    config = cli.experiment(known.experiment, rest, load)
    console = rich.console.Console()
    if not console.is_terminal:
        console.width = 160  # what goes into a file is not cut
    console.print(show.config_table(config))
    console.print(show.model_tree(summarise(config, known.devices, model_vocab_size(config))))


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
