"""What a movement of tokens cannot stand beside, as far as the configuration tells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.exclusions import leaving_tokens_behind, splitting_tokens
from vllm_layershard.hosts.graphs.hidden import within_experts
from vllm_layershard.hosts.names import LORA_DUAL_STREAM
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.plan.move import hidden_in_experts, require_agreed_counts, unmovable

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def check_move(vllm_config: VllmConfig, config: LayerShardConfig, layout: ParallelLayout) -> None:
    """Refuse what keeps ranks from deciding alike, or from running the same linears.

    Raises:
        PlanError: the ranks do not know each other's tokens.
        HostError: names the setting, and what to do.
    """
    if config.move == "weights":
        return
    require_agreed_counts(layout, config)
    on_npu = vllm_config.device_config.device_type == "npu"
    for setting in leaving_tokens_behind(vllm_config):
        raise HostError(
            f"{KEY}.move = {config.move!r}: with {setting} the last layers run on fewer tokens "
            "than the ranks have agreed on; leave out one of the two"
        )
    for why in unmovable(layout, config, splitting_tokens(vllm_config), on_npu=on_npu):
        raise HostError(why)
    if vllm_config.lora_config is not None and _has_second_stream():
        raise HostError(
            f"{KEY}.move = {config.move!r}: with VLLM_LORA_ENABLE_DUAL_STREAM a linear with an "
            "adapter runs within an op of vLLM's, where ranks cannot exchange tokens; unset it, or "
            "use move 'weights'"
        )


def _has_second_stream() -> bool:
    """Whether LoRA computes beside the linear. Source: vLLM 0.32, lora/layers/base_linear.py."""
    from vllm import envs

    return bool(LORA_DUAL_STREAM.of(envs))


def check_seen(
    model: nn.Module,
    vllm_config: VllmConfig,
    config: LayerShardConfig,
    named: Sequence[Any],
    exchanged: Sequence[Any],
) -> None:
    """Refuse an exchange of tokens within an op that hides it from graphs and other streams.

    `named` are the linears to be sharded, `exchanged` those before which tokens are exchanged. On
    the CPU they are let be: it has neither graphs nor streams, and the op keeps its place.

    Raises:
        HostError: names the linear, and what to do; or this version of vLLM calls shared experts
            otherwise.
    """
    if vllm_config.device_config.device_type == "cpu":
        return
    hidden = {each for _, within in within_experts(model) for each in within}
    for module in named if config.move != "weights" else ():
        if id(module) in hidden:
            raise HostError(hidden_in_experts(module.prefix, config))
    for module in exchanged:
        if id(module) in hidden:
            raise HostError(
                f"{KEY}.token_exchange: {module.prefix} runs within vLLM's op of the routed "
                "experts, where ranks cannot exchange tokens; leave it out of token_exchange"
            )
