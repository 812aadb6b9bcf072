"""Quantization: which linears a checkpoint quantises, and what tensors they then have."""

from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.names import FUSED
from vllm_layershard.models.quantization.read import cache_dtype_of, quantization_of

__all__ = ["FUSED", "Quantization", "cache_dtype_of", "quantization_of"]
