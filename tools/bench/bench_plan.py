"""How far plans are from what is measured: FLOPs against XLA's count, peak memory and step time on this CPU.

./tools/run bench_plan [--only flops,memory,time]
./tools/run bench_plan --only worked [--shape gpt3]      # the worked plans of docs/plan.md, with the TPU compiler
"""

import dataclasses
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

from llm_jax import config as config_lib
from llm_jax.config import cli
from llm_jax.config.schema import ConfigError

FLOPS = {
    'multi-head, GELU': {'model.feed_forward': 'gelu', 'model.position': 'learned', 'model.norm': 'layernorm'},
    'grouped, SwiGLU, untied': {'model.attention': 'gqa', 'model.n_kv_heads': 2, 'model.tie_embeddings': False},
    'latent attention': {'model.attention': 'mla'},
    'window of 16': {'model.window': 16},
    'experts, 2 of 4': {'model.feed_forward': 'moe', 'model.moe.n_experts': 4, 'model.d_model': 256},
}
# Over 8 devices.
MEMORY = {
    'plain': {'model.d_model': 768, 'model.n_layers': 6, 'train.batch_size': 32, 'mesh.fsdp': 4, 'mesh.tensor': 2},
    'deep': {'model.n_layers': 16, 'train.batch_size': 64, 'train.grad_accumulation': 4, 'model.remat': 'full'},
    'experts': {'model.feed_forward': 'moe', 'train.batch_size': 32, 'mesh.fsdp': 4, 'mesh.expert': 2},
}
# On one device.
TIME = {
    'plain': {'train.batch_size': 8},
    'wide': {'model.d_model': 1024, 'model.n_layers': 2, 'train.batch_size': 8, 'model.feed_forward': 'gelu'},
    'long': {'model.d_model': 256, 'data.seq_len': 1024, 'train.batch_size': 4, 'model.remat': 'full'},
}
_NARROW = '--config.optimizer.mu_dtype=bfloat16 --config.train.accumulation_dtype=bfloat16'
WORKED = {
    'llama3_8b': 'llama3_8b v5p:4x4x8',
    'llama3_8b_v4': 'llama3_8b v4:4x4x8',
    'llama3_8b_v5e': 'llama3_8b v5e:16x16 --config.train.grad_accumulation=2',
    'llama3_8b_v6e': 'llama3_8b v6e:16x16 --config.train.grad_accumulation=2',
    'llama3_8b_v6e_64': 'llama3_8b v6e:8x8',
    'llama3_8b_7x': 'llama3_8b 7x:4x4x4',
    'llama3_70b': 'llama3_70b v5p:8x8x8',
    'gpt3': 'gpt3_175b v5p:8x8x8',
    'gpt3_v6e': f'gpt3_175b v6e:16x16 --config.train.grad_accumulation=24 {_NARROW}',
    'gpt3_v6e_found': (
        'gpt3_175b v6e:16x16 --config.mesh.fsdp=128 --config.mesh.tensor=2 --config.train.grad_accumulation=4 '
        f"--config.mesh.rules.residual_length=('context','tensor') {_NARROW}"
    ),
    'long_context': 'long_context_128k v5p:4x4x8',
    'mixtral': 'mixtral_8x7b v5p:4x4x4',
    'deepseek': 'deepseek_moe v5p:8x8x8',
}


def small(fields):
    """A model that a CPU steps through in a second, with some fields changed."""
    config = config_lib.default()
    config.name = 'small'
    config.model.update(vocab_size=2048, d_model=512, n_layers=4, n_heads=8)
    config.data.seq_len, config.train.batch_size = 256, 16
    config_lib.apply_overrides(config, {field: str(value) for field, value in fields.items()})
    return config_lib.validate(config)


def flops(shape: str) -> dict:
    """The analytic count of FLOPs and that of the compiled program's text, against XLA's own, without loops.

    Experts are gone through in loops on CPU, whose bodies XLA counts once: of them there are the first two.
    """
    from llm_jax.plan.cases import make_case
    from llm_jax.plan.compiled import compile_step

    # One slice of attention, so that the whole square is computed, as the convention counts it.
    config = small({'model.scan': False, 'data.seq_len': 64, 'train.batch_size': 32, **FLOPS[shape]})
    case = make_case(config, _mesh(config, 1), None, None)
    compiled = compile_step(case)
    found = {'analytic': case.flops_per_token * case.tokens_per_step, 'text': compiled.cost.flops}
    return found if config.model.feed_forward == 'moe' else found | {'xla': compiled.xla_flops}


