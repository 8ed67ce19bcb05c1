"""Finding the parts a config names: by short name, 'package.module:Name', or callable."""

from collections.abc import Callable, Collection, Iterable, Mapping
import contextlib
import difflib
import functools
import importlib
import importlib.util
import inspect
import pathlib
import re
import sys
import types
from typing import Any

from llm_jax.config import facts, moved
from llm_jax.config.errors import ConfigError, Part

# The copy of an experiment in its run directory; 'experiment.py:Name' names a part in it.
EXPERIMENT = 'experiment.py'

# --- The parts of a config -------------------------------------------------------------
# Each answers for the facts of its kind (facts.py), also where a user's callable says none.


def attention(config: Any) -> Any:
    """The attention part of a layer's config: `(config, name=...)` makes it, its class answers for its facts."""
    return _with_facts(named(config, 'attention'), facts.AttentionFacts)


def feed_forward(config: Any) -> Any:
    """The feed-forward part of a layer's config."""
    return _with_facts(named(config, 'feed_forward'), facts.FeedForwardFacts)


def expert(config: Any) -> Any:
    """The feed-forward part that each expert of a mixture is."""
    return _with_facts(named(config.moe, 'activation', 'model.moe'), facts.FeedForwardFacts)


def position(config: Any) -> Any:
    """The position part of a layer's config."""
    return _with_facts(named(config, 'position'), facts.PositionFacts)


def norm(config: Any) -> Callable:
    """The norm of a layer's config."""
    return named(config, 'norm')


def block(config: Any) -> Any:
    """The block around attention and feed-forward (`model.residual`): the class itself, for Linen's transforms."""
    return named(config, 'residual')


def module(config: Any, kind: str, *args: Any, **linen: Any) -> Any:
    """A module of a layer's part of this kind ('attention', 'norm', ...), made with the options of the config.

    Args:
      config: of the layer.
      kind: the field of the model that names the part.
      *args: further attributes, such as the axes of a norm.
      **linen: `name`, and attributes that only some parts of the kind have.
    """
    return named(config, kind)(config, *args, **{**getattr(config.options, kind), **linen})


def check_options(field: str, part: Callable, options: Mapping[str, Any], given: Collection[str]) -> None:
    """Checks that a part takes the options that a config has for it.

    Args:
      field: dotted name of the options, for the error.
      part: function, or class whose attributes the options are.
      options: by name.
      given: arguments that the library gives every part of this kind.

    Raises:
      ConfigError: an option that the part does not take, with those that it takes.
    """
    accepted = inspect.signature(part).parameters.values()
    if any(one.kind is one.VAR_KEYWORD for one in accepted):
        return
    takes = [one.name for one in accepted if one.name not in given and one.kind is not one.VAR_POSITIONAL]
    for name, value in options.items():
        if name not in takes:
            known = f'it takes {", ".join(takes)}' if takes else 'it takes none'
            label = getattr(part, '__name__', repr(part))
            raise ConfigError(
                f'{field}.{name} = {value!r}: {label} has no such option{nearest(name, takes).rstrip(".")}; {known}'
            )


def named(config: Any, name: str, section: str = 'model') -> Callable:
    """The callable that a field of a config section names, among those that its schema offers.

    Args:
      config: the section.
      name: of the field; its metadata say in which module the table of names is. That is
        imported only when a part of it is asked for, so reading a config loads no JAX.
      section: where the section stands in the config, for errors.

    Raises:
      ConfigError: an unknown name, with what exists and the nearest match.
    """
    return resolve_part(f'{section}.{name}', getattr(config, name), names(config, name))


def names(config: Any, name: str) -> Mapping[str, Any]:
    """What the library offers for a field of a config section, by name; see `named`."""
    return _table(type(config).__dataclass_fields__[name].metadata['parts'])


@functools.cache
def _table(spec: str) -> Mapping[str, Callable]:
    return _import_spec('the table of parts', spec)


@functools.cache
def _with_facts(part: Callable, kind: type) -> Any:
    return part if isinstance(part, type) and issubclass(part, kind) else facts.WithDefaults(part, kind)


# --- Finding callables -----------------------------------------------------------------


def resolve_part(field: str, value: Part, known: Mapping[str, Callable | str]) -> Callable:
    """The callable that a config field names.

    Args:
      field: the field's dotted name, for the error.
      value: a key of `known`, 'package.module:Name', 'FILE.py:Name', or a callable.
      known: the names that the library offers; a part may stand there as its 'package.module:Name'.

    Raises:
      ConfigError: an unknown name, with what exists and the nearest match.
    """
    if callable(value):
        return value
    if value in known:
        part = known[value]
        return _import_spec(field, part) if isinstance(part, str) else part
    if ':' in value:
        return _import_spec(field, value)
    raise ConfigError(
        f'{field} = {value!r} is not a known part{nearest(value, known)} Known: {", ".join(known)}; '
        "or give a callable or 'package.module:Name'."
    )


def spec_of(part: Callable, field: str) -> str:
    """'package.module:Name' of a callable, for config.json."""
    name = getattr(part, '__qualname__', '')
    if not name or '<' in name:
        raise ConfigError(
            f'{field} is {part!r}, which has no importable name. Give it a name at the top of its file, '
            "so that the run directory can find it again, or write it as 'package.module:Name'."
        )
    return f'{part.__module__}:{name}'


def _import_spec(field: str, spec: str) -> Callable:
    module_name, _, name = spec.rpartition(':')
    try:
        module = (
            import_file(pathlib.Path(module_name))
            if module_name.endswith('.py')
            else importlib.import_module(module_name)
        )
        return functools.reduce(getattr, name.split('.'), module)
    except (ImportError, AttributeError, ConfigError) as error:
        raise ConfigError(f'{field} = {spec!r} cannot be imported: {error}') from error


@functools.cache
def _import_file_at(path: str) -> types.ModuleType:
    name = 'llm_jax_experiment_' + re.sub(r'\W', '_', path)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # so that pickling and dataclasses find it
    kept = path.endswith(f'/{EXPERIMENT}') and pathlib.Path(path).with_name('config.json').exists()
    with moved.old_names() if kept else contextlib.nullcontext():
        spec.loader.exec_module(module)
    return module


def import_file(path: pathlib.Path) -> types.ModuleType:
    """The module that a Python file is; the copy of an experiment in a run directory may be of an older layout."""
    if not path.is_file():
        near = _nearest_file(path)
        hint = f' Did you mean {near}?' if near else ''
        raise ConfigError(f'there is no file {path}.{hint}')
    if path.suffix != '.py':
        raise ConfigError(f'{path} is no Python file: its name must end in .py')
    return _import_file_at(str(path.resolve()))


def _nearest_file(path: pathlib.Path) -> pathlib.Path | None:
    """The Python file with the nearest name, in the directory of `path`, in `experiments`, or one level below them."""
    places = dict.fromkeys((path.parent, pathlib.Path('experiments')))
    files = [file for place in places for pattern in ('*.py', '*/*.py') for file in sorted(place.glob(pattern))]
    near = difflib.get_close_matches(path.name, [file.name for file in files], 1)
    return next((file for file in files if file.name == near[0]), None) if near else None


def nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1, cutoff=0.5)
    return f'; did you mean {near[0]!r}?' if near else '.'
