"""Further formats of single methods, to the byte of vLLM's own classes."""

from dataclasses import replace

import pytest

from tests.vllm.truth.test_truth_mixed import FP8, TWO, _of_quark, _quark
from tests.vllm.truth.test_truth_quantized import (
    DENSE,
    EXPERTS,
    LATENT,
    _compressed,
    _tensors,
)
from truth.compare import Case, Truth, names

INT = {"dtype": "int8", "qscheme": "per_tensor", "is_dynamic": False, "symmetric": True}
ROWS = INT | {"qscheme": "per_channel", "is_dynamic": True}
FOUR = {"group_size": 128, "symmetric": True}
PAIR = (
    [{"dtype": "fp4", "qscheme": "per_group", "group_size": 16, "is_dynamic": False}, FP8],
    [{"dtype": "fp4", "qscheme": "per_group", "group_size": 16, "is_dynamic": True}, FP8],
)
MX6 = {"qscheme": "per_group", "group_size": 32, "scale_format": "e8m0", "is_dynamic": True}
TOKENS = _tensors(8, "token", dynamic=True)


def _turned(head_dim: int | None, *apply: dict[str, object]) -> dict[str, object]:
    """fp8 with a transform of llm-compressor's, and one that is folded into the weights."""
    folded = {"targets": ["Linear"], "location": "weight_input", "inverse": True}
    groups = {
        "R1": {"type": "hadamard", "head_dim": head_dim, "apply": [folded, *apply]},
        "R2": {"type": "random-hadamard", "apply": [folded]},
    }
    fp8 = _compressed("float-quantized", _tensors(8, "channel"), TOKENS)
    return fp8 | {"transform_config": {"config_groups": groups}}


ROUNDED = {
    "quant_method": "auto-round",
    "bits": 4,
    "group_size": 128,
    "sym": True,
    "data_type": "int",
    "packing_format": "auto_round:auto_gptq",
    "block_name_to_quantize": "model.layers",
}
BOTH: dict[str, dict[str, object]] = {
    "fbgemm-fp8": {
        "quant_method": "fbgemm_fp8",
        "activation_scale_ub": 1200.0,
        "modules_to_not_convert": [
            *("lm_head", "model.layers.0.mlp.down_proj"),
            *(f"model.layers.1.self_attn.{part}_proj" for part in "qkv"),
        ],
    },
    "quark-int8-rows": _quark(_of_quark("int8", "per_channel", ROWS)),
    "quark-int8-tensor": _quark(_of_quark("int8", "per_tensor", INT)),
    "quark-int4": _quark(_of_quark("int4", "per_group", None, **FOUR)),
    "quark-int4-zeros": _quark(
        _of_quark("uint4", "per_group", None, group_size=32, symmetric=False)
    ),
    "quark-nvfp4": _quark({"weight": PAIR[0], "input_tensors": PAIR[1]}),
    "quark-mxfp6": _quark(
        _of_quark(
            "fp6_e3m2", "per_group", MX6 | {"dtype": "fp6_e3m2"}, group_size=32, scale_format="e8m0"
        )
    ),
    "inc-gptq": ROUNDED,
    "inc-awq": ROUNDED | {"packing_format": "auto_round:auto_awq", "quant_method": "inc"},
    "inc-eight": ROUNDED | {"bits": 8, "group_size": -1},
    "inc-mxfp4": ROUNDED
    | {"data_type": "mx_fp", "group_size": 32, "packing_format": "auto_round:llm_compressor"},
}
METHODS: dict[str, dict[str, dict[str, object]]] = {
    "dense": {
        "ct-int8-static": _compressed(
            "int-quantized", _tensors(8, "channel", "int"), _tensors(8, "tensor", "int")
        ),
        "ct-int8-static-shifted": _compressed(
            "int-quantized",
            _tensors(8, "tensor", "int"),
            _tensors(8, "tensor", "int", symmetric=False),
        ),
        "ct-int4-int8": _compressed(
            "pack-quantized", _tensors(4, "group", "int", group_size=128), TOKENS | {"type": "int"}
        ),
        "ct-int8-int4": _compressed(
            "pack-quantized",
            _tensors(8, "channel", "int", symmetric=False),
            TOKENS | {"type": "int", "num_bits": 4},
        ),
        "ct-transforms": _turned(
            None,
            {"targets": ["re:.*(down|gate|up)_proj$", "re:.*o_proj"], "location": "input"},
            {"targets": "Linear", "location": "output", "ignore": ["re:.*self_attn.*"]},
        ),
        "ct-transforms-heads": _turned(
            128, {"targets": ["re:.*[qkv]_proj"], "location": "input", "ignore": ["lm_head"]}
        ),
        **BOTH,
        "inc-mixed": ROUNDED
        | {
            "block_name_to_quantize": None,
            "extra_config": {
                "model.layers.0.self_attn.o_proj": {"bits": 8},
                "model.layers.1.mlp.down_proj": {"bits": 16},
                **{f"model.layers.2.mlp.{p}_proj": {"bits": 16} for p in ("gate", "up")},
                r".*layers\.0\.mlp\..*": {"group_size": 32},
                "1.self_attn.o_proj": {"bits": 8, "group_size": -1},
                "lm_head": {"bits": 8},
            },
        },
        "inc-blocks": ROUNDED | {"block_name_to_quantize": ["model.layers.1", "model.layers.2"]},
        "inc-fp8": {
            "quant_method": "auto-round",
            "bits": 8,
            "group_size": [128, 128],
            "sym": True,
            "data_type": "fp",
            "act_bits": 8,
            "act_group_size": 128,
            "act_data_type": "fp",
            "act_sym": True,
            "act_dynamic": True,
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
        },
    },
    "experts": {**BOTH, "mxfp4": {"quant_method": "mxfp4"}},
    "latent": {"inc-gptq": ROUNDED, "mxfp4": {"quant_method": "mxfp4"}},
}
MODELS = {
    "dense": ("Qwen--Qwen3-32B", DENSE),
    "experts": ("Qwen--Qwen3-235B-A22B", EXPERTS),
    "latent": ("deepseek-ai--DeepSeek-V3", LATENT),
}
CASES = {
    f"{model} {method}": Case(MODELS[model][0], MODELS[model][1] | {"quantization_config": q}, TWO)
    for model, methods in METHODS.items()
    for method, q in methods.items()
}
for turned in ("dense ct-transforms", "dense ct-transforms-heads"):  # vLLM refuses TP 2
    CASES[turned] = replace(CASES[turned], layouts=TWO[:1])


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
