"""Checkpoints whose modules have several formats: Model Optimizer's mixes, llm-compressor's lists.

As in test_field_cases: the bytes are those of a sum over the checkpoint's matrices, by their names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sums import (
    Stored,
    fp8_blocks,
    fp8_grid,
    fp8_modelopt_rows,
    fp8_rows,
    fp8_tensor,
    grouped,
    mxfp4,
    mxfp8,
    nvfp4,
    nvfp4_weights,
)
from tests.pure.quantization.test_field_cases import (
    BLOCKS,
    DENSE,
    FP4,
    KIMI,
    MOE,
    QWEN35,
    ROWS,
    V31,
    Variant,
    but,
    check,
    tensors,
)
from tests.pure.quantization.test_stated import bare
from vllm_layershard.models import Deployment, read_model
from vllm_layershard.plan import ParallelLayout

STEM = "model.language_model.layers"
MLP, QKVO = "gate up down", "q k v o"
FLOAT, PACK, FOUR = "float-quantized", "pack-quantized", "nvfp4-pack-quantized"
INT4 = {"weights": tensors(4, "group", "int", group_size=128)}
INT8 = {"weights": tensors(8, "channel", "int")}
MX4 = {"weights": tensors(4, "group", group_size=32, scale_dtype="torch.uint8")}
MX8 = {"weights": tensors(8, "group", group_size=32, scale_dtype="torch.uint8")}


def first(*formats: tuple[str, Stored]) -> Stored:
    """The format of the first word that a name has in it; none where it has none of them."""
    return lambda matrix: next((s(matrix) for word, s in formats if word in matrix.name), None)


def parts(names: str, algorithm: str, stem: str = "self_attn") -> list[tuple[str, str]]:
    """Projections of a module, with their algorithm."""
    return [(f"{stem}.{name}_proj", algorithm) for name in names.split()]


def each(stem: str, layers: int, *rules: tuple[str, str]) -> dict[str, Any]:
    """Modules of every layer, with the algorithm of each rule."""
    return {
        f"{stem}.{i}.{module}": {"quant_algo": algorithm}
        for i in range(layers)
        for module, algorithm in rules
    }


def mixed(layers: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Model Optimizer's mix, as it stands in config.json."""
    stated = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    return stated | {"quantized_layers": dict(layers)} | more


def dense(*rules: tuple[str, str], **more: Any) -> dict[str, Any]:
    return mixed(each("model.layers", 64, *rules), **more)


