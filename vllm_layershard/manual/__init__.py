"""The manual API: an object, and four functions on it, for model code without vLLM."""

from vllm_layershard.manual.functions import (
    finish_loading,
    reach_layer,
    register_layer,
    wait_layer,
)
from vllm_layershard.manual.lane import Lane
from vllm_layershard.manual.sharding import LayerSharding

__all__ = [
    "Lane",
    "LayerSharding",
    "finish_loading",
    "reach_layer",
    "register_layer",
    "wait_layer",
]
