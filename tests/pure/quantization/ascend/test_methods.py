"""Quantisation on Ascend: what vllm-ascend serves is planned, all else is refused by name.

Source: vllm-ascend 182b75e, platform.py, `NPUPlatform.supported_quantization`; quantization/, of
which each table says the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from console import complaint, layershard
from vllm_layershard import HardwareError, Layout, compare_layouts, plan_model
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.planner.results.plan_result import PlanResult

DENSE, ROUTED = "Qwen--Qwen3-32B", "Qwen--Qwen3-235B-A22B"
DEVICES = ["910B1", "910B2", "910B3", "910B4", "910C", "910C-board"]


def write(place: Path, name: str, section: dict[str, Any], **changes: Any) -> str:
    config = json.loads((_BUNDLED / f"{name}.json").read_text()) | changes
    (place / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return str(place)


def plan(path: str, hardware: str = "910C") -> PlanResult:
    return plan_model(path, layout=Layout(dp=16, ep=True), hardware=hardware)


FP8 = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}
MXFP8 = {"quant_method": "modelopt", "quant_algo": "MXFP8"}
METHODS: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "auto-round": {
        "quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True,
        "packing_format": "auto_round:auto_gptq",
    },
    "quark": {
        "quant_method": "quark", "export": {"kv_cache_group": []},
        "global_quant_config": {"weight": FP8, "input_tensors": FP8},
    },
    "modelopt": {"quant_method": "modelopt", "quant_algo": "FP8"},
    "modelopt, nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "modelopt, mixed": {
        "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"model.layers.0.self_attn.o_proj": {"quant_algo": "FP8"}},
    },
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0,
                   "modules_to_not_convert": ["lm_head"]},
}  # fmt: skip
"""Those that the platform does not take; gpt-oss's mxfp4 comes with the package."""


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_the_platform_does_not_take_is_refused(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, ROUTED, METHODS[name])
    assert plan(path, "H200").launch is not None
    method = name.partition(",")[0]
    with pytest.raises(HardwareError) as error:
        plan(path)
    assert str(error.value) == (
        "--hardware 910C: vllm-ascend 182b75e takes only ascend, compressed-tensors, fp8, "
        f"deepseek_v4_fp8, modelopt_mxfp8, mxfp8, not method {method}; give a W8A8 checkpoint of "
        "ModelSlim's (method ascend) or of compressed-tensors, or another --hardware"
    )


@pytest.mark.parametrize("hardware", DEVICES)
def test_gpt_oss_is_refused_on_each_device_and_in_compare(hardware: str) -> None:
    code, message = complaint("plan", "--model", "gpt-oss-120b", "--dp", "8", "--ep",
                              "--hardware", hardware)  # fmt: skip
    assert (code, "not method mxfp4" in message) == (3, True)
    with pytest.raises(HardwareError, match=f"--hardware {hardware}: .*not method mxfp4"):
        compare_layouts("gpt-oss-120b", layouts=["dp8+ep"], hardware=hardware)


@pytest.mark.parametrize(
    "section",
    [MXFP8, MXFP8 | {"quant_method": "modelopt_mxfp8"}, {"quant_method": "mxfp8"}],
)
def test_mxfp8_is_refused_on_each_device(section: dict[str, Any], tmp_path: Path) -> None:
    """Source: user_guide/feature_guide/expert_parallelism_load_balancer.md, the rows of devices."""
    path = write(tmp_path, ROUTED, section)
    for name in DEVICES:
        with pytest.raises(HardwareError) as error:
            plan(path, name)
        stored = plan(path, "H200").planned.model.quantization
        said = f"vllm-ascend has no kernel for {stored} on {name}; give a W8A8 checkpoint"
        assert said in str(error.value)


