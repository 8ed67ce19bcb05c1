"""What XLA is told about the training step, by platform: the same in training, profiles, benchmarks and plans."""

from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.config.schema import Config, ConfigError

# Where a step moves data between devices; docs/performance.md says what each is worth. By default a TPU writes a
# weight that is split over a whole slice into zeros and sums these: twice the bytes, and nothing else runs meanwhile.
OPTIONS: dict[str, dict[str, Any]] = {
    'tpu': {
        'xla_tpu_prefer_async_allgather_to_allreduce': True,  # weights are gathered, if a gather can be asynchronous:
        'xla_enable_async_all_gather': True,  # it may be started ahead of its use,
        'xla_tpu_enable_async_collective_fusion_fuse_all_gather': True,  # and run within products that need it not
    },
}


def options(config: Config, mesh: Mesh) -> dict[str, Any]:
    """The options of the mesh's platform, where it has several devices, and those of the config over them."""
    ours = OPTIONS.get(mesh.devices.flat[0].platform, {}) if mesh.size > 1 else {}
    both = ours | config.train.compiler_options
    return {name: value for name, value in both.items() if value is not None}


def check_options(config: Config, mesh: Mesh) -> None:
    """Asks the compiler, with a program that does nothing, before hours go into one that does something.

    Raises:
      ConfigError: it refuses an option.
    """
    told = options(config, mesh)
    if not told:
        return
    nothing = jax.ShapeDtypeStruct((), 'int32', sharding=NamedSharding(mesh, PartitionSpec()))
    try:
        jax.jit(lambda x: x).lower(nothing).compile(compiler_options=told)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).removeprefix('INVALID_ARGUMENT: ').rstrip('.')
        name = next((name for name in told if name in reason), None)
        if name is None:
            raise  # something else is wrong
        raise ConfigError(
            f'train.compiler_options.{name} = {told[name]!r} is refused by the compiler for '
            f'{mesh.devices.flat[0].platform}: {reason}. Correct it, or set it to None to leave it out'
        ) from error
