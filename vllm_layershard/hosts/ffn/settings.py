"""What a VllmConfig asks of the dense MLPs, and what it may not ask at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_layershard.errors import HostError
from vllm_layershard.ffn_config import FFN_KEY, FfnConfig
from vllm_layershard.hosts import cpu_dp
from vllm_layershard.hosts.exclusions import (
    breaking_lockstep,
    leaving_tokens_behind,
    splitting_tokens,
)
from vllm_layershard.hosts.settings import LOAD_FORMATS, is_served_model
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.plan.ascend_keys import excluding_parts, of_parts
from vllm_layershard.plan.ffn import FfnSplit
from vllm_layershard.schema import validated_ffn

if TYPE_CHECKING:
    from vllm.config import VllmConfig


def ffn_requested(vllm_config: VllmConfig) -> FfnConfig | None:
    """The split of dense MLPs that the configuration asks for; None if nothing is split.

    Raises:
        ConfigError: the value of the key is not valid.
    """
    extra = vllm_config.additional_config
    if not isinstance(extra, dict) or FFN_KEY not in extra:
        return None
    config = validated_ffn(extra[FFN_KEY])
    return config if config.splits else None


def split_of(vllm_config: VllmConfig, config: FfnConfig) -> FfnSplit:
    """Which ranks split, and which part each holds.

    Raises:
        PlanError: no such groups can be formed.
    """
    parallel = vllm_config.parallel_config
    layout = ParallelLayout(
        tp=parallel.tensor_parallel_size,
        dp=parallel.data_parallel_size,
        pcp=parallel.prefill_context_parallel_size,
        pp=parallel.pipeline_parallel_size,
        dp_lockstep=vllm_config.model_config.is_moe,
    )
    return FfnSplit(layout, config.size)


def check_ffn(vllm_config: VllmConfig) -> None:
    """Refuse a configuration in which no dense MLP can be split; runs before any worker starts.

    Raises:
        ConfigError: the value of the key is not valid.
        PlanError: no groups can be formed.
        HostError: vLLM's other settings exclude it.
    """
    if vllm_config.model_config is None or not is_served_model(vllm_config.model_config):
        return
    config = ffn_requested(vllm_config)
    if config is None:
        return
    split_of(vllm_config, config)
    for why in of_parts(_excluded(vllm_config)):
        raise HostError(why)
    load_format = str(vllm_config.load_config.load_format)
    if load_format not in LOAD_FORMATS:
        raise HostError(
            f"{FFN_KEY}: load format {load_format!r} does not load through the layers' own "
            f"loaders; use one of {', '.join(sorted(LOAD_FORMATS))}"
        )
    if vllm_config.device_config.device_type == "cpu":
        cpu_dp.require()


def _excluded(vllm_config: VllmConfig) -> dict[str, str]:
    """The settings that are given and exclude a split, each with the reason."""
    found = excluding_parts(vllm_config.additional_config, splitting_tokens(vllm_config))
    fewer = "the last layers run on fewer tokens than the ranks have agreed on"
    found |= dict.fromkeys(leaving_tokens_behind(vllm_config), fewer)
    if vllm_config.lora_config is not None:
        found["LoRA (--enable-lora)"] = (
            "an adapter of a dense MLP would be split as tensor parallelism alone splits it"
        )
    return found | breaking_lockstep(vllm_config)
