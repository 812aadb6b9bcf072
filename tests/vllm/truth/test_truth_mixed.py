"""Checkpoints whose linears have several formats, to the byte of vLLM's own methods."""

import pytest

from tests.vllm.truth.test_truth_quantized import (
    AWQ,
    DENSE,
    EXPERTS,
    GPTQ,
    LATENT,
    TOKENS,
    _compressed,
    _tensors,
)
from tests.vllm.truth.test_truth_wider import HYBRID
from truth.compare import Case, Truth, names
from truth.stated import QWEN3_5_27B

GROUPS = {
    "weights": _tensors(8, "channel"),
    "input_activations": TOKENS,
    "targets": ["re:.*self_attn.*"],
    "format": "float-quantized",
}
FOURS = {
    "weights": _tensors(4, "tensor_group", group_size=16),
    "input_activations": _tensors(4, "tensor_group", group_size=16, dynamic="local"),
    "targets": ["Linear"],
    "format": "nvfp4-pack-quantized",
}


def _groups(*groups: object, **more: object) -> dict[str, object]:
    named = {f"group_{i}": group for i, group in enumerate(groups)}
    stated = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    return stated | {"config_groups": named, "ignore": ["lm_head"]} | more


def _layers(*rules: tuple[str, str]) -> dict[str, dict[str, object]]:
    """Of three layers, the modules of each rule with its algorithm."""
    found: dict[str, dict[str, object]] = {}
    for i in range(3):
        for module, algorithm in rules:
            group = {"group_size": 16} if "NVFP4" in algorithm else {}
            found[f"model.layers.{i}.{module}"] = {"quant_algo": algorithm} | group
    return found


ATTENTION = [(f"self_attn.{part}_proj", "FP8") for part in "qkvo"]
MLP = [(f"mlp.{part}_proj", "W4A16_NVFP4") for part in ("gate", "up", "down")]
LATENTS = [(f"self_attn.{name}", "FP8") for name in ("q_b_proj", "o_proj", "kv_b_proj")]
ROUTED = [(f"mlp.experts.{e}.{p}_proj", "NVFP4") for e in (0, 1) for p in ("gate", "up", "down")]
SHARED = [(f"mlp.shared_experts.{p}_proj", "MXFP8") for p in ("gate", "up", "down")]


def _mixed(*rules: tuple[str, str], **more: object) -> dict[str, object]:
    stated = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    return stated | {"quantized_layers": _layers(*rules)} | more


