"""The planner's linears and bytes of MLA models equal those of vLLM's own class, to the byte."""

import pytest

from truth.compare import LAYOUTS, Case, Truth, names

SMALL = {
    "num_hidden_layers": 5,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "n_routed_experts": 9,
    "num_experts_per_tok": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 1000,
    "first_k_dense_replace": 2,
    "n_group": 1,
    "topk_group": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "num_nextn_predict_layers": None,
}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
UNQUANTISED_PARTS = [
    "model.layers.0.self_attn.q_a_proj",
    "model.layers.0.self_attn.kv_a_proj_with_mqa",
    "model.layers.1.mlp.gate_proj",
    "model.layers.1.mlp.up_proj",
    "model.layers.1.self_attn.o_proj",
    "model.layers.2.mlp.experts.0.gate_proj",
    "model.layers.3.mlp.shared_experts.down_proj",
]

LORA = {"q_lora_rank": 128}
V3 = "deepseek-ai--DeepSeek-V3"
SMALL_LORA = SMALL | LORA
UNQUANTISED = SMALL_LORA | {"quantization_config": None}
SKIPPED = SMALL_LORA | {"quantization_config": FP8 | {"modules_to_not_convert": UNQUANTISED_PARTS}}
EIGHT_WAYS = SMALL_LORA | {
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 2048,
    "moe_intermediate_size": 1024,
}
"""Wide enough for whole fp8 blocks on each of eight ranks."""

CASES = {
    "v3-bf16": Case(V3, UNQUANTISED),
    "v3-fp8": Case(V3, EIGHT_WAYS, ((1, 1, False), (2, 2, True), (8, 1, True), (1, 4, False))),
    "v3-fp8-skipped": Case(V3, SKIPPED, ((1, 2, True),)),
    "v2-lite": Case(
        "deepseek-ai--DeepSeek-V2-Lite",
        SMALL,
        ((1, 1, False), (2, 1, True)),
    ),
    "v3.2": Case("deepseek-ai--DeepSeek-V3.2", SMALL_LORA, ((1, 1, False), (2, 1, False))),
    "kimi-k2": Case("moonshotai--Kimi-K2-Instruct", SMALL_LORA, ((1, 8, True),)),
    # On CUDA, sparse models have a class of their own, which differs in dense layers with DP x TP.
    "glm-5": Case("zai-org--GLM-5", SMALL_LORA, LAYOUTS),
    "glm-5-fp8": Case("zai-org--GLM-5-FP8", SMALL_LORA, ((2, 1, True),)),
    "glm-5-shared-indices": Case(
        "zai-org--GLM-5", SMALL_LORA | {"index_topk_freq": 4}, ((1, 1, False),)
    ),
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
