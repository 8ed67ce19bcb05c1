"""What a step needs of a device's memory, by shapes, and the error that says so where there is too little."""

from collections.abc import Iterator
import contextlib
import ctypes
import math
from typing import Any

import jax

from llm_jax.config.schema import Config, ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics import format as fmt
from llm_jax.train import offload
from llm_jax.train.setup import Plan

# Stands in XLA's messages of a lack of memory, whether of the compiler or of the device.
_STATUS = 'RESOURCE_EXHAUSTED'


def kept_parts(plan: Plan) -> dict[str, float]:
    """Bytes on one device of what a run keeps from step to step, and of its batch."""
    shapes, mesh = plan.shapes, plan.mesh
    parts = {
        'parameters': device_bytes(plan.param_shapes, mesh),
        'optimizer': device_bytes(shapes.opt_state, mesh),
        'average of parameters': device_bytes(shapes.ema, mesh),
        'batch': device_bytes(plan.step_shapes, mesh),
    }
    return {name: n for name, n in parts.items() if n}


def device_bytes(tree: Any, mesh: Any) -> float:
    """Bytes that one device holds of a tree of sharded shapes; what is in the host's memory is not among them."""
    return float(sum(_part(leaf, mesh) for leaf in jax.tree.leaves(tree) if not _on_host(leaf)))


def host_bytes(tree: Any, mesh: Any) -> float:
    """Bytes that a device's host holds for it."""
    return float(sum(_part(leaf, mesh) for leaf in jax.tree.leaves(tree) if _on_host(leaf)))


def _on_host(leaf: Any) -> bool:
    sharding = getattr(leaf, 'sharding', None)
    return sharding is not None and sharding.memory_kind == offload.HOST


def _part(leaf: Any, mesh: Any) -> float:
    dtype = leaf.dtype
    width = 8 if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key) else dtype.itemsize
    if dtype == jax.dtypes.float0:
        return 0.0
    sharding = leaf.sharding if hasattr(leaf, 'sharding') else None
    spec = tuple(sharding.spec) if sharding is not None else ()
    sizes = dict(mesh.shape)
    pieces = math.prod(sizes[axis] for entry in spec for axis in mesh_lib.mesh_axes(entry))
    return math.prod(leaf.shape) * width / pieces


@contextlib.contextmanager
def explained(plan: Plan, program: Any = None) -> Iterator[None]:
    """Turns a lack of memory into one line with what takes the most, and the fields that make it less.

    Args:
      plan: of the run.
      program: the compiled step, if there is one; it knows what the activations take.

    Raises:
      ConfigError: instead of JAX's error of a device without memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if _STATUS not in str(error):
            raise
        raise ConfigError(_shortage(plan, program, str(error))) from error


def release_freed() -> None:
    """Gives memory that the compiler has freed back to the system, where the C library is GNU's.

    It is in pieces between what lives on, which malloc keeps for itself; the steps that follow need blocks of another size.
    """
    if trim := getattr(ctypes.CDLL(None), 'malloc_trim', None):
        trim(0)


def _shortage(plan: Plan, program: Any, message: str) -> str:
    config, device = plan.config, plan.mesh.devices.flat[0]
    parts = kept_parts(plan) | {'gradients': device_bytes(plan.shapes.params, plan.mesh)}
    stats = program.memory_analysis() if isinstance(program, jax.stages.Compiled) else None
    if stats is not None:
        parts['activations and temporaries'] = max(0.0, stats.temp_size_in_bytes - parts['gradients'])
    limit = (device.memory_stats() or {}).get('bytes_limit')
    largest = sorted(parts, key=parts.__getitem__, reverse=True)
    shown = ', '.join(f'{name} {fmt.size(parts[name])}' for name in largest if parts[name])
    rest = '' if stats is not None else ', and the activations, which are not known before it is compiled'
    # Of several lines, one for each buffer, the first says how much was asked for.
    reason = message.partition(f'{_STATUS}: ')[2].partition('\n')[0].strip().rstrip('.')[:200]
    return (
        f'out of memory on a device of kind {device.device_kind}{f", which has {fmt.size(limit)}" if limit else ""}: '
        f'a step needs {shown}{rest} ({reason}). {_advice(config, parts, largest[0])}; '
        '`./tools/run plan EXPERIMENT` says what fits before anything runs'
    )


def _advice(config: Config, parts: dict[str, float], largest: str) -> str:
    """Returns the fields to change, those that help most first."""
    train = config.train
    rows = [
        f'raise train.grad_accumulation ({train.grad_accumulation}) or lower train.batch_size ({train.batch_size}) or '
        f'data.seq_len ({config.data.seq_len})'
    ]
    if config.model.remat in ('none', 'attention', 'dots'):
        rows.append(f"set model.remat = 'full' (it is {config.model.remat!r})")
    state = ['split the model over more devices with mesh.fsdp, or make it smaller']
    if parts.get('optimizer', 0) > parts['parameters'] and not config.optimizer.offload:
        state.append("set optimizer.offload = True, or optimizer.mu_dtype = 'bfloat16'")
    known = 'activations and temporaries' in parts
    first, then = (state, rows) if known and largest != 'activations and temporaries' else (rows, state)
    text = '; '.join(first + then)
    return text[0].upper() + text[1:]
