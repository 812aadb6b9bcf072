"""Activations that move to a weight: bytes, times, the threshold, and what decodes gain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from hosted.tiny import CONFIG, write_config
from vllm_layershard import Layout, load_hardware, plan_model
from vllm_layershard.errors import PlanError
from vllm_layershard.estimate.activations.clock import Clock
from vllm_layershard.estimate.activations.judge import judge
from vllm_layershard.estimate.exchange.collectives import (
    all_gather_seconds,
    all_to_all_seconds,
    rooted_seconds,
)
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.forwards.batches import decode
from vllm_layershard.estimate.moved.bytes_moved import BytesMoved
from vllm_layershard.estimate.moved.linears import moved_linears
from vllm_layershard.estimate.nodes import widest
from vllm_layershard.planner.results.plan_result import PlanResult

MIB = 1 << 20
O_PROJ = (16384, 7168, 7168 * 16384)
Q_B_PROJ = (1536, 24576, 24576 * 1536)
"""DeepSeek-V3's: columns, rows, bytes of the weight in fp8."""


@pytest.mark.parametrize(
    ("linear", "ranks", "by_input", "by_output", "owner"),
    [
        (O_PROJ, 4, 1303, 808, 831),
        (O_PROJ, 8, 796, 425, 356),
        (O_PROJ, 16, 448, 218, 166),
        (O_PROJ, 32, 239, 110, 80),
        (Q_B_PROJ, 4, 189, 614, None),
        (Q_B_PROJ, 8, 95, 512, None),
        (Q_B_PROJ, 16, 48, 384, None),
        (Q_B_PROJ, 32, 24, 256, None),
    ],
)
def test_the_tokens_at_which_both_move_as_many_bytes(
    linear: tuple[int, int, int], ranks: int, by_input: int, by_output: int, owner: int | None
) -> None:
    """The published design's table gives the last number below, or the nearest one."""
    inner, rows, weight = linear
    moved = BytesMoved(ranks, inner, rows, element=2, weight=weight)
    assert abs(moved.equal_input_tokens - by_input) <= 1
    assert abs(moved.equal_output_tokens - by_output) <= 1
    assert owner is None or abs(moved.equal_owner_tokens - owner) <= 1
    for tokens, by, whole in (
        (moved.equal_owner_tokens, moved.owner_computes, weight),
        (moved.equal_output_tokens, moved.by_output, moved.weights_striped()),
        (moved.equal_input_tokens, moved.by_input, moved.weights_striped()),
    ):
        assert by(tokens) >= whole > by(tokens - 1)


def test_equal_bytes_of_an_input_in_parts_lie_between_796_and_797_tokens() -> None:
    """The published design rounds, and the planner says from where on it is at least as much."""
    moved = BytesMoved(8, *O_PROJ[:2], element=2, weight=O_PROJ[2])
    assert moved.equal_input_tokens == 797
    assert moved.by_input(796) == 102_703_104
    assert moved.weights_striped() == 102_760_448


def test_a_decode_of_32_moves_a_tenth_of_the_weight() -> None:
    moved = BytesMoved(8, *O_PROJ[:2], element=2, weight=O_PROJ[2])
    assert moved.by_output(32) == pytest.approx(7.74e6, rel=0.001)
    assert moved.owner_computes(32) == pytest.approx(10.55e6, rel=0.001)


def _plan(hardware: str = "H200") -> PlanResult:
    layout = Layout(dp=8, ep=True)
    return plan_model("DeepSeek-V3", ["o_proj"], layout, hardware=hardware)


def test_all_of_it_passes_the_owners_own_link() -> None:
    """Seven ranks' parts one after the other behind a switch, side by side over a full mesh."""
    nbytes = 64 * MIB
    switched = replace(load_hardware("H200"), bus=())
    assert switched.intra_node is not None
    link = switched.intra_node.value * switched.link_efficiency.value
    alpha = switched.latency.value + 8 * switched.latency_per_rank.value
    seconds = rooted_seconds(nbytes, widest([range(8)], 8), switched)
    assert seconds == pytest.approx(alpha + 7 * nbytes / link)

    mesh = load_hardware("910B2")
    alpha = mesh.latency.value + 4 * mesh.latency_per_rank.value
    seconds = rooted_seconds(nbytes, widest([range(4)], 8), mesh)
    assert seconds == pytest.approx(alpha + nbytes / (28e9 * mesh.link_efficiency.value))


def test_from_other_nodes_it_comes_by_the_owners_own_nics() -> None:
    slower = Figure(5e9, "assumed", "test")
    hardware = replace(load_hardware("H200"), inter_node=slower)
    alpha = hardware.latency.value + 16 * hardware.latency_per_rank.value
    seconds = rooted_seconds(MIB, widest([range(16)], 8), hardware)
    assert seconds == pytest.approx(alpha + 8 * MIB / (5e9 * hardware.nic_efficiency.value))


def test_times_of_one_layer_are_the_sum_of_its_parts() -> None:
    result = _plan()
    device = result.forecast.hardware
    (one,) = moved_linears(result.planned, device)
    clock = Clock(result.planned, device, (one,))
    tokens, spread = 2048, widest([range(8)], 8)
    linear = clock.linear(one, tokens)
    assert linear.there == rooted_seconds(tokens * 16384 * 2, spread, device)
    assert linear.back == rooted_seconds(tokens * 7168 * 2, spread, device)
    assert device.low_bit is not None
    least = 2 * 8 * tokens * 16384 * 7168 / device.low_bit.value
    assert linear.product == pytest.approx(least / device.compute_efficiency.value)
    assert linear.longer == linear.there + linear.product + linear.back - linear.own
    assert clock.longer(tokens) == pytest.approx(61 * linear.longer)