LATENT = first((".q_b_proj", fp8_tensor), (".o_proj", fp8_tensor), (".experts.", nvfp4))
FIRST_EXPERT = parts(MLP, "NVFP4", "mlp.experts.0")
MIXED = {
    "attention in fp8, the rest in nvfp4": Variant(
        DENSE,
        dense(*parts(QKVO, "FP8"), *parts(MLP, "NVFP4", "mlp")),
        first(("attn", fp8_tensor), (".mlp.", nvfp4)),
    ),
    "weights alone, in small letters": Variant(
        DENSE, dense(*parts(MLP, "w4a16_nvfp4", "mlp")), first((".mlp.", nvfp4_weights))
    ),
    "half of the layers": Variant(
        DENSE,
        mixed(each("model.layers", 10, *parts(QKVO, "FP8"), *parts(MLP, "MXFP8", "mlp"))),
        but(first(("attn", fp8_tensor), (".mlp.", mxfp8)), *(f"layers.{i}" for i in range(10, 64))),
        changes={"num_hidden_layers": 20},
    ),
    "the head": Variant(
        DENSE,
        mixed({"lm_head": {"quant_algo": "NVFP4"}, **each("model.layers", 64, ("mlp", "FP8"))}),
        first(("lm_head", nvfp4)),
        changes={"num_hidden_layers": 4},
    ),
    "but what is ignored": Variant(
        DENSE,
        dense(
            *parts(QKVO, "FP8"),
            *parts(MLP, "NVFP4", "mlp"),
            ignore=["model.layers.5.*", "*.6.mlp*"],
        ),
        but(first(("attn", fp8_tensor), (".mlp.", nvfp4)), "layers.5.", "layers.6.mlp"),
    ),
    "experts by the first": Variant(
        MOE,
        mixed(each("model.layers", 94, *parts(QKVO, "FP8"), *FIRST_EXPERT)),
        first(("attn", fp8_tensor), (".experts.", nvfp4)),
    ),
    "experts by their module": Variant(
        MOE,
        mixed(each("model.layers", 94, ("mlp.experts", "FP8_PB_WO"))),
        first((".experts.", fp8_blocks)),
    ),
    "latent": Variant(
        V31,
        mixed(each("model.layers", 61, *parts("q_b o", "FP8"), *FIRST_EXPERT)),
        LATENT,
    ),
    "a wrapper by the checkpoint's names": Variant(
        QWEN35,
        mixed(each(STEM, 60, *parts(QKVO, "FP8"), *FIRST_EXPERT)),
        first(("self_attn", fp8_tensor), (".experts.", nvfp4)),
    ),
    "a wrapper's delta nets": Variant(
        QWEN35,
        mixed(
            each(
                STEM,
                60,
                ("linear_attn.in_proj_qkv", "FP8"),
                ("linear_attn.in_proj_z", "FP8"),
                ("linear_attn.out_proj", "NVFP4"),
                *FIRST_EXPERT,
            )
        ),
        first(
            ("in_proj_qkv", fp8_tensor),
            ("in_proj_z", fp8_tensor),
            ("linear_attn.out_proj", nvfp4),
            (".experts.", nvfp4),
        ),
    ),
    "another wrapper": Variant(
        KIMI,
        mixed(each("language_model.layers", 61, *parts(MLP, "NVFP4", "mlp.experts.3"))),
        first((".experts.", nvfp4)),
    ),
    "nested": Variant(
        DENSE,
        {
            "quant_method": "modelopt",
            "quantization": {
                "quant_algo": "mixed_precision",
                "exclude_modules": [],
                "quantized_layers": each("model.layers", 64, *parts(MLP, "FP8_PB_WO", "mlp")),
            },
        },
        first((".mlp.", fp8_blocks)),
    ),
}


def lists(*groups: Mapping[str, Any], ignore: Sequence[str] = ("re:.*lm_head",)) -> dict[str, Any]:
    """llm-compressor's list of groups."""
    named = {f"group_{i}": dict(group) for i, group in enumerate(groups)}
    stated = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
    return stated | {"config_groups": named, "ignore": list(ignore)}


def group(targets: list[str], form: str, args: Mapping[str, Any]) -> dict[str, Any]:
    return {"targets": targets, "format": form, **args}


