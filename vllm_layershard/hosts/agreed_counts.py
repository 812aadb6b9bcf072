"""How many tokens the forward that runs has: on each data-parallel rank, and on this one."""

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


def tokens_of_forward(key: str, name: str, rows: int | None) -> int:
    """On this rank, padding included; `key` asked for what needs it, for `name`.

    `rows` are those of the activation before the first layer, if it tells. vLLM is asked first:
    several activations of a token may stand there, or none. Source: vLLM 0.29 to 0.33. Both model
    runners hand the forward a batch descriptor, and the newer one its mask of padding where it
    captures a whole forward (v1/worker/gpu/cudagraph_utils.py); so does vllm-ascend 0.23.

    Raises:
        HostError: neither tells.
    """
    context = get_forward_context() if is_forward_context_available() else None
    if context is not None and context.batch_descriptor is not None:
        return int(context.batch_descriptor.num_tokens)
    if context is not None and context.is_padding is not None:
        return int(context.is_padding.shape[0])
    if rows is None:
        raise HostError(
            f"{key}: {name} runs in a forward of which nothing tells the number of tokens: vLLM "
            "states none, and the activation before its first layer is no [tokens, hidden]; leave "
            "the key out for this model"
        )
    return rows
