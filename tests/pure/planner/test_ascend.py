"""What vllm-ascend has otherwise than vLLM on CUDA: a cache, and a key of the launch line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from console import complaint
from truth.compare import CONFIGS
from vllm_layershard import Layout, compare_layouts, plan_model
from vllm_layershard.planner.results.compare_result import LayoutCapacity
from vllm_layershard.planner.results.plan_result import PlanResult


def _plan(model: str, hardware: str, **options: Any) -> PlanResult:
    return plan_model(model, layout=Layout(dp=16, ep=True), hardware=hardware, **options)


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
@pytest.mark.parametrize(("model", "layers"), [("DeepSeek-V3.2", 61), ("GLM-5", 78)])
def test_sparse_mla_and_its_indexer_keep_the_models_dtype(
    dtype: str, model: str, layers: int
) -> None:
    """1,152 bytes of latent and rope, and 256 of the indexer's key."""
    found = _plan(model, "910C", kv_cache_dtype=dtype).kv_cache
    assert found.bytes_per_token == layers * (1152 + 256)


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e4m3", "fp8_ds_mla"])
def test_no_other_cache_of_sparse_mla_is_planned(dtype: str) -> None:
    """vllm-ascend would set it back to the model's dtype, without a word."""
    words = ["--model", "DeepSeek-V3.2", "--dp", "16", "--ep", "--hardware", "910C"]
    code, message = complaint("plan", *words, "--kv-cache-dtype", dtype)
    assert code == 2
    assert "known are auto, bfloat16, float16" in message


@pytest.mark.parametrize("dtype", ["fp8", "fp8_e4m3"])
@pytest.mark.parametrize("model", ["Qwen3-235B-A22B", "DeepSeek-V3"])
def test_no_fp8_cache_of_heads_or_dense_mla_is_planned(model: str, dtype: str) -> None:
    """Source: vllm-ascend 182b75e, attention/attention_v1.py and mla_v1.py: they only store it."""
    words = ["--model", model, "--dp", "16", "--ep", "--kv-cache-dtype", dtype, "--hardware"]
    code, message = complaint("plan", *words, "910C")
    assert code == 2
    assert f"--kv-cache-dtype '{dtype}'" in message
    assert "known are auto, bfloat16, float16" in message
    there = plan_model(
        model, layout=Layout(dp=16, ep=True), hardware="H200", kv_cache_dtype=dtype
    ).kv_cache
    wide = _plan(model, "910C").kv_cache
    assert wide.bytes_per_token == 2 * there.bytes_per_token


@pytest.mark.parametrize(
    ("model", "hardware", "rows"),
    [
        ("Kimi-K2.5", "910C", True),
        ("DeepSeek-V3.2", "H200", False),
        ("Qwen3-235B-A22B", "910C", False),
    ],
)
def test_quantised_weights_are_to_stay_rows(model: str, hardware: str, rows: bool) -> None:
    """The plugin refuses tiles, which vllm-ascend makes of quantised weights by default."""
    launch = _plan(model, hardware).launch
    assert launch is not None
    told = json.loads(shlex.split(launch)[-1])
    assert told.get("weight_nz_mode", "absent") == (0 if rows else "absent")


@pytest.mark.parametrize(
    ("layout", "tokens"), [("tp8", 3_201_465), ("tp8dp2", 3_965_500), ("tp16", 3_999_674)]
)
def test_a_hybrid_is_counted_in_the_pages_of_vllm_ascend(layout: str, tokens: int) -> None:
    """Pages of 256 tokens, or of 128: 12 layers of each group share a rank's room."""
    found = compare_layouts("Qwen3-Next-80B-A3B-Instruct", layout, hardware="910C")
    (held,) = found.layouts
    assert isinstance(held, LayoutCapacity)
    assert held.engine_tokens == tokens
    channels, block = (512, 128) if layout == "tp16" else (1024, 256)
    blocks = held.room_bytes // (12 * (block * 1024 + channels * 3 * 2))
    assert tokens == int(blocks / (262_144 // block + 3 * 2) * 262_144)
    planned = _plan("Qwen3-Next-80B-A3B-Instruct", "910C")
    assert not any("vllm-ascend makes" in note for note in (*found.warnings, *planned.warnings))


def test_a_hybrid_whose_states_vllm_ascend_cannot_align_is_refused(tmp_path: Path) -> None:
    """One head of state a rank, and as many bytes of keys as ever: on 16 ranks it is too small."""
    config = json.loads((CONFIGS / "Qwen--Qwen3-Next-80B-A3B-Instruct.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"linear_num_value_heads": 16}))
    asked = ["--model", str(tmp_path), "--hardware"]
    compare = ["compare", "--layout", "tp8", "--layout", "tp16"]
    for words in (compare, ["plan", "--tp", "16", "--dp", "2"]):
        code, message = complaint(*words, *asked, "910C")
        assert code == 2
        assert "a state of 32,768 bytes on a rank, and 128 tokens have 65,536 bytes" in message
        assert "choose another tensor-parallel size" in message
    assert compare_layouts(str(tmp_path), "tp8", hardware="910C").layouts
    assert compare_layouts(str(tmp_path), "tp16", hardware="H200").layouts
