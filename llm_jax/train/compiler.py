"""Compiler options of the training step, by generation of TPU: the same in training, profiles, benchmarks and plans."""

import dataclasses
from typing import Any
import warnings

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llm_jax.config.schema import Config, ConfigError
from llm_jax.metrics.specs import CHIPS

# By default a weight that is sharded over a whole slice is written into zeros and summed: twice the bytes of a gather.
_GATHERS = {'xla_tpu_prefer_async_allgather_to_allreduce': True, 'xla_enable_async_all_gather': True}
# SparseCores move gathered weights while the TensorCores multiply; over one dimension of the torus, or over several.
_SPARSE_CORES = {
    'xla_tpu_enable_sparse_core_collective_offload_all_gather': True,
    'xla_tpu_enable_sparse_core_collective_offload_2d_all_gather': True,
    'xla_tpu_enable_sparse_core_collective_offload_3d_all_gather': True,
    'xla_tpu_use_tc_device_shape_on_sc': True,
    'xla_sc_disable_megacore_partitioning': True,
}
# Generation -> the options of a step on several devices; docs/performance.md says what each set is worth.
DEFAULTS: dict[str, dict[str, Any]] = {
    'v4': _GATHERS,
    # Gathers run within products that do not need them ("continuation fusion"): on this generation alone.
    'v5e': _GATHERS | {'xla_tpu_enable_async_collective_fusion_fuse_all_gather': True},
    'v5p': _GATHERS | _SPARSE_CORES,
    'v6e': _GATHERS | _SPARSE_CORES,
    '7x': _GATHERS,  # SparseCores carry its collectives by default
}


@dataclasses.dataclass(frozen=True)
class Hazard:
    """A fast option that is known to go wrong.

    Attributes:
      safe_on: generations on which it is not.
      reason: what goes wrong, and who says so.
    """

    safe_on: tuple[str, ...]
    reason: str


HAZARDS = {
    'xla_tpu_enable_async_collective_fusion_fuse_all_gather': Hazard(
        ('v5e',), 'compilers from libtpu 0.0.50 on refuse it, as results may be wrong and programs may hang'
    ),
    'xla_tpu_enable_async_collective_fusion_fuse_all_reduce': Hazard(
        ('v5e',), 'with overlapped collectives and splash attention it gave NaN on v6e (jax-ml/jax#38741)'
    ),
    'xla_tpu_overlap_compute_collective_tc': Hazard(
        ('v5e',), 'with fused collectives and splash attention it gave NaN on v6e (jax-ml/jax#38741)'
    ),
}
# How XLA's status codes begin a message when options, and not a lack of memory or a fault, end a compilation.
_REFUSALS = ('INVALID_ARGUMENT', 'FAILED_PRECONDITION', 'UNIMPLEMENTED', 'NOT_FOUND')


def default_options(mesh: Mesh) -> dict[str, Any]:
    """Options of the mesh's generation of TPU; none on one device and on other platforms."""
    device = mesh.devices.flat[0]
    if mesh.size == 1 or device.platform != 'tpu':
        return {}
    return DEFAULTS.get(_generation(device.device_kind), {})


def accepted_options(config: Config, mesh: Mesh) -> dict[str, Any]:
    """Asks the compiler about the step's options with an empty program, before hours go into a large one.

    A default that it refuses is left out, with a warning; so a new release of the compiler ends no run.

    Returns:
      option -> value: the generation's defaults, overridden by `train.compiler_options`, where None leaves one out.

    Raises:
      ConfigError: the compiler refuses an option of `train.compiler_options`.
    """
    chosen = {name: value for name, value in config.train.compiler_options.items() if value is not None}
    defaults = {
        name: value for name, value in default_options(mesh).items() if name not in config.train.compiler_options
    }
    kind = mesh.devices.flat[0].device_kind
    _warn_of_hazards(chosen, kind)
    if (refusal := _refusal(mesh, chosen)) is not None:
        raise ConfigError(_complaint(mesh, chosen, refusal))
    while defaults and (refusal := _refusal(mesh, defaults | chosen)) is not None:
        refused = sorted(_culprits(mesh, defaults | chosen, refusal) & defaults.keys()) or sorted(defaults)
        for name in refused:
            del defaults[name]
        warnings.warn(
            f'the compiler for {kind} refuses {", ".join(refused)}, left out: {_reason(refusal)}', stacklevel=2
        )
    return defaults | chosen


