"""Quantisation: what is refused, with the key and the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_layershard.errors import ModelError
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

ONE = Deployment(ParallelLayout())
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
TOKENS = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
FP8 = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
SCHEME = FP8 | {"strategy": "tensor"}
FLOATS = FP8 | {"strategy": "token", "dynamic": True}
FOURS = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}
BY_32 = FP8 | {"strategy": "group", "group_size": 32}
QUARK_TENSOR = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}
QUARK_FP8 = {"weight": QUARK_TENSOR, "input_tensors": QUARK_TENSOR}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


def compressed(form: str, weights: Any, inputs: Any = None, **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"0": group},
    } | more


def write(directory: Path, quantization: Any, model: str = "Qwen--Qwen3-32B", **more: Any) -> str:
    config = json.loads((_BUNDLED / f"{model}.json").read_text())
    config |= {"quantization_config": quantization, **more}
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


REFUSED = {
    "no method": ({}, "quant_method: is missing, so no source states how the weights are"),
    "unknown": (
        {"quant_method": "bitsandbytes"},
        'quant_method: "bitsandbytes" is not supported: vLLM 0.32 has no class for it',
    ),
    "not read yet": (
        {"quant_method": "TorchAO"},
        '"TorchAO" is not supported: vLLM 0.32 has a class for it, and the planner does not',
    ),
    "mxfp4 of a dense model": ({"quant_method": "mxfp4"}, "every linear, every routed expert and"),
    "inc in three bits": (
        {"quant_method": "inc", "bits": 3, "group_size": 128},
        "bits: 3: vLLM 0.32 has a class for it (humming), and the planner does not read it yet",
    ),
    "inc, not symmetric": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": False},
        "sym: vLLM 0.32 has a class for gptq's packing with symmetric 4 and 8",
    ),
    "inc on a backend that vLLM does not know": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 128}
        | {"backend": "auto_round:gptq:exllamav2"},
        'backend: "auto_round:gptq:exllamav2": vLLM 0.32 ',
    ),
    "inc with other activations": (
        {"quant_method": "auto-round", "bits": 8, "group_size": 32, "data_type": "mx_fp"}
        | {"act_dynamic": False},
        "act_dynamic: false: vLLM 0.32 takes true here",
    ),
    "inc of another type": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 16, "data_type": "nv_fp"},
        'data_type: "nv_fp": vLLM 0.32 has no class for it',
    ),
    "inc with half a fused linear": (
        {"quant_method": "inc", "bits": 4, "group_size": 128}
        | {"extra_config": {"model.layers.0.self_attn.q_proj": {"bits": 16}}},
        "qkv_proj: extra_config states several formats for its parts (q_proj, k_proj, v_proj)",
    ),
    "inc with a broken pattern": (
        {"quant_method": "inc", "bits": 4, "group_size": 128, "extra_config": {"(": {"bits": 8}}},
        "extra_config: (: the pattern",
    ),
    "quark with asymmetric int8": (
        {
            "quant_method": "quark",
            "export": {},
            "global_quant_config": {
                "weight": {"dtype": "int8", "qscheme": "per_tensor", "symmetric": False},
                "input_tensors": {"dtype": "int8", "qscheme": "per_tensor"},
            },
        },
        "weight: asymmetric int8 by per_tensor: vLLM 0.32 has no class for such weights; it has ",
    ),
    "fp8 without a scheme": ({"quant_method": "fp8"}, "activation_scheme: null is neither"),
    "fp8 stored as mxfp4": ({"quant_method": "fp8", "store_dtype": "mxfp4"}, "store_dtype"),
    "fp8 block": (
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128]},
        "weight_block_size: is not a list of two whole numbers",
    ),
    "static blocks": (
        {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": [128, 128]},
        "activation_scheme: fp8 blocks are supported with 'dynamic' only",
    ),
    "awq in eight bits": ({"quant_method": "awq", "bits": 8}, "bits: vLLM supports awq with 4"),
    "awq group": ({"quant_method": "awq", "bits": 4}, "group_size: is missing"),
    "gptq, not symmetric": (GPTQ | {"sym": False}, "sym: vLLM supports gptq with symmetric"),
    "gptq with half a fused linear": (
        GPTQ | {"modules_in_block_to_quantize": [["self_attn.q_proj"]]},
        "qkv_proj: modules_in_block_to_quantize names some but not all of its parts",
    ),
    "gptq with a rule in three bits": (
        GPTQ | {"dynamic": {"+:.*down_proj": {"bits": 3}}},
        "dynamic: +:.*down_proj: bits: 3 is not 4 or 8",
    ),
    "gptq with a broken rule": (GPTQ | {"dynamic": {"-:(": {}}}, "dynamic: -:(: the pattern"),
    "gptq with modules of another kind": (
        GPTQ | {"modules_in_block_to_quantize": "q_proj"},
        'modules_in_block_to_quantize: "q_proj" is not a list of strings',
    ),
    "gptq with an order": (GPTQ | {"desc_act": True}, "desc_act: vLLM no longer supports"),
    "gptq in three bits": (GPTQ | {"bits": 3}, "bits: 3 is not 4 or 8"),
    "modelopt": (
        {"quant_method": "modelopt"},
        "quant_algo: null is not supported: vLLM 0.32 has no",
    ),
    **{
        f"modelopt with {word} of all layers": (
            {"quant_method": "modelopt", "quant_algo": word},
            f'quant_algo: "{word}" is not supported: vLLM 0.32 has a class for it of single layers '
            "alone, within MIXED_PRECISION; give another checkpoint; supported are FP8, ",
        )
        for word in ("IQ2_XS", "IQ2_XXS", "Q8_0", "iq2_xs")
    },
    **{
        f"modelopt with {word} in the older form": (
            {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": word}},
            f'quantization: quant_algo: "{word}": vLLM 0.32 has no class for it in this place; it '
            "takes FP8, FP8_PER_CHANNEL_PER_TOKEN, FP8_PB_WO, NVFP4 there, and others from "
            "config.json; give a checkpoint of one of those",
        )
        for word in ("IQ2_XS", "Q8_0", "Q4_K_M")
    },
    "modelopt mixed": (
        {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"},
        "quantized_layers: is missing, and MIXED_PRECISION states each layer's there",
    ),
    "quark without its export": ({"quant_method": "quark"}, "export: is missing, and vLLM 0.32"),
    "quark without a format": (
        {"quant_method": "quark", "export": {}},
        "global_quant_config: is missing",
    ),
    "quark with rules without end": (
        {
            "quant_method": "quark",
            "export": {},
            "global_quant_config": QUARK_FP8,
            "layer_quant_config": dict.fromkeys(map("*{}".format, range(300)), QUARK_FP8),
        },
        "layer_quant_config: has 300 rules, 300 of them with a wildcard; at most 4,096 are read",
    ),
    "quark in six bits": (
        {
            "quant_method": "quark",
            "export": {},
            "global_quant_config": {"weight": {"dtype": "fp6_e2m3", "qscheme": "per_group"}},
        },
        "weight: fp6_e2m3 by per_group: vLLM 0.32 has no class for such weights; it has for ",
    ),
    "quark in several scales": (
        {
            "quant_method": "quark",
            "export": {},
            "global_quant_config": {"weight": [{"dtype": "fp4"}, {"dtype": "fp8_e4m3"}]},
        },
        "weight: fp4 and fp8_e4m3 by none and none: vLLM 0.32 has no class for such weights",
    ),
    "ascend without its file": ({"quant_method": "ascend"}, "needs quant_model_description.json"),
    "no groups": (
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        "config_groups: states no linears, so no source states their bytes",
    ),
    "two groups": (
        compressed("int-quantized", INT8) | {"config_groups": {"0": {}, "1": {}}},
        "config_groups: 0: names no targets",
    ),
    "no weights": (compressed("int-quantized", None), "weights: is missing"),
    "static int8": (
        compressed("int-quantized", INT8),
        "input_activations: vLLM 0.32 has no class for linears of int8 by channel with these "
        "activations (unquantised); it takes these: static float8 or int8 by tensor, dynamic",
    ),
    "packed int8 with static activations": (
        compressed("pack-quantized", INT8, TOKENS | {"dynamic": False}),
        "strategy: compressed-tensors has no static scales of tokens",
    ),
    "packed int8 with activations that are shifted": (
        compressed("pack-quantized", INT8, TOKENS | {"symmetric": False}),
        "(dynamic asymmetric int8 by token); it takes these: "
        "dynamic symmetric int8 by token or group, dynamic symmetric int4 by token or group, unq",
    ),
    "fbgemm without its bound": (
        {"quant_method": "fbgemm_fp8", "modules_to_not_convert": []},
        "activation_scale_ub: is missing, and vLLM 0.32 asks for it",
    ),
    "fp8 by group": (
        compressed("float-quantized", FP8 | {"strategy": "group"}),
        "group_size: is for the strategies group and tensor_group, and they need it",
    ),
    "unsigned": (
        compressed("int-quantized", INT8 | {"symmetric": False}, TOKENS),
        "type: asymmetric int8 by channel: vLLM 0.32 has no class for such weights in the format "
        '"int-quantized"; it has for symmetric float4 by tensor_group of 16, ',
    ),
    "nvfp4 with fp8": (
        compressed("nvfp4-pack-quantized", FOURS, TOKENS),
        "int8 by token); it takes these: unquantised, symmetric float4 by tensor_group of 16",
    ),
    "mxfp8 without its exponents": (
        compressed("mxfp8-quantized", BY_32),
        "symmetric float8 by group of 32 with scales in uint8",
    ),
    "packed int4 with fp8 by tensor": (
        compressed(
            "pack-quantized",
            INT8 | {"num_bits": 4, "strategy": "group", "group_size": 128},
            FLOATS | {"strategy": "tensor"},
        ),
        "int4 by group of 128 with these activations (dynamic float8 by tensor); it takes these: "
        "dynamic symmetric float8 by token, dynamic symmetric int8 by token or group, dynamic",
    ),
    "a slow pattern": (
        compressed("int-quantized", INT8, TOKENS, ignore=["re:(a+)+b"]),
        'ignore: the pattern "(a+)+b" repeats a group, which is not read',
    ),
    "no pattern": (
        compressed("int-quantized", INT8, TOKENS, ignore=["re:["]),
        'ignore: the pattern "[" is not a regular expression',
    ),
    "half a fused linear": (
        compressed("int-quantized", INT8, TOKENS, ignore=["re:.*layers.3.self_attn.k_proj"]),
        "model.layers.3.self_attn.qkv_proj: ignore names some but not all of its parts",
    ),
    "names without end": (
        {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["*"] * 5000},
        "ignore: has 5,000 names; at most 2,048 are read",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_the_key_and_the_reason(case: str, tmp_path: Path) -> None:
    quantization, message = REFUSED[case]
    with pytest.raises(ModelError) as error:
        read_model(write(tmp_path, quantization)).linears(ONE)
    assert message in str(error.value)
    assert "None" not in str(error.value)
