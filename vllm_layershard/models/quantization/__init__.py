"""Quantization: which linears a checkpoint quantises, and what tensors they then have."""

from vllm_layershard.models.quantization.choice import UNREAD, Quantization
from vllm_layershard.models.quantization.names import FUSED
from vllm_layershard.models.quantization.read import cache_of, quantization_of, require_dtype
from vllm_layershard.models.quantization.stated import stated_section

__all__ = [
    "FUSED",
    "UNREAD",
    "Quantization",
    "cache_of",
    "quantization_of",
    "require_dtype",
    "stated_section",
]
