"""Experiment files, and the validated configuration they become.

An experiment file defines `get_config()`, which starts from `default()` (an
`ml_collections.ConfigDict` with every field), changes what it wants and returns
it. `validate()` turns that into the frozen dataclasses below, which is what the
library reads: typed, hashable and complete. `schema.py` is the one place that
gives each field its default, its type and its meaning.
"""

import ast
from collections.abc import Callable, Mapping
import dataclasses
import difflib
import pathlib
import re
import types
import typing
from typing import Any, Literal

import ml_collections

from llm_jax.config import moved, parts
from llm_jax.config.facts import BlockFacts, require
from llm_jax.config.schema import (
    ADAPTERS,
    DEFAULT_RULES,
    Config,
    ConfigError,
    Data,
    Duration,
    Model,
    Options,
    PartOptions,
)

# --- From an experiment file to a ConfigDict -------------------------------------------


def default(cls: type = Config) -> ml_collections.ConfigDict:
    """A ConfigDict with every field of a schema at its default, to be changed by an experiment."""

    def table(cls: type) -> ml_collections.ConfigDict:
        out = ml_collections.ConfigDict(type_safe=False)  # validate() checks types, in better words
        for f in _user_fields(cls):
            out[f.name] = table(f.type) if dataclasses.is_dataclass(f.type) else _default_of(f)
        out.lock()
        for f in _user_fields(cls):
            if f.type in (dict, Options) or f.type == dict | str:
                out[f.name].unlock()  # free-form tables: new keys are welcome
        return out

    return table(cls)


def load_experiment(path: str | pathlib.Path, cls: type = Config) -> ml_collections.ConfigDict:
    """Runs the `get_config()` of an experiment file.

    Args:
      path: a Python file.
      cls: the schema that it starts from.

    Returns:
      its ConfigDict, `name` filled from the file's name when empty. Callables that
      the file defines become 'FILE.py:Name', so that a run directory can find them.

    Raises:
      ConfigError: no such file, or no `get_config` in it, or an unknown field.
    """
    path = pathlib.Path(path)
    module = parts.import_file(path)
    if not hasattr(module, 'get_config'):
        raise ConfigError(f'{path} defines no get_config(); an experiment file returns its config from it')
    try:
        config = module.get_config()
    except (AttributeError, KeyError) as error:
        raise ConfigError(f'{path}: {_unknown_field(error, cls)}') from error
    if not isinstance(config, ml_collections.ConfigDict) or set(config) != set(_names(cls)):
        raise ConfigError(
            f'the get_config() of {path} gives no config of the kind that this tool needs ({cls.__name__})'
        )
    config.name = config.name or path.stem
    _name_callables(config, path, module)
    return config


def apply_overrides(config: ml_collections.ConfigDict, overrides: Mapping[str, str]) -> None:
    """Sets fields from the command line, e.g. `{'model.n_layers': '4'}`, in place.

    Values are Python literals where they read as one, else strings. Keys inside the
    free-form tables (`data.sources`, `data.mixture`, `mesh.rules`, options) may be new.
    """
    for key, text in overrides.items():
        *parents, leaf = key.split('.')
        node = config
        for i, name in enumerate(parents):
            if i and parents[i - 1] == 'options' and not node.is_locked and name not in node:
                node[name] = ml_collections.ConfigDict()  # of a stage, whose first option this is
            if not isinstance(node, ml_collections.ConfigDict) or name not in node:
                raise ConfigError(_no_such_field('.'.join(parents[: i + 1]), node))
            node = node[name]
        if not isinstance(node, ml_collections.ConfigDict) or (node.is_locked and leaf not in node):
            raise ConfigError(_no_such_field(key, node))
        node[leaf] = _literal(text)


