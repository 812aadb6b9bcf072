"""The planner's linears and bytes of grouped-query models equal those of vLLM's own classes."""

import pytest

from truth.compare import Case, Truth, names

SMALL = {
    "num_hidden_layers": 4,
    "max_window_layers": 4,
    "layer_types": None,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "vocab_size": 1000,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,  # fewer than eight ranks
    "head_dim": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
MOE = {
    "moe_intermediate_size": 512,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
}
EXPERTS = SMALL | MOE | {"num_experts": 16}
FP8 = {"head_dim": 128, "num_key_value_heads": 8, "moe_intermediate_size": 1024}
BIASED = {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}
LLAMA = "meta-llama--Meta-Llama-3.1-8B"

CASES = {
    "llama": Case(LLAMA, SMALL),
    "llama-biased-tied": Case(LLAMA, SMALL | BIASED),
    "qwen3": Case("Qwen--Qwen3-32B", SMALL),
    "qwen3-moe": Case("Qwen--Qwen3-235B-A22B", EXPERTS),
    "qwen3-moe-fp8": Case("Qwen--Qwen3-235B-A22B-FP8", EXPERTS | FP8),
    "qwen3-coder": Case(
        "Qwen--Qwen3-Coder-480B-A35B-Instruct",
        EXPERTS | {"shared_expert_intermediate_size": 0, "mlp_only_layers": [1]},
    ),
    "mixtral": Case("mistralai--Mixtral-8x22B-v0.1", SMALL | {"num_local_experts": 8}),
    "glm-4.7": Case("zai-org--GLM-4.7", SMALL | MOE | {"n_routed_experts": 16}),
    "minimax-m2": Case(
        "MiniMaxAI--MiniMax-M2",
        SMALL | MOE | {"num_local_experts": 16, "head_dim": 128, "num_key_value_heads": 8},
    ),
    "minimax-m2-repeated": Case(
        "MiniMaxAI--MiniMax-M2",
        SMALL | MOE | {"num_local_experts": 16, "head_dim": 128, "quantization_config": None},
        ((8, 1, False), (8, 1, True)),
    ),
    "ling": Case("inclusionAI--Ling-1T", EXPERTS | {"moe_shared_expert_intermediate_size": 512}),
    "gpt-oss": Case(
        "openai--gpt-oss-120b",
        SMALL
        | {
            "num_local_experts": 16,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 8,
            "quantization_config": None,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "gpt-oss-fewer-heads-than-ranks": Case(
        "openai--gpt-oss-120b",
        SMALL | {"num_local_experts": 16, "quantization_config": None, "layer_types": None},
        ((8, 1, False), (8, 1, True)),
        refused="ZeroDivisionError",
    ),
    "gpt-oss-mxfp4": Case(
        "openai--gpt-oss-120b",
        SMALL
        | {
            "num_local_experts": 16,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 8,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
