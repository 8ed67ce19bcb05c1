"""Optimizer state in the memory of the host, brought to the devices for the update only.

It is as ZeRO-Offload's placement (Ren et al. 2021, arXiv:2101.06840), but the update is
computed on the devices: their transfers overlap with it.
"""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
import optax

from llm_jax.config.schema import ConfigError

HOST = 'pinned_host'


def offloaded(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimizer with the arrays of its state in the host's memory; counters stay on the device.

    Call both of its functions within `jax.jit`.
    """

    def init(params: Any) -> Any:
        return _moved(optimizer.init(params), jax.memory.Space.Host)

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(grads, _moved(state, jax.memory.Space.Device), params)
        return updates, _moved(state, jax.memory.Space.Host)

    return optax.GradientTransformation(init, update)


def in_host_memory(shapes: Any) -> Any:
    """Shapes of such a state, which `jax.eval_shape` gives without their memory, with it."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        if not leaf.ndim:
            return leaf
        sharding = NamedSharding(leaf.sharding.mesh, leaf.sharding.spec, memory_kind=HOST)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(place, shapes)


def check_devices(mesh: Mesh) -> None:
    """Raises: ConfigError: the devices of the mesh cannot reach memory of the host.

    GPUs that a program is only compiled for name no memories at all.
    """
    for device in mesh.local_devices:
        kinds = sorted(memory.kind for memory in device.addressable_memories())
        if kinds and HOST not in kinds:
            raise ConfigError(
                f'optimizer.offload = True: {device.device_kind} ({device.platform}) has no memory {HOST!r}, '
                f'only {", ".join(kinds)}; set optimizer.offload = False'
            )


def _moved(state: Any, space: jax.memory.Space) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, space) if leaf.ndim else leaf, state)