def _striped(hardware: str = "H200", layers: str = "o_proj") -> PlanResult:
    return plan_model(
        "DeepSeek-V3",
        [layers],
        Layout(dp=8, ep=True),
        hardware=hardware,
        placement="striped",
        move="auto",
    )


def test_a_rank_of_rows_gathers_all_tokens_and_reads_its_part_of_the_weight() -> None:
    """A decode's product takes as long as its reads, a prefill's as its multiplications."""
    result = _striped()
    device = result.forecast.hardware
    (one,) = moved_linears(result.planned, device)
    assert one.by_rows
    assert one.largest_part == 1 / 8
    clock, spread = Clock(result.planned, device, (one,)), widest([range(8)], 8)
    for tokens in (16, 2048):
        linear = clock.linear(one, tokens)
        assert linear.there == all_gather_seconds(8 * tokens * 16384 * 2, spread, device)
        assert linear.back == all_to_all_seconds(tokens * 7168 * 2, spread, device)
    assert linear.product == pytest.approx(linear.own)
    assert device.memory_bandwidth is not None
    few = clock.linear(one, 16).product
    read = 7168 * 16384 / 8 + 2 * 8 * 16 * (7168 / 8 + 16384)
    rate = device.memory_bandwidth.value * device.memory_efficiency.value
    assert few == pytest.approx(read / rate)
    assert one.gathered_bytes(16) == 2 * 16 * 2 * 8 * 16384  # where ranks have other numbers


def test_the_rank_of_most_rows_is_waited_for() -> None:
    """2,112 rows are sixteen blocks and a half one: the last rank has two and a half."""
    result = _striped(layers="fused_qkv_a_proj")
    (one,) = moved_linears(result.planned, result.forecast.hardware)
    assert one.largest_part == 320 / 2112
    assert one.gathered_bytes(1) == 2 * 2 * 8 * 7168


def test_results_may_take_more_memory_than_tokens_that_come_twice() -> None:
    """q_b_proj of DeepSeek-V3 over eight ranks."""
    moved = BytesMoved(8, *Q_B_PROJ[:2], element=2, weight=Q_B_PROJ[2])
    assert moved.gathered_by_output(1, 1 / 8) == 2 * (8 * (1536 + 3072) + 24576)


def test_json_has_the_keys_that_owners_have_and_says_who_computes() -> None:
    owners = plan_model("DeepSeek-V3", ["o_proj"], Layout(dp=8, ep=True), move="auto").move
    rows = _striped().move
    assert owners is not None
    assert rows is not None
    assert rows._fields == owners._fields
    assert "owner computes" in owners.assumptions[0]
    assert "every rank computes its rows" in rows.assumptions[0]
    assert rows.move_weights_from == rows.break_even_tokens


def test_a_linear_without_rows_of_its_own_is_refused_as_the_server_refuses_it(
    tmp_path: Path,
) -> None:
    """fp8 with one scale for the whole weight."""
    quantised = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    model = write_config(tmp_path / "model", CONFIG | {"quantization_config": quantised})
    with pytest.raises(PlanError, match=r"weight_scale: float32\) no rank can compute some rows"):
        plan_model(str(model), ["o_proj"], Layout(dp=2), placement="striped", move="activations")


@pytest.mark.parametrize("plan", ["owners", "rows"])
@pytest.mark.parametrize("hardware", ["H200", "MI300X", "RTX PRO 6000"])
def test_the_threshold_parts_what_is_quicker(hardware: str, plan: str) -> None:
    result = _plan(hardware) if plan == "owners" else _striped(hardware)
    batches = result.forecast.batches
    found = judge(result.planned, result.forecast.hardware, batches, "auto")
    threshold = found.move_weights_from
    assert threshold is not None
    clock = Clock(result.planned, result.forecast.hardware, found.linears)
    for tokens in (threshold, threshold + 1, 2 * threshold):
        both = clock.both(decode(tokens, 4096, 0))
        assert both.weights <= both.activations
    for tokens in {1, threshold // 2, threshold - 1} - {0, threshold}:
        both = clock.both(decode(tokens, 4096, 0))
        assert both.activations < both.weights


def test_what_decodes_gain_is_told_by_tokens_a_second() -> None:
    """Of as many sequences as the cache has room for, before and after."""
    result = _plan()
    found = judge(result.planned, result.forecast.hardware, result.forecast.batches, "auto")
    assert found.alone is not None
    assert found.shared is not None
    assert found.shared.sequences == (result.room_tokens or 0) // 4096
    assert found.alone.sequences < found.shared.sequences
    gain = found.shared.rate / found.alone.rate - 1
    assert f"{abs(gain):.1%} {'more' if gain >= 0 else 'fewer'} tokens a second" in found.verdict


def test_a_device_that_lacks_a_number_gets_no_estimate() -> None:
    result = _plan()
    device = replace(load_hardware("H200"), bus=(), intra_node=None, broadcast=())
    found = judge(result.planned, device, result.forecast.batches, "auto")
    assert found.lacking
    assert found.verdict.startswith("no estimate: H200 lacks ")
    assert not found.phases
    assert found.move_weights_from is None
