"""Estimate: whether the movement hides behind the compute, on a stated device."""

from vllm_layershard.estimate.devices.bundled import DEFAULT, profile_names
from vllm_layershard.estimate.devices.named import profile
from vllm_layershard.estimate.forecast import forecast
from vllm_layershard.estimate.forwards.batches import (
    DECODE_CONTEXT,
    DECODE_SEQUENCES,
    PREFILL_TOKENS,
)
from vllm_layershard.estimate.forwards.overlap import Forward, Span
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.outcome import (
    Abstention,
    Estimate,
    Forecast,
    Phase,
    PhaseName,
    Trial,
)

__all__ = [
    "DECODE_CONTEXT",
    "DECODE_SEQUENCES",
    "DEFAULT",
    "PREFILL_TOKENS",
    "Abstention",
    "Estimate",
    "Forecast",
    "Forward",
    "Hardware",
    "Phase",
    "PhaseName",
    "Span",
    "Trial",
    "forecast",
    "profile",
    "profile_names",
]
