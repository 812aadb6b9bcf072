"""The planner's linears and bytes of families that no bundled config has equal vLLM's own."""

import pytest

from truth.compare import LAYOUTS, Case, Truth, names
from truth.stated import (
    GLM_4_7_FLASH,
    MINISTRAL_3_8B,
    MISTRAL_7B,
    QWEN2_5_72B,
    QWEN3_5_27B,
    QWEN3_VL_4B,
    QWEN3_VL_30B_A3B,
)

ONE = ((1, 1, False), (4, 1, False))
DENSE = {
    "num_hidden_layers": 3,
    "max_window_layers": 3,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "vocab_size": 1000,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
HYBRID = DENSE | {
    "num_key_value_heads": 2,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
TIED = {"tie_word_embeddings": True}
EXPERTS = DENSE | {"moe_intermediate_size": 512, "num_experts": 16, "num_experts_per_tok": 2}
LATENT = {
    "num_hidden_layers": 3,
    "hidden_size": 256,
    "intermediate_size": 1024,
    "moe_intermediate_size": 512,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": 128,
    "vocab_size": 1000,
}

CASES = {
    "qwen2": Case(QWEN2_5_72B, DENSE),
    # It shares out the model's width among its heads, whatever head_dim says.
    "qwen2-tied": Case(QWEN2_5_72B, DENSE | {"tie_word_embeddings": True, "head_dim": 64}, ONE),
    "mistral": Case(MISTRAL_7B, DENSE | {"head_dim": 64}),
    "ministral-3": Case(MINISTRAL_3_8B, DENSE, LAYOUTS),
    "glm-4.7-flash": Case(GLM_4_7_FLASH, LATENT),
    "qwen3.5-dense": Case(QWEN3_5_27B, text=HYBRID),
    "qwen3.5-dense-text": Case(QWEN3_5_27B, HYBRID, ONE, text_class="Qwen3_5ForCausalLM"),
    "qwen3.5-dense-tied": Case(QWEN3_5_27B, layouts=ONE, text=HYBRID | TIED),
    # vLLM asks the text part whether the head is tied, where Qwen3-VL asks the whole.
    "qwen3.5-dense-not-tied": Case(QWEN3_5_27B, TIED, ONE, text=HYBRID),
    "qwen3-vl": Case(QWEN3_VL_4B, text=DENSE),
    "qwen3-vl-moe": Case(QWEN3_VL_30B_A3B, text=EXPERTS),
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
