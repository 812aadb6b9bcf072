"""What is gathered where activations move is taken from the cache, in each figure that has one."""

from __future__ import annotations

from typing import Any

import pytest

from console import said
from vllm_layershard import Layout, compare_layouts, plan_model
from vllm_layershard.estimate.moved.gathered import gathered_bytes
from vllm_layershard.estimate.moved.linears import moved_linears
from vllm_layershard.estimate.taken import taken_by
from vllm_layershard.planner.results.compare_result import LayoutCapacity
from vllm_layershard.planner.results.plan_result import PlanResult

EIGHT = Layout(dp=8, ep=True)
O_PROJ = 2 * (16384 + 7168)
"""Bytes of a token of o_proj, and of its results."""


def _plan(layers: str | list[str] = "o_proj", **options: Any) -> PlanResult:
    return plan_model("DeepSeek-V3", layers, EIGHT, **({"hardware": "H200"} | options))


@pytest.mark.parametrize("tokens", [1024, 8192, 65536])
def test_the_room_for_the_cache_has_as_much_less(tokens: int) -> None:
    moved, plain = (_plan(move=move, tokens=tokens) for move in ("activations", "weights"))
    gathered = 8 * tokens * O_PROJ
    assert moved.memory.gathered_bytes == gathered
    assert plain.memory.gathered_bytes == 0
    assert moved.move is not None
    assert moved.move.gathered_bytes == gathered
    assert moved.room_tokens is not None
    assert plain.room_tokens is not None
    # NCCL's communicator for tokens has no figure, that for weights keeps 96 MiB
    fewer = gathered - plain.memory.communicator_bytes
    block, each = 16, moved.kv_cache.bytes_per_token
    assert plain.room_tokens - moved.room_tokens == pytest.approx(fewer / each, abs=block)
    gained = moved.kv_cache.tokens_gained - plain.kv_cache.tokens_gained
    assert gained == moved.room_tokens - plain.room_tokens
    full = moved.move.sharded_decode
    assert full is not None
    assert full.sequences == moved.room_tokens // 4096


def test_what_gathers_more_than_it_saves_is_not_to_be_enabled() -> None:
    result = _plan(move="activations", tokens=65536)
    net = result.memory.saved_bytes_min - result.memory.gathered_bytes
    assert net < 0
    assert result.forecast.verdict.startswith(
        f"do not enable it: a rank saves nothing ({net:,} bytes, its gathered activations counted);"
    )
    assert f"a rank saves {net:,} bytes" in result.failures([])
    assert result.kv_cache.tokens_gained < 0


def test_what_leaves_no_room_does_not_fit_and_has_no_launch_line() -> None:
    """The weights alone fit, and so does half a forward."""
    half, plain = _plan(move="activations", tokens=65536), _plan(tokens=131072)
    for fitting in (half, plain):
        assert fitting.memory.fits
        assert fitting.launch is not None
    result = _plan(move="activations", tokens=131072)
    assert result.memory.fits is False
    assert result.memory.gathered_bytes == 46 * 2**30 == 8 * 131072 * O_PROJ
    assert result.room_tokens == 0
    assert result.launch is None
    assert "with 46.0 GiB of gathered activations) exceed" in result.forecast.verdict
    assert "it does not fit" in result.failures([])
    assert result.move is not None
    assert result.move.sharded_decode is None
    assert "tokens a second" not in result.move.verdict


def test_a_rank_of_rows_gathers_all_tokens_twice() -> None:
    found = _plan(["o_proj", "q_b_proj"], move="activations", placement="striped")
    assert found.memory.gathered_bytes == 2 * 8 * 8192 * 16384 * 2


def test_below_a_threshold_only_its_own_forwards_gather() -> None:
    result = _plan(move="auto", move_weights_from=101)
    assert result.memory.gathered_bytes == 8 * 100 * O_PROJ


def test_a_rank_that_owns_no_layer_gathers_nothing() -> None:
    """Three layers have a dense MLP."""
    found = _plan("mlp.gate_up_proj", move="activations", prefetch_step=0)
    each = gathered_bytes(found.planned, moved_linears(found.planned, found.forecast.hardware))
    assert each[:3] == (8 * 8192 * 2 * (7168 + 2 * 18432),) * 3
    assert each[3:] == (0,) * 5


def test_dense_mlps_in_parts_gather_on_each_rank_of_a_stage_that_has_some() -> None:
    """All of the three lie on the first of two stages."""
    layout = Layout(dp=4, pp=2, ep=True)
    found = plan_model("DeepSeek-V3", "o_proj", layout, hardware="H200", ffn_tp=4, tokens=16384)
    each = taken_by(found.planned, found.forecast.hardware).gathered
    stage_of = found.planned.deployment.layout.stage_of
    mlp = 2 * 4 * 16384 * 7168 * 2
    assert each == tuple(0 if stage_of(rank) else mlp for rank in range(8))
    assert found.memory.gathered_bytes == mlp


def test_of_linears_and_mlps_the_larger_gathers() -> None:
    """One is gone before the next."""
    found = _plan(move="activations", ffn_tp=8)
    assert found.memory.gathered_bytes == 8 * 8192 * O_PROJ > 2 * 8 * 8192 * 7168 * 2
    below = _plan(move="auto", move_weights_from=65, ffn_tp=8)
    assert below.memory.gathered_bytes == 2 * 8 * 8192 * 7168 * 2


def test_mlps_that_gather_more_than_is_saved_are_in_the_verdict_and_the_check() -> None:
    result = _plan(ffn_tp=8, tokens=65536)
    net = result.memory.saved_bytes_min - 2 * 8 * 65536 * 7168 * 2 - 96 * 2**20
    assert net < 0
    assert f"a rank saves nothing ({net:,} bytes, its private communicators and gathered " in (
        result.forecast.verdict
    )
    assert f"a rank saves {net:,} bytes" in result.failures([])
    full = _plan(ffn_tp=8, tokens=1 << 19)
    assert full.memory.fits is False
    assert full.launch is None


@pytest.mark.parametrize("hardware", ["H200", "RTX-PRO-6000", "MI300X"])
@pytest.mark.parametrize("layers", ["o_proj", ["o_proj", "q_b_proj"]])
def test_a_comparison_has_the_room_of_the_plan(hardware: str, layers: Any) -> None:
    plan = _plan(layers, hardware=hardware, move="activations")
    options: dict[str, Any] = {"layers": layers, "hardware": hardware, "move": "activations"}
    (row,) = compare_layouts("DeepSeek-V3", "dp8+ep+shard", **options).layouts
    assert isinstance(row, LayoutCapacity)
    assert row.engine_tokens == plan.room_tokens
    assert row.fits == plan.memory.fits


def test_the_text_says_from_what_it_is_taken_and_what_is_not_counted() -> None:
    command = "--model DeepSeek-V3 --hardware H200 --layers o_proj --move activations"
    gathered = "gathered at most 2.88 GiB a rank beside its own activations, taken from the room "
    plan = " ".join(said("plan", *command.split(), "--dp", "8", "--ep").split())
    assert f"{gathered}for the cache; vLLM's own peak is not counted" in plan
    compared = said("compare", *command.split(), "--layout", "dp8+ep+shard")
    assert "what they gather is taken from the room for KV" in compared
    assert "its own activations, graphs and the driver's share are not counted" in compared