def _name_callables(config: ml_collections.ConfigDict, path: pathlib.Path, module: types.ModuleType) -> None:
    """Replaces callables that are top-level names of the experiment by 'FILE.py:Name'."""
    names = {id(value): name for name, value in vars(module).items() if callable(value)}
    named = lambda value: f'{path}:{names[id(value)]}' if callable(value) and id(value) in names else value
    for key, value in config.items():
        if isinstance(value, ml_collections.ConfigDict):
            _name_callables(value, path, module)
        elif isinstance(value, (tuple, list)):
            config[key] = type(value)(map(named, value))
        else:
            config[key] = named(value)


# --- From a ConfigDict to a Config -----------------------------------------------------


def validate(config: ml_collections.ConfigDict) -> Config:
    """Checks every field's name, type and range.

    Raises:
      ConfigError: naming the field, its value and what would be right.
    """
    built = build(Config, config)
    filled = {
        'rules': freeze_rules(built.mesh.rules),
        'pipeline': (built.mesh.pipeline_microbatches, built.mesh.pipeline_repeats),
    }
    built = dataclasses.replace(built, model=dataclasses.replace(built.model, **filled), data=_with_marks(built))
    if built.model.adapter.kind != 'none' and built.train.trainable == '.*':
        built = dataclasses.replace(built, train=dataclasses.replace(built.train, trainable=ADAPTERS))
    check(built)
    return built


def _with_marks(config: Config) -> Data:
    """`config.data`, where a tokenizer that is to be trained also gets the marks of the chat template.

    Raises:
      ConfigError: the template is neither a known one nor the name of a file.
    """
    template = config.chat.template
    if not template:
        return config.data
    known = parts.names(config.chat, 'template')
    is_file = '/' in template or template.endswith('.jinja')
    require(template in known or is_file, 'chat.template', template,
            f'it is no known template{parts.nearest(template, known)} Known: {", ".join(known)}; '
            'or name a file NAME.jinja')  # fmt: skip
    tokenizer = config.data.tokenizer
    if tokenizer.path or is_file:
        return config.data
    reserved = (*tokenizer.reserved, *known[template].lacking(tokenizer.reserved))
    return dataclasses.replace(config.data, tokenizer=dataclasses.replace(tokenizer, reserved=reserved))


def from_dict(values: Mapping[str, Any]) -> Config:
    """The inverse of `to_dict`, for the config.json of a run directory, which may have fields of older names."""
    return validate(ml_collections.ConfigDict(moved.rename_fields(values), type_safe=False))


def to_dict(config: Config) -> dict[str, Any]:
    """A JSON-ready nested dict of all fields."""

    def plain(value: Any, path: str) -> Any:
        if _is_section(value):
            fields = _user_fields(type(value))
            return {f.name: plain(getattr(value, f.name), f'{path}.{f.name}'.strip('.')) for f in fields}
        if isinstance(value, dict):
            return {k: plain(v, f'{path}.{k}') for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v, path) for v in value]
        if callable(value):
            return parts.spec_of(value, path)
        return value

    return plain(config, '')


def describe(config: Config) -> list[tuple[str, Any, str]]:
    """(dotted name, value, meaning) of every field, in order."""
    rows = []

    def walk(section: Any, prefix: str) -> None:
        for f in _user_fields(type(section)):
            value = getattr(section, f.name)
            if _is_section(value):
                walk(value, f'{prefix}{f.name}.')
            else:
                rows.append((f'{prefix}{f.name}', value, f.metadata['meaning']))

    walk(config, '')
    return rows


def freeze_rules(rules: Mapping[str, Any]) -> tuple:
    """The logical-axis table as a hashable tuple of pairs."""
    freeze = lambda axes: tuple(axes) if isinstance(axes, (list, tuple)) else axes
    return tuple((name, freeze(axes)) for name, axes in rules.items())


# --- Durations -------------------------------------------------------------------------

_DURATION = re.compile(r'\s*(\d+(?:\.\d*)?(?:e[+-]?\d+)?)\s*(steps?|tokens?|epochs?|%)\s*', re.IGNORECASE)