def _modelopt(algorithm: str) -> dict[str, object]:
    return {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head"]}


def _of_quark(dtype: str, scheme: str, inputs: object, **more: object) -> dict[str, object]:
    weight = {"dtype": dtype, "qscheme": scheme, "is_dynamic": False, "symmetric": True} | more
    return {"weight": weight, "input_tensors": inputs, "output_tensors": None, "bias": None}


def _quark(default: object, **more: object) -> dict[str, object]:
    export = {"kv_cache_group": [], "pack_method": "reorder"}
    layers: dict[str, object] = {"layer_quant_config": {}, "layer_type_quant_config": {}}
    stated = {"quant_method": "quark", "export": export, "exclude": ["lm_head"]} | layers
    return stated | {"global_quant_config": default} | more


FP8 = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}
BY_TENSOR = _of_quark("fp8_e4m3", "per_tensor", FP8)
BY_ROW = _of_quark(
    "fp8_e4m3", "per_channel", FP8 | {"qscheme": "per_channel", "is_dynamic": True}, ch_axis=0
)
BY_BLOCK = _of_quark(
    "fp8_e4m3",
    "per_block",
    FP8 | {"qscheme": "per_group", "group_size": 128, "is_dynamic": True, "symmetric": True},
    block_size=[128, 128],
)
MX = {"qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "is_dynamic": True}
BY_32 = _of_quark("fp4", "per_group", MX | {"dtype": "fp4"}, group_size=32, scale_format="e8m0")
QUARK: dict[str, dict[str, object]] = {
    "quark-fp8-tensor": _quark(BY_TENSOR),
    "quark-fp8-rows": _quark(BY_ROW, exclude=["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"]),
    "quark-fp8-blocks": _quark(BY_BLOCK),
    "quark-mxfp4": _quark(BY_32, exclude=["lm_head", "model.layers.1.self_attn.o_proj"]),
    "quark-layers": _quark(
        BY_32, layer_quant_config={"*self_attn*": BY_TENSOR, "model.layers.2.mlp.down_proj": BY_ROW}
    ),
}
METHODS: dict[str, dict[str, dict[str, object]]] = {
    "dense": {
        "modelopt-mixed": _mixed(*ATTENTION, *MLP),
        "modelopt-mixed-head": _mixed(
            *ATTENTION[:3],
            *MLP,
        )
        | {"ignore": ["model.layers.1.mlp*"]},
        "modelopt-channel": _modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
        "modelopt-blocks": _modelopt("FP8_PB_WO"),
        "modelopt-mxfp8": _modelopt("MXFP8"),
        "modelopt-w4a16": _modelopt("W4A16_NVFP4"),
        "modelopt-head": _modelopt("NVFP4") | {"ignore": []},
        "mxfp8": {"quant_method": "mxfp8", "ignored_layers": ["lm_head"]},
        "ct-groups": _groups(GROUPS, FOURS),
        "ct-names": _groups(
            GROUPS | {"targets": ["model.layers.0.self_attn.o_proj", "re:.*[qkv]_proj$"]}, FOURS
        ),
        "ct-head": _groups(GROUPS | {"targets": ["re:.*lm_head", "re:.*down_proj"]}, ignore=[]),
        "ct-mxfp4": _compressed("mxfp4-pack-quantized", _tensors(4, "group", group_size=32)),
        "ct-mxfp8": _compressed(
            "mxfp8-quantized",
            _tensors(8, "group", group_size=32, scale_dtype="torch.uint8"),
            TOKENS | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
        ),
        "ct-int4-channel": _compressed("pack-quantized", _tensors(4, "channel", "int")),
        "ct-int4-zeros": _compressed(
            "pack-quantized", _tensors(4, "group", "int", group_size=64, symmetric=False)
        ),
        "ct-int3": _compressed("pack-quantized", _tensors(3, "group", "int", group_size=128)),
        "ct-int8-tensor": _compressed(
            "int-quantized", _tensors(8, "tensor", "int"), TOKENS | {"type": "int"}
        ),
        "ct-fp8-weights": _compressed("naive-quantized", _tensors(8, "channel")),
        "ct-cache": _groups(kv_cache_scheme=_tensors(8, "tensor")),
        "awq-marlin": AWQ | {"quant_method": "awq_marlin"},
        "gptq-marlin": GPTQ | {"quant_method": "gptq_marlin"},
        "gptq-rules": GPTQ
        | {
            "dynamic": {
                "-:.*layers.1.self_attn.*": {},
                "+:.*down_proj": {"bits": 8, "group_size": 64},
                r".*\.[02]\.self_attn\..*": {"group_size": 32},
            }
        },
        "gptq-modules": GPTQ
        | {
            "modules_in_block_to_quantize": [
                ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
                ["mlp.down_proj"],
            ]
        },
        **QUARK,
        "quark-cache": _quark(
            BY_TENSOR,
            export={"kv_cache_group": ["*k_proj", "*v_proj"], "pack_method": "reorder"},
            layer_quant_config={
                "*k_proj": BY_TENSOR | {"output_tensors": FP8},
                "*v_proj": BY_TENSOR | {"output_tensors": FP8},
            },
        ),
    },
    "experts": {
        "modelopt-mixed": _mixed(*ATTENTION, *ROUTED),
        "modelopt-mixed-fp8": _mixed(("mlp.experts", "FP8"), *ATTENTION),
        "modelopt-mixed-blocks": _mixed(("mlp.experts", "FP8_BLOCK_SCALES"), *ATTENTION),
        "modelopt-mixed-mxfp8": _mixed(("mlp.experts.0.up_proj", "MXFP8"), *ATTENTION),
        "modelopt-channel": _modelopt("FP8_PER_CHANNEL_PER_TOKEN"),
        "modelopt-blocks": _modelopt("FP8_PB_WO"),
        "modelopt-w4a16": _modelopt("W4A16_NVFP4"),
        "modelopt-mxfp8": _modelopt("MXFP8"),
        "ct-groups": _groups(GROUPS, FOURS),
        "gptq-rules": GPTQ
        | {"dynamic": {"-:.*layers.1.mlp.experts": {}, "+:.*mlp.experts": {"bits": 8}}},
        **QUARK,
        "quark-experts": _quark(
            BY_32, exclude=["lm_head", *(f"model.layers.1.mlp.experts.{i}.up_proj" for i in (0, 1))]
        ),
        "ct-experts-by-name": _groups(GROUPS | {"targets": ["re:.*mlp.experts.*"]}),
        "ct-mxfp4": _compressed("mxfp4-pack-quantized", _tensors(4, "group", group_size=32)),
        "ct-mxfp8": _compressed(
            "mxfp8-quantized",
            _tensors(8, "group", group_size=32, scale_dtype="torch.uint8"),
            TOKENS | {"strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
        ),
        "ct-int4-channel": _compressed("pack-quantized", _tensors(4, "channel", "int")),
        "ct-int4-zeros": _compressed(
            "pack-quantized", _tensors(4, "group", "int", group_size=64, symmetric=False)
        ),
    },
    "latent": {
        "modelopt-mixed": _mixed(*LATENTS, *ROUTED, *SHARED),
        "ct-groups": _groups(
            GROUPS | {"targets": ["re:.*self_attn.(o_proj|q_b_proj)"]},
            FOURS,
            ignore=["re:.*a_proj"],
        ),
    },
}
MODELS = {
    "dense": ("Qwen--Qwen3-32B", DENSE),
    "experts": ("Qwen--Qwen3-235B-A22B", EXPERTS),
    "latent": ("deepseek-ai--DeepSeek-V3", LATENT),
}
STEM = "model.language_model.layers"
WRAPPED: dict[str, dict[str, object]] = {
    # As nvidia/Qwen3.6-27B-NVFP4 states it, the head too.
    "modelopt-mixed": {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "ignore": ["mtp*", "mtp.layers.0*"],
        "quantized_layers": {
            **{
                f"{STEM}.{i}.{m}": {"quant_algo": a}
                for i in range(3)
                for m, a in (*ATTENTION, *MLP)
            },
            **{
                f"{STEM}.{i}.linear_attn.{m}": {"quant_algo": "FP8"}
                for i in (0, 2)
                for m in ("in_proj_qkv", "in_proj_z", "out_proj")
            },
            "lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
        },
    },
    "ct-exact-names": _compressed(
        "float-quantized",
        _tensors(8, "channel"),
        TOKENS,
        ignore=[
            f"{STEM}.0.mlp.down_proj",
            *(f"{STEM}.1.self_attn.{part}_proj" for part in "qkv"),
            *(f"{STEM}.0.linear_attn.in_proj_{part}" for part in ("qkv", "z")),
            "language_model.model.layers.2.linear_attn.out_proj",
            "lm_head",
        ],
    ),
    "ct-patterns": _compressed(
        "float-quantized",
        _tensors(8, "channel"),
        TOKENS,
        ignore=["re:.*lm_head", "re:visual.*", "re:.*linear_attn.*"],
    ),
    "modelopt-tree": {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "ignore": ["lm_head", f"{STEM}.1.self_attn*", "model.visual*", f"{STEM}.2.*"],
    },
    "fp8-exact-names": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "modules_to_not_convert": [f"{STEM}.0.mlp.down_proj", "lm_head", "model.visual.merger"],
    },
}
TWO = ((1, 1, False), (2, 1, True))
CASES = {
    f"{model} {method}": Case(MODELS[model][0], MODELS[model][1] | {"quantization_config": q}, TWO)
    for model, methods in METHODS.items()
    for method, q in methods.items()
} | {
    f"wrapped {method}": Case(QWEN3_5_27B, {"quantization_config": q}, TWO[:1], text=HYBRID)
    for method, q in WRAPPED.items()
}
CASES["wrapped within"] = Case(
    QWEN3_5_27B, layouts=TWO[:1], text=HYBRID | {"quantization_config": WRAPPED["ct-patterns"]}
)
CASES["wrapped twice"] = Case(
    QWEN3_5_27B,
    {"quantization_config": WRAPPED["ct-exact-names"]},
    TWO[:1],
    text=HYBRID | {"quantization_config": WRAPPED["ct-patterns"]},
)

# What a class adds to its names as it builds comes too late for its quantisation.
IGNORED_MLP = [f"model.layers.{i}.mlp.{p}_proj" for i in range(3) for p in ("gate", "up", "down")]
for parts, dense in (("only", {"mlp_only_layers": [0]}), ("steps", {"decoder_sparse_step": 2})):
    CASES[f"experts fp8-but-dense-{parts}"] = Case(
        MODELS["experts"][0],
        EXPERTS
        | dense
        | {
            "quantization_config": {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "modules_to_not_convert": ["lm_head", *IGNORED_MLP],
            }
        },
        TWO[:1],
    )


@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
