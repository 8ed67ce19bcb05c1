"""Policies of rematerialisation keep less and less; the ahead-of-time compiler of TPUs says so, too."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import LLAMA, packed_tokens, tiny_config, tiny_training

# Large enough for activations to outweigh all else, long enough for attention weights to count.
SHAPE = LLAMA | {'d_model': 64, 'd_ff': 256, 'n_layers': 6, 'data__seq_len': 256, 'train__loss_chunk': 64}
# From the most memory for temporaries to the least.
ORDER = ('none', 'attention', 'dots', 'full')

ON_TPU = """
import json, sys
import jax
from jax.experimental import topologies
from tiny import tiny_config, tiny_model, BOS, LLAMA
from llm_jax.nn.transformer import init_params, parameters_of
from llm_jax.train.optimizer import Span, make_optimizer, make_schedule
from llm_jax.train.state import init_state
from llm_jax.train.step import make_train_step

fields = json.loads(sys.argv[1])
devices = topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices
mesh = jax.sharding.Mesh(
    __import__('numpy').array(devices[:4]).reshape(1, 1, 4, 1, 1, 1),
    ('data', 'stage', 'fsdp', 'expert', 'context', 'tensor'), axis_types=(jax.sharding.AxisType.Explicit,) * 6,
)
results = {}
with jax.set_mesh(mesh):
    for name, extra in json.loads(sys.argv[2]).items():
        config = tiny_config(**(fields | extra))
        model = tiny_model(config)
        schedule = make_schedule(config.schedule, 1e-3, Span(10, 2, 0, 0.1))
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = jax.eval_shape(lambda k: init_params(model, k), key)
        optimizer = make_optimizer(config.optimizer, schedule, shapes, parameters_of(model))
        state = jax.eval_shape(lambda k: init_state(model, optimizer, k, with_ema=False), key)
        rows = jax.sharding.NamedSharding(mesh, jax.P('fsdp'))
        tokens = jax.ShapeDtypeStruct((config.train.batch_size, config.data.seq_len + 1), 'int32', sharding=rows)
        step = make_train_step(model, config, optimizer, schedule, bos_id=BOS)
        memory = jax.jit(step, donate_argnums=0).lower(state, tokens).compile().memory_analysis()
        results[name] = [memory.temp_size_in_bytes, memory.host_temp_size_in_bytes, memory.argument_size_in_bytes,
                         memory.host_argument_size_in_bytes]
print(json.dumps(results))
"""


def tpu_memory(fields: dict, cases: dict) -> dict:
    """Bytes of a step compiled for four chips of v5e: [temporaries, in the host's memory, arguments, in the host's]."""
    library = os.environ.get('LLM_JAX_LIBTPU')
    if not library:
        pytest.skip('there is no TPU compiler (LLM_JAX_LIBTPU)')
    env = os.environ | {
        'TPU_LIBRARY_PATH': library, 'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1', 'XLA_FLAGS': '',
        'PYTHONPATH': os.pathsep.join(path for path in sys.path if path),
    }  # fmt: skip
    command = [sys.executable, '-c', ON_TPU, json.dumps(fields), json.dumps(cases)]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.strip().splitlines()[-1])


def temporary_bytes(remat) -> int:
    step, state = tiny_training(tiny_config(**SHAPE, remat=remat))
    tokens = np.zeros((8, SHAPE['data__seq_len'] + 1), np.int32)
    return step.lower(state, tokens).compile().memory_analysis().temp_size_in_bytes


def test_policies_keep_less_and_less():
    sizes = {name: temporary_bytes(name) for name in ORDER}
    for more, less in zip(ORDER, ORDER[1:], strict=False):
        assert sizes[less] < 0.95 * sizes[more], sizes


@pytest.mark.slow
def test_policies_on_tpu():
    fields = SHAPE | {'dtype': 'bfloat16', 'd_model': 256, 'd_ff': 1024, 'data__seq_len': 1024, 'n_layers': 12}
    sizes = tpu_memory(fields, {name: {'remat': name} for name in (*ORDER, 'offload')})
    for more, less in zip(ORDER, ORDER[1:], strict=False):
        assert sizes[less][0] < 0.95 * sizes[more][0], sizes
    assert sizes['offload'][0] < 0.95 * sizes['dots'][0], sizes
    assert sizes['offload'][1] > 0, sizes


def save_the_core(primitive, *_, **parameters):
    return primitive.name == 'name' and parameters['name'] == 'attention'


def test_a_policy_of_ones_own_by_names():
    """The named result of attention is kept and nothing else: between full and dots."""
    assert temporary_bytes('full') < temporary_bytes(save_the_core) < temporary_bytes('dots')
    step, state = tiny_training(tiny_config(**LLAMA, remat=save_the_core))
    plain, _ = tiny_training(tiny_config(**LLAMA))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    jax.tree.map(close, step(state, packed_tokens(8)), plain(state, packed_tokens(8)))
