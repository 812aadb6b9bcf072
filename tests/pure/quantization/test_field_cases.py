"""Inputs from public reports that were once answered wrongly, and a family of variants of each.

The expected bytes of a variant are a sum over the checkpoint's matrices, which `sums` makes by
hand of config.json and of what the variant says is quantised.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import field_cases
from sums import Matrix, Stored, fp8_blocks, fp8_rows, fp8_tensor, nvfp4, total
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.models.sources.beside import HF_QUANT
from vllm_layershard.models.sources.source import _BUNDLED
from vllm_layershard.plan import ParallelLayout

EIGHT = Deployment(ParallelLayout(dp=8), ep=True)
ONE = Deployment(ParallelLayout())


class Case(NamedTuple):
    """A field case: the method, and bytes of weights and of a token's cache on a rank of eight."""

    quantization: str
    weights: int
    cache: int


PUBLISHED = {
    "kimi-nvfp4-top-level": Case("modelopt_nvfp4", 90_421_408_696, 35_136),
    "qwen35-35b-fp8-top-level": Case("compressed_tensors_fp8_channel", 8_541_457_536, 20_480),
    "deepseek-v31-nvfp4-hf-quant": Case("modelopt_nvfp4", 64_534_107_552, 35_136),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_checkpoint_has_its_bytes(name: str) -> None:
    model, case = read_model(str(field_cases.PLACE / name)), PUBLISHED[name]
    assert model.quantization == case.quantization
    assert model.weight_bytes(EIGHT, 0).total == case.weights
    assert model.kv_bytes_per_token("auto", range(model.num_layers), EIGHT) == case.cache


def beside(name: str, method: Mapping[str, Any], file: str = HF_QUANT) -> dict[str, Any]:
    """What Model Optimizer writes into a file of its own."""
    inner = {"kv_cache_quant_algo": "FP8", "group_size": 16} | dict(method)
    return {"producer": {"name": "modelopt", "version": name}, "quantization": inner}


def compressed(group: Mapping[str, Any], ignore: list[str], form: str, **more: Any) -> Any:
    """What llm-compressor writes."""
    group = {"targets": ["Linear"], **group}
    stated = {"format": form, "config_groups": {"group_0": group}, "ignore": ignore}
    return {"quant_method": "compressed-tensors", **stated, **more}


def tensors(bits: int, strategy: str, kind: str = "float", **more: Any) -> dict[str, Any]:
    args = {"num_bits": bits, "type": kind, "strategy": strategy, "symmetric": True}
    return args | {"dynamic": False} | more


ROWS = {
    "weights": tensors(8, "channel"),
    "input_activations": tensors(8, "token", dynamic=True),
}
BLOCKS = {
    "weights": tensors(8, "block", block_structure=[128, 128]),
    "input_activations": tensors(8, "group", dynamic=True, group_size=128),
}
FP4 = {
    "weights": tensors(4, "tensor_group", group_size=16),
    "input_activations": tensors(4, "tensor_group", group_size=16, dynamic="local"),
}
KIMI, QWEN35 = "moonshotai--Kimi-K2.5", "Qwen--Qwen3.5-397B-A17B"
NVFP4 = {"quant_algo": "NVFP4"}
FP8 = {"quant_algo": "FP8"}


def but(stored: Stored, *names: str) -> Stored:
    """That format, but for matrices with one of these in their names."""
    return lambda matrix: None if any(n in matrix.name for n in names) else stored(matrix)


def only(stored: Stored, *names: str) -> Stored:
    """That format for matrices with one of these in their names."""
    return lambda matrix: stored(matrix) if any(n in matrix.name for n in names) else None


class Variant(NamedTuple):
    """A bundled config with a section put somewhere, and what of it is quantised.

    `at`: a key path within config.json, or a file beside it.
    """

    config: str
    section: Any
    stored: Stored
    at: str = "quantization_config"
    changes: Mapping[str, Any] = {}


def kimi(section: Any, stored: Stored, at: str = "quantization_config", **changes: Any) -> Variant:
    return Variant(KIMI, section, stored, at, changes)


def qwen35(section: Any, stored: Stored, at: str = "quantization_config", **more: Any) -> Variant:
    return Variant(QWEN35, section, stored, at, more)


HEADLESS = ["language_model.lm_head", "*self_attn*"]
HEAD_AND_GATES = ["re:.*lm_head", "re:.*mlp.gate$", "re:.*shared_expert_gate$", "re:.*visual.*"]

TOP_LEVEL = {
    "nvfp4": kimi(
        {"quant_method": "modelopt", **NVFP4, "ignore": HEADLESS}, but(nvfp4, "attn", "lm_head")
    ),
    "nvfp4 in capitals": kimi(
        {"quant_method": "ModelOpt", "quant_algo": "nvfp4", "ignore": HEADLESS},
        but(nvfp4, "attn", "lm_head"),
    ),
    "nvfp4 by another method's name": kimi(
        {"quant_method": "modelopt_fp4", **NVFP4, "ignore": HEADLESS},
        but(nvfp4, "attn", "lm_head"),
    ),
    "fp8 by the method of nvfp4": kimi(
        {"quant_method": "modelopt_fp4", **FP8, "ignore": HEADLESS},
        but(fp8_tensor, "attn", "lm_head"),
    ),
    "a quantised head": kimi(
        {"quant_method": "modelopt", **NVFP4, "ignore": ["*self_attn*"]}, but(nvfp4, "attn")
    ),
    "fp8 of all but the head": kimi(
        {"quant_method": "modelopt", **FP8, "ignore": ["lm_head"]}, but(fp8_tensor, "lm_head")
    ),
    "nested, with its producer": kimi(
        beside("0.29", {**NVFP4, "exclude_modules": HEADLESS}), but(nvfp4, "attn", "lm_head")
    ),
    "the language model's own": kimi(
        {"quant_method": "modelopt", **NVFP4, "ignore": HEADLESS},
        but(nvfp4, "attn", "lm_head"),
        at="text_config.quantization_config",
    ),
    "fp8 blocks": kimi(
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "ignored_layers": ["language_model.layers.0.mlp.down_proj"],
        },
        but(fp8_blocks, "layers.0.mlp.down_proj", "lm_head"),
    ),
    "compressed, with an underscore": kimi(
        compressed(
            ROWS, ["re:.*self_attn.*"], "float-quantized", quant_method="Compressed_Tensors"
        ),
        but(fp8_rows, "attn", "lm_head"),
    ),
    "compressed nvfp4": kimi(
        compressed(FP4, ["re:.*self_attn.*", "re:.*mlp.gate$"], "nvfp4-pack-quantized"),
        but(nvfp4, "attn", "lm_head"),
    ),
    "compressed under its older key": kimi(
        compressed(BLOCKS, ["re:.*self_attn.*"], "float-quantized"),
        but(fp8_blocks, "attn", "lm_head"),
        at="compression_config",
    ),
    "fewer layers": kimi(
        {"quant_method": "modelopt", **NVFP4, "ignore": HEADLESS},
        but(nvfp4, "attn", "lm_head"),
        num_hidden_layers=7,
    ),
}

