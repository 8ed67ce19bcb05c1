"""Memory of a device that a run takes: counted from shapes, and said where it does not suffice."""

from collections.abc import Callable, Iterator
import contextlib
import math
from typing import Any

import jax

from llm_jax.config.schema import ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.metrics import format as fmt
from llm_jax.train import offload
from llm_jax.train.setup import Plan

_GIB = 2**30


def state_parts(plan: Plan) -> dict[str, float]:
    """Bytes on one device of what a run keeps from step to step, and of its batch."""
    shapes, mesh = plan.shapes, plan.mesh
    parts = {
        'parameters': device_bytes(plan.param_shapes, mesh),
        'constants': device_bytes(plan.constant_shapes, mesh),
        'optimizer': device_bytes(shapes.opt_state, mesh),
        'average of parameters': device_bytes(shapes.ema, mesh),
        'batch': device_bytes(plan.step_shapes, mesh),
    }
    return {name: n for name, n in parts.items() if n}


def gradient_bytes(plan: Plan) -> float:
    """Bytes on one device; a gradient has the dtype and the layout of its parameter, and frozen ones have none."""
    return device_bytes(plan.shapes.params, plan.mesh)


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
def explain_exhaustion(plan: Plan) -> Iterator[Callable[[jax.stages.Compiled], None]]:
    """While active, a lack of memory on the devices is an error of one line with what a step takes.

    Yields:
      a function that is given the compiled step, whose temporaries are then known.

    Raises:
      ConfigError: the devices have too little memory.
    """
    programs: list[jax.stages.Compiled] = []
    try:
        yield programs.append
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        raise ConfigError(_lack(plan, programs[-1] if programs else None, str(error))) from error


def _lack(plan: Plan, program: jax.stages.Compiled | None, message: str) -> str:
    """The error: what was asked for, what a step takes, and the fields that make it less."""
    parts = state_parts(plan) | {'gradients': gradient_bytes(plan)}
    analysis = program.memory_analysis() if program else None
    if analysis is not None:  # gradients are among the temporaries
        parts = state_parts(plan) | {'temporaries': float(analysis.temp_size_in_bytes)}
    taken = ', '.join(f'{name} {_gib(n)}' for name, n in parts.items())
    total = f'{_gib(sum(parts.values()))} {"" if analysis is not None else "and the activations "}'
    train, device = plan.config.train, plan.mesh.devices.flat[0]
    available = (device.memory_stats() or {}).get('bytes_limit')
    has = f' of {_gib(available)}' if available else ''
    what = ' '.join(message.partition('RESOURCE_EXHAUSTED:')[2].partition('\n')[0].split())[:200].rstrip('. ')
    return (
        f'out of memory on {device.device_kind}: {what}. A step takes {total}a device{has}: {taken}. Smaller are a '
        f'larger train.grad_accumulation (it is {train.grad_accumulation}), a smaller train.batch_size '
        f"({train.batch_size}), model.remat = 'full' (it is {plan.config.model.remat!r}) and more devices; "
        '`./tools/run plan` says what fits'
    )


def _gib(n_bytes: float) -> str:
    return f'{n_bytes / _GIB:.2f} GiB' if n_bytes >= 0.01 * _GIB else fmt.size(n_bytes)