def args(kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    """Of compressed-tensors, for example `int4` by `group`."""
    bits = int(kind[-1])
    return {"type": kind[:-1], "num_bits": bits, "strategy": strategy, "symmetric": True} | more


INT8, FLOAT8 = args("int8", "channel"), args("float8", "channel")
INT4 = args("int4", "group", group_size=32)
INT8_TENSOR, FLOAT8_TENSOR = args("int8", "tensor"), args("float8", "tensor")
INT8_TOKEN = args("int8", "token", dynamic=True)
FLOAT8_TOKEN = args("float8", "token", dynamic=True)
BLOCKS = args("float8", "block", block_structure=[128, 128])
BLOCK_TOKENS = args("float8", "group", group_size=128, dynamic=True)
NVFP4 = args("float4", "tensor_group", group_size=16)
INTEGERS, FLOATS, PACKED = "int-quantized", "float-quantized", "pack-quantized"
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any] | None, str, bool, bool]] = {
    "W8A8": (INT8, INT8_TENSOR, INTEGERS, True, False),
    "W8A8_DYNAMIC": (INT8, INT8_TOKEN, INTEGERS, True, True),
    "W8A8FP8_DYNAMIC": (FLOAT8, FLOAT8_TOKEN, FLOATS, True, True),
    "W4A16": (INT4, None, PACKED, False, True),
    "int8 by tensor": (INT8_TENSOR, INT8_TOKEN, INTEGERS, False, False),
    "int8, asymmetric": (INT8, INT8_TOKEN | {"symmetric": False}, INTEGERS, False, False),
    "int8 alone, packed": (INT8, None, PACKED, False, False),
    "fp8, static": (FLOAT8, FLOAT8_TENSOR, FLOATS, False, False),
    "fp8 by tensor": (FLOAT8_TENSOR, FLOAT8_TENSOR, FLOATS, False, False),
    "fp8 alone": (FLOAT8, None, FLOATS, False, False),
    "fp8 blocks": (BLOCKS, BLOCK_TOKENS, FLOATS, False, False),
    "nvfp4": (NVFP4, NVFP4, "nvfp4-pack-quantized", False, False),
    "mxfp8": (args("float8", "group", group_size=32, scale_dtype="torch.uint8"), None, FLOATS,
              False, False),
    "int4 of 128": (INT4 | {"group_size": 128}, None, PACKED, False, False),
    "int4 with zero points": (INT4 | {"symmetric": False}, None, PACKED, False, False),
    "int4 by channel": (args("int4", "channel"), None, PACKED, False, False),
    "int4 with fp8 tokens": (INT4 | {"group_size": 128}, FLOAT8_TOKEN, PACKED, False, False),
    "int4 with int8 tokens": (INT4, INT8_TOKEN, PACKED, False, False),
}  # fmt: skip
"""Weights, activations and packing, and whether linears and routed experts of them have a class.

Source: quantization/compressed_tensors_config.py, `_detect_quant_type`, and the registrations in
quantization/methods/. W8A8's class loads integers alone (w8a8_static.py). W4A16's has groups of 32
and no zero points (w4a16.py).
"""
ATTENTION, EXPERTS = ["re:.*self_attn.*"], ["re:.*mlp.experts.*"]


def compressed(pair: str, ignore: list[str]) -> dict[str, Any]:
    weights, inputs, packing, *_ = PAIRS[pair]
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": packing,
        "ignore": ["lm_head", "re:.*mlp.gate$", *ignore],
        "config_groups": {"group_0": group},
    }


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("what", ["linears", "routed experts"])
def test_linears_and_experts_of_compressed_tensors(what: str, pair: str, tmp_path: Path) -> None:
    *_, linears, experts = PAIRS[pair]
    of_linears = what == "linears"
    path = write(tmp_path, ROUTED, compressed(pair, EXPERTS if of_linears else ATTENTION))
    if pair == "W8A8FP8_DYNAMIC":  # of Ascend 950: vllm-ascend's pull request 10236
        with pytest.raises(HardwareError, match=r"vllm-ascend has no kernel for .* on 910C"):
            plan(path)
        return
    if linears if of_linears else experts:
        assert plan(path).launch is not None
        return
    module = "self_attn.qkv_proj" if of_linears else "mlp.experts"
    with pytest.raises(HardwareError) as error:
        plan(path)
    said = f"--hardware 910C: model.layers.0.{module}: vllm-ascend 182b75e has no class for {what}"
    assert str(error.value).startswith(said)
    assert "; give a W8A8 checkpoint of ModelSlim's (method ascend)" in str(error.value)


