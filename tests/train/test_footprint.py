"""A lack of memory is one line, with what a step takes."""

import jax
import jax.numpy as jnp
import pytest
from tiny import BOS, LLAMA, V, on_mesh, tiny_config

from llm_jax.config.schema import ConfigError
from llm_jax.train import setup
from llm_jax.train.footprint import explain_exhaustion, state_parts


def plan():
    return setup.plan(tiny_config(**LLAMA), jax.sharding.get_mesh(), rows=100, vocab_size=V, bos_id=BOS)


def exhaust():
    return jnp.zeros((1 << 45,), jnp.float32).block_until_ready()


def test_before_the_step_is_compiled_gradients_are_counted():
    exhausted = pytest.raises(ConfigError, match='out of memory on cpu: Out of memory allocating 140737488355328')
    with on_mesh((1, 1, 1)), exhausted as error, explain_exhaustion(plan()):
        exhaust()
    text = str(error.value)
    assert '\n' not in text and 'gradients ' in text and 'optimizer ' in text and 'train.grad_accumulation' in text


def test_once_it_is_compiled_its_temporaries_are_told():
    exhausted = pytest.raises(ConfigError, match=r'A step takes .* a device: parameters .*, temporaries [\d.]+ [kM]')
    with on_mesh((1, 1, 1)):
        made = plan()
        with exhausted, explain_exhaustion(made) as step_is_compiled:
            step_is_compiled(made.compiled_step(made.shapes))
            exhaust()


def test_other_errors_pass():
    with on_mesh((1, 1, 1)):
        made = plan()
        with pytest.raises(jax.errors.JaxRuntimeError, match='ABORTED'), explain_exhaustion(made):
            raise jax.errors.JaxRuntimeError('ABORTED: no memory is involved')
        assert list(state_parts(made)) == ['parameters', 'optimizer', 'batch']
