"""Linears as each method's packer stores them, beside what the planner makes of the method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints import ENDS
from tests.pure.models.test_checkpoint import Tensors, bundled, compared


def linear_as_stored(method: str, rows: int, inner: int) -> Tensors:
    """One linear of a checkpoint, as the packer of this method names and shapes its tensors."""
    eighths, groups = rows // 8, inner // 128
    return {
        "awq": {
            "qweight": ("I32", [inner, eighths]),
            "qzeros": ("I32", [groups, eighths]),
            "scales": ("F16", [groups, rows]),
        },
        "gptq": {
            "qweight": ("I32", [inner // 8, rows]),
            "qzeros": ("I32", [groups, eighths]),
            "scales": ("F16", [groups, rows]),
            "g_idx": ("I32", [inner]),
        },
        "modelopt": {
            "weight": ("F8_E4M3", [rows, inner]),
            "weight_scale": ("F32", []),
            "input_scale": ("F32", []),
        },
        "modelopt_fp4": {
            "weight": ("U8", [rows, inner // 2]),
            "weight_scale": ("F8_E4M3", [rows, inner // 16]),
            "weight_scale_2": ("F32", []),
            "input_scale": ("F32", []),
        },
        "compressed-tensors": {
            "weight": ("I8", [rows, inner]),
            "weight_scale": ("BF16", [rows, 1]),
        },
        "pack-quantized": {
            "weight_packed": ("I32", [rows, inner // 8]),
            "weight_scale": ("BF16", [rows, groups]),
            "weight_shape": ("I64", [2]),
        },
        "pack-quantized, shifted": {
            "weight_packed": ("I32", [rows, inner // 8]),
            "weight_scale": ("BF16", [rows, groups]),
            "weight_shape": ("I32", [2]),
            "weight_zero_point": ("I32", [eighths, groups]),
        },
        "int8, static": {
            "weight": ("I8", [rows, inner]),
            "weight_scale": ("BF16", [rows, 1]),
            "input_scale": ("BF16", [1]),
            "input_zero_point": ("I8", [1]),
        },
        "ascend": {
            "weight": ("I8", [rows, inner]),
            "weight_scale": ("F32", [rows, 1]),
            "weight_offset": ("F32", [rows, 1]),
            "input_scale": ("BF16", [1]),
            "input_offset": ("I8", [1]),
            "quant_bias": ("I32", [rows]),
            "deq_scale": ("F32", [rows]),
        },
    }[method]


def in_groups(
    bits: int, symmetric: bool, inputs: dict[str, object] | None = None, **weights: object
) -> dict[str, object]:
    """A section of compressed-tensors with one group."""
    stated = {"num_bits": bits, "type": "int", "symmetric": symmetric, **weights}
    group = {"targets": ["Linear"], "weights": stated, "input_activations": inputs}
    form = "int-quantized" if inputs else "pack-quantized"
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
    }


STATIC = {"num_bits": 8, "type": "int", "strategy": "tensor", "symmetric": False, "dynamic": False}
METHODS: dict[str, dict[str, object]] = {
    "pack-quantized": in_groups(4, True, strategy="group", group_size=128),
    "pack-quantized, shifted": in_groups(4, False, strategy="group", group_size=128),
    "int8, static": in_groups(8, True, STATIC, strategy="channel"),
    "awq": {"bits": 4, "group_size": 128},
    "gptq": {"bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "modelopt": {"quant_algo": "FP8"},
    "modelopt_fp4": {"quant_algo": "NVFP4"},
    "compressed-tensors": {
        "format": "int-quantized",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
                "input_activations": {
                    "num_bits": 8,
                    "type": "int",
                    "strategy": "token",
                    "dynamic": True,
                },
            }
        },
    },
    "ascend": {},
}


def dense(method: str, stored_as: str | None = None) -> tuple[dict[str, object], Tensors]:
    """A config that states a method, and a layer as that or another one stores it."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1, "head_dim": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512}
    stated = {"quantization_config": {"quant_method": method, **METHODS[method]}}
    config = bundled("Qwen/Qwen3-32B", **sizes, **heads, **stated)
    linears = {
        "self_attn.q_proj": (512, 256),
        "self_attn.k_proj": (256, 256),
        "self_attn.v_proj": (256, 256),
        "self_attn.o_proj": (256, 512),
        "mlp.gate_proj": (512, 256),
        "mlp.up_proj": (512, 256),
        "mlp.down_proj": (256, 512),
    }
    tensors = {
        f"model.layers.0.{linear}.{name}": tensor
        for linear, (rows, inner) in linears.items()
        for name, tensor in linear_as_stored(stored_as or method, rows, inner).items()
    }
    return config, tensors


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_layout_agrees(method: str, tmp_path: Path) -> None:
    config, tensors = dense(method)
    description = {name: "W8A8" for name in tensors if name.endswith(".weight")}
    description |= {f"{module}.weight": "FLOAT" for module in ENDS}
    (tmp_path / "quant_model_description.json").write_text(json.dumps(description))
    assert compared(tmp_path, config, tensors).disagreements == ()
    tensors["model.layers.0.self_attn.o_proj.bias"] = ("BF16", [256])
    assert len(compared(tmp_path, config, tensors).disagreements) == 1


@pytest.mark.parametrize(("method", "other"), [("awq", "gptq"), ("gptq", "awq")])
def test_the_other_packing_of_as_many_bytes_disagrees(
    method: str, other: str, tmp_path: Path
) -> None:
    """Awq packs the outputs of a linear, gptq its inputs."""
    config, tensors = dense(method, other)
    found = compared(tmp_path, config, tensors)
    linears = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")
    wrong = {one.tensor for one in found.disagreements}
    assert wrong == {f"model.layers.0.{linear}.qweight" for linear in linears}


def test_each_part_of_a_fused_linear_states_a_shape_of_two_sides(tmp_path: Path) -> None:
    config, tensors = dense("pack-quantized")
    tensors["model.layers.0.self_attn.k_proj.weight_shape"] = ("I64", [3])
    found = compared(tmp_path, config, tensors)
    assert [str(one) for one in found.disagreements] == [
        "model.layers.0.self_attn.qkv_proj.weight_shape: expected int64 [2], "
        "stored I64 [2] + I64 [3] + I64 [2]"
    ]
