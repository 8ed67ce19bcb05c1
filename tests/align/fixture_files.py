"""A directory of fixtures, and how close a value has to be to them.

The directory is `align_fixtures` of the shared data, or what LLM_JAX_FIXTURES names: others of the same form can be
tried. Each case is computed in float32, within the tolerance of its README (1e-6 of the largest value, 1e-5 for
gradients), and in float64, within the digits of the files.
"""

import contextlib
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.train.losses import token_log_probs

_BESIDE = pathlib.Path(__file__).resolve().parents[3] / 'shared' / 'data'
_SHARED = pathlib.Path(os.environ.get('LLM_JAX_SHARED_DATA', _BESIDE)) / 'align_fixtures'
FIXTURES = pathlib.Path(os.environ.get('LLM_JAX_FIXTURES', _SHARED))
only_with_fixtures = pytest.mark.skipif(
    not FIXTURES.is_dir(), reason=f'there are no fixtures at {FIXTURES}; LLM_JAX_FIXTURES names a directory of them'
)


def read(name):
    path = FIXTURES / f'{name}.json'
    if not path.is_file():
        pytest.skip(f'{FIXTURES} has no {name}.json')
    return json.loads(path.read_text())


def names(file, *keys):
    """The names of the cases of a file, for parametrisation."""
    path = FIXTURES / f'{file}.json'
    if not path.is_file():
        return []
    node = json.loads(path.read_text())
    for key in keys:
        node = node[key]
    return list(node)


# What float32 shows within its rounding, float64 shows to the last digits.
@pytest.fixture(params=['float32', pytest.param('float64', marks=pytest.mark.slow)])
def dtype(request):
    with jax.enable_x64(True) if request.param == 'float64' else contextlib.nullcontext():
        yield request.param


class Close:
    """`close(got, wanted)`: within 1e-6 of the largest value in float32, within the digits of the file in float64."""

    def __init__(self, dtype):
        self.dtype = jnp.dtype(dtype)

    def array(self, values):
        return jnp.asarray(values, self.dtype)

    def __call__(self, got, wanted, tolerance=1e-6, *, from_float32=False, terms=0.0):
        """`terms`: the size of what a difference is made of, whose rounding it has."""
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        assert got.shape == wanted.shape
        if self.dtype == jnp.float64 and not from_float32:
            tolerance = 1e-9
        error = np.abs(got - wanted).max()
        assert error <= tolerance * max(np.abs(wanted).max(), np.max(np.abs(terms)), 1e-3), (got, wanted, error)

    def grad(self, got, wanted, **options):
        self(got, wanted, 1e-5, **options)


@pytest.fixture
def close(dtype):
    return Close(dtype)


def number(pattern, name, default=None):
    """The number after a word in the name of a case, such as 'beta=' or 'eps '."""
    found = re.search(pattern + r'([\d.]+(?:e-?\d+)?)', name)
    return float(found.group(1)) if found else default


def after_word(name):
    """The number at the end of a name, its point written as an underscore: 'centered_0_01' -> 0.01."""
    return float('.'.join(re.search(r'(\d+)_(\d+)$', name).groups()))


def mean_of(loss):
    """A function that returns (sum, normaliser), as the quotient."""

    def mean(*args, **kwargs):
        total, normaliser = loss(*args, **kwargs)
        return total / normaliser

    return mean


def value_and_grad(loss, *args):
    return jax.jit(jax.value_and_grad(loss, argnums=tuple(range(len(args)))))(*args)


def log_probs_of(logits_BTV, tokens_BT, **options):
    """Log-probabilities of the tokens 1, 2, ... of each row by the project's own primitive, the head being nothing."""
    identity = lambda params, x: x
    return token_log_probs(identity, (), logits_BTV[:, :-1], tokens_BT[:, 1:], chunk=logits_BTV.shape[1] - 1, **options)