def steps(
    duration: Duration,
    field: str,
    *,
    tokens_per_step: int,
    steps_per_epoch: float,
    total: int | None = None,
) -> int:
    """A duration as a whole number of optimizer steps, at least 1 unless it is 0.

    Args:
      duration: 300, '300 steps', '2e9 tokens', '1.5 epochs' or '5 %'.
      field: the config field it comes from, for errors.
      tokens_per_step: batch_size * seq_len.
      steps_per_epoch: training rows / batch_size.
      total: what '%' is of; None where a percentage makes no sense.

    Raises:
      ConfigError: not a duration, a percentage of nothing, or more than 2^31 - 1 steps.
    """
    if isinstance(duration, int) and duration >= 0:
        return _countable(duration, duration, field)
    match = _DURATION.fullmatch(str(duration))
    if not match or isinstance(duration, int):
        raise ConfigError(
            f"{field} = {duration!r} is not a duration; write a number of steps, '300 steps', "
            "'2e9 tokens', '1.5 epochs' or '5 %'"
        )
    value, unit = float(match[1]), match[2].lower().rstrip('s')
    if unit == '%' and total is None:
        raise ConfigError(f'{field} = {duration!r}: a percentage needs a total; write steps, tokens or epochs')
    scale = {
        'step': 1,
        'token': 1 / tokens_per_step,
        'epoch': steps_per_epoch,
        '%': (total or 0) / 100,
    }[unit]
    return _countable(max(1, round(value * scale)) if value else 0, duration, field)


def _countable(n: int, duration: Duration, field: str) -> int:
    """Raises: ConfigError: more steps than int32, in which devices count them, can say."""
    if n >= 2**31:
        raise ConfigError(f'{field} = {duration!r} is {n:,} steps; {2**31 - 1:,} is the most that can be counted')
    return n


# --- Checks ----------------------------------------------------------------------------


def check(config: Config) -> None:
    """Checks what fields must be to each other.

    Raises:
      ConfigError: naming the field, its value and what would be right.
    """
    model, data, train, mesh = config.model, config.data, config.train, config.mesh
    require(model.mup.base_width or not model.mup.base_head, 'model.mup.base_head', model.mup.base_head,
             'it does nothing without model.mup.base_width; set that too')  # fmt: skip
    require(len(model.first_layers) <= model.n_layers, 'model.first_layers', len(model.first_layers),
             f'there are only model.n_layers = {model.n_layers}')  # fmt: skip
    for layer in dict.fromkeys(model.layer(i) for i in range(model.n_layers)):
        _check_layer(layer)
    for section, options, given in (
        ('optimizer', config.optimizer.options, ('config', 'weights')),
        ('schedule', config.schedule.options, ('progress', 'span')),
    ):
        if options:
            part = parts.named(getattr(config, section), 'name', section)
            parts.check_options(f'{section}.options', part, options, given)
    require(model.max_seq_len in (0,) or model.max_seq_len >= data.seq_len, 'model.max_seq_len',
             model.max_seq_len, f'it must be 0 or at least data.seq_len = {data.seq_len}')  # fmt: skip
    require(train.batch_size % train.grad_accumulation == 0, 'train.grad_accumulation', train.grad_accumulation,
             f'it must divide train.batch_size = {train.batch_size}')  # fmt: skip
    sizes = {axis: getattr(mesh, axis) for axis in ('data', 'fsdp', 'tensor', 'context', 'expert', 'stage')}
    require([*sizes.values()].count(-1) <= 1 and all(n == -1 or n >= 1 for n in sizes.values()), 'mesh', sizes,
             'axes are at least 1, and at most one of them is -1 ("the rest")')  # fmt: skip
    unknown = set(mesh.rules) ^ set(DEFAULT_RULES)
    require(not unknown, 'mesh.rules', sorted(unknown), f'it needs exactly the axes {", ".join(DEFAULT_RULES)}')
    for field, value in (('data.sources', data.sources), ('data.mixture', data.mixture)):
        if field == 'data.mixture' and value and not _is_corpus(data):
            require(set(value) == set(data.sources), field, value, f'it needs the names {sorted(data.sources)}')
    require(bool(data.sources), 'data.sources', data.sources, 'name at least one source of text')


