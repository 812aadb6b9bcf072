"""The headers of a quantised checkpoint are the second truth: they agree with what is planned."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from sums import Matrix, matrices
from tests.pure.quantization.test_field_cases import (
    DENSE,
    FP4,
    HEADLESS,
    KIMI,
    MOE,
    QWEN35,
    ROWS,
    V31,
    Variant,
    beside,
    compressed,
    write,
)
from tests.pure.quantization.test_mixed_formats import dense, group, lists, parts
from vllm_layershard.errors import ModelError
from vllm_layershard.models import Deployment, evidence_for, find, model_of
from vllm_layershard.models.sources.beside import HF_QUANT
from vllm_layershard.plan import ParallelLayout

Tensors = Iterator[tuple[str, str, Sequence[int]]]
Stored = Callable[[Matrix], Tensors]
ONE = Deployment(ParallelLayout())


def plain(m: Matrix) -> Tensors:
    yield "weight", "BF16", (m.rows, m.inner)


def nvfp4(m: Matrix) -> Tensors:
    yield "weight", "U8", (m.rows, m.inner // 2)
    yield "weight_scale", "F8_E4M3", (m.rows, m.inner // 16)
    yield "weight_scale_2", "F32", ()
    yield "input_scale", "F32", ()


def packed_nvfp4(m: Matrix) -> Tensors:
    yield "weight_packed", "U8", (m.rows, m.inner // 2)
    yield "weight_scale", "F8_E4M3", (m.rows, m.inner // 16)
    yield "weight_global_scale", "F32", (1,)
    yield "input_global_scale", "F32", (1,)


def fp8_rows(m: Matrix) -> Tensors:
    yield "weight", "F8_E4M3", (m.rows, m.inner)
    yield "weight_scale", "BF16", (m.rows, 1)


def fp8(m: Matrix) -> Tensors:
    yield "weight", "F8_E4M3", (m.rows, m.inner)
    yield "weight_scale", "F32", ()
    yield "input_scale", "F32", ()


def first(*formats: tuple[str, Stored]) -> Stored:
    """The format of the first word that a name has in it; plain where it has none of them."""
    return lambda m: next((s for word, s in formats if word in m.name), plain)(m)


FEW = {"num_hidden_layers": 4, "vocab_size": 1024}
EXPERTS = FEW | {"num_experts": 8, "num_experts_per_tok": 2}
ROUTED = FEW | {"n_routed_experts": 8, "num_experts_per_tok": 2, "first_k_dense_replace": 1}
OUTSIDE = ("lm_head", "embed_tokens")
CASES: dict[str, tuple[Variant, str, Stored]] = {
    "Kimi in nvfp4": (
        Variant(
            KIMI,
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": HEADLESS},
            lambda m: None,
            changes=ROUTED,
        ),
        "language_model.model",
        first(("self_attn", plain), (".mlp.gate.", plain), (".mlp.", nvfp4)),
    ),
    "DeepSeek in nvfp4, beside": (
        Variant(
            V31,
            beside("0.33", {"quant_algo": "NVFP4", "exclude_modules": ["lm_head", "*_a_proj*"]}),
            lambda m: None,
            HF_QUANT,
            ROUTED,
        ),
        "model",
        first(("q_a_proj", plain), ("kv_a_proj", plain), ("_proj", nvfp4)),
    ),
    "Qwen3.5 in rows": (
        Variant(
            QWEN35,
            compressed(ROWS, ["re:.*lm_head", "re:.*linear_attn.*"], "float-quantized"),
            lambda m: None,
            changes=EXPERTS,
        ),
        "model.language_model",
        first(("linear_attn", plain), ("_proj", fp8_rows)),
    ),
    "Qwen3 mixed": (
        Variant(
            DENSE,
            dense(*parts("q k v o", "FP8"), *parts("gate up down", "NVFP4", "mlp")),
            lambda m: None,
            changes=FEW,
        ),
        "model",
        first(("self_attn", fp8), (".mlp.", nvfp4)),
    ),
    "Qwen3-MoE in groups": (
        Variant(
            MOE,
            lists(
                group(["re:.*self_attn.*"], "float-quantized", ROWS),
                group(["Linear"], "nvfp4-pack-quantized", FP4),
                ignore=["lm_head", "re:.*mlp.gate$"],
            ),
            lambda m: None,
            changes=EXPERTS,
        ),
        "model",
        first(("self_attn", fp8_rows), ("_proj", packed_nvfp4)),
    ),
}


def publish(case: str, directory: Path) -> dict[str, Any]:
    """The config and its file, with the headers of every matrix as its publisher stores it."""
    variant, stem, stored = CASES[case]
    config = write(variant, directory)
    text = config.get("text_config", config)
    tensors: dict[str, tuple[str, Sequence[int]]] = {}
    for m in matrices({"tie_word_embeddings": False} | text, 1, stem):
        last = m.name.rpartition(".")[2]
        if m.inner == 1 or last == "conv1d":
            shape = (m.rows, 1, m.inner) if last == "conv1d" else (m.rows,)
            tensors[f"{m.name}.weight"] = ("BF16" if m.element == 2 else "F32", shape)
            continue
        for i in range(m.copies):
            name = m.name.replace(".experts.0.", f".experts.{i}.")
            for leaf, dtype, size in plain(m) if m.fixed else stored(m):
                tensors[f"{name}.{leaf}"] = (dtype, size)
    checkpoints.write(directory, tensors)
    return config


@pytest.mark.parametrize("case", CASES)
def test_the_headers_agree_with_what_is_planned(case: str, tmp_path: Path) -> None:
    publish(case, tmp_path)
    found = find(str(tmp_path))
    model = model_of(found)
    evidence, notes = evidence_for(found, model, False, lambda done, total: None)
    assert evidence.comparison is not None
    assert (evidence.comparison.disagreements, notes) == ((), ())
    stored = sum(
        tensor.nbytes
        for name, tensor in evidence.comparison.checkpoint.tensors.items()
        if not any(part in name for part in OUTSIDE)
    )
    held = model.weight_bytes(ONE, 0)
    planned = held.total - held.derived - held.embedding - held.head
    assert planned == pytest.approx(stored, rel=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_a_statement_that_is_lost_is_seen_in_the_headers(case: str, tmp_path: Path) -> None:
    config = publish(case, tmp_path)
    (tmp_path / HF_QUANT).unlink(missing_ok=True)
    config.pop("quantization_config", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = find(str(tmp_path))
    model = model_of(found)
    assert model.quantization == "none"
    with pytest.raises(ModelError, match=r"quantization_config: is missing, and .* is stored as"):
        evidence_for(found, model, False, lambda done, total: None)