def compile_step(lowered: jax.stages.Lowered, config: Config, options: dict[str, Any]) -> jax.stages.Compiled:
    """Compiles the step; defaults that the compiler refuses for this program alone are left out, with a warning.

    Args:
      lowered: the step, jitted without options.
      config: `train.compiler_options` tells the user's options from the defaults.
      options: from `accepted_options`.

    Raises:
      ConfigError: the compiler refuses the program because of `train.compiler_options`.
      jax.errors.JaxRuntimeError: anything else, such as a lack of memory.
    """
    try:
        return lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if not options or not str(error).startswith(_REFUSALS):
            raise
        chosen = {name: value for name, value in options.items() if name in config.train.compiler_options}
        if chosen == options:
            raise ConfigError(
                f'train.compiler_options = {chosen}: the compiler refuses the training step: {_reason(error)}. '
                'Leave options out, or set them to None'
            ) from error
        left_out = ', '.join(options.keys() - chosen.keys())
        warnings.warn(f'{left_out}: left out, as the compiler refuses the step: {_reason(error)}', stacklevel=2)
        return compile_step(lowered, config, chosen)


def _generation(device_kind: str) -> str:
    """The name in `CHIPS` of a kind of device; the kind itself where no chip is known by it."""
    return next((chip.name for chip in CHIPS.values() if device_kind in chip.device_kinds), device_kind)


def _refusal(mesh: Mesh, options: dict[str, Any]) -> jax.errors.JaxRuntimeError | None:
    """The error with which the compiler refuses a program that does nothing; None if it takes the options."""
    if not options:
        return None
    nothing = jax.ShapeDtypeStruct((), 'int32', sharding=NamedSharding(mesh, PartitionSpec()))
    try:
        jax.jit(lambda x: x).lower(nothing).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if str(error).startswith(_REFUSALS):
            return error
        raise
    return None


def _culprits(mesh: Mesh, options: dict[str, Any], refusal: jax.errors.JaxRuntimeError) -> set[str]:
    """The options that the message names; else those without which the compiler takes the others."""
    named = {name for name in options if f"'{name}'" in str(refusal) or f'flag {name}:' in str(refusal)}
    without = lambda name: {other: value for other, value in options.items() if other != name}
    return named or {name for name in options if _refusal(mesh, without(name)) is None}


def _complaint(mesh: Mesh, options: dict[str, Any], refusal: jax.errors.JaxRuntimeError) -> str:
    names = sorted(_culprits(mesh, options, refusal)) or sorted(options)
    fields = ' with '.join(f'train.compiler_options.{name} = {options[name]!r}' for name in names)
    return (
        f'{fields} is refused by the compiler for {mesh.devices.flat[0].platform}: {_reason(refusal)}. Correct it, or '
        'set it to None to leave it out'
    )


def _reason(refusal: jax.errors.JaxRuntimeError) -> str:
    """The first line of a refusal without its status code."""
    return str(refusal).partition('\n')[0].partition(': ')[2].strip().rstrip('.')


def _warn_of_hazards(chosen: dict[str, Any], kind: str) -> None:
    generation = _generation(kind)
    for name, hazard in HAZARDS.items():
        if chosen.get(name) and chosen[name] not in ('false', 'disabled') and generation not in hazard.safe_on:
            warnings.warn(
                f'train.compiler_options.{name} = {chosen[name]!r} is unsafe on {generation}: {hazard.reason}',
                stacklevel=3,
            )
