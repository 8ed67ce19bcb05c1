"""Where the optimizer's state lies, and in which dtype, changes neither the step nor what a checkpoint holds."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import LLAMA, on_mesh, packed_tokens, place, tiny_config, tiny_training

from llm_jax.checkpoint import Checkpoints
from llm_jax.config.schema import ConfigError
from llm_jax.train import offload, setup
from llm_jax.train.resume import from_items, to_items

FAMILY = LLAMA | {'optimizer__learning_rate': 0.01}
MESH = (1, 4, 2)


def steps(n=3, **overrides):
    """States before and after n steps on the mesh, the state donated."""
    config = tiny_config(**(FAMILY | overrides))
    step, state = tiny_training(config)
    start = jax.tree.map(jax.typeof, state)
    # A jit of its own, so that buffers are reused as in training.
    step = jax.jit(step.__wrapped__, donate_argnums=0)
    for i in range(n):
        state, metrics = step(state, place(packed_tokens(8, seed=i), config))
        assert jax.tree.map(jax.typeof, state) == start
    return state, metrics


def test_offloaded_is_equal():
    with on_mesh(MESH):
        state, metrics = steps(optimizer__offload=True)
        plain, plain_metrics = steps()
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
        assert kinds == {offload.HOST}
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
        jax.tree.map(close, *jax.device_get(((state, metrics), (plain, plain_metrics))))


@pytest.mark.parametrize('fields', [{'offload': True}, {'mu_dtype': 'bfloat16'}], ids=str)
def test_a_checkpoint_brings_it_back(tmp_path, fields):
    """To its memory and dtype, bit by bit, on another mesh."""
    config = tiny_config(**FAMILY, **{f'optimizer__{name}': value for name, value in fields.items()})
    with on_mesh(MESH):
        state, _ = steps(1, **{f'optimizer__{name}': value for name, value in fields.items()})
        checkpoints = Checkpoints(tmp_path, config.checkpoint)
        checkpoints.save(1, to_items(state), {})
        checkpoints.wait()
    with on_mesh((2, 2, 2)):
        mesh = jax.sharding.get_mesh()
        plan = setup.plan(config, mesh, rows=100, vocab_size=64, bos_id=1)
        restored, frozen = from_items(checkpoints.restore(1, to_items(plan.shapes), mesh), '.*')
        assert frozen is None
        jax.tree.map(np.testing.assert_array_equal, *jax.device_get((restored, state)))
        fresh, _ = jax.jit(plan.init)(jax.random.key(0))
        where = lambda tree: jax.tree.map(lambda x: (x.dtype, x.sharding.spec, x.sharding.memory_kind), tree)
        assert where(restored) == where(fresh)
        kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(restored.opt_state) if leaf.ndim}
        assert (kinds == {offload.HOST}) == ('offload' in fields)
    checkpoints.close()


def test_a_device_without_host_memory_is_refused():
    memory = types.SimpleNamespace(kind='device')
    device = types.SimpleNamespace(device_kind='Old', platform='x', addressable_memories=lambda: [memory])
    with pytest.raises(ConfigError, match=r"optimizer.offload = True: Old \(x\) has no memory 'pinned_host', only dev"):
        offload.check_devices(types.SimpleNamespace(local_devices=[device]))


@pytest.mark.parametrize('name', ['adamw', 'lion', 'sgd', 'muon'])
def test_moments_in_bfloat16(name):
    """The first moment takes half of the memory, all else is float32, and the losses hardly change."""
    state, metrics = steps(5, optimizer__name=name, optimizer__mu_dtype='bfloat16')
    plain, plain_metrics = steps(5, optimizer__name=name)
    size = lambda tree: sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
    narrow = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == jnp.bfloat16]
    assert size(narrow) == size(plain.params) / 2
    assert size(plain.opt_state) - size(state.opt_state) == size(narrow)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
    np.testing.assert_allclose(metrics['loss'], plain_metrics['loss'], rtol=2e-3)


def test_adafactor_has_no_first_moment():
    with pytest.raises(ConfigError, match=r"optimizer.mu_dtype = 'bfloat16': \"adafactor\" has no first moment"):
        steps(1, optimizer__name='adafactor', optimizer__mu_dtype='bfloat16')


def test_accumulation_in_bfloat16():
    """Off by what seven roundings to eight bits do, and not by more."""
    family = {
        'train__grad_accumulation': 8,
        'optimizer__name': 'sgd',
        'optimizer__momentum': 0.0,
        'optimizer__clip': 0.0,
    }
    (state, _), (plain, _) = (steps(1, **family, train__accumulation_dtype=d) for d in ('bfloat16', 'float32'))
    start = tiny_training(tiny_config(**FAMILY, **family))[1]
    for a, b, c in zip(*(jax.tree.leaves(s.params) for s in (state, plain, start)), strict=True):
        off = np.linalg.norm(a - b) / np.linalg.norm(b - c)
        assert 1e-5 < off < 8 * 2**-9
