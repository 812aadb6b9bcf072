"""The planner's linears and bytes of hybrids and of LongCat equal those of vLLM's own classes."""

import pytest

from truth.compare import LAYOUTS, WITH_DP, Case, Truth, names

SMALL = {
    "num_hidden_layers": 5,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "vocab_size": 1000,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 16,
    "num_experts_per_tok": 2,
    "shared_expert_intermediate_size": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TYPES = ["linear_attention"] * 3 + ["full_attention", "linear_attention"]
LATENT = {
    "num_hidden_layers": 3,
    "hidden_size": 256,
    "q_lora_rank": 128,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 1000,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
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

CASES = {
    "qwen3-next": Case("Qwen--Qwen3-Next-80B-A3B-Instruct", SMALL, WITH_DP),
    "qwen3.5": Case(
        "Qwen--Qwen3.5-397B-A17B", SMALL | {"layer_types": TYPES}, WITH_DP, "Qwen3_5MoeForCausalLM"
    ),
    "qwen3-next-unaligned": Case(
        "Qwen--Qwen3-Next-80B-A3B-Instruct", SMALL | {"head_dim": 96}, ((1, 1, False),)
    ),
    "kimi-k2.5": Case("moonshotai--Kimi-K2.5", LATENT, LAYOUTS, "DeepseekV3ForCausalLM"),
    "longcat": Case("meituan-longcat--LongCat-Flash-Chat", LONGCAT, LAYOUTS),
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
