"""How far plans are from what is measured: FLOPs against XLA's count, peak memory and step time on this CPU.

./tools/run bench_plan [--only flops,memory,time]
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import sys
import time

from llm_jax import cli
from llm_jax import config as config_lib

PARTS = ('flops', 'memory', 'time')


def small(**fields):
    """A model that a CPU steps through in a second; `section__field=value` changes it."""
    config = config_lib.default()
    config.name = 'small'
    config.model.update(vocab_size=2048, d_model=512, n_layers=4, n_heads=8)
    config.data.seq_len, config.train.batch_size = 256, 16
    for name, value in fields.items():
        section, _, field = name.partition('__')
        config[section][field] = value
    return config_lib.validate(config)


def flops() -> list[dict]:
    """The analytic count of FLOPs and that of the compiled program's text, against XLA's own, without loops."""
    from llm_jax.plan.cases import make_case
    from llm_jax.plan.compiled import compile_step

    out = []
    for name, fields in {
        'multi-head, GELU': {'model__feed_forward': 'gelu', 'model__position': 'learned', 'model__norm': 'layernorm'},
        'grouped, SwiGLU, untied': {'model__attention': 'gqa', 'model__n_kv_heads': 2, 'model__tie_embeddings': False},
    }.items():
        # One slice of attention, so that the whole square is computed, as the convention counts it.
        config = small(model__scan=False, data__seq_len=64, train__batch_size=32, **fields)
        case = make_case(config, _mesh(config, 1), None, None)
        compiled = compile_step(case)
        analytic = case.flops_per_token * case.tokens_per_step
        out.append({'model': name, 'analytic': analytic, 'text': compiled.cost.flops, 'xla': compiled.xla_flops})
    return out


def memory() -> dict:
    """Bytes over 8 CPU devices: as compiled, as estimated, and what the process took while it ran a step."""
    import jax
    import numpy as np

    from llm_jax.plan import memory as memory_lib
    from llm_jax.plan.cases import make_case
    from llm_jax.plan.compiled import compile_step

    config = small(model__d_model=768, model__n_layers=6, train__batch_size=32, mesh__fsdp=4, mesh__tensor=2)
    case = make_case(config, _mesh(config, 8), None, None)
    compiled, estimate = compile_step(case), memory_lib.estimate(case)
    before = _resident()
    with jax.set_mesh(case.plan.mesh):
        # Not `init`, whose own program needs memory: zeros do for a step.
        zeros = lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), _on(case.plan.mesh, leaf))
        state = jax.block_until_ready(jax.tree.map(zeros, case.plan.shapes))
        tokens = jax.device_put(np.ones((32, config.data.seq_len + 1), np.int32), case.plan.rows_sharding)
        pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here
        state, _ = jax.block_until_ready(compiled.program(state, tokens))
    peak = int(_status('VmHWM')) * 1024
    code = compiled.memory.parts.get('code', 0.0)
    return {
        'compiled': 8 * (compiled.memory.total - code), 'estimated': 8 * estimate.total, 'measured': peak - before,
    }  # fmt: skip


def seconds() -> dict:
    """Seconds of a step on one CPU device, at a roofline measured in the same run, and as measured."""
    import jax
    import numpy as np

    from llm_jax.metrics.chips import measure_peak_flops
    from llm_jax.plan.cases import make_case
    from llm_jax.plan.compiled import compile_step

    config = small(train__batch_size=8)
    case = make_case(config, _mesh(config, 1), None, None)
    compiled = compile_step(case)
    with jax.set_mesh(case.plan.mesh):
        state = jax.jit(case.plan.init)(jax.random.key(0))
        tokens = jax.device_put(np.ones((8, config.data.seq_len + 1), np.int32), case.plan.rows_sharding)
        measured = []
        for _ in range(8):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(compiled.program(state, tokens))
            measured.append(time.perf_counter() - start)
    flop_rate, byte_rate = measure_peak_flops(jax.devices()[0], 1.0), _byte_rate()
    predicted = compiled.cost.seconds(flop_rate, byte_rate)
    return {
        'flop_rate': flop_rate, 'byte_rate': byte_rate, 'compute': compiled.cost.flops / flop_rate,
        'memory': compiled.cost.hbm_bytes / byte_rate, 'predicted': predicted, 'measured': min(measured[2:]),
    }  # fmt: skip


def _mesh(config, n: int):
    import jax

    from llm_jax import mesh as mesh_lib

    return mesh_lib.make_mesh(dataclasses.replace(config.mesh), jax.devices()[:n])


def _on(mesh, leaf):
    import jax

    return jax.sharding.NamedSharding(mesh, leaf.sharding.spec if leaf.sharding else jax.P())


def _byte_rate() -> float:
    """Bytes per second that XLA's own element-wise loop moves, read and written, of an array far beyond the caches."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(2**26, jnp.float32)
    add = jax.jit(lambda x: x + 1.0)
    add(x).block_until_ready()
    best = float('inf')
    for _ in range(8):
        start = time.perf_counter()
        add(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2 * x.nbytes / best


def _status(field: str) -> str:
    lines = pathlib.Path('/proc/self/status').read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f'{field}:'))


def _resident() -> int:
    return int(pathlib.Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog='bench_plan', description=__doc__.partition('\n')[0], allow_abbrev=False)
    parser.add_argument('--only', default=','.join(PARTS), help='of ' + ', '.join(PARTS))
    only = parser.parse_args(argv).only.split(',')
    os.environ['JAX_PLATFORMS'] = 'cpu'
    flag = '--xla_force_host_platform_device_count=8'
    os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') + ('' if only == ['time'] else f' {flag}')).strip()
    results = {'flops': flops, 'memory': memory, 'time': seconds}
    print(json.dumps({name: results[name]() for name in only}, indent=1))


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
