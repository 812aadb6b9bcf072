"""What each rank gathers for dense MLPs in parts, in the largest forward."""

from __future__ import annotations

from vllm_layershard.models import Sharding
from vllm_layershard.models.dtypes import DTYPE_BYTES


def gathered_for_mlps(sharding: Sharding) -> tuple[int, ...]:
    """By global rank, the memory of its group's tokens and of their sums, of one MLP.

    A rank computes as many columns for all as it has of a whole MLP for its own tokens, so that
    what lies between the two linears is as large as before. In vLLM's profile run each rank has as
    many tokens. See runtime/split_mlp.py. Source: vLLM 0.32, v1/worker/gpu_worker.py,
    `determine_available_memory`.
    """
    deployment, model = sharding.deployment, sharding.model
    layout = deployment.layout
    tokens = deployment.ffn * model.cache_device.step_tokens // layout.pcp
    nbytes = 2 * tokens * model.blueprint.hidden * DTYPE_BYTES[model.dtype]
    return tuple(
        nbytes if sharding.split_mlps and sharding.split_mlps[layout.stage_of(rank)].mlps else 0
        for rank in range(layout.world_size)
    )