WRAPPED = {
    "rows, all but the delta nets": qwen35(
        compressed(ROWS, [*HEAD_AND_GATES, "re:.*linear_attn.*"], "float-quantized"),
        but(fp8_rows, "linear_attn", "lm_head", "visual"),
    ),
    "rows, delta nets too": qwen35(
        compressed(ROWS, HEAD_AND_GATES, "float-quantized"), but(fp8_rows, "lm_head")
    ),
    "blocks": qwen35(
        compressed(BLOCKS, [*HEAD_AND_GATES, "re:.*linear_attn.*"], "float-quantized"),
        but(fp8_blocks, "linear_attn", "lm_head"),
    ),
    "nvfp4": qwen35(
        compressed(FP4, [*HEAD_AND_GATES, "re:.*linear_attn.*"], "nvfp4-pack-quantized"),
        but(nvfp4, "linear_attn", "lm_head"),
    ),
    "exact names of the checkpoint": qwen35(
        compressed(
            ROWS,
            [
                *(
                    f"model.language_model.layers.{i}.self_attn.{p}_proj"
                    for i in (3, 7)
                    for p in "qkv"
                ),
                *(
                    f"model.language_model.layers.0.mlp.shared_expert.{p}_proj"
                    for p in ("gate", "up")
                ),
                "lm_head",
            ],
            "float-quantized",
        ),
        but(
            fp8_rows,
            *(f"layers.{i}.self_attn.{p}_proj" for i in (3, 7) for p in "qkv"),
            *(f"layers.0.mlp.shared_expert.{p}_proj" for p in ("gate", "up")),
            "lm_head",
        ),
    ),
    "names of vLLM": qwen35(
        compressed(ROWS, ["language_model.model.layers.0.linear_attn.out_proj"], "float-quantized"),
        but(fp8_rows, "layers.0.linear_attn.out_proj", "lm_head"),
    ),
    "a fused linear by its parts": qwen35(
        compressed(
            ROWS,
            [
                "model.language_model.layers.0.linear_attn.in_proj_qkv",
                "model.language_model.layers.0.linear_attn.in_proj_z",
            ],
            "float-quantized",
        ),
        but(
            fp8_rows,
            "layers.0.linear_attn.in_proj_qkv",
            "layers.0.linear_attn.in_proj_z",
            "lm_head",
        ),
    ),
    "modelopt's wildcards": qwen35(
        {
            "quant_method": "modelopt",
            **FP8,
            "ignore": ["lm_head", "model.language_model.layers.1.*", "model.visual*"],
        },
        but(fp8_tensor, "layers.1.", "lm_head"),
    ),
    "modelopt's tree of modules": qwen35(
        {
            "quant_method": "modelopt",
            **NVFP4,
            "ignore": ["lm_head", "model.language_model.layers.0.linear_attn*", "model.visual*"],
        },
        but(nvfp4, "layers.0.linear_attn", "lm_head"),
    ),
    "modelopt's expert names": qwen35(
        {
            "quant_method": "modelopt",
            **NVFP4,
            "ignore": [
                "lm_head",
                *(f"model.language_model.layers.2.mlp.experts.{i}.up_proj" for i in (0, 1)),
            ],
        },
        but(nvfp4, "layers.2.mlp.experts", "lm_head"),
    ),
    "fp8's exact names": qwen35(
        {
            "quant_method": "fp8",
            "activation_scheme": "dynamic",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": [
                "model.language_model.layers.3.self_attn.o_proj",
                "lm_head",
                *(
                    f"model.language_model.layers.{i}.linear_attn.in_proj_{p}"
                    for i in range(60)
                    for p in "ab"
                ),
            ],
        },
        but(fp8_blocks, "layers.3.self_attn.o_proj", "lm_head", "in_proj_a", "in_proj_b"),
    ),
    "awq's parts of names": qwen35(
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": 128,
            "zero_point": True,
            "modules_to_not_convert": ["linear_attn", "self_attn", "shared_expert"],
        },
        only(lambda m: m.rows * m.inner * (1 / 2 + (2 + 1 / 2) / 128), "experts"),
    ),
}

