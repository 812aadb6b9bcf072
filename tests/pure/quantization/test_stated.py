"""Where a quantisation is stated, in which order, and that one which is stated is never lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from vllm_layershard.errors import LayerShardError, ModelError
from vllm_layershard.models import Deployment, FoundModel, find, model_of, read_model
from vllm_layershard.models.sources.beside import BY_HAND, DESCRIPTION, HF_QUANT, Contents
from vllm_layershard.models.sources.config_file import ConfigFile
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
NVFP4 = {"quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": None}
NESTED = {"producer": {"name": "modelopt"}, "quantization": NVFP4 | {"exclude_modules": []}}


def bare(name: str) -> dict[str, Any]:
    """A bundled config, small, with no quantisation anywhere."""
    config: dict[str, Any] = json.loads((_BUNDLED / f"{name}.json").read_text())
    for section in (config, config.get("text_config", {})):
        section.pop("quantization_config", None)
    return config


WRAPPED = bare("Qwen--Qwen3.5-397B-A17B")
DENSE = bare("Qwen--Qwen3-32B")
BARE = {
    name: bare(name)
    for name in (
        "Qwen--Qwen3-32B",
        "Qwen--Qwen3.5-397B-A17B",
        "moonshotai--Kimi-K2.5",
        "deepseek-ai--DeepSeek-V3",
        "meituan-longcat--LongCat-Flash-Chat",
        "openai--gpt-oss-120b",
    )
}


def quantization(directory: Path, config: dict[str, Any], **beside: Any) -> str:
    """What the planner reads of a directory with these files."""
    for file, contents in {"config.json": config, **beside}.items():
        (directory / file).write_text(json.dumps(contents))
    return read_model(str(directory)).quantization


def text(section: Any) -> dict[str, Any]:
    return {"text_config": WRAPPED["text_config"] | {"quantization_config": section}}


ORDER: dict[str, tuple[dict[str, Any], str]] = {
    "config.json": ({"quantization_config": GPTQ} | text(AWQ), "gptq_int4_g128"),
    "text_config": (text(AWQ), "awq_int4_g128"),
    "an older key": (text(AWQ) | {"compression_config": GPTQ}, "gptq_int4_g128"),
    "null is nothing": (text(AWQ) | {"quantization_config": None}, "awq_int4_g128"),
}


@pytest.mark.parametrize("case", ORDER)
def test_the_top_level_comes_before_the_language_model(case: str, tmp_path: Path) -> None:
    changes, expected = ORDER[case]
    assert quantization(tmp_path, WRAPPED | changes) == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "modelopt_nvfp4"),
        ({"quantization_config": GPTQ}, "gptq_int4_g128"),
        (text(AWQ), "modelopt_nvfp4"),  # vLLM puts the file in the place of the top level
        ({"compression_config": AWQ}, "modelopt_nvfp4"),
    ],
)
def test_the_file_beside_it_is_read_where_the_top_level_states_none(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    assert quantization(tmp_path, WRAPPED | changes, **{HF_QUANT: NESTED}) == expected
    path = str(tmp_path / "config.json")
    assert read_model(path).quantization == expected


def test_a_config_of_another_name_has_no_neighbours(tmp_path: Path) -> None:
    (tmp_path / HF_QUANT).write_text(json.dumps(NESTED))
    (tmp_path / "other.json").write_text(json.dumps(DENSE))
    assert read_model(str(tmp_path / "other.json")).quantization == "none"


def test_a_snapshot_in_the_cache_has_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "models--some--model" / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0123456789abcdef")
    assert quantization(snapshot, DENSE, **{HF_QUANT: NESTED}) == "modelopt_nvfp4"
    assert read_model("some/model").quantization == "modelopt_nvfp4"
    assert find("some/model").notes == ()
    (snapshot / HF_QUANT).unlink()
    (note,) = find("some/model").notes
    assert "the cache holds config.json alone" in note


@pytest.mark.parametrize(
    "broken", ["[]", "{", '{"quantization": []}', "{}", '{"quantization": {}}']
)
def test_a_file_that_is_there_and_states_nothing_is_refused(broken: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(DENSE))
    (tmp_path / HF_QUANT).write_text(broken)
    with pytest.raises(ModelError, match=HF_QUANT):
        read_model(str(tmp_path))


@pytest.mark.parametrize("file", BY_HAND)
def test_a_file_that_vllm_does_not_open_by_itself_is_refused(file: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"{file} states a quantisation"):
        quantization(tmp_path, DENSE, **{file: GPTQ})
    assert quantization(tmp_path, DENSE | {"quantization_config": GPTQ}) == "gptq_int4_g128"


BESIDE = {
    "quant_model_description_w8a8_dynamic.json": "vllm-ascend reads under the name quant",
    "quant_model_description_w4a8.json": "give it that name",
    "HF_QUANT_CONFIG.JSON": "reads under the name hf_quant_config.json alone",
    "my_hf_quant_config.json": "give it that name",
    "recipe.yaml": "vLLM 0.32 does not read; state it in config.json",
    "recipe_w4a16.yaml": "vLLM 0.32 does not read",
    "Quantize_Config.json": "vLLM 0.32 does not read",
    "quant_config.yaml": "vLLM 0.32 does not read",
    "gptq_config.json": "vLLM 0.32 does not read",
    "autoround_config.json": "vLLM 0.32 does not read",
    "quant_model_weights.safetensors.index.json": "vLLM 0.32 does not read",
    **dict.fromkeys(
        (
            *("fp8_meta.json", "model-fp8.safetensors.index.json", "int4.safetensors"),
            *("model-NVFP4-00001-of-00002.safetensors", "inc_config.json", "nncf_config.json"),
        ),
        "vLLM 0.32 does not read",
    ),
}
RECIPE = "quant_stage:\n  quant_modifiers:\n    GPTQModifier: {scheme: W4A16, ignore: [lm_head]}\n"


@pytest.mark.parametrize("file", BESIDE)
def test_a_file_of_any_other_name_is_refused(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(RECIPE if file.endswith("yaml") else json.dumps(GPTQ))
    with pytest.raises(ModelError) as error:
        quantization(tmp_path, DENSE)
    assert file in str(error.value)
    assert BESIDE[file] in str(error.value)
    assert "states a quantisation that" in str(error.value)
    assert quantization(tmp_path, DENSE | {"quantization_config": GPTQ}) == "gptq_int4_g128"


@pytest.mark.parametrize(
    "file",
    [
        *("generation_config.json", "tokenizer_config.json", "model.safetensors.index.json"),
        *("quantum.json", "README-quant.md", "quantize.py", "recipe.yaml", "chat_template.json"),
        *("hint4.json", "fp80.json", "print8.safetensors.txt"),
    ],
)
def test_files_that_state_none_change_nothing(file: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text("finetune:\n  optimizer: adamw\n  lr: 1.0e-5\n")
    assert quantization(tmp_path, DENSE) == "none"


SPOKEN = {
    "vision_config": {"pixel_bits": 12, "bits_per_channel": 8, "num_quantizers": 8},
    "mamba_ssm_dtype": "float32",
    "kv_cache_dtype": "fp8",
    "bits": 16,
    "_name_or_path": "Qwen3-32B-FP8",
    "description": "of 4 to 8 bits",
    "metallic": True,
    "increment": 2,
    "attn_implementation": "flash_attention_2",
    "quantity": None,
}


@pytest.mark.parametrize("key", SPOKEN)
def test_what_is_like_it_states_none(key: str, tmp_path: Path) -> None:
    assert quantization(tmp_path, DENSE | {key: SPOKEN[key]}) == "none"


@pytest.mark.parametrize("cache", ["FP8", "NVFP4"])
def test_a_cache_that_is_stated_beside_modelopts_layers_is_not_read(
    cache: str, tmp_path: Path
) -> None:
    """Source: vLLM 0.32, utils/torch_utils.py, `resolve_kv_cache_dtype_string`."""
    stated = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    layers = {"model.layers.0.mlp.down_proj": {"quant_algo": "FP8"}}
    inner = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    inner |= {"kv_cache_quant_algo": cache}
    file = {"producer": {"name": "modelopt"}, "quantization": inner}
    quantization(tmp_path, DENSE | {"quantization_config": stated}, **{HF_QUANT: file})
    assert read_model(str(tmp_path)).stored_cache is None
    asked = stated | {"kv_cache_quant_algo": cache}
    quantization(tmp_path, DENSE | {"quantization_config": asked}, **{HF_QUANT: file})
    assert read_model(str(tmp_path)).stored_cache is not None


def test_layers_that_modelopt_states_beside_are_read_there(tmp_path: Path) -> None:
    stated = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    layers = {"model.layers.0.mlp.down_proj": {"quant_algo": "FP8"}}
    inner = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    config = DENSE | {"quantization_config": stated}
    file = {"producer": {"name": "modelopt"}, "quantization": inner}
    assert quantization(tmp_path, config, **{HF_QUANT: file}) == "modelopt_mixed"
    linears = read_model(str(tmp_path)).linears(Deployment(ParallelLayout()))
    low = [x.prefix for x in linears if x.tensors[0].dtype == "float8_e4m3fn"]
    assert low == ["model.layers.0.mlp.down_proj"]
    with pytest.raises(ModelError, match="producer: is not named 'modelopt'"):
        quantization(tmp_path, config, **{HF_QUANT: file | {"producer": {"name": "other"}}})
    (tmp_path / HF_QUANT).unlink()
    with pytest.raises(ModelError, match="quantized_layers: is missing"):
        read_model(str(tmp_path))


@pytest.mark.parametrize("producer", [{"name": "ModelOpt"}, {"name": "nvidia"}, {}, None, "x"])
@pytest.mark.parametrize("place", ["top", "beside"])
def test_another_producer_is_named(producer: Any, place: str, tmp_path: Path) -> None:
    section = NESTED | {"producer": producer}
    changes = {"quantization_config": section} if place == "top" else {}
    beside = {HF_QUANT: section} if place == "beside" else {}
    with pytest.raises(ModelError, match=r"producer: .* is not 'modelopt', and vLLM 0\.32 reads"):
        quantization(tmp_path, DENSE | changes, **beside)


def test_a_description_is_read_of_a_wrapper_too(tmp_path: Path) -> None:
    method = {"quant_method": "Ascend"}
    changed = WRAPPED | text(method)
    kinds = {"lm_head.weight": "FLOAT"}
    assert quantization(tmp_path, changed, **{DESCRIPTION: kinds}) == "ascend_w8a8"
    (tmp_path / DESCRIPTION).unlink()
    with pytest.raises(ModelError, match="needs quant_model_description"):
        quantization(tmp_path, changed)


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "vLLM 0.32 has no class for it"),
        ({"quant_method": "gguf"}, "vLLM 0.32 has no class for it"),
        ({"quant_method": "torchao"}, "has a class for it, and the planner does not read it yet"),
        ({"quant_method": "humming"}, "vLLM 0.32 has a class for it, and the planner does not"),
        (NESTED | {"quantization": {"quant_algo": "INT4_AWQ"}}, "vLLM 0.32 has no class for it"),
        ({}, "no source states how the weights are stored"),
    ],
)
@pytest.mark.parametrize("place", ["top", "text", "beside"])
def test_a_refusal_says_whether_vllm_could(
    section: dict[str, Any], said: str, place: str, tmp_path: Path
) -> None:
    changes = {"top": {"quantization_config": section}, "text": text(section), "beside": {}}[place]
    beside = {HF_QUANT: section} if place == "beside" else {}
    with pytest.raises(ModelError) as error:
        quantization(tmp_path, WRAPPED | changes, **beside)
    assert said in str(error.value)


METHODS = st.sampled_from(
    ["fp8", "gptq", "awq", "modelopt", "compressed-tensors", "quark", "mxfp4", "inc", "int4", ""]
) | st.text(max_size=8)
KEYS = st.sampled_from(
    [
        *(
            "quantization_config",
            "quantisation_config",
            "quantizationConfig",
            "QUANTIZATION_CONFIG",
        ),
        *("quant_config", "quantize_config", "quantization", "compression_config", "quantizer"),
        *("compressionConfig", "modelopt_config", "gptq_config", "awq_config", "nvfp4", "fp8"),
        *("bitsandbytes_config", "w4a16", "int8_config", "quant_method", "torchao_config"),
    ]
)
SECTIONS = (
    st.dictionaries(
        st.sampled_from(
            ["quant_method", "quant_algo", "method", "bits", "config_groups", "format"]
        ),
        METHODS | st.integers(2, 8) | st.none() | st.booleans(),
        max_size=4,
    )
    | METHODS.filter(bool)
    | st.lists(METHODS, max_size=2)
    | st.integers(1, 8)
    | st.just(True)
)
DETAILS = st.sampled_from(
    [
        ("weight_block_size", [128, 128]),
        ("config_groups", {"group_0": {}}),
        ("load_in_4bit", True),
        ("expert_dtype", "fp4"),
        ("weight_dtype", "float8_e4m3fn"),
        *(("precision", word) for word in ("fp8", "int4", "nvfp4", "FP4")),
        *(("format", word) for word in ("pack-quantized", "nvfp4-pack-quantized", "nf4", "Q4_K")),
        *(("low_bit", word) for word in ("sym_int4", "asym_int8", "q8_0")),
        ("smoothing", "smoothquant"),
        ("bnb_4bit_compute_dtype", "float16"),
        ("sparsity_config", {"format": "sparse-24"}),
        *((key, 4) for key in ("bits", "w_bit", "num_bits", "nbits", "weight_bits", "low_bits")),
        *((key, {"bits": 4}) for key in ("qconfig", "mlx", "exl3", "vptq", "aqlm", "metal")),
        *((key, {}) for key in ("quark", "higgs", "spqr", "eetq", "bitnet", "gguf", "inc")),
        ("ｑｕａｎｔｉｚａｔｉｏｎ_config", {"quant_method": "fp8"}),
    ]
)


def places(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every object of a config, and a new one of several levels."""
    left: list[Any] = [config]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            yield value
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
    yield config.setdefault("language_config", {}).setdefault("inner", [{}])[0]


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(sorted(BARE)), data=st.data(), section=SECTIONS, key=KEYS)
def test_a_section_of_any_kind_anywhere_is_never_lost(
    name: str, data: st.DataObject, section: Any, key: str
) -> None:
    config = json.loads(json.dumps(BARE[name]))
    at = list(places(config))
    at[data.draw(st.integers(0, len(at) - 1))][key] = section
    never_unquantised(config)


