"""Command lines of the tools: overrides of a config, and errors in one line."""

import argparse
from collections.abc import Callable
import re
import shlex
import sys

import ml_collections
import rich.console
import rich.table

from llm_jax import config as config_lib
from llm_jax.config.schema import Config, ConfigError


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Adds --debug, which `run` looks for."""
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')


def overrides(arguments: list[str]) -> dict[str, str]:
    """`['--config.model.n_layers=4']` -> `{'model.n_layers': '4'}`; '--config.a.b 4' works as well.

    Raises:
      ConfigError: anything else among the arguments.
    """
    out, i = {}, 0
    while i < len(arguments):
        key, equals, value = arguments[i].partition('=')
        if not key.startswith('--config.'):
            raise ConfigError(f'unknown argument {arguments[i]!r}; fields of the config are set as --config.a.b=value')
        if not equals:
            i += 1
            if i == len(arguments):
                raise ConfigError(f'{key} has no value; write {key}=value')
            value = arguments[i]
        out[key.removeprefix('--config.')] = value
        i += 1
    return out


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """(arguments that set fields of the config, the others), each with the value that follows it."""
    ours, others = [], []
    for i, argument in enumerate(arguments):
        if argument.startswith('-') or i == 0:
            into = ours if argument.startswith('--config.') else others
        into.append(argument)
    return ours, others


def experiment(
    name: str, arguments: list[str], load: Callable[[str], ml_collections.ConfigDict] = config_lib.load_experiment
) -> Config:
    """The validated config of an experiment with the overrides among `arguments`.

    Raises:
      ConfigError: no such experiment, or a mistake in it or in the arguments.
    """
    config = load(name)
    config_lib.apply_overrides(config, overrides(arguments))
    return config_lib.validate(config)


def command_line(tool: str, argv: list[str]) -> str:
    """The command that was given, as a shell takes it: arguments with spaces or brackets in quotes."""
    return shlex.join(['./tools/run', tool, *argv])


def integers(text: str) -> list[int]:
    """'64,128' -> [64, 128]; for argparse."""
    return [int(part) for part in text.split(',')]


def span(text: str) -> tuple[int, int]:
    """'10:15' -> (10, 15), first and last step; for argparse."""
    if not re.fullmatch(r'\d+:\d+', text) or not 1 <= (ends := tuple(map(int, text.split(':'))))[0] <= ends[1]:
        raise argparse.ArgumentTypeError(f'{text!r} is no span of steps: write the first and the last, such as 10:15')
    return ends


def named(arguments: list[str], flag: str) -> dict[str, str]:
    """`['wiki=text:FILE']` -> `{'wiki': 'text:FILE'}`.

    Raises:
      ConfigError: one without a name, or a name that is there twice.
    """
    out = {}
    for argument in arguments:
        name, equals, value = argument.partition('=')
        if not (equals and name and value):
            raise ConfigError(f'{flag} {argument!r} must be NAME=VALUE')
        if name in out:
            raise ConfigError(f'{flag} {argument!r}: the name {name!r} is there twice')
        out[name] = value
    return out


def print_table(title: str, rows: list[list[str]]) -> None:
    """Prints a table, the first of `rows` being its header."""
    table = rich.table.Table(*rows[0], title=title, box=None)
    for row in rows[1:]:
        table.add_row(*row)
    rich.console.Console().print(table)


def run(main: Callable[[list[str]], None], argv: list[str]) -> None:
    """Runs a tool: what the user can put right is one line and exit code 2, Ctrl-C is 130."""
    try:
        main(argv)
    except (ConfigError, OSError) as error:  # OSError: a full disk, a missing permission; it names the file
        if '--debug' in argv:
            raise
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
