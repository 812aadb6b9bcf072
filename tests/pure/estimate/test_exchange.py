"""An exchange of tokens beside the all-reduce that it replaces: bytes, times and the verdict."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exchange_table
from console import complaint, document, layershard, said
from vllm_layershard import Layout, load_hardware, plan_model
from vllm_layershard.estimate.exchange.collectives import (
    all_gather_seconds,
    all_reduce_seconds,
    all_to_all_seconds,
    lacking,
)
from vllm_layershard.estimate.exchange.traffic import Traffic
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.nodes import widest

GIB, MIB = 1 << 30, 1 << 20
WEIGHT = 7168 * 16384
"""Bytes of o_proj of DeepSeek-V3 in fp8."""
DEEPSEEK = ["--model", "DeepSeek-V3", "--layers", "o_proj", "--token-exchange", "o_proj"]

PUBLISHED = {
    "DeepSeek-V3": ("2.29", "1.07 0.79 0.64 0.57", "1.14 0.57 0.29 0.14"),
    "Kimi-K2-Instruct": ("1.14", "0.79 0.64 0.57 0.54", "0.57 0.29 0.14 0.07"),
    "Qwen3-235B-A22B": ("2.00", "1.00 0.75 0.63 0.56", "1.00 0.50 0.25 0.13"),
    "Meta-Llama-3.1-70B": ("1.00", "0.75 0.63 0.56 0.53", "0.50 0.25 0.13 0.06"),
    "GLM-4.7": ("2.40", "1.10 0.80 0.65 0.58", "1.20 0.60 0.30 0.15"),
}
"""D / H, and (D / T + H) / 2H and D / TH over 2, 4, 8 and 16 ranks, by hand."""


def rounded(value: float) -> str:
    """To two digits, half up."""
    return str(Decimal(str(value)).quantize(Decimal("0.01"), ROUND_HALF_UP))


@pytest.mark.parametrize("model", PUBLISHED)
def test_the_ratios_of_bytes_are_those_written_out(model: str) -> None:
    wider, ratios, scattered = PUBLISHED[model]
    found = [exchange_table.exchange(model, tp).linears for tp in (2, 4, 8, 16)]
    linears = [one for (one,) in found]
    assert " ".join(rounded(one.bytes_ratio) for one in linears) == ratios
    assert " ".join(rounded(one.sequence_parallel_ratio) for one in linears) == scattered
    assert {f"{one.input_width / one.output_width:.2f}" for one in linears} == {wider}
    for one, tp in zip(linears, (2, 4, 8, 16), strict=True):
        assert (one.bytes_ratio < 1) == (tp >= one.least_tp) == (tp > float(wider))


def test_the_pages_table_is_the_planners() -> None:
    """`PYTHONPATH=tests/support python -m exchange_table` writes it anew."""
    assert exchange_table.table() in exchange_table.PAGE.read_text()


@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 64), st.integers(1, 64), st.integers(1, 99))
def test_a_rank_sends_what_every_other_one_wants(
    ranks: int, heads: int, width: int, tokens: int
) -> None:
    """Chunk by chunk, as the collectives send them, with the padding of the last rows."""
    traffic = Traffic(ranks, heads * ranks, width, element=2)
    rows = traffic.rows(tokens)
    assert rows * ranks - ranks < tokens <= rows * ranks
    others = range(1, ranks)
    assert traffic.exchanged(tokens) == sum(rows * heads * 2 for _ in others)
    assert traffic.gathered(tokens) == sum(rows * width * 2 for _ in others)
    whole = ranks * tokens
    reduced = sum(2 * (whole // ranks) * width * 2 for _ in others)
    assert traffic.reduced(whole) == pytest.approx(reduced)
    sent = traffic.exchanged(whole) + traffic.gathered(whole)
    assert sent / reduced == pytest.approx(traffic.ratio)
    assert traffic.saved_a_token * whole == pytest.approx(reduced - sent, abs=1e-6)
    assert (traffic.ratio < 1) == (ranks >= traffic.least_ranks)


def test_bytes_a_token_written_out() -> None:
    (one,) = exchange_table.exchange("DeepSeek-V3", 8).linears
    assert one.all_reduce_bytes == 2 * 7168 * 2 * 7 / 8
    assert one.exchange_bytes == 2048 * 2 * 7 / 8
    assert one.gather_bytes == 7168 * 2 * 7 / 8
    assert (one.whole_bytes, one.split_bytes) == (WEIGHT, WEIGHT // 8)
    assert one.layer_ids == tuple(range(61))


@pytest.mark.parametrize(("dp", "sharded"), [(1, "1.09"), (2, "0.66"), (4, "0.44")])
def test_memory_of_the_fullest_rank(dp: int, sharded: str) -> None:
    """DeepSeek-V3 in fp8: .83 GiB under plain TP 8, 6.67 whole, and sharded over 8, 16 and 32."""
    found = plan_model("DeepSeek-V3", ["o_proj"], Layout(tp=8, dp=dp), token_exchange="o_proj")
    assert found.exchange is not None
    held = found.exchange.plain_bytes, found.exchange.replicated_bytes, found.exchange.sharded_bytes
    assert held == (61 * WEIGHT // 8, 61 * WEIGHT, (-(-61 // (8 * dp)) + 2) * WEIGHT)
    assert [f"{nbytes / GIB:.2f}" for nbytes in held] == ["0.83", "6.67", sharded]


def test_a_note_tells_what_is_saved_from_what() -> None:
    found = document("map", *DEEPSEEK, "--tp", "8")
    assert (
        "a rank holds at most 1,174,405,120 bytes of o_proj; with plain tensor parallelism it "
        "would hold 895,483,904. What is saved is counted from 7,163,871,232, whole on every rank"
    ) in found["warnings"]
    plain = document("map", "--model", "DeepSeek-V3", "--tp", "8", "--layers", "fused_qkv_a_proj")
    assert not any("whole on every rank" in note for note in plain["warnings"])


def test_stages_are_counted_by_the_fullest() -> None:
    layout = Layout(tp=4, pp=2)
    found = plan_model("Qwen3-32B", ["o_proj"], layout, token_exchange="o_proj", keep_first=True)
    exchange, layer = found.exchange, 5120 * 8192 * 2
    assert exchange is not None
    assert (exchange.plain_bytes, exchange.replicated_bytes) == (8 * layer, 32 * layer)
    owned = max(len(ranks) for one in found.series for ranks in [one.layer_ids]) // 4
    assert exchange.sharded_bytes == (1 + owned + 1 + 2) * layer, "one kept, and two slots"


@pytest.mark.parametrize("options", [{}, {"placement": "striped"}, {"keep_first": True}])
def test_kinds_of_layers_are_told_apart(options: dict[str, object]) -> None:
    """A delta net's output is exchanged as an attention's is: 36 and 12 of 48 layers."""
    names = ["o_proj", "out_proj"]
    layout = Layout(tp=4, ep=True)
    model = "Qwen3-Next-80B-A3B-Instruct"
    found = plan_model(model, names, layout, token_exchange=names, **options)
    assert found.exchange is not None
    kinds = {one.name: one for one in found.exchange.linears}
    assert [len(kinds[name].layer_ids) for name in names] == [12, 36]
    held = found.exchange
    assert held.replicated_bytes == 48 * 2048 * 4096 * 2
    assert held.plain_bytes == held.replicated_bytes // 4
    saved = min(found.memory.saved_bytes)
    assert held.sharded_bytes == held.replicated_bytes - saved
    assert held.wins_from_tokens is not None


def test_tokens_are_counted_beside_plain_tensor_parallelism() -> None:
    """As `compare` counts the two layouts."""
    flags = ["--layout", "tp8+ep", "--layout", "tp8+ep+exchange+shard", "--hardware", "H200"]
    plain, sharded = document("compare", "--model", "DeepSeek-V3", *flags)["layouts"]
    found = document("plan", *DEEPSEEK, "--tp", "8", "--ep", "--hardware", "H200")["exchange"]
    assert found["tokens_gained"] < 0
    assert abs(sharded["tokens"] - plain["tokens"] - found["tokens_gained"]) <= 1


def test_a_ring_takes_the_bus_bandwidth_and_one_latency() -> None:
    hardware, spread = load_hardware("H200"), widest([range(8)], 8)
    rate = hardware.bus[0].bandwidths[1]
    assert hardware.bus[0].sizes[1] == 32 * MIB
    gathered = all_gather_seconds(32 * MIB, spread, hardware)
    assert gathered == pytest.approx(7 / 8 * 32 * MIB / rate)
    assert all_to_all_seconds(32 * MIB, spread, hardware) == pytest.approx(gathered)
    assert all_reduce_seconds(32 * MIB, spread, hardware) == pytest.approx(2 * gathered)
    least = hardware.latency.value + 8 * hardware.latency_per_rank.value
    for seconds in (all_gather_seconds, all_to_all_seconds, all_reduce_seconds):
        assert seconds(1, spread, hardware) == least


def test_over_a_full_mesh_all_pairs_send_at_once() -> None:
    hardware, spread = load_hardware("910B2"), widest([range(4)], 8)
    link = 28e9 * hardware.link_efficiency.value
    alpha = hardware.latency.value + 4 * hardware.latency_per_rank.value
    once = alpha + 64 * MIB / 4 / link
    assert all_to_all_seconds(64 * MIB, spread, hardware) == pytest.approx(once)
    assert all_gather_seconds(64 * MIB, spread, hardware) == pytest.approx(once)
    assert all_reduce_seconds(64 * MIB, spread, hardware) == pytest.approx(2 * once)


def test_between_nodes_an_all_to_all_leaves_by_a_ranks_own_nic() -> None:
    slower = Figure(5e9, "assumed", "test")
    hardware = replace(load_hardware("H200"), inter_node=slower)
    nic, spread = 5e9 * hardware.nic_efficiency.value, widest([range(16)], 8)
    alpha = hardware.latency.value + 16 * hardware.latency_per_rank.value
    nbytes = 256 * MIB
    across = alpha + nbytes * 8 / 16 / nic
    assert all_to_all_seconds(nbytes, spread, hardware) == pytest.approx(across)
    ring = alpha + nbytes * 15 / 16 / (8 * nic)
    assert all_gather_seconds(nbytes, spread, hardware) == pytest.approx(ring)
    one_a_node = widest([(0, 8)], 8)
    alpha = hardware.latency.value + 2 * hardware.latency_per_rank.value
    alone = alpha + nbytes / 2 / nic
    assert all_gather_seconds(nbytes, one_a_node, hardware) == pytest.approx(alone)
    assert all_to_all_seconds(nbytes, one_a_node, hardware) == pytest.approx(alone)


def test_times_of_broadcasts_say_nothing_of_other_collectives() -> None:
    known = load_hardware("H200")
    measured = replace(known, bus=(), intra_node=None)
    spread = widest([range(8)], 8)
    assert lacking(spread, known) == ()
    assert lacking(spread, measured) == ("broadcast time over 8 ranks",)


def test_a_decode_reads_the_whole_weight() -> None:
    """Of DeepSeek-V3 on H100, at .6 of 3.35 TB/s; and a second collective."""
    found = document("plan", *DEEPSEEK, "--tp", "8", "--ep", "--hardware", "H100")["exchange"]
    prefill, decode = found["phases"]
    read = 3.35e12 * 0.6
    rows = 8
    split = (WEIGHT / 8 + 2 * 64 * (2048 + 7168)) / read
    whole = (WEIGHT + 2 * rows * (16384 + 7168)) / read
    assert decode["rows"] == rows
    assert decode["split_product_us"] == round(split * 1e6, 1)
    assert decode["whole_product_us"] == round(whole * 1e6, 1)
    assert decode["whole_collectives_us"] == 2 * decode["split_collectives_us"] == 64.8
    longer = whole - split + 32.4e-6
    assert decode["longer_us"] == round(longer * 1e6, 1) == 83.1
    assert decode["wins"] is False
    plain = document(
        "plan",
        "--model",
        "DeepSeek-V3",
        "--tp=8",
        "--ep",
        "--hardware=H100",
        "--layers",
        "fused_qkv_a_proj",
        "--placement",
        "replicated",
    )
    compute = plain["prefetch"]["phases"][1]["compute_us"]
    assert decode["longer_share"] == pytest.approx(61 * longer * 1e6 / compute, abs=1e-4)
    assert found["pays_in"] == ["prefill"]
    assert prefill["wins"] is True
    assert prefill["rows"] == 1024
    assert prefill["whole_product_us"] == prefill["split_product_us"]
    assert (
        f"whole weights {decode['whole_product_us'] - decode['split_product_us']:+,.1f}"
        in (found["verdict"])
    )


def test_what_moves_is_added_to_what_the_forward_gains() -> None:
    found = document("plan", *DEEPSEEK, "--tp", "8", "--ep", "--hardware", "H200")
    for phase, moved in zip(found["exchange"]["phases"], found["prefetch"]["phases"], strict=True):
        forward = 61 * phase["longer_us"] / phase["longer_share"]
        together = phase["longer_share"] + moved["exposed_us"] / forward
        assert phase["with_movement_share"] == pytest.approx(together, abs=2e-4)


@pytest.mark.parametrize("model", ["DeepSeek-V3", "Qwen3-32B", "Qwen3-Next-80B-A3B-Instruct"])
@pytest.mark.parametrize("hardware", ["H200", "H20", "910B2", "L40S"])
def test_it_wins_from_so_many_tokens_on_and_not_from_one_fewer(model: str, hardware: str) -> None:
    def longer(tokens: int) -> float:
        found = plan_model(
            model, ["o_proj"], Layout(tp=4), hardware=hardware, tokens=tokens,
            token_exchange="o_proj",
        ).exchange  # fmt: skip
        assert found is not None
        return found.phases[0].longer_us

    found = plan_model(
        model, ["o_proj"], Layout(tp=4), hardware=hardware, token_exchange="o_proj"
    ).exchange
    assert found is not None
    least = found.wins_from_tokens
    assert least is not None
    assert longer(least) <= 0 <= longer(least - 1)
    assert longer(4 * least) < 0 < longer(least // 4)


def test_tokens_that_save_as_many_bytes_as_a_weight_has() -> None:
    """Of DeepSeek-V3 over 8 ranks: 117,440,512 / 8,960."""
    found = document("plan", *DEEPSEEK, "--tp", "8", "--ep")["exchange"]
    assert found["unhidden_tokens"] == 13_108
    words = ["--tp", "8", "--ep", "--placement", "replicated"]
    assert document("plan", *DEEPSEEK, *words)["exchange"]["unhidden_tokens"] == 0


def test_too_few_ranks_never_win() -> None:
    words = [*DEEPSEEK, "--tp", "2", "--hardware", "B300"]
    found = document("plan", *words)
    exchange = found["exchange"]
    assert exchange["verdict"] == (
        "never wins: over 2 ranks o_proj sends 1.07 times the bytes of the all-reduce, as its "
        "input is 2.29 times as wide as its output; it takes 3 ranks or more"
    )
    assert exchange["pays_in"] == []
    assert exchange["wins_from_tokens"] is exchange["unhidden_tokens"] is None
    assert any("moves more than it spares: over 2 ranks" in note for note in found["warnings"])
    ended = layershard("plan", *words, "--check", "--tokens", "256K")
    assert ended.code == 1
    assert "prefill loses by the exchange" in ended.stderr
    even = document("map", "--model", "Qwen3-235B-A22B", "--tp", "2", *DEEPSEEK[2:])
    assert any("o_proj sends 1.00 times the bytes" in note for note in even["warnings"])
    enough = document("map", *DEEPSEEK, "--tp", "4")
    assert not any("moves more" in note for note in enough["warnings"])


def test_with_a_latency_that_nothing_outweighs_it_never_wins(tmp_path: Path) -> None:
    (device := tmp_path / "slow.json").write_text(
        json.dumps({"base": "H200", "name": "slow", "latency": 1.0})
    )
    words = [*DEEPSEEK, "--tp", "8", "--ep", "--hardware", str(device)]
    found = document("plan", *words)["exchange"]
    assert found["linears"][0]["bytes_ratio"] < 1
    assert found["wins_from_tokens"] is None
    assert found["verdict"] == (
        "never wins: two collectives and the whole weight take longer than the all-reduce"
    )


def test_a_check_passes_where_the_prefill_gains() -> None:
    words = ["plan", *DEEPSEEK, "--tp", "8", "--ep", "--hardware", "H200", "--check"]
    assert said(*words, "--tokens", "64K")
    assert "decode loses by the exchange" in layershard(*words, "--hide-in", "decode").stderr


def test_a_device_without_the_number_is_named() -> None:
    words = [*DEEPSEEK, "--tp", "16", "--hardware", "MI300X"]
    found = document("plan", *words)["exchange"]
    assert found["phases"] == []
    assert found["lacking"] == ["link between nodes (16 ranks on 2 nodes of 8)"]
    assert found["verdict"].startswith("no estimate: MI300X lacks link between nodes")
    assert (found["linears"][0]["bytes_ratio"], found["wins_from_tokens"]) == (0.5714, None)


def test_the_table_says_all_of_it() -> None:
    shown = said("plan", *DEEPSEEK, "--tp", "8", "--ep", "--hardware", "H200", COLUMNS="300")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "Tokens that 8 tensor-parallel ranks exchange" in lines
    assert (
        "o_proj 61 layers: 16,128 bytes a token in the place of the all-reduce's 25,088 "
        "(0.64 of them)" in lines
    )
    assert "weights a rank 854.00 MiB split, 6.67 GiB whole, 1.09 GiB whole and sharded" in lines
    assert any(line.startswith("exchange wins from 732 tokens a forward") for line in lines)


def test_without_the_flag_there_is_none() -> None:
    assert document("plan", "--model", "DeepSeek-V3")["exchange"] is None
    assert "exchange" not in said("plan", "--model", "DeepSeek-V3")


def test_sizes_of_a_profile_are_figures() -> None:
    """A profile of one's own changes the times: half the latency, half a short collective."""
    half = Figure(4.2e-6, "measured", "test")
    known, spread = load_hardware("H200"), widest([range(2)], 8)
    quick = replace(known, latency=half, latency_per_rank=Figure(1.5e-6, "measured", "test"))
    slow, fast = (all_gather_seconds(1, spread, hardware) for hardware in (known, quick))
    assert fast == pytest.approx(slow / 2)


def test_the_flag_is_refused_where_layers_are_missing() -> None:
    code, message = complaint(
        "plan", "--model", "DeepSeek-V3", "--tp", "8", *DEEPSEEK[4:], "--layers", "q_b_proj"
    )
    assert code == 2
    assert "is not among layers" in message
