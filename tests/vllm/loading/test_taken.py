"""An attention that copies weights once all are loaded, beside a real model on two real ranks."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from hosted.engines import load, run_engines
from recital import model_path


class AscendW8A8LinearMethod:
    """Bears the name of vllm-ascend's scheme."""


def copied(rank: int, config: Any, *, mlapo: bool) -> int:
    """Loads with attentions as vllm-ascend's: each copies its queries' weight behind all linears.

    Returns how many do.
    """
    from vllm.model_executor.layers.attention import MLAAttention
    from vllm.model_executor.models.deepseek_v2 import DeepseekV2MLAAttention

    built, process = DeepseekV2MLAAttention.__init__, MLAAttention.process_weights_after_loading
    copies: list[torch.Tensor] = []

    def build(module: Any, *args: Any, **kwargs: Any) -> None:
        built(module, *args, **kwargs)
        module.fused_qkv_a_proj.quant_method.quant_method = AscendW8A8LinearMethod()
        impl = module.mla_attn.mla_attn.impl
        impl.fused_qkv_a_proj, impl.q_proj = module.fused_qkv_a_proj, module.q_b_proj
        impl.enable_mlapo = mlapo

    def copy(attention: Any, act_dtype: torch.dtype) -> None:
        process(attention, act_dtype)
        if attention.impl.enable_mlapo:
            copies.append(attention.impl.q_proj.weight.data.clone())

    DeepseekV2MLAAttention.__init__ = build
    MLAAttention.process_weights_after_loading = copy
    load(config, lambda model: None)
    return len(copies)


def test_queries_that_it_copies_are_refused_on_both_ranks() -> None:
    for said in run_engines(model_path(), ["q_b_proj"], partial(copied, mlapo=True)):
        assert isinstance(said, str)
        refusal = (
            "HostError: layer_sharding: model.layers.0.self_attn.q_b_proj: vllm-ascend's MLAPO"
        )
        assert said.startswith(refusal)


@pytest.mark.parametrize(("name", "mlapo", "layers"), [("o_proj", True, 9), ("q_b_proj", False, 0)])
def test_other_linears_load_and_so_do_queries_without_it(
    name: str, mlapo: bool, layers: int
) -> None:
    for seen in run_engines(model_path(), [name], partial(copied, mlapo=mlapo)):
        assert seen == layers
