"""What vLLM takes in a config.json in words of its own is planned as its classes build it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from truth.compare import CONFIGS, Case, Truth, names
from truth.stated import (
    GLM_4_7_FLASH,
    MINISTRAL_3_8B,
    MISTRAL_7B,
    QWEN2_5_72B,
    QWEN3_5_27B,
    QWEN3_VL_4B,
    QWEN3_VL_30B_A3B,
)

ONE = ((1, 1, False), (2, 1, False))
SMALL = {
    "num_hidden_layers": 4,
    "max_window_layers": 4,
    "first_k_dense_replace": 1,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "vocab_size": 1000,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_experts_per_tok": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HYBRID = SMALL | {
    "num_key_value_heads": 2,
    "shared_expert_intermediate_size": 512,
    "layer_types": (["linear_attention"] * 3 + ["full_attention"]),
}
LONGCAT = {
    "num_layers": 3,
    "hidden_size": 256,
    "q_lora_rank": 128,
    "ffn_hidden_size": 1024,
    "expert_ffn_hidden_size": 512,
    "n_routed_experts": 16,
    "zero_expert_num": 8,
    "moe_topk": 2,
    "num_attention_heads": 16,
    "vocab_size": 1000,
}
TIED = {"tie_word_embeddings": True}
LLAMA, QWEN3 = "meta-llama--Meta-Llama-3.1-8B", "Qwen--Qwen3-32B"
MOE, GLM = "Qwen--Qwen3-235B-A22B", "zai-org--GLM-4.7"
NEXT = "Qwen--Qwen3-Next-80B-A3B-Instruct"
V3, V2 = "deepseek-ai--DeepSeek-V3", "deepseek-ai--DeepSeek-V2-Lite"
LATENT = SMALL | {"n_routed_experts": 16, "num_key_value_heads": 16, "q_lora_rank": 128}
LOCAL = SMALL | {"num_local_experts": 16}
NUMBERED = SMALL | {"num_experts": 16}


def bundled(name: str, **changes: Any) -> Mapping[str, Any]:
    """A bundled config with changes, of which `...` takes a field out and None writes a null."""
    config = json.loads((CONFIGS / f"{name}.json").read_text()) | changes
    return {key: value for key, value in config.items() if value is not ...}


def without_first(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The changes, which leave the number of first dense layers to the class."""
    return {key: value for key, value in changes.items() if key != "first_k_dense_replace"}


TIES = {
    "qwen2": Case(QWEN2_5_72B, SMALL | TIED, ONE),
    "qwen3": Case(QWEN3, SMALL | TIED, ONE),
    "llama": Case(LLAMA, SMALL | TIED | {"head_dim": 16}, ONE),
    "mistral": Case(MISTRAL_7B, SMALL | TIED | {"head_dim": 64}, ONE),
    "ministral-3": Case(MINISTRAL_3_8B, SMALL | TIED, ONE),
    "qwen3-vl": Case(QWEN3_VL_4B, TIED, ONE, text=SMALL),
    "qwen3-vl-not": Case(QWEN3_VL_4B, {"tie_word_embeddings": False}, ONE, text=SMALL | TIED),
    "qwen3-moe": Case(MOE, NUMBERED | TIED, ONE),
    "qwen3-vl-moe": Case(QWEN3_VL_30B_A3B, TIED, ONE, text=NUMBERED),
    "mixtral": Case("mistralai--Mixtral-8x22B-v0.1", LOCAL | TIED, ONE),
    "glm-4.7": Case(GLM, SMALL | TIED | {"n_routed_experts": 16}, ONE),
    "minimax-m2": Case("MiniMaxAI--MiniMax-M2", LOCAL | TIED, ONE),
    "gpt-oss": Case("openai--gpt-oss-120b", LOCAL | TIED | {"layer_types": None}, ((1, 1, False),)),
    "ling": Case("inclusionAI--Ling-1T", NUMBERED | TIED | {"num_shared_experts": 1}, ONE),
    "qwen3-next": Case(NEXT, HYBRID | TIED | {"num_experts": 16}, ONE),
    "qwen3.5-moe": Case(
        "Qwen--Qwen3.5-397B-A17B",
        HYBRID | TIED | {"num_experts": 16},
        ONE,
        "Qwen3_5MoeForCausalLM",
    ),
    "qwen3.5": Case(QWEN3_5_27B, layouts=ONE, text=HYBRID | TIED),
    "qwen3.5-not": Case(QWEN3_5_27B, TIED, ONE, text=HYBRID),
    "deepseek-v2": Case(V2, LATENT | TIED, ONE),
    "deepseek-v3": Case(V3, LATENT | TIED, ONE),
    "deepseek-v3.2": Case("deepseek-ai--DeepSeek-V3.2", LATENT | TIED, ONE),
    "kimi-k2": Case("moonshotai--Kimi-K2-Instruct", LATENT | TIED, ONE),
    # vLLM builds its language model as one of DeepSeek's.
    "kimi-k2.5": Case("moonshotai--Kimi-K2.5", LATENT | TIED, ONE, "DeepseekV3ForCausalLM"),
    "glm-4.7-flash": Case(GLM_4_7_FLASH, LATENT | TIED, ONE),
    "glm-5": Case("zai-org--GLM-5", LATENT | TIED, ONE),
    "longcat": Case("meituan-longcat--LongCat-Flash-Chat", LONGCAT | TIED, ONE),
}
"""A tied head of every class that is planned; many have a head of their own all the same."""

