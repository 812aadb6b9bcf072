"""With experts: every part of DeepSeek-V3 that layer sharding meets, at a size for two cores.

Nine hidden layers, so that two ranks own unequal counts; four dense ones first, so that series of
dense layers allow a prefetch step of 3. kv_lora_rank + qk_rope_head_dim is 576 because vLLM's CPU
MLA kernel (0.32) takes no other. Thirty-two experts, because torch's vectorised sigmoid rounds the
last elements of a tensor otherwise when their number is no multiple of 32: with eight, a row's
router weights depended on how many rows were in the batch, and the unsharded server's logprobs on
which requests it happened to batch together.
"""

from __future__ import annotations

from transformers import DeepseekV3Config

from recital.tokens import VOCABULARY

VLLM_ONLY = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
"""What vLLM reads from config.json and transformers' class drops."""


def shape() -> DeepseekV3Config:
    return DeepseekV3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        moe_intermediate_size=64,
        num_hidden_layers=9,
        first_k_dense_replace=4,
        n_routed_experts=32,
        n_shared_experts=1,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=1.0,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=64,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=32,
        v_head_dim=32,
        max_position_embeddings=512,
        rope_theta=10000.0,
        num_nextn_predict_layers=0,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
