"""Command lines of the tools: overrides of a config, and errors in one line."""

import argparse
from collections.abc import Callable
import difflib
import re
import subprocess
import sys
from typing import NoReturn

import ml_collections
import rich.console
import rich.table

from llm_jax import config as config_lib
from llm_jax.config.schema import Config, ConfigError

# What begins like an option; a text that begins with dashes, '-- he said', is a value.
_OPTION = re.compile(r'--[A-Za-z][\w.-]*(=.*)?', re.DOTALL)
_CONFIG = '--config.'


class Parser(argparse.ArgumentParser):
    """Options of a tool, --debug among them, which `run` looks for; a mistake in them is one line.

    Args:
      name: of the tool.
      description: what its --help says, the documentation of its module.
      unknown: what to say of an option that is like none of the tool's.
    """

    def __init__(self, name: str, description: str, unknown: str = ''):
        super().__init__(
            prog=name,
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self._unknown = unknown or self._see_help
        self.add_argument('--debug', action='store_true', help='show the traceback of an error')

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        """Parses arguments of which all are the tool's own.

        Raises:
          ConfigError: an unknown option, with the nearest that there is; else whatever is wrong.
        """
        for argument in arguments:
            if _OPTION.fullmatch(argument) and not self.knows(argument):
                self._refuse(argument)
        args, rest = self.parse_known_args(arguments)
        if rest:
            raise ConfigError(f'unknown argument {rest[0]!r}; {self._see_help}')
        return args

    def parse_with_config(self, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parses the tool's own arguments and those that set fields of the config.

        Returns:
          (the tool's own, '--config.a.b=value' of each field).

        Raises:
          ConfigError: as `parse`.
        """
        fields, others = split_overrides(arguments)
        return self.parse(others), fields

    def split_known(self, arguments: list[str]) -> tuple[list[str], list[str]]:
        """Splits arguments into the tool's own, and unknown options with the values that follow them."""
        ours, others = [], []
        into = ours
        for argument in arguments:
            if _OPTION.fullmatch(argument):
                into = ours if self.knows(argument) else others
            into.append(argument)
            into = ours if '=' in argument else into  # which has its value
        return ours, others

    def knows(self, argument: str) -> bool:
        """True if an argument is an option of the tool, by itself or with its value behind '='."""
        return argument.partition('=')[0] in self._option_string_actions

    def _refuse(self, argument: str) -> NoReturn:
        """Raises: ConfigError: there is no such option, with the nearest that there is."""
        name = argument.partition('=')[0]
        known = {option.removeprefix('--'): option for option in self._option_string_actions if option.startswith('--')}
        if near := difflib.get_close_matches(name.removeprefix('--'), known, 1):
            raise ConfigError(f'unknown option {name!r}; did you mean {known[near[0]]!r}?')
        hint = 'fields of the config are set as --config.a.b=value' if '.' in name else self._unknown
        raise ConfigError(f'unknown option {name!r}; {hint}')

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f'{message}; {self._see_help}')

    def add_decoding(self) -> None:
        """Adds the options of all that decodes: how tokens are drawn, and how weights and caches are held."""
        self.add_argument('--temperature', type=float, default=0.8, help='0 always takes the likeliest token (0.8)')
        self.add_argument('--top_k', type=int, default=50, help='draw from the k likeliest tokens; 0 from all (50)')
        self.add_argument('--top_p', type=float, default=1.0, help='draw from the likeliest with this mass (1)')
        self.add_argument('--stop', action='append', default=[], help='text that ends it; may be given several times')
        self.add_argument('--quantize', choices=('int8', 'int4'), default='', help='the weights, as they are loaded')
        self.add_argument('--cache', choices=('int8',), default='', help='keys and values of earlier tokens')
        self.add_argument('--seed', type=at_least(0), default=0, help='the same seed draws the same text (0)')
        self.add_argument('--step', type=at_least(0), help='of the checkpoint; default the newest')

    @property
    def _see_help(self) -> str:
        return f'`./tools/run {self.prog} --help` says what there is'


def at_least(least: int) -> Callable[[str], int]:
    """Gives a parser of integers from `least` on that 64 bits hold, for argparse."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f'{text!r} is no integer') from None
        if value < least:
            raise argparse.ArgumentTypeError(f'{value} must be at least {least}')
        if value >= 2**63:
            raise argparse.ArgumentTypeError(f'{value} must be below 2^63')
        return value

    return parse


def split_overrides(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits arguments into '--config.a.b=value' of each field that they set, and the others.

    Raises:
      ConfigError: a field without a value.
    """
    fields, others, i = [], [], 0
    while i < len(arguments):
        argument = arguments[i]
        if argument.startswith(_CONFIG) and '=' not in argument:
            i += 1
            if i == len(arguments) or _OPTION.fullmatch(arguments[i]):
                raise ConfigError(f'{argument} has no value; write {argument}=value')
            argument += f'={arguments[i]}'
        (fields if argument.startswith(_CONFIG) else others).append(argument)
        i += 1
    return fields, others


def overrides(fields: list[str]) -> dict[str, str]:
    """`['--config.model.n_layers=4']` -> `{'model.n_layers': '4'}`; '--config.a.b 4' works as well.

    Raises:
      ConfigError: anything else among the arguments.
    """
    fields, others = split_overrides(fields)
    if others:
        raise ConfigError(f'unknown argument {others[0]!r}; fields of the config are set as --config.a.b=value')
    pairs = (argument.removeprefix(_CONFIG).partition('=') for argument in fields)
    return {key: value for key, _, value in pairs}


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


def integers(text: str) -> list[int]:
    """'64,128' -> [64, 128]; for argparse."""
    try:
        return [int(part) for part in text.split(',')]
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} are no integers with commas between them, such as 64,128') from None


def sizes(text: str) -> list[int]:
    """As `integers`, each at least 1 and none of them twice, ascending; for argparse."""
    values = integers(text)
    if min(values) < 1 or len(set(values)) < len(values):
        raise argparse.ArgumentTypeError(f'{text!r} must be different integers of at least 1')
    return sorted(values)


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
    # OSError: a full disk, a missing permission; it names the file. CalledProcessError: another program, such as pip.
    except (ConfigError, OSError, subprocess.CalledProcessError) as error:
        if '--debug' in argv:
            raise
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
