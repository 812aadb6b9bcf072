"""Needs: the devices on which vLLM builds one of its classes."""

from __future__ import annotations

from typing import NamedTuple


class KernelDevice(NamedTuple):
    """`capability`: CUDA's compute capability, as 9.0; None: none. `rocm`: AMD's, without one."""

    capability: float | None
    rocm: bool = False


class Needs(NamedTuple):
    """`least`: the lowest compute capability. `alone`: no other. `rocm`: AMD's devices, too.

    Source: vLLM 0.32, compressed_tensors.py and quark.py, `_check_scheme_supported`, for which
    AMD's devices are 9.4 and 9.5 (platforms/rocm.py).
    """

    least: float
    alone: bool = False
    rocm: bool = False

    def met_by(self, device: KernelDevice) -> bool:
        """Whether the class is built there."""
        if device.capability is None:
            return device.rocm and self.rocm
        return device.capability == self.least or (
            device.capability > self.least and not self.alone
        )

    def __str__(self) -> str:
        """For example `compute capability 9.0`."""
        more = "" if self.alone else " or higher"
        return f"compute capability {self.least}{more}{', or on ROCm' if self.rocm else ''}"
