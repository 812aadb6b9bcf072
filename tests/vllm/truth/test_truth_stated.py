"""The planner takes the section that vLLM 0.32 takes, of all places where one may stand."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from truth.asking import answers_of
from truth.published import PUBLISHED, WITHOUT_A_CLASS
from truth.stated import QWEN3_5_27B
from vllm_layershard.errors import ModelError
from vllm_layershard.models import find
from vllm_layershard.models.quantization import stated_section
from vllm_layershard.models.quantization.read import method_of
from vllm_layershard.models.quantization.sections import unknown_sections
from vllm_layershard.models.sources.beside import HF_QUANT

SAID = """
import json, sys
import vllm.config
from vllm.transformers_utils.config import get_config, get_hf_text_config
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

found = []
for directory in json.load(sys.stdin):
    config = get_config(directory, trust_remote_code=False)
    convertor = ModelArchConfigConvertorBase(config, get_hf_text_config(config))
    found.append(convertor.get_quantization_config())
print(json.dumps(found))
"""

GPTQ = {"quant_method": "GPTQ", "bits": 4, "group_size": 64, "desc_act": False, "sym": True}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True}
MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 96,
}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
OLD = {"quant_method": "Compressed_Tensors", "format": "float-quantized", "config_groups": {}}
NESTED = {"quant_algo": "nvfp4", "group_size": 16, "exclude_modules": []}
FILE = {"producer": {"name": "modelopt"}, "quantization": NESTED}
PLACES = ("top", "older", "within", "beside")
CASES = [places for places in product((False, True), repeat=len(PLACES)) if any(places)]


def write(places: tuple[bool, ...], directory: Path) -> str:
    """A config with a section of its own in each of these places."""
    top, older, within, beside = places
    text: dict[str, Any] = dict(QWEN3_5_27B["text_config"])
    config: dict[str, Any] = dict(QWEN3_5_27B)
    if within:
        text["quantization_config"] = AWQ
    config["text_config"] = text
    if top:
        config["quantization_config"] = GPTQ
    if older:
        config["compression_config"] = OLD
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))
    if beside:
        (directory / HF_QUANT).write_text(json.dumps(FILE))
    return str(directory)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[bool, ...], tuple[str, Any]]:
    """Each case's directory, and what vLLM takes there."""
    root = tmp_path_factory.mktemp("stated")
    directories = [write(places, root / str(i)) for i, places in enumerate(CASES)]
    said = answers_of(SAID, directories)
    return dict(zip(CASES, zip(directories, said, strict=True), strict=True))


@pytest.mark.parametrize(
    "places",
    CASES,
    ids=["+".join(n for n, is_in in zip(PLACES, c, strict=True) if is_in) for c in CASES],
)
def test_the_section_is_vllms(
    places: tuple[bool, ...], asked: dict[tuple[bool, ...], tuple[str, Any]]
) -> None:
    directory, vllm = asked[places]
    found = find(directory)
    section = stated_section(found.config, found.beside)
    assert section is not None
    method = method_of(section)
    assert vllm["quant_method"] in (method, f"{method}_fp4")
    stated = {key: value for key, value in section.values.items() if key != "quant_method"}
    assert stated == {key: value for key, value in vllm.items() if key != "quant_method"}


PARAMS = {
    "none": {},
    "static": {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "TENSOR"}},
    "unsaid": {"quantization": {"qformat_weight": "fp8_e4m3"}},
    "dynamic": {"quantization": {"qformat_weight": "fp8_e4m3", "qscheme_act": "NO_SCALES"}},
    "packed": {"quantization": OLD},
    "empty": {"quantization": {}},
    "its own": {"quantization_config": FP8 | {"activation_scheme": "static"}},
    "its own null": {"quantization_config": None},
}


@pytest.mark.parametrize(
    "top", [{}, {"quantization_config": FP8}], ids=["", "beside config.json's"]
)
def test_the_section_of_mistrals_format_is_vllms(top: dict[str, Any], tmp_path: Path) -> None:
    written = []
    for case, stated in PARAMS.items():
        directory = tmp_path / case
        directory.mkdir()
        config = MISTRAL | top
        (directory / "config.json").write_text(json.dumps(config))
        params = {"dim": 64, "n_layers": 2, "dtype": "bfloat16"} | stated
        (directory / "params.json").write_text(json.dumps(params))
        (directory / "consolidated.safetensors").write_bytes(b"")
        written.append(str(directory))
    for case, directory, vllm in zip(PARAMS, written, answers_of(SAID, written), strict=True):
        if top and vllm is None:  # vLLM would serve quantised weights as if they were not
            with pytest.raises(ModelError, match=r"params\.json: quantization_config: is null"):
                find(directory)
            continue
        found = find(directory)
        section = stated_section(found.config, found.beside)
        ours = None if section is None else dict(section.values)
        assert ours == vllm, case


METHODS = """
import json, sys
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS

json.load(sys.stdin)
print(json.dumps(sorted({*AUTO_QUANTIZATION_CONFIG_MAPPING, *QUANTIZATION_METHODS})))
"""
WORDS = {"online", "gemma"}
"""Names of methods that are words of other things, too."""


def test_a_key_of_any_methods_name_states_a_quantisation(tmp_path: Path) -> None:
    names = set(answers_of(METHODS, []))
    assert names >= WORDS
    config = dict(QWEN3_5_27B)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = find(str(tmp_path))
    assert stated_section(found.config, found.beside) is None
    for name in sorted(names - WORDS):
        for key in (name, f"{name}_config", name.replace("-", "_").upper()):
            (tmp_path / "config.json").write_text(json.dumps(config | {key: {"group_size": 64}}))
            found = find(str(tmp_path))
            with pytest.raises(ModelError, match="speaks of a quantisation"):
                stated_section(found.config, found.beside)


OF_CLASSES = """
import json, sys
import vllm.transformers_utils.configs as own
from transformers import CONFIG_MAPPING
from vllm.transformers_utils.config import _CONFIG_REGISTRY

def class_of(model_type):
    known = _CONFIG_REGISTRY.get(model_type)
    return getattr(own, known) if isinstance(known, str) else known or CONFIG_MAPPING[model_type]

def written(value):
    return json.loads(json.dumps(value, default=str))

print(json.dumps({
    model_type: written(class_of(model_type)(**config).to_dict())
    for model_type, config in json.load(sys.stdin).items()
}))
"""


def test_every_section_that_a_models_class_writes_is_known() -> None:
    """Else a config that vLLM itself saves would be refused."""
    asked = {kind: PUBLISHED[kind] for kind in PUBLISHED if kind not in WITHOUT_A_CLASS}
    found = answers_of(OF_CLASSES, asked)
    assert found.keys() == asked.keys()
    for model_type, config in found.items():
        for section in (config, config.get("text_config", {})):
            section.pop("quantization_config", None)
        assert list(unknown_sections(config)) == [], model_type
