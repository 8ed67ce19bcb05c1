"""Trees of parameters in two: what is trained, and what is frozen."""

from collections.abc import Callable
import re
from typing import Any

import jax

from llm_jax.config.parts import resolve_part
from llm_jax.config.schema import ConfigError, Part

# 'package.module:Name' or 'file.py:Name'; no regex of a parameter path looks like it.
_SPEC = re.compile(r'[\w./-]+:[A-Za-z_][\w.]*')


def make_is_trainable(trainable: Part) -> Callable[[str], bool]:
    """The function of a parameter's path ('layers/attention/q/kernel') that `train.trainable` names.

    Args:
      trainable: a regex of whole paths, a callable `(path) -> bool`, or 'package.module:Name' of one.

    Raises:
      ConfigError: not a regular expression, or a callable that cannot be imported.
    """
    if callable(trainable) or _SPEC.fullmatch(trainable):
        return resolve_part('train.trainable', trainable, {})
    try:
        pattern = re.compile(trainable)
    except re.error as error:
        raise ConfigError(f'train.trainable = {trainable!r} is not a regular expression: {error}') from error
    return lambda path: pattern.fullmatch(path) is not None


def split_params(params: Any, trainable: Part) -> tuple[Any, Any]:
    """(trained, frozen): nested dicts with the paths of `params`, each without the parameters of the other.

    `frozen` is None if everything is trained.

    Raises:
      ConfigError: nothing is trained.
    """
    is_trainable = make_is_trainable(trainable)
    paths = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    frozen = {path for path in paths if not is_trainable(path)}
    if len(frozen) == len(paths):
        raise ConfigError(f'train.trainable = {trainable!r} matches no parameter; there are {", ".join(sorted(paths))}')
    if not frozen:
        return params, None
    return _select(params, lambda path: path not in frozen), _select(params, lambda path: path in frozen)


def merge_params(trained: Any, frozen: Any) -> Any:
    """The inverse of `split_params`."""
    if frozen is None:
        return trained
    merged = dict(frozen)
    for name, value in trained.items():
        merged[name] = merge_params(value, frozen[name]) if name in frozen else value
    return merged


def add_constants(frozen: Any, constants: dict[str, Any]) -> Any:
    """What a step takes besides state and rows: parameters that are not trained, and constants; None for neither."""
    return frozen if not constants else {**(frozen or {}), **constants}


def select_like(params: Any, like: Any) -> Any:
    """The parameters of `params` that `like`, a tree from `split_params`, has."""
    if not isinstance(like, dict):
        return params
    return {name: select_like(params[name], part) for name, part in like.items()}


def _select(params: Any, wanted: Callable[[str], bool], prefix: str = '') -> Any:
    """Nested dicts without the leaves whose path is not wanted, and without dicts that this leaves empty."""
    out = {}
    for name, value in params.items():
        path = f'{prefix}{name}'
        if isinstance(value, dict):
            if part := _select(value, wanted, f'{path}/'):
                out[name] = part
        elif wanted(path):
            out[name] = value
    return out


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator='/')
