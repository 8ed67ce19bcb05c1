"""Specifications of chips by their makers: the one table behind MFU and plans.

All rates are peaks. Sources: the system architecture pages of Cloud TPU and the tables
of "How to Scale Your Model" (Austin et al. 2025, chapter 2; PCIe too) for TPUs, the data sheets of
NVIDIA for GPUs and of their DGX/HGX machines for networks. A host of eight v5e has 2 x 100 Gbit/s
(the page's 6.4 Tbit/s of a pod of 256 are the same 3.125 GB/s a chip); v6e's host link is PCIe Gen5.
The memory that a TPU program may use is what the TPU compiler itself reports as available.
"""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      name: as in a topology ('v5p') or behind --gpu ('h100').
      device_kinds: what `jax.Device.device_kind` calls it.
      bf16: dense FLOP/s in bfloat16; of a GPU without 2:4 sparsity.
      fp8: the same in float8; 0 where the chip has none.
      int8: operations per second in int8; 0 where the chip has none.
      hbm: bytes that a program may use.
      hbm_rate: bytes per second.
      link_rate: bytes per second of one link to a neighbour, in one direction (ICI); of a
        GPU all of its NVLink, in one direction.
      dcn_rate: bytes per second and chip of the network between slices, or between GPU machines.
      host_rate: bytes per second and chip to or from the host's memory (PCIe), in one direction.
      torus: dimensions of the network of a slice; 0 for a switch (NVLink).
      per_host: chips of one host.
      devices: JAX devices of one chip.
    """

    name: str
    device_kinds: tuple[str, ...]
    bf16: float
    fp8: float
    int8: float
    hbm: float
    hbm_rate: float
    link_rate: float
    dcn_rate: float
    host_rate: float
    torus: int
    per_host: int
    devices: int = 1

    @property
    def is_tpu(self) -> bool:
        return self.torus > 0

    def rate(self, dtype: str) -> float:
        """FLOP/s of one JAX device in matrix products of this dtype; bfloat16's where the chip has no other."""
        special = {'float8': self.fp8, 'int8': self.int8}.get(dtype, 0)
        return (special or self.bf16) / self.devices


CHIPS = {
    chip.name: chip
    for chip in (
        Chip('v4', ('TPU v4',), 275e12, 0, 275e12, 30.75 * _GIB, 1.2e12, 45e9, 6.25e9, 15e9, 3, 4),
        Chip('v5e', ('TPU v5 lite', 'TPU v5e'), 197e12, 0, 394e12, 15.75 * _GIB, 0.82e12, 45e9, 3.125e9, 15e9, 2, 4),
        Chip('v5p', ('TPU v5', 'TPU v5p'), 459e12, 0, 918e12, 95.74 * _GIB, 2.77e12, 90e9, 6.25e9, 15e9, 3, 4),
        Chip('v6e', ('TPU v6 lite', 'TPU v6e'), 918e12, 0, 1836e12, 31.25 * _GIB, 1.64e12, 90e9, 12.5e9, 32e9, 2, 4),
        # Ironwood is two devices of 94.75 GiB each.
        Chip('7x', ('TPU7x',), 2307e12, 4614e12, 0, 2 * 94.75 * _GIB, 7.37e12, 100e9, 12.5e9, 15e9, 3, 4, 2),
        Chip('a100', ('NVIDIA A100-SXM4-80GB',), 312e12, 0, 624e12, 80e9, 2.039e12, 300e9, 25e9, 25e9, 0, 8),
        Chip('h100', ('NVIDIA H100 80GB HBM3',), 989e12, 1979e12, 1979e12, 80e9, 3.35e12, 450e9, 50e9, 50e9, 0, 8),
        Chip('h200', ('NVIDIA H200',), 989e12, 1979e12, 1979e12, 141e9, 4.8e12, 450e9, 50e9, 50e9, 0, 8),
        Chip('b200', ('NVIDIA B200',), 2250e12, 4500e12, 4500e12, 180e9, 8e12, 900e9, 50e9, 50e9, 0, 8),
    )
}
