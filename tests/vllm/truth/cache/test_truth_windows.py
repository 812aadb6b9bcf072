"""Tokens of models with windows on all layers or on some equal what vLLM counts of their cache.

So do their linears and bytes.
"""

from collections.abc import Sequence
from typing import Any

import pytest

from truth.compare import Case, Truth, names
from truth.stated import MISTRAL_7B

SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "vocab_size": 1000,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT_OSS = SMALL | {
    "num_key_value_heads": 8,  # vLLM's class repeats none
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "quantization_config": None,
}
BOTH = ((1, 1, False), (8, 1, False))


def alternating(layers: int) -> dict[str, Any]:
    kinds = [("sliding_attention", "full_attention")[i % 2] for i in range(layers)]
    return GPT_OSS | {"num_hidden_layers": layers, "layer_types": kinds}


def windowed(kinds: Sequence[str], window: int = 1024, longest: int = 32_768) -> dict[str, Any]:
    """A Mistral whose layers are of these kinds: `s` has a window, `f` has none."""
    return SMALL | {
        "num_hidden_layers": len(kinds),
        "layer_types": [{"s": "sliding_attention", "f": "full_attention"}[kind] for kind in kinds],
        "sliding_window": window,
        "max_position_embeddings": longest,
    }


CASES = {
    "gpt-oss": Case("openai--gpt-oss-120b", alternating(12), BOTH),
    "gpt-oss-odd": Case("openai--gpt-oss-120b", alternating(7), BOTH),
    "gpt-oss-five": Case("openai--gpt-oss-120b", alternating(5), BOTH),
    "every-fourth-full": Case(MISTRAL_7B, windowed("sssf" * 3), BOTH),
    "every-sixth-full": Case(MISTRAL_7B, windowed("sssssf" * 2, window=100), BOTH),
    "one-full": Case(MISTRAL_7B, windowed("sssssssf", longest=4096), BOTH),
    "one-window": Case(MISTRAL_7B, windowed("fffffs", window=4096), BOTH),
    "all": Case(MISTRAL_7B, windowed("ssss") | {"layer_types": None}, BOTH),
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
