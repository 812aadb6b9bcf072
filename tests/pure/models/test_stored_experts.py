"""The routed experts of a plan beside the stored ones: each form agrees, and no other passes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import pytest

from checkpoints import BYTES, write
from vllm_layershard.errors import ModelError
from vllm_layershard.models import Model, find, model_of
from vllm_layershard.models.checkpoint.comparison import Comparison
from vllm_layershard.models.checkpoint.experts import compare_experts
from vllm_layershard.models.checkpoint.files import Checkpoint
from vllm_layershard.models.checkpoint.safetensors import Stored
from vllm_layershard.models.checkpoint.stored import evidence_for
from vllm_layershard.models.sources import source

Tensors = dict[str, tuple[str, Sequence[int]]]
EXPERTS, HIDDEN, WIDTH, LAYERS = 4, 512, 1024, 3


def config(section: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    path = source._BUNDLED / "Qwen--Qwen3-235B-A22B.json"
    sizes = {
        "num_hidden_layers": LAYERS,
        "hidden_size": HIDDEN,
        "moe_intermediate_size": WIDTH,
        "num_experts": EXPERTS,
        "num_experts_per_tok": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "vocab_size": 512,
    }
    stated = {} if section is None else {"quantization_config": section}
    return {**json.loads(path.read_text()), **sizes, **stated, **changes}


def one_group(form: str, weights: dict[str, Any], inputs: Any = None) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    stated = {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"]}
    return stated | {"config_groups": {"group_0": group}}


def args(bits: int, kind: str, strategy: str, **more: Any) -> dict[str, Any]:
    return {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True} | more


PACKED = args(4, "int", "group", group_size=128)
TOKENS = {"num_bits": 8, "dynamic": True, "strategy": "token"}
OCP = {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}
INTEGERS = {"dtype": "int8", "qscheme": "per_tensor", "symmetric": True}
SECTIONS: dict[str, dict[str, Any] | None] = {
    "none": None,
    "fp8 blocks": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    },
    "fp8 tensors": {"quant_method": "fp8", "activation_scheme": "static"},
    "fp8 rows": one_group(
        "float-quantized", args(8, "float", "channel"), TOKENS | {"type": "float"}
    ),
    "int8 rows": one_group("int-quantized", args(8, "int", "channel"), TOKENS | {"type": "int"}),
    "int4 packed": one_group("pack-quantized", PACKED),
    "int4 packed by 64": one_group("pack-quantized", PACKED | {"group_size": 64}),
    "int8 packed": one_group("pack-quantized", PACKED | {"num_bits": 8}),
    "nvfp4": {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16},
    "mxfp4": {
        "quant_method": "quark",
        "export": {"kv_cache_group": []},
        "global_quant_config": {"weight": OCP, "input_tensors": OCP | {"is_dynamic": True}},
    },
    "quark int4": {
        "quant_method": "quark",
        "export": {"kv_cache_group": [], "pack_method": "reorder"},
        "global_quant_config": {"weight": {"dtype": "int4", "group_size": 128, "symmetric": False}},
    },
    "quark int8": {
        "quant_method": "quark",
        "export": {"kv_cache_group": []},
        "global_quant_config": {"weight": INTEGERS, "input_tensors": INTEGERS},
    },
    "auto-round mxfp4": {
        "quant_method": "auto-round",
        "bits": 4,
        "group_size": 32,
        "data_type": "mx_fp",
    },
    "mxfp8": {"quant_method": "modelopt", "quant_algo": "MXFP8"},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128},
}


def matrix(form: str, rows: int, inner: int) -> Tensors:
    """One matrix of an expert, as the packer of this form names and shapes its tensors."""
    tensors: dict[str, Tensors] = {
        "none": {"weight": ("BF16", [rows, inner])},
        "fp8 blocks": {
            "weight": ("F8_E4M3", [rows, inner]),
            "weight_scale_inv": ("F32", [rows // 128, inner // 128]),
        },
        "fp8 tensors": {
            "weight": ("F8_E4M3", [rows, inner]),
            "weight_scale": ("F32", []),
            "input_scale": ("F32", []),
        },
        "fp8 rows": {"weight": ("F8_E4M3", [rows, inner]), "weight_scale": ("BF16", [rows, 1])},
        "int8 rows": {"weight": ("I8", [rows, inner]), "weight_scale": ("F32", [rows, 1])},
        "int4 packed": {
            "weight_packed": ("I32", [rows, inner // 8]),
            "weight_scale": ("BF16", [rows, inner // 128]),
            "weight_shape": ("I32", [2]),
        },
        "int4 packed by 64": {
            "weight_packed": ("I32", [rows, inner // 8]),
            "weight_scale": ("BF16", [rows, inner // 64]),
            "weight_shape": ("I32", [2]),
        },
        "int8 packed": {
            "weight_packed": ("I32", [rows, inner // 4]),
            "weight_scale": ("BF16", [rows, inner // 128]),
        },
        "nvfp4": {
            "weight": ("U8", [rows, inner // 2]),
            "weight_scale": ("F8_E4M3", [rows, inner // 16]),
            "weight_scale_2": ("F32", []),
            "input_scale": ("F32", []),
        },
        "mxfp4": {
            "weight": ("U8", [rows, inner // 2]),
            "weight_scale": ("U8", [rows, inner // 32]),
        },
        "quark int4": {
            "weight": ("I32", [inner, rows // 8]),
            "weight_scale": ("BF16", [inner // 128, rows]),
            "weight_zero_point": ("I32", [inner // 128, rows // 8]),
        },
        "quark int8": {
            "weight": ("I8", [rows, inner]),
            "weight_scale": ("F32", []),
            "weight_zero_point": ("I8", []),
            "input_scale": ("F32", []),
        },
        "auto-round mxfp4": {
            "weight_packed": ("U8", [rows, inner // 2]),
            "weight_scale": ("U8", [rows, inner // 32]),
        },
        "mxfp8": {
            "weight": ("F8_E4M3", [rows, inner]),
            "weight_scale": ("U8", [rows, inner // 32]),
        },
        "gptq": {
            "qweight": ("I32", [inner // 8, rows]),
            "qzeros": ("I32", [inner // 128, rows // 8]),
            "scales": ("F16", [inner // 128, rows]),
            "g_idx": ("I32", [inner]),
        },
        "awq": {
            "qweight": ("I32", [inner, rows // 8]),
            "qzeros": ("I32", [inner // 128, rows // 8]),
            "scales": ("F16", [inner // 128, rows]),
        },
    }
    return tensors[form]


def stored(forms: Sequence[str], count: int = EXPERTS, width: int = WIDTH) -> Tensors:
    """The routed experts of as many layers, each in its form."""
    return {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}.{leaf}": tensor
        for layer, form in enumerate(forms)
        for expert in range(count)
        for name, rows, inner in (
            ("gate_proj", width, HIDDEN),
            ("up_proj", width, HIDDEN),
            ("down_proj", HIDDEN, width),
        )
        for leaf, tensor in matrix(form, rows, inner).items()
    }


def compared(place: Path, stated: dict[str, Any], tensors: Tensors) -> Comparison:
    place.mkdir(exist_ok=True)
    (place / "config.json").write_text(json.dumps(stated))
    write(place, tensors)
    found = find(str(place))
    evidence, _ = evidence_for(found, model_of(found), False, lambda done, total: None)
    assert evidence.comparison is not None
    return evidence.comparison


def faults(model: Model, tensors: Tensors) -> list[int]:
    """The layers that are refused."""
    held = {
        name: Stored(name, dtype, tuple(shape), prod(shape) * BYTES[dtype])
        for name, (dtype, shape) in tensors.items()
    }
    return [
        fault.layer_id for fault in compare_experts(model.blueprint, Checkpoint(("f",), held))[1]
    ]


@pytest.mark.parametrize("form", SECTIONS)
def test_each_form_agrees_with_itself_and_with_no_other(form: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config(SECTIONS[form])))
    model = model_of(find(str(tmp_path)))
    assert faults(model, stored([form] * LAYERS)) == []
    for other in SECTIONS.keys() - {form}:
        assert faults(model, stored([form, other, form])) == [1], other


def test_the_message_names_layer_config_file_and_remedy(tmp_path: Path) -> None:
    forms = ["fp8 blocks", "nvfp4", "nvfp4"]
    with pytest.raises(ModelError) as error:
        compared(tmp_path, config(SECTIONS["fp8 blocks"]), stored(forms))
    assert str(error.value) == (
        f"{tmp_path}/config.json: quantization_config: layer 1: the config, with quantisation "
        "fp8_block_128x128, makes w13_weight float8_e4m3fn [4, 2048, 512] and w2_weight "
        "float8_e4m3fn [4, 512, 1024] of its routed experts, and the files store "
        "model.layers.1.mlp.experts.0.gate_proj.weight as U8 [1024, 256] and 11 more; 1 more layer "
        "disagrees; let config.json say what the files hold, or, to plan from it all the same, "
        f"give --model {tmp_path}/config.json"
    )


@pytest.mark.parametrize(
    "tensors",
    [stored(["none"] * 3, count=3), stored(["none"] * 3, width=256), stored(["none"] * 3, count=5)],
    ids=["an expert is missing", "narrower", "one too many"],
)
def test_other_sizes_are_refused(tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="layer 0: the config, with quantisation none"):
        compared(tmp_path, config(None), tensors)


def test_experts_in_a_layer_that_the_config_calls_dense_are_refused(tmp_path: Path) -> None:
    dense = config(None, mlp_only_layers=[1])
    with pytest.raises(ModelError, match=r"layer 1: .* makes no routed experts"):
        compared(tmp_path, dense, stored(["none"] * 3))


def test_other_dtypes_that_are_converted_agree(tmp_path: Path) -> None:
    tensors = {name: ("F32", shape) for name, (_, shape) in stored(["none"] * 3).items()}
    found = compared(tmp_path, config(None), tensors)
    assert not any("experts" in one.tensor for one in found.disagreements)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_layer_in_one_tensor_agrees(transposed: bool, tmp_path: Path) -> None:
    """As Qwen3.5 and Qwen3-VL are published."""
    up, down = [EXPERTS, 2 * WIDTH, HIDDEN], [EXPERTS, HIDDEN, WIDTH]
    tensors: Tensors = {}
    for layer in range(LAYERS):
        stem = f"model.layers.{layer}.mlp.experts"
        for name, shape in (("gate_up_proj", up), ("down_proj", down)):
            sides = [shape[0], shape[2], shape[1]] if transposed else shape
            tensors[f"{stem}.{name}"] = ("BF16", sides)
    (tmp_path / "config.json").write_text(json.dumps(config(None)))
    model = model_of(find(str(tmp_path)))
    assert faults(model, tensors) == []
    tensors["model.layers.2.mlp.experts.gate_up_proj"] = ("F8_E4M3", up)
    assert faults(model, tensors) == [2]


def test_gpt_oss_as_published_agrees_though_memory_pads_it() -> None:
    model = model_of(find("gpt-oss-120b"))
    tensors: Tensors = {}
    for layer in range(model.num_layers):
        stem = f"model.layers.{layer}.mlp.experts"
        tensors |= {
            f"{stem}.gate_up_proj_blocks": ("U8", [128, 5760, 90, 16]),
            f"{stem}.gate_up_proj_scales": ("U8", [128, 5760, 90]),
            f"{stem}.gate_up_proj_bias": ("BF16", [128, 5760]),
            f"{stem}.down_proj_blocks": ("U8", [128, 2880, 90, 16]),
            f"{stem}.down_proj_scales": ("U8", [128, 2880, 90]),
            f"{stem}.down_proj_bias": ("BF16", [128, 2880]),
        }
    assert faults(model, tensors) == []
    tensors["model.layers.7.mlp.experts.down_proj_blocks"] = ("BF16", [128, 2880, 90, 16])
    assert faults(model, tensors) == [7]


def test_experts_of_other_names_are_a_note(tmp_path: Path) -> None:
    odd = {f"model.layers.{n}.mlp.experts.everything": ("BF16", [4, 9]) for n in range(3)}
    found = compared(tmp_path, config(None), dict(odd))
    said = [one.stored for one in found.disagreements if one.tensor.endswith(".experts")]
    assert said == [f"{name}, a name that is not known" for name in odd]
    assert "routed experts match" not in found.said