V31, V32, GLM = "deepseek-ai--DeepSeek-V3.1", "deepseek-ai--DeepSeek-V3.2", "zai-org--GLM-5"
MOE, DENSE, LLAMA = "Qwen--Qwen3-235B-A22B", "Qwen--Qwen3-32B", "meta-llama--Meta-Llama-3.1-8B"
NOT_IN_ATTENTION = [
    f"model.layers.{i}.self_attn.{name}"
    for i in range(80)
    for name in ("q_a_proj", "kv_a_proj_with_mqa", "q_b_proj", "kv_b_proj", "indexer.wq_b")
]


def alone(config: str, method: Mapping[str, Any], stored: Stored, **changes: Any) -> Variant:
    return Variant(config, beside("0.33", method), stored, HF_QUANT, changes)


BESIDE = {
    "V3.1": alone(
        V31,
        {**NVFP4, "exclude_modules": ["lm_head", *NOT_IN_ATTENTION, "model.layers.61*"]},
        only(nvfp4, "o_proj", ".mlp."),
    ),
    "V3.2": alone(
        V32,
        {**NVFP4, "exclude_modules": ["lm_head", *NOT_IN_ATTENTION]},
        only(nvfp4, "o_proj", ".mlp."),
    ),
    "V3.2 without its attention": alone(
        V32, {**NVFP4, "exclude_modules": ["lm_head", "*.self_attn.*"]}, only(nvfp4, ".mlp.")
    ),
    "GLM-5": alone(
        GLM,
        {**NVFP4, "exclude_modules": ["lm_head", *NOT_IN_ATTENTION]},
        only(nvfp4, "o_proj", ".mlp."),
    ),
    "Qwen3-235B": alone(
        MOE,
        {
            **NVFP4,
            "exclude_modules": ["lm_head", *(f"model.layers.{i}.mlp.gate" for i in range(94))],
        },
        but(nvfp4, "mlp.gate", "lm_head"),
    ),
    "Qwen3-235B, experts alone": alone(
        MOE,
        {**NVFP4, "exclude_modules": ["lm_head", "*self_attn*", "*mlp.gate"]},
        only(nvfp4, "experts"),
    ),
    "Qwen3-32B": alone(DENSE, {**NVFP4, "exclude_modules": ["lm_head"]}, but(nvfp4, "lm_head")),
    "Llama in fp8": alone(
        LLAMA, {**FP8, "exclude_modules": ["lm_head"]}, but(fp8_tensor, "lm_head")
    ),
    "Llama in small letters": alone(
        LLAMA, {"quant_algo": "fp8", "exclude_modules": ["lm_head"]}, but(fp8_tensor, "lm_head")
    ),
    "Llama, some layers": alone(
        LLAMA,
        {**FP8, "exclude_modules": ["lm_head", "model.layers.1.*", "model.layers.31.mlp*"]},
        but(fp8_tensor, "lm_head", "layers.1.", "layers.31.mlp"),
    ),
    "a wrapper": Variant(
        KIMI,
        beside("0.33", {**NVFP4, "exclude_modules": HEADLESS}),
        but(nvfp4, "attn", "lm_head"),
        HF_QUANT,
    ),
}
VARIANTS = {
    f"{kind}: {name}": variant
    for kind, variants in (("top level", TOP_LEVEL), ("wrapped", WRAPPED), ("beside", BESIDE))
    for name, variant in variants.items()
}


