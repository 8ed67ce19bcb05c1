"""Machines that need not exist: slices of TPUs and machines of GPUs, as their compilers describe them."""

from collections.abc import Iterator
import contextlib
import dataclasses
import importlib.util
import math
import os

import jax
from jax.experimental import topologies
from jax.sharding import Mesh
import numpy as np

from llm_jax.config.schema import Config, ConfigError
from llm_jax.dist import mesh as mesh_lib
from llm_jax.dist.fit import check_fit
from llm_jax.dist.slices import parse_slice
from llm_jax.metrics.specs import CHIPS, Chip

GPUS = tuple(name for name, chip in CHIPS.items() if not chip.is_tpu)
# How libtpu spells what differs from our names, and the options of a generation: one
# device per chip on v4, as its programs run.
_LIBTPU_NAMES = {'7x': 'tpu7x'}
_OPTIONS = {'v4': {'chip_config_name': 'megacore'}}
# What XLA asks of a GPU that is not there, in its text of a `GpuTargetConfigProto`: the first lines are alike on all.
_TARGET = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 shared_memory_per_block: 49152
  cuda_compute_capability {{ major: {major} feature_extension: {features} }}
  core_count: {cores} fpus_per_core: {fpus} clock_rate_ghz: {clock}
  shared_memory_per_core: {shared} shared_memory_per_block_optin: {optin} l2_cache_size: {l2}
  memory_bandwidth: {bandwidth} device_memory_size: {memory}
}}
platform_name: "CUDA" runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 12 }}
device_description_str: "{kind}"
"""
_HOPPER = {'major': 9, 'features': 'ACCELERATED_FEATURES', 'cores': 132, 'fpus': 128, 'clock': 1.98,
           'shared': 233_472, 'optin': 232_448, 'l2': 50 * 2**20}  # fmt: skip
# As `cudaGetDeviceProperties` gives them; XLA's sources have them in xla/backends/gpu/target_config/specs.
_GPU = {
    'a100': {'major': 8, 'features': 'NONE', 'cores': 108, 'fpus': 64, 'clock': 1.41, 'shared': 167_936,
             'optin': 166_912, 'l2': 40 * 2**20},
    'h100': _HOPPER,
    'h200': _HOPPER,
    'b200': _HOPPER | {'major': 10, 'cores': 148, 'clock': 1.965, 'l2': 132_644_864},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Machine:
    """Target of a plan.

    Attributes:
      chip: of which it is made.
      shape: chips along each dimension of a slice's torus; of GPUs their number.
      slices: how many slices, joined by the data-centre network.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chips(self) -> int:
        return math.prod(self.shape) * self.slices

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def hbm(self) -> float:
        """Bytes of memory of one device."""
        return self.chip.hbm / self.chip.devices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """True for each dimension whose ends are joined: in cubes of 4, and sides of 16 on v5e and v6e."""
        if self.chip.torus == 2:
            return tuple(n == 16 for n in self.shape)
        return (self.chip.torus == 3 and all(n % 4 == 0 for n in self.shape),) * len(self.shape)

    def __str__(self) -> str:
        if not self.chip.is_tpu:
            return f'{self.chips} × {self.chip.name}'
        shape = 'x'.join(map(str, self.shape))
        return f'{self.chip.name}:{shape}' + (f' × {self.slices} slices' if self.slices > 1 else '')


def parse_tpu(name: str, slices: int = 1) -> Machine:
    """'v5p:8x8x8' as a machine.

    Raises:
      ConfigError: no such generation, or a shape that it does not have.
    """
    if slices < 1:
        raise ConfigError(f'--slices = {slices} must be at least 1')
    found = parse_slice(name, '--topology')
    return Machine(found.chip, found.shape, slices)


def parse_gpu(name: str, devices: int) -> Machine:
    """`devices` GPUs of a kind; machines of eight joined by a network.

    Raises:
      ConfigError: no such GPU, or a number that fills no machines.
    """
    if name not in GPUS:
        raise ConfigError(f'--gpu = {name!r} is not known; there are {", ".join(GPUS)}')
    if devices < 1 or devices > CHIPS[name].per_host and devices % CHIPS[name].per_host:
        raise ConfigError(f'--devices = {devices}: up to {CHIPS[name].per_host}, or a multiple of it')
    return Machine(CHIPS[name], (devices,))