def memory(shape: str) -> dict:
    """Bytes over 8 CPU devices: as compiled, as estimated, and what the process took while it ran a step."""
    import jax
    import numpy as np

    from llm_jax.plan import memory as memory_lib
    from llm_jax.plan.cases import make_case
    from llm_jax.plan.compiled import compile_step

    config = small(MEMORY[shape])
    case = make_case(config, _mesh(config, 8), None, None)
    compiled, estimate = compile_step(case), memory_lib.estimate(case)
    before = _resident()
    with jax.set_mesh(case.plan.mesh):
        # Not `init`, whose own program needs memory: zeros do for a step.
        zeros = lambda leaf: jax.device_put(np.zeros(leaf.shape, leaf.dtype), _on(case.plan.mesh, leaf))
        state = jax.block_until_ready(jax.tree.map(zeros, case.plan.shapes))
        rows = np.ones((config.train.batch_size, config.data.seq_len + 1), np.int32)
        tokens = jax.device_put(rows, case.plan.rows_sharding)
        pathlib.Path('/proc/self/clear_refs').write_text('5')  # the peak counts from here
        state, _ = jax.block_until_ready(compiled.program(state, tokens))
    peak = int(_status('VmHWM')) * 1024
    code = compiled.memory.parts.get('code', 0.0)
    return {
        'compiled': 8 * (compiled.memory.total - code), 'estimated': 8 * estimate.total, 'measured': peak - before,
    }  # fmt: skip


def seconds(shape: str) -> dict:
    """Seconds of a step on one CPU device, at a roofline measured in the same run, and as measured."""
    import jax
    import numpy as np

    from llm_jax.metrics.chips import measure_peak_flops
    from llm_jax.plan.cases import make_case
    from llm_jax.plan.compiled import compile_step

    config = small(TIME[shape])
    case = make_case(config, _mesh(config, 1), None, None)
    compiled = compile_step(case)
    with jax.set_mesh(case.plan.mesh):
        state = jax.jit(case.plan.init)(jax.random.key(0))
        rows = np.ones((config.train.batch_size, config.data.seq_len + 1), np.int32)
        tokens = jax.device_put(rows, case.plan.rows_sharding)
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


def worked(shape: str) -> str:
    """A row of the table in docs/plan.md: slice and mesh, memory, step, MFU, time to compile."""
    from llm_jax.dist import mesh as mesh_lib
    from llm_jax.metrics import format as fmt
    from llm_jax.plan import facts, planner, topology

    experiment, name, *overrides = WORKED[shape].split()
    config = cli.experiment(f'experiments/pretrain/{experiment}.py', overrides)
    machine = topology.parse_tpu(name)
    with topology.compiler():
        outcome = planner.compiled(planner.case_of(config, machine, topology.tpu_devices(machine)))
    memory, roof = outcome.memory, outcome.roofline
    cells = (
        f'`{experiment}.py`{"".join(f" `{flag}`" for flag in overrides)}', str(machine),
        mesh_lib.format_sizes(outcome.case.sizes),
        f'{facts.gib(memory.total)} of {facts.gib(memory.limit)}', f'{facts.seconds(roof.step)}, {roof.bound}',
        fmt.percent(outcome.mfu), f'{outcome.compile_seconds:.0f} s',
    )  # fmt: skip
    return f'| {" | ".join(cells)} |'


def _mesh(config, n: int):
    import jax

    from llm_jax.dist import mesh as mesh_lib

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
    parser = cli.Parser('bench_plan', __doc__)
    parser.add_argument('--only', default='flops,memory,time', help='of flops, memory, time, worked')
    parser.add_argument('--shape', help='one of a part; default: all of them, each in a process of its own')
    args = parser.parse(argv)
    parts = {
        'flops': (flops, FLOPS),
        'memory': (memory, MEMORY),
        'time': (seconds, TIME),
        'worked': (worked, WORKED),
    }
    only = args.only.split(',')
    for value, known in [(part, parts) for part in only] + [(args.shape, parts[p][1]) for p in only if args.shape]:
        if value not in known:
            raise ConfigError(f'bench_plan: there is no {value!r}; there are {", ".join(known)}')
    if not args.shape:
        for part in only:
            for shape in parts[part][1]:
                subprocess.run([sys.executable, __file__, '--only', part, '--shape', shape], check=True)
        return
    os.environ['JAX_PLATFORMS'] = 'cpu'
    flag = '--xla_force_host_platform_device_count=8'
    os.environ['XLA_FLAGS'] = (os.environ.get('XLA_FLAGS', '') + ('' if only == ['time'] else f' {flag}')).strip()
    for part in only:
        found = parts[part][0](args.shape)
        print(found if isinstance(found, str) else json.dumps({part: {args.shape: found}}), flush=True)


if __name__ == '__main__':
    cli.run(main, sys.argv[1:])