GROUPS = {
    "attention in fp8, the rest in nvfp4": Variant(
        DENSE,
        lists(group(["re:.*self_attn.*"], FLOAT, ROWS), group(["Linear"], FOUR, FP4)),
        first(("attn", fp8_rows), (".mlp.", nvfp4)),
    ),
    "two lists of patterns": Variant(
        DENSE,
        lists(
            group(["re:.*self_attn.o_proj$", "re:.*down_proj$"], FLOAT, ROWS),
            group(["re:.*mlp.(gate|up)_proj$"], PACK, INT4),
        ),
        first(("o_proj", fp8_rows), ("down_proj", fp8_rows), (".mlp.", grouped(4, 128))),
    ),
    "whole names": Variant(
        DENSE,
        lists(
            group([f"model.layers.{i}.mlp.down_proj" for i in range(64)], PACK, INT8),
            group(["Linear"], FLOAT, BLOCKS),
        ),
        first(
            ("down_proj", lambda m: m.rows * m.inner + 2 * m.rows),
            (".mlp.", fp8_blocks),
            ("attn", fp8_blocks),
        ),
    ),
    "parts of a fused linear": Variant(
        DENSE,
        lists(group(["re:.*q_proj", "re:.*k_proj", "re:.*v_proj", "re:.*down_proj"], FLOAT, ROWS)),
        first(*((f".{part}_proj", fp8_rows) for part in ("q", "k", "v", "down"))),
    ),
    "experts in four bits": Variant(
        MOE,
        lists(
            group(["re:.*mlp.experts.*"], PACK, INT4),
            group(["re:.*self_attn.*"], FLOAT, ROWS),
        ),
        first((".experts.", grouped(4, 128)), ("attn", fp8_rows)),
    ),
    "experts as linears": Variant(
        MOE,
        lists(
            group(["re:.*self_attn.*"], FLOAT, BLOCKS),
            group(["Linear"], FOUR, FP4),
            ignore=["lm_head", "re:.*mlp.gate$"],
        ),
        first(("attn", fp8_blocks), (".experts.", nvfp4)),
    ),
    "latent": Variant(
        V31,
        lists(
            group(["re:.*self_attn.(o|q_b)_proj"], FLOAT, ROWS),
            group(["re:.*mlp.experts.*"], FOUR, FP4),
        ),
        first((".q_b_proj", fp8_rows), (".o_proj", fp8_rows), (".experts.", nvfp4)),
    ),
    "a wrapper by the checkpoint's names": Variant(
        QWEN35,
        lists(
            group([f"{STEM}.{i}.self_attn.o_proj" for i in range(60)], FLOAT, ROWS),
            group(["re:.*mlp.experts.*"], PACK, INT4),
        ),
        first(("self_attn.o_proj", fp8_rows), (".experts.", grouped(4, 128))),
    ),
    "mxfp4 of experts": Variant(
        QWEN35,
        lists(group(["re:.*mlp.experts.*"], "mxfp4-pack-quantized", MX4)),
        first((".experts.", mxfp4)),
    ),
    "a head by name": Variant(
        DENSE,
        lists(group(["re:.*lm_head", "Linear"], FLOAT, ROWS), ignore=[]),
        first(("lm_head", fp8_rows), ("attn", fp8_rows), (".mlp.", fp8_rows)),
    ),
    "groups of attention are the cache's": Variant(
        DENSE,
        lists(group(["LlamaAttention"], FLOAT, ROWS), group(["Linear"], "mxfp8-quantized", MX8)),
        but(mxfp8, "lm_head"),
    ),
}
OTHER_ALGORITHMS: dict[str, tuple[str, Stored]] = {
    "rows": ("FP8_PER_CHANNEL_PER_TOKEN", fp8_modelopt_rows),
    "blocks": ("fp8_pb_wo", fp8_grid),
    "eight microscaled bits": ("MXFP8", mxfp8),
    "weights alone": ("W4A16_NVFP4", nvfp4_weights),
    "a tensor": ("fp8", fp8_tensor),
}


def wide(stored: Stored) -> Stored:
    """All but the head and the router."""
    return lambda m: None if m.name.endswith(("lm_head", "mlp.gate")) else stored(m)


ALGORITHMS = {
    f"{name}, {config}": Variant(
        config,
        {"quant_method": "modelopt", "quant_algo": algorithm, "ignore": ["lm_head", "*mlp.gate"]},
        wide(stored),
    )
    for name, (algorithm, stored) in OTHER_ALGORITHMS.items()
    for config in (DENSE, MOE)
}
VARIANTS = {
    f"{kind}: {name}": variant
    for kind, variants in (("mixed", MIXED), ("groups", GROUPS), ("algorithm", ALGORITHMS))
    for name, variant in variants.items()
}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_the_bytes_of_its_matrices(name: str, tmp_path: Path) -> None:
    check(VARIANTS[name], tmp_path)


@pytest.mark.parametrize("target", ["Linear", "re:.*down_proj", "re:.*mlp.*"])
def test_of_two_groups_with_one_target_the_last_is_read(target: str, tmp_path: Path) -> None:
    """Source: vLLM 0.32, compressed_tensors.py, `_quantization_scheme_map_from_config`: a dict."""
    tokens = {"input_activations": tensors(8, "token", dynamic=True), "format": FLOAT}
    first_group = {"targets": [target], "weights": tensors(8, "channel")} | tokens
    last_group = {"targets": [target], "format": PACK} | INT4
    sizes = []
    for groups in ([first_group, last_group], [last_group], [last_group, first_group]):
        stated = {"quant_method": "compressed-tensors", "format": "mixed-precision"}
        named = {f"group_{i}": group for i, group in enumerate(groups)}
        section = stated | {"config_groups": named, "ignore": ["lm_head"]}
        (tmp_path / "config.json").write_text(
            json.dumps(bare("Qwen--Qwen3-32B") | {"quantization_config": section})
        )
        model = read_model(str(tmp_path))
        sizes.append(model.weight_bytes(Deployment(ParallelLayout()), 0).total)
    assert sizes[0] == sizes[1] != sizes[2]