@contextlib.contextmanager
def compiler() -> Iterator[None]:
    """Loads the TPU compiler, libtpu, from $LLM_JAX_LIBTPU.

    Raises:
      ConfigError: there is none.
    """
    path = os.environ.get('LLM_JAX_LIBTPU', '')
    if not path or not os.path.isfile(path):
        raise ConfigError(
            'the TPU compiler is missing: LLM_JAX_LIBTPU '
            + (f'= {path!r} is no file' if path else 'is not set')
            + '. `./tools/run plan` fetches the package libtpu once (about 700 MB on disk, Linux on x86-64, and pip '
            'needs its package index); without it, plan by numbers alone: leave --topology out and use --gpu'
        )
    wanted = {
        'TPU_LIBRARY_PATH': path,
        'TPU_SKIP_MDS_QUERY': '1',  # do not ask the metadata server which TPU this machine has
        'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',  # several plans at the same time
        'TPU_WORKER_HOSTNAMES': 'localhost',  # nor for its name, of which it would warn
        'TPU_ACCELERATOR_TYPE': 'v5p-8',  # any that there is: without one it warns, and it decides nothing
        'TPU_STDERR_LOG_LEVEL': '3',
        'TPU_MIN_LOG_LEVEL': '3',
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def tpu_devices(machine: Machine) -> list[jax.Device]:
    """The devices of a TPU machine, as the TPU compiler describes them; inside `compiler()`.

    Raises:
      ConfigError: the compiler does not know such a slice.
    """
    generation = machine.chip.name
    options = dict(_OPTIONS.get(generation, {}))
    if machine.slices > 1:
        options['num_slices'] = machine.slices
    if math.prod(machine.shape) == 1:
        options['chips_per_host_bounds'] = (1, 1, 1)
    name = f'{_LIBTPU_NAMES.get(generation, generation)}:{"x".join(map(str, machine.shape))}'
    try:
        found = topologies.get_topology_desc(platform='tpu', topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(f'--topology = {machine}: the TPU compiler does not accept it: {error}') from error
    return list(found.devices)


def no_cuda() -> str:
    """Why programs for GPUs cannot be compiled here, in words; '' where JAX's CUDA plugin is. It takes no GPU."""
    if any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in ('13', '12')):
        return ''
    return (
        'the compiler for NVIDIA GPUs is missing: no JAX plugin for CUDA is installed. `./tools/run plan` fetches it '
        'once (about 1.3 GB on disk, Linux on x86-64, and pip needs its package index)'
    )


def gpu_devices(machine: Machine) -> list[jax.Device]:
    """GPUs to compile for, as XLA describes them to itself; where `no_cuda` has no reason."""
    chip = machine.chip
    target = _TARGET.format(
        **_GPU[chip.name], bandwidth=int(chip.hbm_rate), memory=int(chip.hbm), kind=chip.device_kinds[0]
    )
    hosts = max(1, machine.chips // chip.per_host)
    found = topologies.get_topology_desc(
        platform='cuda', topology=f'1x{hosts}x{machine.chips // hosts}', target_config=target
    )
    return list(found.devices)


def sizes(config: Config, machine: Machine) -> dict[str, int]:
    """Mesh axis -> size on a machine; the checks that need no compiler.

    Raises:
      ConfigError: the mesh does not fill the machine, or splits what cannot be split.
    """
    out = mesh_lib.axis_sizes(config.mesh, machine.devices)
    mesh_lib.check_slices(out, machine.slices)
    check_fit(config, out)
    return out


def coordinates(mesh: Mesh, machine: Machine) -> np.ndarray:
    """int[devices, 1 + dimensions]: slice and place in its torus, in the order of the mesh."""
    if machine.chip.is_tpu:
        rank = len(machine.shape)
        rows = [(getattr(d, 'slice_index', 0) or 0, *d.coords[:rank]) for d in mesh.devices.flat]
        return np.array(rows)
    return gpu_coordinates(machine, np.array([d.id for d in mesh.devices.flat]))


def gpu_coordinates(machine: Machine, index: np.ndarray | None = None) -> np.ndarray:
    """int[devices, 2]: machine and place in it, of GPUs by their number; in order if no numbers are given."""
    index = np.arange(machine.devices) if index is None else index
    return np.stack([index // machine.chip.per_host, index % machine.chip.per_host], axis=1)