ANYTHING = st.recursive(
    st.text(max_size=8) | st.integers() | st.none() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2)
    ),
    max_leaves=4,
)


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(sorted(BARE)),
    key=st.text(min_size=1, max_size=12),
    section=st.dictionaries(st.text(max_size=8), ANYTHING, min_size=1, max_size=3),
    inner=st.booleans(),
    listed=st.booleans(),
)
def test_a_section_of_any_name_is_never_lost(
    name: str, key: str, section: dict[str, Any], inner: bool, listed: bool
) -> None:
    """Whatever it says, in words that nobody knows: no config class of these models has it."""
    config = json.loads(json.dumps(BARE[name]))
    place = config.get("text_config", config) if inner else config
    assume(key not in place)
    place[key] = [section] if listed else section
    never_unquantised(config)


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(BARE)), data=st.data(), detail=DETAILS)
def test_what_only_a_quantisation_states_is_never_lost(
    name: str, data: st.DataObject, detail: tuple[str, Any]
) -> None:
    config = json.loads(json.dumps(BARE[name]))
    at = list(places(config))
    key, value = detail
    at[data.draw(st.integers(0, len(at) - 1))][key] = value
    never_unquantised(config)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(BARE)), section=SECTIONS, key=KEYS, file=st.booleans())
@example(name="Qwen--Qwen3-32B", section={}, key="quantization_config", file=True)
def test_a_file_of_any_contents_is_never_lost(
    name: str, section: Any, key: str, file: bool
) -> None:
    contents = section if file else {key: section}
    never_unquantised(BARE[name], contents)