def write(variant: Variant, directory: Path) -> dict[str, Any]:
    """The changed config, written with what lies beside it."""
    config = json.loads((_BUNDLED / f"{variant.config}.json").read_text())
    text = config.get("text_config", config)
    for section in (config, text):
        section.pop("quantization_config", None)
    text.update(variant.changes)
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][: text["num_hidden_layers"]]
    if variant.at.endswith(".json"):
        (directory / variant.at).write_text(json.dumps(variant.section))
    else:
        *path, key = variant.at.split(".")
        place = config
        for part in path:
            place = place[part]
        place[key] = variant.section
    (directory / "config.json").write_text(json.dumps(config))
    return config


def check(variant: Variant, directory: Path) -> None:
    """What the planner reads has the bytes of the sum, which no other reading has."""
    config = write(variant, directory)
    model = read_model(str(directory))
    expected = total(config, variant.stored, ranks=8)
    assert model.quantization != "none"
    held = model.weight_bytes(EIGHT if model.is_moe else ONE, 0)
    assert held.total == pytest.approx(expected, rel=1e-3)
    plain = total(config, lambda matrix: None, ranks=8)
    assert abs(expected - plain) > 0.03 * plain, "what is not read would be seen"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_the_bytes_of_its_matrices(name: str, tmp_path: Path) -> None:
    check(VARIANTS[name], tmp_path)


def test_the_sum_by_hand_is_that_of_the_published() -> None:
    """So that it is the sum which the reports were checked with."""
    cases: dict[str, Callable[[Matrix], float | None]] = {
        "kimi-nvfp4-top-level": but(nvfp4, "self_attn", "lm_head"),
        "qwen35-35b-fp8-top-level": but(fp8_rows, "linear_attn", "lm_head"),
        "deepseek-v31-nvfp4-hf-quant": only(nvfp4, "o_proj", ".mlp."),
    }
    for name, stored in cases.items():
        config = json.loads((field_cases.PLACE / name / "config.json").read_text())
        assert total(config, stored, ranks=8) == PUBLISHED[name].weights, name
