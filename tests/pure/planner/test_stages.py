"""Of several pipeline stages one limits the cache, and a plan's figures are those of its ranks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from console import said
from vllm_layershard import Layout, compare_layouts, plan_model
from vllm_layershard.models import layer_caches
from vllm_layershard.planner.hardware import load_hardware
from vllm_layershard.planner.results.compare_result import LayoutCapacity
from vllm_layershard.planner.results.plan_result import PlanResult

CASES = [
    ("DeepSeek-V3.2", Layout(dp=8, pp=2, ep=True), "H200"),
    ("DeepSeek-V3.2", Layout(dp=8, pp=4, ep=True), "H200"),
    ("DeepSeek-V3", Layout(dp=8, pp=4, ep=True), "H200"),
    ("DeepSeek-V2-Lite", Layout(dp=4, pp=2, ep=True), "A100"),
    ("Qwen3-235B-A22B", Layout(dp=8, pp=4, ep=True), "H200"),
    ("GLM-4.7", Layout(dp=8, pp=2, ep=True), "B200"),
    ("Kimi-K2-Instruct", Layout(dp=16, pp=2, ep=True), "H200"),
    ("Meta-Llama-3.1-70B", Layout(dp=2, pp=4), "H200"),
    ("Qwen3-32B", Layout(tp=2, dp=2, pp=2), "H200"),
    ("gpt-oss-120b", Layout(dp=4, pp=2, ep=True), "H200"),
    ("gpt-oss-120b", Layout(dp=4, pp=4, ep=True), "H200"),
    ("Qwen3-Next-80B-A3B-Instruct", Layout(dp=4, pp=4, ep=True), "H200"),
    ("Qwen3.5-397B-A17B", Layout(dp=8, pp=2, ep=True), "H200"),
]


def in_sequences(result: PlanResult) -> bool:
    """Whether its cache is counted so, and not by the bytes of a token."""
    model, deployment = result.planned.model, result.planned.deployment
    caches = layer_caches(model, "auto", range(model.num_layers), deployment)
    return caches.in_sequences(model.blueprint.longest)


def compared(result: PlanResult, layout: Layout) -> tuple[LayoutCapacity, LayoutCapacity]:
    """The same layout without sharding and with it, as a comparison counts them."""
    tp, ep = (f"tp{layout.tp}" if layout.tp else ""), ("+ep" if layout.ep else "")
    plain = f"{tp}dp{layout.dp}pp{layout.pp}{ep}"
    device = result.forecast.hardware
    model = result.planned.model.name.rpartition("/")[2]
    names = result.planned.config.layers
    found = compare_layouts(model, [plain, f"{plain}+shard"], layers=names, hardware=device)
    without, sharded = found.layouts
    assert isinstance(without, LayoutCapacity)
    assert isinstance(sharded, LayoutCapacity)
    return without, sharded


@pytest.mark.parametrize(("model", "layout", "device"), CASES)
def test_a_plan_says_what_a_comparison_does(model: str, layout: Layout, device: str) -> None:
    result = plan_model(model, None, layout, hardware=device)
    without, sharded = compared(result, layout)
    assert without.fits
    gained = sharded.engine_tokens - without.engine_tokens
    assert gained == result.kv_cache.tokens_gained
    assert result.room_tokens == sharded.engine_tokens
    assert result.memory.weight_bytes_sharded == sharded.weight_bytes


@pytest.mark.parametrize(("model", "layout", "device"), CASES)
def test_all_figures_are_of_one_stage(model: str, layout: Layout, device: str) -> None:
    result = plan_model(model, None, layout, hardware=device)
    memory, cache, limit = result.memory, result.kv_cache, result.limit
    rank = memory.binding_rank
    stage = result.planned.deployment.layout.stage_of(rank)
    assert cache.bytes_per_token == result.planned.stage_kv_bytes("auto")[stage]
    saved = memory.weight_bytes_replicated - memory.weight_bytes_sharded
    assert saved == memory.saved_bytes[rank]
    assert memory.saved_bytes_min == min(memory.saved_bytes)
    whole = (limit.rank_without == rank) and not in_sequences(result)
    if whole:
        left = saved - memory.communicator_bytes
        model, deployment = result.planned.model, result.planned.deployment
        block = layer_caches(model, "auto", range(model.num_layers), deployment).block
        assert abs(cache.tokens_gained - left / cache.bytes_per_token) <= block


def test_what_is_printed_names_the_stage() -> None:
    """The other stage has fewer bytes a token and more room, and saves less."""
    flags = ["plan", "--model", "DeepSeek-V3.2", "--dp", "8", "--pp", "2", "--ep"]
    shown = said(*flags, "--hardware", "H200")
    assert "GiB on stage 0, which limits the KV cache" in shown
    assert "(3,879,731,200 bytes) there, at least" in shown
    assert "(3,724,541,952 bytes) elsewhere" in shown
    left = 3_879_731_200 - 139 * 2**20  # a communicator between nodes
    assert 0 <= 93_824 - left // (64 * 39_804) * 64 <= 64  # of two counts in whole blocks
    assert "93,824 more tokens, at 39,804 bytes a token" in shown


def test_where_another_stage_limits_without_sharding_it_is_said(tmp_path: Path) -> None:
    """Between 97.4 and 98.2 GB for a rank, stage 1 limits with sharding and stage 0 without."""
    profile = tmp_path / "small.json"
    profile.write_text(json.dumps({"base": "H200", "memory_bytes": 106_300_000_000}))
    layout = Layout(dp=8, pp=2, ep=True)
    result = plan_model("DeepSeek-V3.2", None, layout, hardware=str(profile))
    stages = [result.planned.deployment.layout.stage_of(rank) for rank in result.limit[:2]]
    assert stages == [1, 0]
    without, sharded = compared(result, layout)
    gained = sharded.engine_tokens - without.engine_tokens
    assert result.kv_cache.tokens_gained == gained
    assert result.kv_cache.bytes_per_token == 38_520
    flags = ["plan", "--model", "DeepSeek-V3.2", "--dp", "8", "--pp", "2", "--ep"]
    shown = said(*flags, "--hardware", str(profile))
    assert "on stage 1, which limits the KV cache" in shown
    assert f"{gained:,} more tokens" in shown
    assert "without sharding stage 0 limits the KV cache" in shown


def test_without_a_known_memory_it_is_the_stage_that_gains_least() -> None:
    unknown = replace(load_hardware("H200"), memory_bytes=None)
    layout = Layout(dp=8, pp=2, ep=True)
    result = plan_model("DeepSeek-V3.2", None, layout, hardware=unknown)
    sharding, memory = result.planned, result.memory
    of_stage = sharding.stage_kv_bytes("auto")
    gains = [
        (saved - memory.communicator_bytes)
        // (64 * of_stage[sharding.deployment.layout.stage_of(rank)])
        * 64
        for rank, saved in enumerate(sharding.saved_bytes)
    ]
    assert result.kv_cache.tokens_gained == min(gains) == gains[memory.binding_rank]


@pytest.mark.parametrize(("stages", "pcp"), [(2, 1), (4, 1), (2, 2)])
def test_the_cache_is_asked_for_the_decodes_of_all_stages(stages: int, pcp: int) -> None:
    """A decode of so many sequences is in flight for each stage, on each rank of a context."""

    def notes(batch: int) -> list[str]:
        layout = Layout(dp=8 // pcp, pp=stages, pcp=pcp, ep=True)
        result = plan_model("DeepSeek-V3", ["o_proj"], layout, hardware="H200", batch=batch)
        return [text for text in result.warnings if text.startswith("decodes of ")]

    (note,) = notes(4096)
    room = int(note.rpartition(" ")[2].replace(",", ""))
    fits = room // (4096 * stages * pcp)
    assert notes(fits) == []
    engine = f"{(fits + 1) * stages * pcp:,} sequences an engine after 4,096 tokens each ask for"
    assert notes(fits + 1)[0].startswith(f"decodes of {engine}")
