"""Roofline: an operation takes as long as its products or its bytes, whichever is longer."""

from __future__ import annotations

from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.models import Operation


class Roofline:
    """Times operations on one device, alone and beside what moves.

    `broadcast_rate`: bytes per second of the broadcasts that may be in flight; their memory
    traffic comes out of the peak bandwidth (see `Hardware`), and of what is left the compute
    reaches as large a share as before. `pull_traffic`: that of pulls, in bytes per second; copy
    engines carry them, and products keep their pace. `least`: with the least contention of the
    device's, not the most.
    """

    def __init__(
        self,
        hardware: Hardware,
        broadcast_rate: float = 0.0,
        pull_traffic: float = 0.0,
        *,
        least: bool = False,
    ) -> None:
        assert hardware.bf16 is not None, "lacking() names it"
        assert hardware.memory_bandwidth is not None, "lacking() names it"
        reached = hardware.compute_efficiency.value
        self._rate = hardware.bf16.value * reached
        self._low_bit_rate = (hardware.low_bit or hardware.bf16).value * reached
        self._bandwidth = hardware.memory_bandwidth.value * hardware.memory_efficiency.value
        self._products_slower = 1.0 if pull_traffic else 1 + hardware.contention[0 if least else 1]
        if hardware.memory_slowdown is not None and not pull_traffic:
            self._memory_slower = 1 + hardware.memory_slowdown.value
        else:
            traffic = pull_traffic or hardware.broadcast_traffic.value * broadcast_rate
            # However fast the link, the memory's arbiter leaves the compute its half.
            peak = hardware.memory_bandwidth.value
            self._memory_slower = peak / max(peak - traffic, peak / 2)

    def seconds(self, operation: Operation) -> float:
        """Seconds of one operation alone."""
        return max(self._products(operation), self._memory(operation))

    def slowdown(self, operation: Operation) -> float:
        """The share by which it takes longer while a weight is in flight."""
        products, memory = self._products(operation), self._memory(operation)
        alone = max(products, memory)
        beside = max(products * self._products_slower, memory * self._memory_slower)
        return beside / alone - 1 if alone else 0.0

    def _products(self, operation: Operation) -> float:
        low_bit = operation.precision == "fp8"
        return operation.flops / (self._low_bit_rate if low_bit else self._rate)

    def _memory(self, operation: Operation) -> float:
        return operation.moved_bytes / self._bandwidth
