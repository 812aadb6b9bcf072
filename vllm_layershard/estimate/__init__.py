"""Estimate: whether the movement hides behind the compute, on a stated device."""

from vllm_layershard.estimate.forecast import (
    PREFILL_TOKENS,
    Forecast,
    Phase,
    forecast,
)
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.overlap import Span
from vllm_layershard.estimate.profiles import DEFAULT, profile, profile_names

__all__ = [
    "DEFAULT",
    "PREFILL_TOKENS",
    "Forecast",
    "Hardware",
    "Phase",
    "Span",
    "forecast",
    "profile",
    "profile_names",
]
