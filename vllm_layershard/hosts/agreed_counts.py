"""How many tokens each data-parallel rank has in the forward that runs, as vLLM made them agree."""

from __future__ import annotations

from vllm.forward_context import get_forward_context, is_forward_context_available

from vllm_layershard.errors import HostError


def agreed_counts(key: str, name: str) -> list[int]:
    """By data-parallel rank, padding included; `key` asked for what needs them, for `name`.

    Source: vLLM 0.32, forward_context.py, `DPMetadata`: of models with routed experts, and of
    dummy batches and idle ranks too.

    Raises:
        HostError: the ranks did not agree on any.
    """
    context = get_forward_context() if is_forward_context_available() else None
    if context is None or context.dp_metadata is None:
        raise HostError(
            f"{key}: {name} runs in a forward for which the data-parallel ranks have agreed on "
            "no token counts; leave the key out for this model"
        )
    counts: list[int] = context.dp_metadata.num_tokens_across_dp_cpu.tolist()
    return counts
