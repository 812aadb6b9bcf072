"""Tokens of a linear do not move where vLLM gives it other rows than the ranks have agreed on."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import vllm

from hosted.engines import load, run_engines
from hosted.tiny import write_config

LFM2_MOE = {
    "architectures": ["Lfm2MoeForCausalLM"],
    "model_type": "lfm2_moe",
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_dense_layers": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "layer_types": ["conv", "conv", "full_attention", "conv"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "conv_L_cache": 3,
    "conv_bias": False,
    "norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
    "tie_word_embeddings": True,
    "use_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
CONVOLUTION = "short_conv.out_proj"


def loaded(rank: int, config: Any) -> bool:
    config.load_config.load_format = "dummy"
    load(config, lambda model: None)
    return True


@pytest.mark.parametrize(
    "rule", [{"move": "activations"}, {"move": "auto", "move_weights_from": 8}]
)
def test_tokens_of_a_short_convolution_are_refused_by_name(tmp_path, rule):
    model = write_config(tmp_path / "model", LFM2_MOE)
    for said in run_engines(model, {"layers": [CONVOLUTION], **rule}, loaded):
        assert said.startswith(
            f"HostError: layer_sharding.move = {rule['move']!r}: model.layers.0.{CONVOLUTION} may "
            "run on fewer tokens than the ranks have agreed on: vLLM's ShortConv leaves padding "
            "out; leave it out, or use move 'weights'"
        )


@pytest.mark.parametrize(
    "sharding", [{"layers": [CONVOLUTION]}, {"layers": ["feed_forward.w2"], "move": "activations"}]
)
def test_its_weights_may_move_and_tokens_of_other_linears(tmp_path, sharding):
    model = write_config(tmp_path / "model", LFM2_MOE)
    sharding = sharding | {"prefetch_step": 0}
    assert run_engines(model, sharding, loaded) == [True, True]


LEAVES_PADDING_OUT = {
    "BailingMoELinearAttention",
    "MambaMixer",
    "MiniMaxText01LinearAttention",
    "ShortConv",
}
"""Each gives a linear a slice of the rows: read in vLLM 0.32."""
SHARES_NO_LINEAR_OF_A_LAYER = {"LinearAttention", "Qwen4ExpPLELayer"}
"""An abstract class, and embeddings beside a layer, which are refused as unknown."""


def test_every_state_space_layer_of_vllm_is_known():
    """A class that a later vLLM adds has to be read, and named here or in PADDED."""
    from vllm_layershard.hosts.moves.actual_rows import PADDED

    bases: dict[str, set[str]] = {}
    for path in Path(vllm.__file__).parent.rglob("*.py"):
        if not {"models", "model_executor"} & set(path.parts):
            continue
        for each in ast.walk(ast.parse(path.read_text())):
            if isinstance(each, ast.ClassDef):
                named = {ast.unparse(base).rpartition(".")[2] for base in each.bases}
                bases.setdefault(each.name, set()).update(named)
    known = PADDED | LEAVES_PADDING_OUT | SHARES_NO_LINEAR_OF_A_LAYER
    found = {"MambaBase"}
    while more := {name for name, of in bases.items() if of & found} - found:
        found |= more
    unread = {
        name for name in found - {"MambaBase"} if name not in known and not bases[name] & known
    }
    assert not unread
    assert known <= found
