"""Roofline: the time of a step is what its products or its bytes take, whichever is longer."""

from __future__ import annotations

from typing import Final

from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.models import Step

COMPUTE_EFFICIENCY: Final = 0.7
MEMORY_EFFICIENCY: Final = 0.6
"""Shares of the peak that are reached; assumed, as Ascend/msmodeling does."""


def step_seconds(step: Step, hardware: Hardware) -> float:
    """Seconds that one step takes on one device."""
    rate = hardware.bf16.value
    if step.precision == "fp8" and hardware.low_bit is not None:
        rate = hardware.low_bit.value
    products = step.flops / (rate * COMPUTE_EFFICIENCY)
    memory = step.moved_bytes / (hardware.memory_bandwidth.value * MEMORY_EFFICIENCY)
    return max(products, memory)