CASES = {f"tied {name}": case for name, case in TIES.items()} | {
    "bias": Case(LLAMA, SMALL | {"bias": True}, ONE),
    "qkv-bias": Case(LLAMA, SMALL | {"qkv_bias": True}, ONE),
    "no-qkv-bias": Case(LLAMA, SMALL | {"qkv_bias": False, "attention_bias": True}, ONE),
    "qkv-bias-mistral": Case(MISTRAL_7B, SMALL | {"qkv_bias": True, "head_dim": 64}, ONE),
    "LLaMA": Case(LLAMA, SMALL | {"architectures": ["LLaMAForCausalLM"]}, ONE),
    "half": Case(bundled(LLAMA, dtype=..., torch_dtype="half"), SMALL, ONE),
    "float": Case(bundled(LLAMA, dtype=..., torch_dtype="float"), SMALL, ONE),
    "double": Case(bundled(LLAMA, dtype="double", torch_dtype=...), SMALL, ONE),
    "float64": Case(bundled(LLAMA, dtype="float64", torch_dtype=...), SMALL, ONE),
    "first-dense-v2": Case(bundled(V2, first_k_dense_replace=...), without_first(LATENT), ONE),
    "first-dense-v3": Case(bundled(V3, first_k_dense_replace=...), without_first(LATENT), ONE),
    "first-dense-glm-4.7": Case(
        bundled(GLM, first_k_dense_replace=...),
        without_first(SMALL) | {"n_routed_experts": 16},
        ONE,
    ),
    "first-dense-glm-5": Case(
        bundled("zai-org--GLM-5", first_k_dense_replace=...), without_first(LATENT), ONE
    ),
    "no-interval": Case(
        bundled(NEXT, full_attention_interval=..., layer_types=...),
        HYBRID | {"num_experts": 16, "layer_types": None, "num_hidden_layers": 8},
        ONE,
    ),
    "no-interval-qwen3.5": Case(
        QWEN3_5_27B
        | {
            "text_config": {
                key: value
                for key, value in (QWEN3_5_27B["text_config"] | HYBRID).items()
                if key not in ("full_attention_interval", "layer_types")
            }
        },
        layouts=ONE,
    ),
    "dense-before-the-first": Case(MOE, NUMBERED | {"mlp_only_layers": [-1]}, ONE),
    "dense-behind-the-last": Case(
        NEXT, HYBRID | {"num_experts": 16, "mlp_only_layers": [-1, 0, 5000]}, ONE
    ),
    "null-heads-glm-4.7": Case(
        bundled(GLM, head_dim=None), SMALL | {"n_routed_experts": 16, "hidden_size": 320}, ONE
    ),
    "floor-heads-glm-4.7": Case(
        bundled(GLM, head_dim=None),
        SMALL | {"n_routed_experts": 16, "num_attention_heads": 24},
        ((1, 1, False),),
    ),
    "floor-heads-qwen2": Case(QWEN2_5_72B, SMALL | {"num_attention_heads": 24}, ((1, 1, False),)),
    "longcat-attentions": Case(
        bundled("meituan-longcat--LongCat-Flash-Chat", num_layers=...),
        {key: value for key, value in LONGCAT.items() if key != "num_layers"}
        | {"num_hidden_layers": 6},
        ONE,
    ),
    "all-windows": Case(
        QWEN2_5_72B, SMALL | {"use_sliding_window": True, "max_window_layers": 0}, ONE
    ),
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
