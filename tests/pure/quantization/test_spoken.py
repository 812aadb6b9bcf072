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
    *({key: True} for key in ("4bit", "use_4bit", "load_8bit", "w8", "weights_compressed")),
    *({key: 4} for key in ("experts_bits", "mlp_bits", "moe_bits", "target_bits", "attn_bit")),
    {"layer_bits": [4, 8]},
    {"bits_per_parameter": 4.5},
    {"bytes_per_weight": 0.5},
    *({"encoding": word} for word in ("1.58bit", "b1.58", "packed 4-bit", "load-in-4bit")),
    *({"encoding": word} for word in ("int 4", "fp 8", "float-8")),
    {"weights_cache": "int4 gptq"},
    {"weights_path": "int4"},
    {"precision_config": "int4"},
]


def test_the_name_of_any_method_is_a_word() -> None:
    """Those of vLLM 0.32 and transformers 5 that are no words of other things."""
    names = ("bitnet", "eetq", "higgs", "spqr", "vptq", "sinq", "fouroversix", "humming", "inc")
    for name in (*names, "metal", "moe_wna16", "online", "mlx", "quip", "rtn", "Quip", "moe-wna16"):
        for key in ("method", "algorithm", "storage_method", "scheme"):
            assert list(statements({key: name})) == [(key, name)]


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
    {"rope_scaling": {"storage": {"levels": 16}}},
    {"task_specific_params": {"quip": {"storage": {"levels": 16}}}},
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
    {"rope_scaling": {"factor": 4.0, "full_attention": {"factor": 2.0}}},
    {"task_specific_params": {"summary": {"max_length": 8}}},
    {"custom_pipelines": {"pairs": {"impl": "a.B", "pt": ["AutoModel"]}}},
    {"dual_chunk_attention_config": {"sparse_attention_config": {"chunk": 1}}},
    {"original_model": "a/b-bnb-4bit", "teacher_model": "a/b-FP8", "tokenizer": "a/b-awq"},
    {"checkpoint_path": "runs/int4/7"},
    {"vision_config": {"bits_per_sample": 8, "pixel_bits": 10}},
    {"id2label": {"0": "LABEL_0"}},
    {"llama_4_scaling": {"beta": 0.1}, "yarn": {"factor": 16}, "vision_encoder": {"dim": 8}},
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
        *("quark_profile.yaml", "awq_model.pt", "output.safetensors"),
        "output-00001-of-00003.safetensors",
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


@pytest.mark.parametrize("file", ["my_recipe.yaml", "compression_recipe.yml", "recipe-2.yaml"])
def test_a_recipe_is_judged_by_its_steps(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("stage:\n  SparseGPTModifier: {sparsity: 0.5}\n")
    assert quantization(tmp_path, DENSE) == "none"
    (tmp_path / file).write_text("stage:\n  GPTQModifier: {scheme: W4A16}\n")
    with pytest.raises(ModelError, match="states a quantisation"):
        quantization(tmp_path, DENSE)


@pytest.mark.parametrize(
    "files",
    [
        ["model-Q4_K_M.gguf"],
        ["openvino_model.bin", "openvino_model.xml", "openvino_config.json"],
        ["mlc-chat-config.json", "params_shard_0.bin"],
        ["model_q4.onnx"],
        ["genai_config.json"],
        ["rank0.engine"],
        ["onnx/model_q4.onnx", "onnx/model.onnx_data"],
        ["cpu_and_mobile/cpu-int4-rtn-block-32/model.onnx"],
        ["consolidated.00.pth", "model.Q4_K_M.gguf"],
        ["Q4_K_M/part-00001-of-00002.gguf", "training_args.bin"],
    ],
    ids=lambda files: files[0],
)
@pytest.mark.parametrize(
    "own", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"]
)
def test_weights_of_another_engine_alone_are_refused(
    files: list[str], own: str, tmp_path: Path
) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"{}")
    with pytest.raises(ModelError, match="belongs to another engine's weights") as error:
        quantization(tmp_path, DENSE)
    assert any(file in str(error.value) for file in files)
    (tmp_path / own).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert quantization(tmp_path, DENSE) == "none"


def test_a_section_of_another_engine_states_none(tmp_path: Path) -> None:
    """SmolLM2's, of its ONNX files; alone these are refused."""
    stated = {"transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"q4f16": "float16"}}}
    assert quantization(tmp_path, DENSE | stated) == "none"
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model_q4.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match="belongs to another engine"):
        quantization(tmp_path, DENSE | stated)
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert quantization(tmp_path, DENSE | stated) == "none"


def test_what_lies_in_folders_is_not_what_vllm_reads(tmp_path: Path) -> None:
    for file in ("onnx/quantize_config.json", "fp8/model-fp8.safetensors", "q4/model-Q4_0.gguf"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text("{}")
    with pytest.raises(ModelError, match=r"q4/model-Q4_0\.gguf.* belongs to another engine"):
        quantization(tmp_path, DENSE)
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert quantization(tmp_path, DENSE) == "none"


def test_more_recipes_than_are_read_are_refused_by_their_number(tmp_path: Path) -> None:
    for index in range(9):
        (tmp_path / f"recipe-{index}.yaml").write_text("finetune: {}")
    with pytest.raises(ModelError, match="one of 9 recipes beside it may state"):
        quantization(tmp_path, DENSE)
    (tmp_path / "recipe-0.yaml").unlink()
    assert quantization(tmp_path, DENSE) == "none"


def test_many_parts_of_quantised_weights_are_named_as_one_is(tmp_path: Path) -> None:
    for index in range(100):
        (tmp_path / f"model-int4-{index:05}-of-00100.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"00000-of-00100\.safetensors.* state it in config\.json"):
        quantization(tmp_path, DENSE)


@pytest.mark.parametrize(
    "stated",
    [
        {"quantization_args": {"scheme": "int8_weight"}},
        {"quant_config": {"bits": 4}},
        {"fp8": True},
        {"Quantization": {"qformat_weight": "fp8_e4m3"}},
        {"qformat_weight": "fp8_e4m3"},
    ],
    ids=str,
)
def test_a_params_file_that_vllm_does_not_read_speaks_too(
    stated: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "consolidated.00.pth").write_bytes(b"")
    (tmp_path / "params.json").write_text(json.dumps({"dim": 4096} | stated))
    with pytest.raises(ModelError, match=r"params\.json: .* speaks of a quantisation"):
        quantization(tmp_path, DENSE)
    (tmp_path / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    assert quantization(tmp_path, DENSE) == "none"