def test_integers_in_another_packing_lose_their_activations(tmp_path: Path) -> None:
    """Source: `is_activation_quantization_format`, which knows no marlin-24 among others."""
    section = compressed("W8A8_DYNAMIC", ATTENTION) | {"format": "marlin-24"}
    path = write(tmp_path, ROUTED, section)
    assert plan(path, "H200").launch is not None
    with pytest.raises(HardwareError, match=r"mlp\.experts: .* in the format marlin-24; it has "):
        plan(path)


def test_a_head_of_compressed_tensors_is_refused(tmp_path: Path) -> None:
    """Source: `get_quant_method`, which asks for linears and routed experts alone."""
    section = compressed("W8A8_DYNAMIC", [])
    heads = section | {"ignore": []}
    heads["config_groups"]["group_0"]["targets"] = ["Linear", "re:.*lm_head"]
    path = write(tmp_path, DENSE, heads)
    with pytest.raises(HardwareError, match="lm_head: vllm-ascend 182b75e has no class for heads"):
        plan_model(path, layout=Layout(dp=2), hardware="910C")


def test_transforms_of_compressed_tensors_are_refused(tmp_path: Path) -> None:
    """Source: quantization/compressed_tensors_config.py, which never reads the key."""
    turn = {"targets": ["Linear"], "location": "input", "ignore": ["lm_head"]}
    scheme = {"type": "hadamard", "head_dim": 128, "apply": [turn]}
    section = compressed("W8A8_DYNAMIC", EXPERTS)
    section["transform_config"] = {"config_groups": {"R1": scheme}}
    path = write(tmp_path, DENSE, section)
    assert plan_model(path, layout=Layout(dp=2)).planned.model.is_moe is False
    with pytest.raises(HardwareError, match="vllm-ascend 182b75e reads no transform_config"):
        plan_model(path, layout=Layout(dp=2), hardware="910C")


@pytest.mark.parametrize("model", ["DeepSeek-V3.2", "GLM-5-FP8", "Kimi-K2-Instruct"])
def test_method_fp8_stands_for_the_w8a8_checkpoint(model: str) -> None:
    """Source: quantization/fp8_config.py, `AscendFp8Config.get_quant_method`: it raises."""
    note = (
        "vllm-ascend has no class for method fp8, so there is no launch line. The directory of the "
        "W8A8 checkpoint gives exact bytes and the launch line"
    )
    found = plan_model(model, layout=Layout(dp=32, ep=True), hardware="910C")
    assert (found.launch, found.launches, found.warnings.count(note)) == (None, (), 1)
    assert found.memory.fits
    there = plan_model(model, layout=Layout(dp=32, ep=True), hardware="H200")
    assert there.launch is not None
    assert note not in there.warnings
    assert found.memory.saved_bytes == there.memory.saved_bytes


def test_without_a_launch_line_nothing_is_said_of_it(tmp_path: Path) -> None:
    config = (_BUNDLED / "deepseek-ai--DeepSeek-V3.json").read_text()
    (tmp_path / "other.json").write_text(config)
    words = ["--model", str(tmp_path / "other.json"), "--dp", "32", "--ep", "--hardware"]
    assert "vllm serve" in layershard("plan", *words, "H200").stdout
    on_ascend = layershard("plan", *words, "910C").stdout
    assert "vllm serve" not in on_ascend
    assert "launch command" not in on_ascend


def test_minimax_m2_in_fp8_is_refused() -> None:
    """Source: patch/platform/patch_minimax_m2_config.py, `_should_disable_fp8`."""
    with pytest.raises(HardwareError) as error:
        plan("MiniMax-M2")
    assert str(error.value) == (
        "--hardware 910C: vllm-ascend 182b75e turns method fp8 off for MiniMax-M2 and loads "
        "bfloat16 weights, which this config.json does not state; give the directory of a bfloat16 "
        "checkpoint, or another --hardware"
    )
