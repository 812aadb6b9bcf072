"""Without experts: a Qwen3 whose data-parallel replicas are engines that never wait for each other.

Seven layers, so that two ranks own unequal counts; every width a multiple of 64, so that the CPU's
kernels take no path of their own for what is left over.
"""

from __future__ import annotations

from transformers import Qwen3Config

from recital.tokens import VOCABULARY

VLLM_ONLY: dict[str, str] = {}


def shape() -> Qwen3Config:
    return Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        rope_theta=10000.0,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
