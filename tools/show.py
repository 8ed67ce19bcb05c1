"""Print an experiment's resolved config, with what each field means."""

import argparse
import sys

import rich.console
import rich.table

from llm_jax import cli
from llm_jax import config as config_lib
from llm_jax.schema import Config


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='show', description=__doc__, allow_abbrev=False)
    parser.add_argument('experiment', help='the experiment file, e.g. experiments/quickstart.py')
    cli.add_debug(parser)
    known, rest = parser.parse_known_args(argv)
    config = config_lib.load_experiment(known.experiment)
    config_lib.apply_overrides(config, cli.overrides(rest))
    defaults = {name: value for name, value, _ in config_lib.describe(Config())}
    table = rich.table.Table('field', 'value', 'meaning', title=f'{config.name}: * differs from the default', box=None)
    for name, value, meaning in config_lib.describe(config_lib.validate(config)):
        mark = '' if value == defaults[name] else '* '
        table.add_row(mark + name, rich.markup.escape(repr(value)), rich.markup.escape(meaning))
    rich.console.Console().print(table)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
