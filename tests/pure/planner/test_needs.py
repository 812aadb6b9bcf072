"""What vLLM builds on some devices only is refused where the device is another, by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vllm_layershard import HardwareError, Layout, PlanError, compare_layouts, plan_model
from vllm_layershard.models.quantization.served import compressed_tensors, quark
from vllm_layershard.models.quantization.served.needs import KernelDevice, Needs
from vllm_layershard.models.sources.source import _BUNDLED

FP8_TENSOR = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}
QUARK = {
    "quant_method": "quark",
    "export": {"kv_cache_group": []},
    "global_quant_config": {"weight": FP8_TENSOR, "input_tensors": FP8_TENSOR},
}


def packed(targets: list[str], ignore: list[str]) -> dict[str, Any]:
    """Int4 in groups of 128, with fp8 tokens."""
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}
    tokens = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    group = {
        "targets": targets,
        "weights": weights | {"symmetric": True},
        "input_activations": tokens | {"symmetric": True},
    }
    stated = {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ignore}
    return stated | {"config_groups": {"group_0": group}}


LINEARS = ("Qwen--Qwen3-32B", packed(["Linear"], ["lm_head"]))
EXPERTS = (
    "Qwen--Qwen3-235B-A22B",
    packed(["Linear"], ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"]),
)
HEAD = ("Qwen--Qwen3-32B", packed(["re:.*lm_head"], []))
EIGHT = ("Qwen--Qwen3-32B", QUARK)


def write(place: Path, name: str, section: dict[str, Any]) -> str:
    config = json.loads((_BUNDLED / f"{name}.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"quantization_config": section}))
    return str(place)


def plan(place: Path, case: tuple[str, dict[str, Any]], hardware: str | None) -> None:
    name, section = case
    ep = "MoE" in name or "A22B" in name
    plan_model(write(place, name, section), layout=Layout(dp=8, ep=ep), hardware=hardware)


SERVED = [
    *((LINEARS, device) for device in (None, "H100", "H200", "H20", "H800")),
    *((EXPERTS, device) for device in (None, "H100", "B200", "A100", "L40S")),
    (HEAD, "H100"),
    *((EIGHT, device) for device in ("H100", "B200", "L40S", "MI300X")),
]
REFUSED = [
    *((LINEARS, device, "model.layers.0.self_attn.qkv_proj", "compute capability 9.0 only")
      for device in ("B200", "B300", "A100", "L40S", "MI300X", "MI355X")),
    (EXPERTS, "MI300X", "model.layers.0.mlp.experts", "compute capability 7.5 or higher only"),
    *((HEAD, device, "lm_head", "compute capability 9.0 only") for device in ("B200", "MI300X")),
    (EIGHT, "A100", "model.layers.0.self_attn.qkv_proj", "8.9 or higher, or on ROCm only"),
]  # fmt: skip


@pytest.mark.parametrize(("case", "hardware"), SERVED)
def test_planned_where_vllm_builds_it(
    case: tuple[str, dict[str, Any]], hardware: str | None, tmp_path: Path
) -> None:
    plan(tmp_path, case, hardware)


@pytest.mark.parametrize(("case", "hardware", "module", "needs"), REFUSED)
def test_refused_elsewhere_by_name(
    case: tuple[str, dict[str, Any]], hardware: str, module: str, needs: str, tmp_path: Path
) -> None:
    with pytest.raises(HardwareError) as error:
        plan(tmp_path, case, hardware)
    text = str(error.value)
    assert text.startswith(f"--hardware {hardware}: {module} is ")
    assert f"{needs}; give a device of that, or another model" in text
    with pytest.raises(HardwareError, match=f"--hardware {hardware}: {module} is "):
        compare_layouts(str(tmp_path), hardware=hardware)


def test_the_class_is_named(tmp_path: Path) -> None:
    with pytest.raises(HardwareError) as error:
        plan(tmp_path, LINEARS, "B200")
    assert str(error.value) == (
        "--hardware B200: model.layers.0.self_attn.qkv_proj is compressed_tensors_int4_g128_a8, "
        "for which vLLM 0.32 has CompressedTensorsW4A8Fp8, on compute capability 9.0 only; give a "
        "device of that, or another model"
    )


def test_a_minor_version_counts() -> None:
    hopper, ada = Needs(9.0, alone=True), Needs(8.9, rocm=True)
    of = [KernelDevice(version) for version in (8.0, 8.9, 9.0, 10.3)]
    assert [hopper.met_by(device) for device in of] == [False, False, True, False]
    assert [ada.met_by(device) for device in of] == [False, True, True, True]
    assert [one.met_by(KernelDevice(None, rocm=True)) for one in (hopper, ada)] == [False, True]
    assert [one.met_by(KernelDevice(None)) for one in (hopper, ada)] == [False, False]


def test_every_class_that_needs_a_device_is_tried_here() -> None:
    tables = (
        *(compressed_tensors.LINEARS, compressed_tensors.EXPERTS),
        *(quark.LINEARS, quark.EXPERTS),
    )
    bound = {row.scheme for rows in tables for row in rows if row.needs is not None}
    assert bound == {
        *("CompressedTensorsW4A8Fp8", "CompressedTensorsW4A8Fp8MoEMethod"),
        *("QuarkW8A8Fp8", "QuarkW8A8Fp8PerBlock"),
    }


@pytest.mark.parametrize(
    ("changes", "tp", "said"),
    [
        ({}, 8, "the intermediate size on a rank, 96, is not a multiple of 256"),
        ({"hidden_size": 4224}, 1, "the hidden size, 4,224, is not a multiple of 256"),
    ],
)
def test_sizes_that_the_kernel_of_fp8_tokens_does_not_take(
    changes: dict[str, Any], tp: int, said: str, tmp_path: Path
) -> None:
    """Source: vLLM 0.32, compressed_tensors_moe_w4a8_fp8.py, `create_weights`."""
    name, section = EXPERTS
    path = write(tmp_path, name, section)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(PlanError) as error:
        plan_model(path, layout=Layout(tp=tp, dp=2))
    assert f"model.layers.0.mlp.experts: {said}" in str(error.value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan_model(path, layout=Layout(tp=8, dp=2, ep=True))