FILES = st.sampled_from(
    [
        *(HF_QUANT, DESCRIPTION, *BY_HAND, *BESIDE, "Recipe.YML", "awq.json", "model_quant.toml"),
        *("quant-config.json", "modelopt_state.json", "int4.quantised.json", "bnb_config.json"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(name=st.sampled_from(sorted(BARE)), section=SECTIONS, key=KEYS, file=FILES)
def test_a_file_beside_of_any_name_is_never_lost(
    name: str, section: Any, key: str, file: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("beside")
    (directory / "config.json").write_text(json.dumps(BARE[name]))
    (directory / file).write_text(json.dumps({key: section, "num_bits": 8}))
    with suppress(LayerShardError):
        assert read_model(str(directory)).quantization != "none"


def never_unquantised(config: dict[str, Any], file: Any = None) -> None:
    """Refused with a message, or planned as quantised."""

    def beside(name: str, limit: int) -> Contents | None:
        raw = json.dumps(file).encode()
        return Contents(raw, name) if file is not None and name == HF_QUANT else None

    found = FoundModel("m", "local:m", ConfigFile("m", config), beside=beside)
    with suppress(LayerShardError):
        assert model_of(found).quantization != "none"


@pytest.mark.parametrize("name", BARE)
def test_the_same_configs_without_a_section_are_planned_as_unquantised(name: str) -> None:
    """So that the properties above start from models which only the section changes."""
    assert model_of(FoundModel("m", "local:m", ConfigFile("m", BARE[name]))).quantization == "none"
