"""The planner's tensors of quantised checkpoints equal those of vLLM's own methods, to the byte."""

import pytest

from truth.compare import LAYOUTS, Case, Truth, names

DENSE = {
    "num_hidden_layers": 3,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 1000,
}
EXPERTS = DENSE | {
    "moe_intermediate_size": 1024,
    "num_experts": 16,
    "num_experts_per_tok": 2,
}
LATENT = {
    "num_hidden_layers": 3,
    "hidden_size": 512,
    "q_lora_rank": 128,
    "intermediate_size": 2048,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 16,
    "num_experts_per_tok": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 1000,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": None,
}


def _tensors(bits: int, strategy: str, kind: str = "float", **more: object) -> dict[str, object]:
    args = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True}
    return args | {"dynamic": False} | more


def _compressed(
    form: str, weights: object, inputs: object = None, **more: object
) -> dict[str, object]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    stated = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
    return stated | {"config_groups": {"group_0": group}} | more


TOKENS = _tensors(8, "token", dynamic=True)
IGNORED = ["lm_head", "re:.*self_attn.o_proj", "model.layers.1.mlp.gate_up_proj", "re:.*mlp.gate$"]
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
METHODS: dict[str, dict[str, object]] = {
    "fp8-dynamic": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "fp8-static": {
        "quant_method": "fp8",
        "activation_scheme": "static",
        "ignored_layers": ["model.layers.1.self_attn.o_proj", "model.layers.2.mlp.experts"],
    },
    "ct-fp8-channel": _compressed("float-quantized", _tensors(8, "channel"), TOKENS),
    "ct-fp8-tensor": _compressed(
        "float-quantized", _tensors(8, "tensor"), _tensors(8, "tensor"), ignore=IGNORED
    ),
    "ct-fp8-block": _compressed(
        "float-quantized",
        _tensors(8, "block", block_structure=[128, 128]),
        _tensors(8, "group", dynamic=True, group_size=128),
    ),
    "ct-int8": _compressed(
        "int-quantized", _tensors(8, "channel", "int"), TOKENS | {"type": "int"}
    ),
    "ct-int4": _compressed("pack-quantized", _tensors(4, "group", "int", group_size=32)),
    "ct-nvfp4": _compressed(
        "nvfp4-pack-quantized",
        _tensors(4, "tensor_group", group_size=16),
        _tensors(4, "tensor_group", group_size=16, dynamic="local"),
    ),
    "modelopt-fp8": {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "ignore": ["lm_head", "model.layers.1.self_attn*", "*.2.mlp.gate_up_proj"],
    },
    "modelopt-nvfp4": {
        "quant_method": "modelopt",
        "quantization": {
            "quant_algo": "NVFP4",
            "group_size": 16,
            "kv_cache_quant_algo": "FP8",
            "exclude_modules": ["lm_head", "model.layers.0.self_attn.*"],
        },
    },
    "awq": AWQ | {"modules_to_not_convert": ["layers.1.self_attn.", "mlp.gate."]},
    "gptq": GPTQ | {"modules_in_block_to_quantize": None},
    "gptq-8-channel": GPTQ | {"bits": 8, "group_size": -1},
}
MODELS = {
    "dense": ("Qwen--Qwen3-32B", DENSE),
    "experts": ("Qwen--Qwen3-235B-A22B", EXPERTS),
    "latent": ("deepseek-ai--DeepSeek-V3", LATENT),
}
CASES = {
    f"{model} {method}": Case(config, sizes | {"quantization_config": METHODS[method]}, LAYOUTS)
    for model, (config, sizes) in MODELS.items()
    for method in METHODS
}


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
