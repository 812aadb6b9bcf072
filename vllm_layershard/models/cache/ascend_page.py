"""The page that vllm-ascend gives to tokens and states alike, where layers keep states.

The keys of a block fill the largest tensor of a state. Beside it lie the block's values, and before
both the smallest tensor. vLLM's own page is about half as large: all tensors of a state share it
with keys and values.

Source: vllm-ascend 182b75e, patch/platform/patch_mamba_config.py, `verify_and_update_config`;
worker/model_runner_v1.py, `get_kv_cache_spec`, and worker/v2/attn_utils.py, which give each layer
the padded page of a state.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_layershard.errors import PlanError
from vllm_layershard.models.cache.kv_cache import (
    AttentionCache,
    CacheDevice,
    HeadsCache,
    StateCache,
)
from vllm_layershard.models.cache.pages import ASCEND_BLOCK, Page


def ascend_page(
    caches: Sequence[AttentionCache], kv_cache_dtype: str, dtype: str, device: CacheDevice
) -> Page | None:
    """The page of these caches of one rank; None where no layer keeps a state, or none keys.

    Keys in eight bits, for which a checkpoint asks, do not make it smaller: the server takes the
    dtype of the whole cache, `kv_cache_dtype`, or for `auto` the model's.

    Raises:
        PlanError: the server ends, since no block's keys are as large as the state.
    """
    state = next((cache for cache in caches if isinstance(cache, StateCache)), None)
    heads = next((cache for cache in caches if isinstance(cache, HeadsCache)), None)
    if state is None or heads is None:
        return None
    of_token = heads._replace(int8=False).bytes_per_token(kv_cache_dtype, dtype, device)
    of_keys = of_token * heads.key_dim // (heads.key_dim + heads.value_dim)
    largest, smallest = max(state.tensors), min(state.tensors)
    if largest % (ASCEND_BLOCK * of_keys):
        raise PlanError(
            f"a linear attention keeps a state of {largest:,} bytes on a rank, and {ASCEND_BLOCK} "
            f"tokens have {ASCEND_BLOCK * of_keys:,} bytes of keys in a layer: vllm-ascend serves "
            "whole multiples alone; choose another tensor-parallel size, or another --hardware"
        )
    tokens = largest // of_keys
    return Page(tokens, tokens * of_token + smallest)