def _is_corpus(data: Data) -> bool:
    """True if the sources are a corpus, whose own names are not in the config."""
    return any(str(spec).startswith('corpus:') for spec in data.sources.values())


def _check_layer(model: Model) -> None:
    """Asks the parts of a layer, whatever a pattern changes in it, what must hold for them."""
    attention = parts.attention(model)
    attention.check(model)
    parts.position(model).check(model, attention.head_dims(model))
    parts.feed_forward(model).check(model)
    getattr(parts.block(model), 'check', BlockFacts.check)(model)
    for kind in _names(PartOptions):
        if options := getattr(model.options, kind):
            parts.check_options(f'model.options.{kind}', parts.named(model, kind), options, _GIVEN)


# What every part of the model is made with.
_GIVEN = ('config', 'weight', 'axes', 'layers', 'parent', 'name')


def build(cls: type, values: Any, prefix: str = '') -> Any:
    """A frozen dataclass of a schema from a table of its fields; what is not named has its default.

    Args:
      cls: one of the dataclasses of a schema.
      values: a ConfigDict or mapping.
      prefix: where the table stands in the config ('data.'), for errors.

    Raises:
      ConfigError: an unknown field or a wrong type.
    """
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise ConfigError(f'{prefix[:-1]} = {values!r} is a section; set its fields')
    fields = {f.name: f for f in _user_fields(cls)}
    for name in values:
        if name not in fields:
            raise ConfigError(_no_such_field(prefix + name, fields))
    out = {}
    for name, f in fields.items():
        path = prefix + name
        is_section = dataclasses.is_dataclass(f.type)
        value = values[name] if name in values else {} if is_section else _default_of(f)
        if path in ('model.pattern', 'model.first_layers'):
            out[name] = _layers(value, path)
        else:
            out[name] = build(f.type, value, path + '.') if is_section else _checked(value, f, path)
    return cls(**out)


def check_values(cls: type, values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The values as the types of a dataclass's fields of these names, within their ranges.

    Args:
      cls: a frozen dataclass; its fields can be made with `field`.
      values: by name of the field.
      prefix: where they stand in the config ('train.objective_options.'), for errors.

    Raises:
      ConfigError: a wrong type, or a value out of its range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    return {name: _checked(value, fields[name], prefix + name) for name, value in values.items()}


def _layers(value: Any, path: str) -> tuple:
    """Fields that differ between layers: tables, or lists of pairs, as hashable, checked tuples of pairs."""
    out = []
    for i, entry in enumerate(_typed(value, tuple, path)):
        pairs = entry.items() if isinstance(entry, Mapping | ml_collections.ConfigDict) else entry
        checked = []
        for name, changed in pairs:
            section = Model
            *outer, leaf = name.split('.')
            for part in outer:
                section = {f.name: f.type for f in _user_fields(section)}.get(part)
                if not dataclasses.is_dataclass(section):
                    raise ConfigError(f'{path}[{i}]: ' + _no_such_field(f'model.{name}', _names(Model)))
            fields = {f.name: f for f in _user_fields(section)}
            if leaf not in fields or dataclasses.is_dataclass(fields[leaf].type):
                raise ConfigError(f'{path}[{i}]: ' + _no_such_field(f'model.{name}', fields))
            if not fields[leaf].metadata.get('per_layer', True):
                raise ConfigError(f'{path}[{i}] sets {name}, which all layers share')
            checked.append((name, _checked(changed, fields[leaf], f'{path}[{i}].{name}')))
        out.append(tuple(sorted(checked)))
    return tuple(out)


def _names(section: type) -> list[str]:
    return [f.name for f in _user_fields(section)]


def _checked(value: Any, f: dataclasses.Field, path: str) -> Any:
    """`value` as the field's type, within the range that the field gives."""
    if typing.get_origin(f.type) is Literal:
        choices = typing.get_args(f.type)
        if not any(value == choice and type(value) is type(choice) for choice in choices):
            near = parts.nearest(value, [choice for choice in choices if isinstance(choice, str)]).rstrip('.')
            *most, last = map(str, choices)
            raise ConfigError(f'{path} = {value!r}: use {", ".join(most)} or {last}{near}')
        return value
    value, least, below = _typed(value, f.type, path), f.metadata.get('at_least'), f.metadata.get('below')
    if least is not None:
        upper = f' and below {below}' if below is not None else ''
        require(least <= value and (below is None or value < below), path, value, f'it must be at least {least}{upper}')
    return value


def _typed(value: Any, expected: Any, path: str) -> Any:
    """`value` as `expected`; accepts an int for a float and a list for a tuple."""
    options = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    if isinstance(value, ml_collections.ConfigDict):
        value = {k: tuple(v) if isinstance(v, list) else v for k, v in value.to_dict().items()}
    if expected is Options and isinstance(value, Mapping):
        return _options(value)
    if options == (dict, str) and isinstance(value, str):
        return {value.partition(':')[0]: value}  # one source, named after its kind
    if tuple in options and isinstance(value, (list, tuple)):
        return tuple(tuple(v) if isinstance(v, list) else v for v in value)
    if float in options and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if int in options and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) and bool not in options:
        pass
    elif any(callable(value) if option is Callable else isinstance(value, option) for option in options):
        return value
    names = ' or '.join('a callable' if o is Callable else o.__name__ for o in options)
    raise ConfigError(f'{path} = {value!r} is {type(value).__name__}; it must be {names}')


