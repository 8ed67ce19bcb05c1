"""A device without memory: one line with what takes the most, and what to change."""

import ctypes
import json
import pathlib
import re

import jax
import jax.numpy as jnp
from jobs import write_experiment
import pytest

from llm_jax import config as config_lib
from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.train import loop, memory, setup

FIELDS = {
    'model.d_model': '32', 'model.n_layers': '2', 'model.n_heads': '2', 'model.vocab_size': '64',
    'train.batch_size': '8', 'train.ema_decay': '0.9',
}  # fmt: skip


@pytest.fixture(scope='module')
def plan():
    config = config_lib.default()
    config_lib.apply_overrides(config, FIELDS)
    config = config_lib.validate(config)
    return setup.plan(config, mesh_lib.make_mesh(config.mesh), rows=100, vocab_size=64, bos_id=1)


def too_much():
    """Asks for 1 PiB."""
    jax.jit(lambda: jnp.zeros((1 << 48,), jnp.float32))().block_until_ready()


def test_a_device_that_is_full_says_what_takes_the_most(plan):
    with pytest.raises(ConfigError) as found, memory.explained(plan):
        too_much()
    line = str(found.value)
    assert '\n' not in line and '(Out of memory allocating 1125899906842624 bytes)' in line
    order = [line.index(name) for name in ('a step needs optimizer ', 'parameters ', 'gradients ', 'batch ')]
    assert order == sorted(order) and 'average of parameters' in line and 'not known before it is compiled' in line
    for field in ('train.grad_accumulation (1)', 'train.batch_size (8)', 'data.seq_len', "model.remat = 'full'"):
        assert field in line


def test_other_errors_of_the_device_stay(plan):
    with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), memory.explained(plan):
        raise jax.errors.JaxRuntimeError('INTERNAL: a fault')


def test_a_compiled_step_tells_activations_from_the_rest(plan):
    rows = jnp.ones((256, 256))
    wide = jax.jit(lambda x: jnp.sort(x @ x, axis=0) @ jnp.sort(x.T @ x, axis=1)).lower(rows).compile()
    wanted = 'a step needs activations and temporaries .*Raise train.grad_acc'
    with pytest.raises(ConfigError, match=wanted), memory.explained(plan, wide):
        too_much()
    small = jax.jit(lambda x: x + 1).lower(rows).compile()
    wanted = 'a step needs optimizer .*Split the model over more devices with mesh.fsdp'
    with pytest.raises(ConfigError, match=wanted), memory.explained(plan, small):
        too_much()


@pytest.mark.parametrize('when', ['compiles', 'runs'])
def test_a_run_that_does_not_fit_ends_with_that_line(tmp_path, monkeypatch, when):
    class Step:
        """Stands for a compiled step on a device that is too small."""

        def __call__(self, *_):
            too_much()

    monkeypatch.setattr(setup.Plan, 'compiled_step', lambda *_: too_much() if when == 'compiles' else Step())
    experiment = write_experiment(tmp_path)
    config = config_lib.load_experiment(str(experiment))
    config_lib.apply_overrides(config, {'train.duration': '2', 'schedule.warmup': '0', 'train.ema_decay': '0'})
    with pytest.raises(ConfigError, match='^out of memory on a device of kind .* a step needs '):
        loop.train(config_lib.validate(config), tmp_path / 'run')
    if when == 'runs':
        assert json.loads((tmp_path / 'run' / 'run.json').read_text())['reason'].startswith('out of memory')


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'malloc_trim'), reason='needs the C library of GNU')
def test_what_lies_free_between_what_lives_goes_back_to_the_system():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    resident = lambda: int(re.search(r'VmRSS:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]) >> 10
    blocks = [libc.malloc(60_000) for _ in range(4000)]
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    full = resident()
    for block in blocks[::2]:
        libc.free(block)
    memory.release_freed()
    assert full - resident() > 80  # MiB, of 114
    for block in blocks[1::2]:
        libc.free(block)
