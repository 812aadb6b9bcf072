"""One key that speaks of a quantisation anywhere, or one file's name, is never lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.pure.quantization.test_stated import DENSE, GPTQ, quantization
from vllm_layershard.errors import ModelError
from vllm_layershard.models.quantization.statements import statements
from vllm_layershard.models.sources.source import _BUNDLED

STATED: list[dict[str, Any]] = [
    {"compression": {"targets": ["Linear"], "scheme": "W4A16", "ignore": ["lm_head"]}},
    {"compression": {"method": "gptq", "group_size": 128}},
    {"anything": {"algorithm": "awq", "group_size": 128}},
    {"anything": [[{"method": "exl2"}]]},
    {"weights": {"format": "e4m3"}},
    {"weights": "fp8e4m3"},
    {"weights": "qint8"},
    {"weights_format": "E4M3FN"},
    {"encoding": "e2m1"},
    {"scale_fmt": "ue8m0"},
    {"weight_dtype": "F8_E4M3"},
    {"weight_dtype": "I8"},
    {"weights_dtype": "s4"},
    {"weight_dtypes": ["int4"]},
    {"moe_dtype": "hif8"},
    {"linear_dtype": "ｆｐ８"},
    {"weight_num_bits": 4},
    {"weight_bit_width": 8},
    {"bits_per_weight": 4},
    {"bpw": 4.25},
    {"precision": 8},
    {"precision": "w8a8"},
    {"precision": "a8w8"},
    {"weight_precision": "4bit"},
    {"load_in": "8-bit"},
    {"scheme": "NVFP4A16"},
    {"activation_scheme": "dynamic", "ignored_layers": ["lm_head"]},
    {"ignored_layers": ["lm_head"]},
    {"modules_to_not_convert": ["lm_head"]},
    {"desc_act": True},
    {"zero_point": True},
    {"q_group_size": 128},
    {"pack_dtype": "int32"},
    {"qat": True},
    {"recipe": "MXFP8BlockScaling"},
    {"rotation": "quarot"},
    {"library": "gptqmodel"},
    {"tool": "llm-compressor"},
    {"tags": ["text", "w4a16"]},
    {"weight_bits": "4"},
    {"bits": [4, 8]},
    {"format": "int-4"},
    {"format": "W4-A16"},
    {"format": "w4afp8"},
    {"format": "TQ1_0"},
    {"method": "squeezellm"},
    {"linear": "ternary"},
    {"group_size": 128},
    {"compression": 4},
    {"compressor": "mine"},
    {"exporter_name": "modelopt"},
]


@pytest.mark.parametrize("place", ["top", "inner"])
@pytest.mark.parametrize("stated", STATED, ids=str)
def test_a_key_that_speaks_of_it_is_refused(
    stated: dict[str, Any], place: str, tmp_path: Path
) -> None:
    more = stated if place == "top" else {"language": [{"inner": stated}]}
    with pytest.raises(ModelError, match="speaks of a quantisation") as error:
        quantization(tmp_path, DENSE | more)
    assert next(iter(stated)) in str(error.value)


SECTIONS: list[dict[str, Any]] = [
    {"precision": {"weights": 4}},
    {"producer": {"name": "modelopt"}},
    {"storage": {"layout": "packed", "levels": 16}},
    {"vision_config": {"storage": {"levels": 16}}},
    {"mtp": {"storage": {"levels": 16}}},
    {"auto_map": [{"levels": 16}]},
    {"stages": [{"targets": ["Linear"]}]},
    {"stages": [[{"targets": ["Linear"]}]]},
    {"Text_config": {"hidden_size": 8}},
]


@pytest.mark.parametrize("stated", SECTIONS, ids=str)
def test_a_section_that_no_model_has_is_refused(stated: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a section that no config class") as error:
        quantization(tmp_path, DENSE | stated)
    assert next(iter(stated)) in str(error.value)
    whole = DENSE | stated | {"quantization_config": GPTQ}
    assert quantization(tmp_path, whole) == "gptq_int4_g128"


SILENT: list[dict[str, Any]] = [
    {"tags": ["text-generation", "8 languages"]},
    {"dtypes": ["bfloat16", "float16", "int32", "tf32"]},
    {"precision": "bf16"},
    {"precision": 16},
    {"weights": "full"},
    {"vision_config": {"format": "u-shaped", "bits": None}},
    {"rope_scaling": {"factor": 4.0, "inner": {"factor": 2.0}}},
    {"id2label": {"0": "LABEL_0"}},
    {"training": {}, "stages": [[]]},
    {"model_name": "qwen-awq", "run_id": "int4-7", "base_model_name": "a/b-gptq"},
    {"scheme": "cosine"},
    {"activation": "silu"},
    {"_name_or_path": "somebody/model-gptq"},
    {"encoding": "utf-8"},
    {"inputs": "interleaved: 4 by 8 tokens"},
]


@pytest.mark.parametrize("stated", SILENT, ids=str)
def test_what_is_like_it_is_planned(stated: dict[str, Any], tmp_path: Path) -> None:
    assert quantization(tmp_path, DENSE | stated) == "none"


@pytest.mark.parametrize("path", sorted(_BUNDLED.glob("*.json")), ids=lambda path: path.stem)
def test_no_bundled_config_speaks_of_it_but_in_its_section(path: Path) -> None:
    config = json.loads(path.read_text())
    for section in (config, config.get("text_config", {})):
        section.pop("quantization_config", None)
    assert list(statements(config)) == []


@pytest.mark.parametrize(
    "file",
    [
        *("model-W8A8.safetensors", "model.w4a16.safetensors", "qconfig.json", "w4a8.json"),
        *("model.nf4.safetensors", "model-w4afp8.safetensors", "model-Q4_K_M.safetensors"),
        *("model-e4m3.safetensors", "model-4bit.safetensors", "q_config.json"),
        *("quark_profile.yaml", "awq_model.pt"),
    ],
)
def test_a_file_is_known_by_its_name(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match="states a quantisation") as error:
        quantization(tmp_path, DENSE)
    assert file in str(error.value)


def test_torch_files_beside_safetensors_are_not_read(tmp_path: Path) -> None:
    """Source: vLLM 0.32, model_loader/default_loader.py: *.bin where no *.safetensors are."""
    (tmp_path / "pytorch_model-int8.bin").write_bytes(b"")
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert quantization(tmp_path, DENSE) == "none"
