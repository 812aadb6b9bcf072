"""The cache that a checkpoint's quantisation asks for is the one that vLLM's own classes take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.vllm.truth.test_truth_grouped import SMALL
from tests.vllm.truth.test_truth_mixed import BY_TENSOR, FP8, _quark
from tests.vllm.truth.test_truth_mla import SMALL_LORA
from tests.vllm.truth.test_truth_wider import DENSE
from truth.asking import answers_of
from truth.compare import Case
from truth.stated import QWEN3_VL_4B
from vllm_layershard.errors import ModelError
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.plan import ParallelLayout

ONE = Deployment(ParallelLayout())
SCRIPT = Path(__file__).parents[3] / "support" / "truth" / "vllm_cache_dtypes.py"
FLOAT = {"type": "float", "num_bits": 8, "dynamic": False}
SCHEME = FLOAT | {"strategy": "tensor", "symmetric": True}
SCHEMES: dict[str, dict[str, Any]] = {
    "tensor": SCHEME,
    "heads": SCHEME | {"strategy": "attn_head"},
    "dynamic": SCHEME | {"dynamic": True},
    "int8": SCHEME | {"type": "int"},
    "int8-number": SCHEME | {"num_bits": "8"},
    "four-bits": SCHEME | {"num_bits": 4},
    "channel": SCHEME | {"strategy": "channel"},
    "no-strategy": FLOAT | {"symmetric": True},
    "no-symmetry": FLOAT | {"strategy": "tensor"},
    "not-symmetric": SCHEME | {"symmetric": False},
    "empty": {},
}
STATED: dict[str, dict[str, Any]] = {
    **{f"scheme-{name}": {"kv_cache_scheme": scheme} for name, scheme in SCHEMES.items()},
    "scheme-null": {"kv_cache_scheme": None},
    "algorithm-fp8": {"kv_cache_quant_algo": "FP8"},
    "algorithm-small": {"kv_cache_quant_algo": "fp8"},
    "algorithm-nvfp4": {"kv_cache_quant_algo": "NVFP4"},
    "algorithm-unknown": {"kv_cache_quant_algo": "INT8"},
    "algorithm-as-scheme": {"kv_cache_scheme": "FP8"},
    "scheme-first": {"kv_cache_scheme": FLOAT | {"num_bits": 4}, "kv_cache_quant_algo": "FP8"},
    "four-bits-int": {"kv_cache_scheme": {"type": "int", "num_bits": 4}},
    "zero-for-false": {"kv_cache_scheme": FLOAT | {"dynamic": 0}},
}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
LINEARS = {
    "targets": ["Linear"],
    "weights": {"type": "float", "num_bits": 8, "strategy": "tensor", "symmetric": True},
    "input_activations": {"type": "float", "num_bits": 8, "strategy": "tensor", "symmetric": True},
}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": LINEARS},
    "ignore": ["lm_head"],
}
OUTPUTS: dict[str, dict[str, Any]] = {
    "tensor": FP8,
    "int8": FP8 | {"dtype": "int8"},
    "channel": FP8 | {"qscheme": "per_channel"},
}


def _of_quark(outputs: dict[str, Any]) -> dict[str, Any]:
    part = BY_TENSOR | {"output_tensors": outputs}
    export = {"kv_cache_group": ["*k_proj", "*v_proj"], "pack_method": "reorder"}
    return _quark(BY_TENSOR, export=export, layer_quant_config={"*k_proj": part, "*v_proj": part})


BASES: dict[str, Case] = {
    "dense": Case("Qwen--Qwen3-32B", SMALL | {"head_dim": 128}),
    "mla": Case("deepseek-ai--DeepSeek-V3", SMALL_LORA),
    "sparse": Case("deepseek-ai--DeepSeek-V3.2", SMALL_LORA),
}
SECTIONS: dict[str, dict[str, Any]] = {
    **{f"modelopt-{name}": MODELOPT | stated for name, stated in STATED.items()},
    **{f"ct-{n}": COMPRESSED | {"kv_cache_scheme": s} for n, s in SCHEMES.items()},
    **{f"quark-{name}": _of_quark(outputs) for name, outputs in OUTPUTS.items()},
}


def cases() -> dict[str, Case]:
    """Each section with each kind of attention, and beside and within a text_config."""
    found = {
        f"{base} {name}": Case(case.config, {**case.changes, "quantization_config": section})
        for base, case in BASES.items()
        for name, section in SECTIONS.items()
        if base == "dense" or not name.startswith("quark")
    }
    for name in ("modelopt-scheme-tensor", "modelopt-algorithm-fp8", "ct-tensor", "ct-int8"):
        section = {"quantization_config": SECTIONS[name]}
        found[f"wrapped {name}"] = Case(QWEN3_VL_4B, section, text=DENSE)
        found[f"within {name}"] = Case(QWEN3_VL_4B, text=DENSE | section)
        found[f"other {name}"] = Case(
            "Qwen--Qwen3-32B", {**SMALL, "compression_config": SECTIONS[name]}
        )
    return found


CASES = cases()


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("models")
    return {name: str(case.write(root / name)) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def chosen(directories: dict[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = answers_of(SCRIPT, directories, timeout_s=500)
    return found


@pytest.mark.parametrize("name", CASES)
def test_as_vllm_chooses(name: str, chosen: dict[str, Any], directories: dict[str, str]) -> None:
    if chosen[name] is None:
        with pytest.raises(ModelError, match=r"kv_cache|output_tensors"):
            read_model(directories[name]).kv_bytes_per_token("auto", [0], ONE)
        return
    model = read_model(directories[name])
    said = chosen[name]
    assert model.cache_dtype("auto") == ("bfloat16" if said == "auto" else said)
    assert model.kv_bytes_per_token("auto", [0], ONE)
