"""The pages of vllm-ascend, by its own function, within a process that has vLLM.

`verify_and_update_config` is an excerpt of vllm-ascend 182b75e (Apache-2.0),
patch/platform/patch_mamba_config.py. Left out: MLA, which no hybrid of the planner has, what it
logs, and stores of caches elsewhere. `padded` is the end of `get_kv_cache_spec` of its
worker/model_runner_v1.py.
"""

import math
from typing import Any

from vllm.config import VllmConfig
from vllm.model_executor.models import ModelRegistry
from vllm.model_executor.models.config import MambaModelConfig
from vllm.utils.math_utils import cdiv
from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE, get_dtype_size
from vllm.v1.kv_cache_interface import MambaSpec


def verify_and_update_config(vllm_config: Any) -> None:
    MambaModelConfig.verify_and_update_config(vllm_config)

    cache_config = vllm_config.cache_config
    model_config = vllm_config.model_config
    parallel_config = vllm_config.parallel_config

    if cache_config.cache_dtype == "auto":
        kv_cache_dtype = model_config.dtype
    else:
        kv_cache_dtype = STR_DTYPE_TO_TORCH_DTYPE[cache_config.cache_dtype]

    kernel_block_size = 128
    model_cls, _ = ModelRegistry.resolve_model_cls(
        model_config.architecture,
        model_config=model_config,
    )

    # get mamba block size
    mamba_shapes = model_cls.get_mamba_state_shape_from_config(vllm_config)
    mamba_dtypes = model_cls.get_mamba_state_dtype_from_config(vllm_config)
    mamba_sizes = []
    for shape, dtype in zip(mamba_shapes, mamba_dtypes):  # noqa: B905
        mamba_sizes.append(math.prod(shape) * get_dtype_size(dtype))
    ssm_block_page_size, conv_block_page_size = max(mamba_sizes), min(mamba_sizes)

    attn_num_kv_heads = model_config.get_num_kv_heads(parallel_config)
    attn_head_size = model_config.get_head_size()
    attn_single_token_k_page_size = (
        attn_head_size * attn_num_kv_heads * get_dtype_size(kv_cache_dtype)
    )
    attn_token_page_size = 2 * attn_head_size * attn_num_kv_heads * get_dtype_size(kv_cache_dtype)

    attn_block_size = kernel_block_size * cdiv(
        ssm_block_page_size, kernel_block_size * attn_single_token_k_page_size
    )
    assert attn_single_token_k_page_size * attn_block_size == ssm_block_page_size, (
        "Cannot align ssm_page_size and attn_page_size."
    )

    if cache_config.block_size is None or cache_config.block_size < attn_block_size:
        cache_config.block_size = attn_block_size

    # compute new attention page size
    attn_page_size = cache_config.block_size * attn_token_page_size

    # pad mamba page size for conv_blocks
    if (
        cache_config.mamba_page_size_padded is None
        or cache_config.mamba_page_size_padded != attn_page_size + conv_block_page_size
    ):
        cache_config.mamba_page_size_padded = attn_page_size + conv_block_page_size
    if cache_config.enable_prefix_caching and cache_config.mamba_cache_mode == "align":
        cache_config.mamba_block_size = cache_config.block_size
    else:
        cache_config.mamba_block_size = model_config.max_model_len


def padded(specs: dict[str, Any]) -> dict[str, Any]:
    """Each layer's page is as large as that of a state."""
    states = [spec for spec in specs.values() if isinstance(spec, MambaSpec)]
    for spec in specs.values():
        if spec.page_size_bytes < states[-1].page_size_bytes:
            object.__setattr__(spec, "page_size_padded", states[-1].page_size_bytes)
    return specs


def aligned(config: VllmConfig) -> bool:
    """Whether a server of vllm-ascend starts: of some states it says that it cannot align them."""
    config.cache_config.block_size = config.cache_config.DEFAULT_BLOCK_SIZE
    config.cache_config.mamba_page_size_padded = None
    try:
        verify_and_update_config(config)
    except AssertionError as error:
        assert "Cannot align" in str(error)  # noqa: PT017
        return False
    return True
