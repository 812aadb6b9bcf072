"""A section that names modules which the model does not have: refused as a whole, noted singly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import field_cases
from checkpoints import ENDS
from vllm_layershard.errors import ModelError
from vllm_layershard.models import FoundModel, Model, bundled_names, model_of, read_model
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.models.sources.source import _BUNDLED

FIELD = Path(field_cases.__file__).parent
DENSE, EXPERTS = "Qwen--Qwen3-32B", "Qwen--Qwen3-235B-A22B"
WRAPPED = "Qwen--Qwen3.5-397B-A17B"


def model(name: str, section: dict[str, Any]) -> Model:
    config = json.loads((_BUNDLED / f"{name}.json").read_text())
    config["quantization_config"] = section
    return model_of(FoundModel("m", "local:m", ConfigFile("config.json", config)))


def compressed(targets: list[str], ignore: list[str]) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    group = {"targets": targets, "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"g": group},
        "ignore": ignore,
    }


FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
BLOCKS = FP8 | {"weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
NVFP4 = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
TENSOR = {"dtype": "fp8_e4m3", "qscheme": "per_tensor", "is_dynamic": False}
QUARK = {
    "quant_method": "quark",
    "export": {"kv_cache_group": []},
    "global_quant_config": {"weight": TENSOR, "input_tensors": TENSOR},
}


def mixed(*names: str) -> dict[str, Any]:
    layers = {name: {"quant_algo": "FP8"} for name in names}
    return {
        "quant_method": "modelopt",
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": layers,
    }


NOTHING: dict[str, tuple[str, dict[str, Any], str]] = {
    "a misspelt target": (DENSE, compressed(["re:.*foo"], []), '"re:.*foo"'),
    "a target of another prefix": (
        DENSE,
        compressed(["re:transformer\\\\.h\\\\..*"], []),
        "transformer",
    ),
    "a name of another prefix": (DENSE, compressed(["layers.0.mlp.down_proj"], []), '"layers.0'),
    "a class that a dense model has not": (
        DENSE,
        compressed(["RoutedExperts"], []),
        'config_groups: targets: "RoutedExperts"',
    ),
    "a class of older releases": (DENSE, compressed(["FusedMoE"], []), '"FusedMoE"'),
    "the same where there are experts": (EXPERTS, compressed(["FusedMoE"], []), '"FusedMoE"'),
    "all ignored by a pattern": (DENSE, compressed(["Linear"], ["re:.*"]), 'ignore: "re:.*"'),
    "all ignored by parts": (
        EXPERTS,
        compressed(["Linear"], ["re:.*self_attn.*", "re:.*mlp.*"]),
        'ignore: "re:.*self_attn.*"',
    ),
    "all ignored by a wildcard": (DENSE, NVFP4 | {"ignore": ["*"]}, 'ignore: "*"'),
    "all ignored, nested": (
        DENSE,
        {
            "quant_method": "modelopt",
            "quantization": {
                "quant_algo": "NVFP4",
                "group_size": 16,
                "kv_cache_quant_algo": None,
                "exclude_modules": ["model*", "lm_head"],
            },
        },
        'exclude_modules: "model*"',
    ),
    "layers of another model": (DENSE, mixed("backbone.layers.0.mixer.in_proj"), '"backbone.'),
    "awq leaves all out": (
        DENSE,
        AWQ | {"modules_to_not_convert": ["model"]},
        'modules_to_not_convert: "model"',
    ),
    "a target of a class that no linear has": (
        DENSE,
        compressed(["RoutedExperts"], ["lm_head"]),
        "config_groups: targets: every linear",
    ),
    "targets of classes that no linear has": (
        DENSE,
        compressed(["GateLinear", "DeepSeekV2FusedQkvAProjLinear"], ["lm_head"]),
        'targets: "GateLinear", "DeepSeekV2FusedQkvAProjLinear"; ignore: "lm_head")',
    ),
    "all of a class ignored": (
        DENSE,
        compressed(["RowParallelLinear"], ["re:.*"]),
        "quantization_config: ignore: every linear",
    ),
    "gptq of other modules": (
        DENSE,
        GPTQ | {"modules_in_block_to_quantize": ["attention.wq"]},
        'modules_in_block_to_quantize: "attention.wq"',
    ),
    "gptq with all taken out": (DENSE, GPTQ | {"dynamic": {"-:.*": {}}}, 'dynamic: "-:.*"'),
    "quark excludes all": (EXPERTS, QUARK | {"exclude": ["re:.*"]}, 'exclude: "re:.*"'),
    "mxfp8 leaves all out": (
        DENSE,
        {"quant_method": "mxfp8", "ignored_layers": ["*"]},
        'ignored_layers: "*"',
    ),
}


@pytest.mark.parametrize("case", NOTHING)
def test_a_section_that_quantises_nothing_is_refused(case: str) -> None:
    name, section, said = NOTHING[case]
    with pytest.raises(ModelError) as error:
        model(name, section)
    text = str(error.value)
    assert said in text
    assert text.startswith("config.json: quantization_config: ")
    assert "stay unquantised" in text
    assert "model.layers.0.self_attn.qkv_proj, model.layers.0.self_attn.q_proj" in text
    assert "correct the names, or take the section out" in text


def test_a_head_alone_is_something() -> None:
    found = model(DENSE, compressed(["re:.*lm_head"], []))
    assert found.quantization == "compressed_tensors_fp8_channel"
    assert found.notes == ()


def test_a_cache_alone_is_intended() -> None:
    scheme = {"type": "float", "num_bits": 8, "strategy": "tensor", "symmetric": True}
    section = {"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": scheme}
    assert model(DENSE, section).quantization == "compressed_tensors_cache"


def test_a_description_of_plain_weights_alone_is_a_note(tmp_path: Path) -> None:
    """vllm-ascend reads it, and it leaves nothing open."""
    config = json.loads((_BUNDLED / f"{DENSE}.json").read_text()) | {"num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    parts = ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up")
    linears = [f"model.layers.0.{part}_proj" for part in (*parts, "mlp.down")]
    kinds = {f"{module}.weight": "FLOAT" for module in (*linears, *ENDS)}
    (tmp_path / "quant_model_description.json").write_text(json.dumps(kinds))
    found = read_model(str(tmp_path))
    assert any("states FLOAT for every linear and expert" in note for note in found.notes)
    kinds["model.layers.0.mlp.down_proj.weight"] = "W8A8"
    (tmp_path / "quant_model_description.json").write_text(json.dumps(kinds))
    assert not any("FLOAT" in note for note in read_model(str(tmp_path)).notes)


NOTED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "a misspelt linear": (
        DENSE,
        BLOCKS | {"modules_to_not_convert": ["lm_head", "model.layers.3.self_attn.qq_proj"]},
        ['modules_to_not_convert: "model.layers.3.self_attn.qq_proj"'],
    ),
    "another prefix": (
        DENSE,
        BLOCKS | {"ignored_layers": ["transformer.layers.3.mlp.down_proj"]},
        ['ignored_layers: "transformer.layers.3.mlp.down_proj"'],
    ),
    "a module above, where names are compared whole": (
        DENSE,
        BLOCKS | {"modules_to_not_convert": ["model.layers.3.self_attn"]},
        ['modules_to_not_convert: "model.layers.3.self_attn"'],
    ),
    "a pattern": (
        DENSE,
        compressed(["Linear"], ["lm_head", "re:.*self_atn.*"]),
        ['ignore: "re:.*self_atn.*"'],
    ),
    "one of the targets": (
        DENSE,
        compressed(["re:.*down_proj", "re:.*up_porj"], []),
        ['config_groups: targets: "re:.*up_porj"'],
    ),
    "a wildcard": (
        EXPERTS,
        NVFP4 | {"ignore": ["lm_head", "model.layers.1.atn*", "*.2.self_attn*"]},
        ['ignore: "model.layers.1.atn*"'],
    ),
    "a part": (DENSE, AWQ | {"modules_to_not_convert": ["layers.7.mpl"]}, ['"layers.7.mpl"']),
    "a rule of gptq": (
        DENSE,
        GPTQ | {"dynamic": {"-:.*q_prj.*": {}, "-:.*layers.1.self_attn.*": {}}},
        ['dynamic: "-:.*q_prj.*"'],
    ),
    "a layer of modelopt": (
        DENSE,
        mixed("model.layers.0.mlp.down_proj", "model.layers.0.mlp.donw_proj"),
        ['quantized_layers: "model.layers.0.mlp.donw_proj"'],
    ),
    "a rule of quark": (
        EXPERTS,
        QUARK | {"layer_quant_config": {"*o_prj": QUARK["global_quant_config"]}},
        ['layer_quant_config: "*o_prj"'],
    ),
    "many": (
        DENSE,
        BLOCKS | {"ignored_layers": [f"model.layers.{n}.mlp.x_proj" for n in range(9)]},
        ['.0.mlp.x_proj", "model.layers.1.mlp.x_proj", "model.layers.2.mlp.x_proj" and 6 more'],
    ),
}


@pytest.mark.parametrize("case", NOTED)
def test_a_single_name_that_matches_nothing_is_a_note(case: str) -> None:
    name, section, said = NOTED[case]
    notes = [note for note in model(name, section).notes if "is called so" in note]
    assert len(notes) == len(said)
    for note, part in zip(notes, said, strict=True):
        assert part in note
        assert note.startswith("config.json: quantization_config: ")


SILENT: dict[str, tuple[str, dict[str, Any]]] = {
    "llm-compressor's usual list": (
        WRAPPED,
        compressed(
            ["Linear"],
            [
                *("lm_head", "re:.*lm_head", "re:visual.*", "re:model.visual.*", "re:.*mlp.gate$"),
                *("re:.*embed_tokens$", "re:.*shared_expert_gate$", "re:.*linear_attn.*"),
                *("re:vision_tower.*", "re:multi_modal_projector.*", "re:.*mtp.*", "re:.*norm.*"),
                *("model.visual.blocks.0.attn.qkv", "model.visual.merger.linear_fc1"),
                "model.language_model.layers.0.linear_attn.in_proj_qkv",
                "model.language_model.layers.0.linear_attn.in_proj_z",
                "model.language_model.layers.0.linear_attn.conv1d",
                "model.language_model.layers.0.mlp.shared_expert_gate",
            ],
        ),
    ),
    "modelopt's usual list": (
        EXPERTS,
        NVFP4
        | {
            "ignore": [
                *("lm_head", "*lm_head*", "*.mlp.gate", "*router*", "*output_layer*", "output.*"),
                *("*mlp.shared_expert_gate.*", "*mixer.conv1d*", "*proj_out.*", "mtp*", "default"),
                *("model.vision_tower*", "visual*", "model.layers.1.self_attn*", "*.self_attn.*"),
                *("model.layers.94.eh_proj", "model.layers.94.self_attn.q_proj"),
            ]
        },
    ),
    "fp8 with norms, routers, experts and a draft layer": (
        EXPERTS,
        BLOCKS
        | {
            "modules_to_not_convert": [
                *("lm_head", "gate", "e_score_correction_bias", "model.embed_tokens", "model.norm"),
                *("model.layers.1.input_layernorm", "model.layers.1.mlp.gate", "rotary_emb"),
                *("model.layers.2.self_attn.q_proj", "model.layers.2.self_attn.k_proj"),
                *("model.layers.2.self_attn.v_proj", "model.layers.2.self_attn.q_norm"),
                *("model.layers.3.mlp.experts.7.down_proj", "model.layers.4.mlp.experts"),
                *("model.layers.94.self_attn.indexer.wk", "model.layers.94.mlp.up_proj"),
            ]
        },
    ),
    "awq": (EXPERTS, AWQ | {"modules_to_not_convert": ["mlp.gate", "gate", "visual", "self_attn"]}),
    "gptq": (
        EXPERTS,
        GPTQ
        | {
            "dynamic": {"-:.*mlp\\\\.gate\\\\b.*": {}, "-:.*lm_head.*": {}, "+:.*down_proj.*": {}},
            "modules_in_block_to_quantize": [["self_attn.q_proj", "self_attn.k_proj"], ["v_proj"]],
        },
    ),
    "quark": (
        EXPERTS,
        QUARK | {"exclude": ["lm_head", "re:.*mlp.gate", "model.layers.0.self_attn.o_proj"]},
    ),
}


@pytest.mark.parametrize("case", SILENT)
def test_what_real_lists_name_is_silent(case: str) -> None:
    name, section = SILENT[case]
    assert not [note for note in model(name, section).notes if "is called so" in note]


@pytest.mark.parametrize("name", bundled_names())
def test_bundled_configs_are_silent(name: str) -> None:
    assert not [note for note in read_model(name).notes if "is called so" in note]


@pytest.mark.parametrize("case", sorted(path.parent.name for path in FIELD.glob("*/config.json")))
def test_field_cases_are_silent(case: str) -> None:
    if case == "deepseek-v3-renamed-experts":  # refused for its fields
        return
    found = read_model(str(FIELD / case))
    assert not [note for note in found.notes if "is called so" in note]


def test_a_list_of_every_expert_is_read_through() -> None:
    """22,422 modules in one config of the wild, of which each expert is one."""
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj"
        for layer in range(94)
        for expert in range(128)
        for part in ("gate", "up")
    ]
    assert model(EXPERTS, mixed(*names)).notes == ()
    odd = [name.replace("model.", "decoder.") for name in names]
    (note,) = model(EXPERTS, mixed(names[0], *odd)).notes
    assert "and 24061 more" in note
