"""The manual API: an object, four functions and a manager on it, for model code without vLLM."""

from vllm_layershard.manual.functions import (
    finish_loading,
    reach_layer,
    register_layer,
    wait_layer,
)
from vllm_layershard.manual.lane import Lane
from vllm_layershard.manual.oshard import Flashcomm2OShardManager, flashcomm2_oshard_manager
from vllm_layershard.manual.sharding import LayerSharding

__all__ = [
    "Flashcomm2OShardManager",
    "Lane",
    "LayerSharding",
    "finish_loading",
    "flashcomm2_oshard_manager",
    "reach_layer",
    "register_layer",
    "wait_layer",
]