def _options(value: Any) -> Any:
    """A table of options, or what is in one, hashable."""
    if isinstance(value, Mapping):
        return Options({name: _options(inner) for name, inner in value.items()})
    return tuple(map(_options, value)) if isinstance(value, (list, tuple)) else value


def _is_section(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)  # a Flax module's class is one, too


def _user_fields(cls: type) -> list[dataclasses.Field]:
    return [f for f in dataclasses.fields(cls) if not (cls is Model and f.name in ('rules', 'pipeline'))]


def _default_of(f: dataclasses.Field) -> Any:
    return f.default if f.default is not dataclasses.MISSING else f.default_factory()


def _literal(text: str) -> Any:
    if text.lower() in ('true', 'false'):
        return text.lower() == 'true'
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _no_such_field(path: str, siblings: Any) -> str:
    parent, _, leaf = path.rpartition('.')
    if not isinstance(siblings, Mapping | ml_collections.ConfigDict):
        return f'there is no field {path!r} in the config: {parent} is a value, not a section'
    if path in moved.FIELDS:
        return f'there is no field {path!r} in the config: it is now called {moved.FIELDS[path]}'
    names = sorted(siblings)
    where = f'config.{parent}' if parent else 'config'
    return f'there is no field {path!r} in the config{parts.nearest(leaf, names)} {where} has: {", ".join(names)}'


def _unknown_field(error: Exception, cls: type) -> str:
    """The message of ml_collections about a locked key, said plainly."""
    inner = error
    while inner.args and isinstance(inner.args[0], Exception):  # an AttributeError around a KeyError
        inner = inner.args[0]
    text = str(inner.args[0]) if inner.args else ''
    # Writing says 'Key "x" does not exist ...'; reading says "'x'", then perhaps a guess.
    match = re.match(r'[Kk]ey "(\w+)" does not exist|\'(\w+)\'(?:\n|$)', text)
    if not match:
        return f'get_config() failed: {type(error).__name__}: {error}'
    name = match[1] or match[2]
    if renamed := [new for old, new in moved.FIELDS.items() if old.endswith(f'.{name}')]:
        return f'there is no field {name!r} in the config: {renamed[0]} is what it is called now'
    known = [name for name, _, _ in describe(cls())] + [f.name for f in dataclasses.fields(cls)]
    near = difflib.get_close_matches(name, [k.rpartition('.')[2] for k in known], 1, cutoff=0.5)
    hint = f' Did you mean {next(k for k in known if k.endswith("." + near[0]) or k == near[0])!r}?' if near else ''
    return f'there is no field {name!r} in the config.{hint}'
