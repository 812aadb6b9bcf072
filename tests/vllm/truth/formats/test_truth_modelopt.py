"""Which pairs of method and algorithm of Model Optimizer's are read is what vLLM's classes take.

Each section is given to vLLM as its `ModelConfig` does: the classes say in their order which of
them reads it, and that one reads it. Then which dtypes each method's class runs in.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import pytest

from truth.asking import answers_of
from truth.compare import Case, Truth, names
from truth.published import PUBLISHED
from vllm_layershard.errors import ModelError
from vllm_layershard.models.quantization.read import (
    _BFLOAT16_ALONE,
    known_methods,
    quantization_of,
)
from vllm_layershard.models.sources.config_file import ConfigFile

ASKED = """
import json, sys
from types import SimpleNamespace
import vllm.config  # ahead of what it imports itself
from vllm.model_executor.layers.quantization import get_quantization_config
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase as Arch

ORDER = ("modelopt", "modelopt_fp4", "modelopt_mxfp8", "mxfp8", "modelopt_mixed")

def read(section):
    normalised = Arch._normalize_quantization_config(
        None, SimpleNamespace(quantization_config=section)
    )
    method = normalised["quant_method"]
    for name in ORDER:
        found = get_quantization_config(name).override_quantization_method(normalised, None)
        if found is not None:
            method = found
            break
    made = get_quantization_config(method).from_config(normalised)
    return [made.get_name(), getattr(made, "quant_method", None)]

def answer(section):
    try:
        return read(section)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def dtypes(method):
    config = get_quantization_config(method)
    made = config.__new__(config)  # it says what its class says
    return [str(dtype) for dtype in made.get_supported_act_dtypes()]

asked = json.load(sys.stdin)
answers = [answer(section) for section in asked["sections"]]
print(json.dumps([answers, {method: dtypes(method) for method in asked["methods"]}]))
"""

METHODS = (
    *("modelopt", "ModelOpt", "modelopt_fp4", "modelopt_mxfp8", "modelopt_mixed", "mxfp8"),
    *("modelopt_nvfp4", "modelopt_"),
)
ALGORITHMS = (
    *("FP8", "fp8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4", "MXFP8"),
    *("MIXED_PRECISION", "W4A8_AWQ", "MXFP4", "", None, ...),
)
LAYERS = {"quantized_layers": {"model.layers.0.self_attn.o_proj": {"quant_algo": "FP8"}}}
CACHE = {"kv_cache_quant_algo": None}
REST = {"exclude_modules": []}
WITHIN: tuple[dict[str, Any], ...] = (
    {},
    CACHE | REST,
    CACHE | {"group_size": 16},
    {"group_size": 16} | REST,
    CACHE | REST | {"group_size": 16},
)
PRODUCER = {"producer": {"name": "modelopt", "version": "0.33"}}


def sections() -> Iterator[dict[str, Any]]:
    """Every method and algorithm, in the newer form and in the older with what is in it."""
    for method, algorithm, layers in product(METHODS, ALGORITHMS, ({}, LAYERS)):
        stated = {"quant_method": method}
        said = {} if algorithm is ... else {"quant_algo": algorithm}
        yield stated | said | layers
        yield stated | said | layers | {"quantization": None}
        for within, by in product(WITHIN, ({}, PRODUCER)):
            yield stated | by | {"quantization": {**said, **layers, **within}}


SECTIONS = list(sections())
NAMES = {
    "FP8": "modelopt_fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "modelopt_fp8_channel",
    "FP8_PB_WO": "modelopt_fp8_block",
    "NVFP4": "modelopt_nvfp4",
    "W4A16_NVFP4": "modelopt_w4a16_nvfp4",
    "MXFP8": "modelopt_mxfp8",
}


@cache
def said() -> tuple[list[Any], dict[str, list[str]]]:
    """vLLM's answers on every section, and the dtypes of each method."""
    methods = sorted(known_methods() - {"ascend", "auto-round"})
    answers, dtypes = answers_of(ASKED, {"sections": SECTIONS, "methods": methods})
    return answers, dtypes


def planned(section: dict[str, Any]) -> str:
    """The name of what is read; nothing where it is refused."""
    try:
        return quantization_of(ConfigFile("config", section), "LlamaForCausalLM").name
    except ModelError:
        return ""


def expected(answer: list[str] | str) -> str:
    if isinstance(answer, str):
        return ""
    method, algorithm = answer
    return method if method == "modelopt_mixed" else NAMES[algorithm]


@pytest.mark.parametrize("method", METHODS)
def test_a_pair_is_read_as_vllm_reads_it_or_refused(method: str) -> None:
    found = set()
    for section, answer in zip(SECTIONS, said()[0], strict=True):
        if section["quant_method"] == method:
            name = planned(section)
            assert name.replace("mxfp8", "modelopt_mxfp8").replace(
                "modelopt_modelopt_", "modelopt_"
            ) == expected(answer), (section, answer)
            found.add(name)
    assert "" in found
    assert len(found) > 1


def test_a_method_that_runs_in_bfloat16_alone_is_known() -> None:
    alone = {method for method, dtypes in said()[1].items() if "torch.float16" not in dtypes}
    assert alone == set(_BFLOAT16_ALONE) | {"gpt_oss_mxfp4"}  # read as mxfp4
    assert all("torch.bfloat16" in dtypes for dtypes in said()[1].values())


HALF = {"num_hidden_layers": 3, "dtype": "float16", "torch_dtype": "float16"}
ONE = ((1, 1, False),)
IN_HALF = "torch.float16 is not supported for quantization method"


def quantised(**section: object) -> dict[str, object]:
    return HALF | {"quantization_config": section}


CASES = {
    "mxfp8": Case(
        "Qwen--Qwen3-32B", quantised(quant_method="mxfp8"), ONE, refused=f"{IN_HALF} mxfp8"
    ),
    "modelopt's mxfp8": Case(
        "Qwen--Qwen3-32B",
        quantised(quant_method="modelopt", quant_algo="MXFP8"),
        ONE,
        refused=f"{IN_HALF} modelopt_mxfp8",
    ),
    "modelopt's mxfp8 without an algorithm": Case(
        "Qwen--Qwen3-32B",
        quantised(quant_method="modelopt_mxfp8", quant_algo=None) | {"dtype": "bfloat16"},
        ONE,
    ),
    "mxfp4": Case(
        PUBLISHED["gpt_oss"], {"dtype": "float16"}, ONE, refused=f"{IN_HALF} gpt_oss_mxfp4"
    ),
    "modelopt's fp8": Case(
        "Qwen--Qwen3-32B", quantised(quant_method="modelopt", quant_algo="FP8"), ONE
    ),
}


@pytest.mark.matrix(part="truth")
@pytest.mark.parametrize("name", names(CASES))
def test_equal_to_vllm(name: str, truth: Truth) -> None:
    truth.check(name)
