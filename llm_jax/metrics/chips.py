"""Peak matrix throughput of a device, for MFU."""

import logging
import time

import jax
import jax.numpy as jnp

from llm_jax.metrics.specs import CHIPS

# Dense bfloat16 FLOP/s of one JAX device, by `device_kind`. One chip is one device,
# except where a device is one core of a two-core chip (TPU v2, v3 and 7x).
# Sources: the system architecture pages of Cloud TPU, and the data sheets of NVIDIA
# and AMD (where a sheet gives the rate with 2:4 sparsity, half of it stands here).
# Chips that runs are planned for have a line in `specs.py`.
PEAK_FLOPS = {kind: chip.rate('bfloat16') for chip in CHIPS.values() for kind in chip.device_kinds} | {
    'TPU v2': 46e12 / 2,
    'TPU v3': 123e12 / 2,
    'TPU v4 lite': 137e12,
    'NVIDIA A10': 125e12,
    'NVIDIA A100-SXM4-40GB': 312e12,
    'NVIDIA A100-PCIE-40GB': 312e12,
    'NVIDIA A100 80GB PCIe': 312e12,
    'NVIDIA L4': 121e12,
    'NVIDIA L40S': 362e12,
    'NVIDIA H100 PCIe': 756e12,
    'NVIDIA H100 NVL': 835e12,
    'NVIDIA H200 NVL': 835e12,
    'NVIDIA GH200 480GB': 989e12,
    'NVIDIA GB200': 2500e12,
    'NVIDIA GeForce RTX 3090': 71e12,
    'NVIDIA GeForce RTX 4090': 165e12,
    'AMD Instinct MI300X': 1307e12,
    'AMD Instinct MI325X': 1307e12,
}

_MATMUL_SIZE = 1024


def peak_flops(device: jax.Device) -> float | None:
    """The most FLOP/s that one device can do in matrix multiplications.

    Accelerators come from `PEAK_FLOPS`, whatever dtype the run computes in. A CPU is
    measured (`measure_peak_flops`) and shared out over the process's CPU devices,
    which are a fiction over the same cores.

    Returns:
      FLOP/s, or None for a device that is not in the table; a warning then says that
      there will be no MFU. Call it once per run.
    """
    if device.platform == 'cpu':
        return measure_peak_flops(device) / len(jax.local_devices(backend='cpu'))
    peak = PEAK_FLOPS.get(device.device_kind)
    if peak is None:
        logging.getLogger(__name__).warning(
            'The peak FLOP/s of %r is not known, so MFU is left out; add it to PEAK_FLOPS in %s.',
            device.device_kind, __name__,
        )  # fmt: skip
    return peak


def measure_peak_flops(device: jax.Device, seconds: float = 0.3) -> float:
    """FLOP/s of the fastest of several float32 matrix products on a device.

    The best, not the mean: other load on the machine can only make it look slower.
    """
    n = _MATMUL_SIZE
    multiply = jax.jit(lambda x: jnp.dot(x, x, precision='highest'))
    # A mesh of its own, in place of one that the caller may have set.
    with jax.set_mesh(jax.sharding.Mesh([device], ('one',))):
        a = jnp.ones((n, n), jnp.float32)
        multiply(a).block_until_ready()  # compiles
        best, end = float('inf'), time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            multiply(a).block_until_ready()
            best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def mfu(tokens_per_second: float, flops_per_token: float, n_devices: int, peak: float | None) -> float | None:
    """Model FLOPs utilisation: the useful share of what the devices could do, 0 to 1.

    Args:
      tokens_per_second: over all devices.
      flops_per_token: from `flops_per_token`.
      n_devices: devices of the mesh.
      peak: of one device, from `peak_flops`; None gives None.
    """
    return None if peak is None else tokens_per_second * flops_per_token / (n_devices * peak)
