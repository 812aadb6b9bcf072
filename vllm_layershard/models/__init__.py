"""From a config.json to linears, their bytes, and cache bytes per token."""

from vllm_layershard.models.attention_linears import (
    attention_suffixes,
    copied_prefixes,
    linears_by_suffix,
)
from vllm_layershard.models.cache.kv_cache import CacheDevice
from vllm_layershard.models.checkpoint.stored import Evidence, evidence_for
from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.layer_operations import layer_operations
from vllm_layershard.models.min_latency import is_min_latency
from vllm_layershard.models.model import Model, cache_name, layer_caches
from vllm_layershard.models.operation import Batch, Operation
from vllm_layershard.models.registry import model_of, read_model, supported
from vllm_layershard.models.sharding import (
    Sharding,
    rank_weight_bytes,
    require_experts,
    shard_model,
)
from vllm_layershard.models.sources.source import FoundModel, bundled_names, find
from vllm_layershard.models.weight_bytes import WeightBytes
from vllm_layershard.plan import GroupPlan

__all__ = [
    "Batch",
    "CacheDevice",
    "Deployment",
    "Evidence",
    "FoundModel",
    "GroupPlan",
    "Model",
    "Operation",
    "Sharding",
    "WeightBytes",
    "attention_suffixes",
    "bundled_names",
    "cache_name",
    "copied_prefixes",
    "evidence_for",
    "find",
    "is_min_latency",
    "layer_caches",
    "layer_operations",
    "linears_by_suffix",
    "model_of",
    "rank_weight_bytes",
    "read_model",
    "require_experts",
    "shard_model",
    "supported",
]
