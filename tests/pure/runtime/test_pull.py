"""The time of a pull: its sources, its starts, its traffic, and what has no estimate."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_layershard.config import LayerShardConfig
from vllm_layershard.errors import PlanError
from vllm_layershard.estimate import Abstention, Estimate, forecast, profile, profile_names
from vllm_layershard.estimate.auto_layers import choose
from vllm_layershard.estimate.figure import Figure
from vllm_layershard.estimate.hardware import Hardware
from vllm_layershard.estimate.nodes import Spread, widest
from vllm_layershard.estimate.pull import pull_basis, pull_seconds, pull_traffic
from vllm_layershard.estimate.roofline import Roofline
from vllm_layershard.models import Deployment, Operation, Sharding, read_model, shard_model
from vllm_layershard.plan import ParallelLayout

MIB = 1 << 20
"""How long an example takes says how busy the machine is."""


def figure(value: float) -> Figure:
    return Figure(value, "assumed", "test")


PLAIN = Hardware(
    name="plain",
    memory_bandwidth=figure(1000),
    bf16=figure(1000),
    intra_node=figure(100),
    compute_efficiency=figure(1),
    memory_efficiency=figure(1),
    link_efficiency=figure(1),
    copy_launch=figure(0),
)
"""A link of 100 bytes per second, a memory of 1,000, and copies that cost nothing to start."""


def ranks(count: int) -> Spread:
    return widest([range(count)], 64)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_an_owner_is_the_one_source_of_all_and_stripes_come_from_each(count: int) -> None:
    """S = 800: (K - 1) S / B from one owner; (K - 1) / K S / B from all, and the own part."""
    whole = pull_seconds(800, ranks(count), PLAIN, striped=False)
    parts = pull_seconds(800, ranks(count), PLAIN, striped=True)
    assert whole == pytest.approx((count - 1) * 8)
    own = 2 * 800 / count / 1000
    assert parts == pytest.approx((count - 1) / count * 8 + own)
    assert whole / (parts - own) == pytest.approx(count), "K times as long"


def test_over_a_full_mesh_a_rank_has_one_peers_link_at_a_time() -> None:
    mesh = replace(PLAIN, topology="mesh", node_size=figure(5))
    assert pull_seconds(800, ranks(4), mesh, striped=False) == pytest.approx(800 / 25)
    own = 2 * 200 / 1000
    assert pull_seconds(800, ranks(4), mesh, striped=True) == pytest.approx(3 * 200 / 25 + own)
    one = replace(PLAIN, peer_link=figure(20))
    assert pull_seconds(800, ranks(2), one, striped=False) == pytest.approx(800 / 20)


def test_a_copy_takes_its_start_at_least() -> None:
    """Four slices of 50 bytes from each of three peers take half a second each, or their start.

    The own part of 200 bytes takes 0.4 seconds, or four starts.
    """
    for start, copy, own in ((0.05, 0.5, 0.4), (2.0, 2.0, 8.0)):
        device = replace(PLAIN, copy_launch=figure(start))
        sliced = pull_seconds(800, ranks(4), device, striped=True, slice_bytes=50)
        assert sliced == pytest.approx(start + 3 * 4 * copy + own)
        coarse = pull_seconds(800, ranks(4), device, striped=True)
        assert coarse == pytest.approx(start + 3 * 2.0 + max(start, 0.4))
        whole = pull_seconds(800, ranks(4), device, striped=False, slice_bytes=50)
        assert whole == pytest.approx(start + 16 * max(start, 1.5)), "at a third of the rate"
        assert pull_seconds(
            800, ranks(4), device, striped=True, slice_bytes=10**9
        ) == pytest.approx(coarse)
    assert pull_seconds(
        0, ranks(4), PLAIN, striped=True
    ) == pull_seconds(8, ranks(1), PLAIN, striped=True) == 0.0  # fmt: skip


def test_no_pull_is_faster_than_a_collective_over_the_same_wires() -> None:
    """Eight L40S share their PCIe: 1.2 GB/s was measured, whatever the link's rate says."""
    card = profile("L40S")
    for striped in (True, False):
        seconds = pull_seconds(512 * MIB, ranks(8), card, striped=striped)
        assert seconds > 7 / 8 * 512 * MIB / 1.2e9


@given(
    st.sampled_from(profile_names()),
    st.integers(1, 1 << 32),
    st.integers(1, 1 << 32),
    st.integers(2, 8),
    st.booleans(),
    st.sampled_from([0, MIB, 64 * MIB]),
)
def test_a_pull_of_more_bytes_takes_longer(
    name: str, small: int, more: int, count: int, striped: bool, slice_bytes: int
) -> None:
    device = profile(name)

    def seconds(nbytes: int) -> float:
        return pull_seconds(nbytes, ranks(count), device, striped=striped, slice_bytes=slice_bytes)

    assert 0 < seconds(small) <= seconds(small + more) * (1 + 1e-9)


@given(st.sampled_from(profile_names()), st.integers(MIB, 1 << 30), st.integers(3, 8))
def test_striping_is_never_much_slower_than_one_source(name: str, nbytes: int, count: int) -> None:
    """Beyond the starts and the copy of the own part, which it has more of."""
    device = profile(name)
    starts = (count + 1) * device.copy_launch.value
    assert device.memory_bandwidth is not None
    memory = device.memory_bandwidth.value * device.memory_efficiency.value
    striped = pull_seconds(nbytes, ranks(count), device, striped=True)
    whole = pull_seconds(nbytes, ranks(count), device, striped=False)
    assert striped <= whole + starts + 2 * nbytes / count / memory


def test_a_pull_takes_memory_and_no_cores() -> None:
    """Twice 100 of 1,000 bytes per second are gone; products keep their pace."""
    assert [pull_traffic(ranks(n), striped=True) for n in (2, 8)] == [2, 2]
    assert [pull_traffic(ranks(n), striped=False) for n in (2, 3, 8)] == [2, 2, 7]
    beside = Roofline(replace(PLAIN, memory_slowdown=figure(9)), pull_traffic=200)
    assert beside.slowdown(Operation("", 1, 100, "bf16")) == pytest.approx(0.25), (
        "not a broadcast's"
    )
    assert beside.slowdown(Operation("", 100, 1, "bf16")) == 0.0
    broadcast = Roofline(PLAIN, broadcast_rate=100)
    assert broadcast.slowdown(Operation("", 100, 1, "bf16")) == pytest.approx(0.35)


def test_what_is_said_of_it() -> None:
    basis, said = pull_basis(ranks(8), profile("H20"), striped=True)
    assert basis == "assumed"
    assert said == (
        "pull of a stripe from each of 7 peers in turn, at 0.7 of the link within a node, 6 us a "
        "copy at least"
    )
    assert "an owner that 7 ranks read at once" in pull_basis(ranks(8), PLAIN, striped=False)[1]


def sharding(
    model: str = "DeepSeek-V3", layout: ParallelLayout | None = None, **options: object
) -> Sharding:
    config = LayerShardConfig(layers=("o_proj",), **options)  # type: ignore[arg-type]
    return shard_model(read_model(model), Deployment(layout or ParallelLayout(dp=8)), config)


def test_the_forecast_of_a_pull_knows_it() -> None:
    device = profile("H200")
    striped = forecast(sharding(placement="striped"), device)
    layer = pull_seconds(117_440_512, widest([range(8)], 8), device, striped=True)
    for phase in striped.phases:
        assert phase.asked.forward.fetch == pytest.approx(61 * layer)
    assert striped.movement_basis == "assumed"
    said = " ".join(striped.assumptions)
    assert "pull of a stripe from each of 7 peers" in said
    assert "products keep their pace" in said
    assert "broadcast" not in said
    one_source = forecast(sharding(transport="pull"), device)
    for whole, parts in zip(one_source.phases, striped.phases, strict=True):
        assert 5 < whole.asked.forward.fetch / parts.asked.forward.fetch < 8
    assert striped.break_even_tokens is not None
    assert one_source.break_even_tokens is not None
    assert striped.break_even_tokens < one_source.break_even_tokens


def test_slices_cost_launches() -> None:
    device = profile("H200")
    fine, coarse = (
        forecast(sharding(placement="striped", slice_bytes=n), device).phases[0].asked.forward
        for n in (256 << 10, 0)
    )
    assert fine.fetch > coarse.fetch


@pytest.mark.parametrize("dp", [2, 3, 4])
def test_a_replica_pulls_only_what_it_does_not_own(dp: int) -> None:
    """64 layers: the replica that owns fewest pulls all others; ranks in lockstep wait for all."""
    device = profile("H200")
    found = sharding("Qwen3-32B", ParallelLayout(dp=dp))
    (series,) = found.groups[0].plan.series
    layer = pull_seconds(series.series.layer_bytes, widest([range(dp)], 8), device, striped=False)
    for phase in forecast(found, device).phases:
        assert phase.asked.forward.fetch == pytest.approx((64 - 64 // dp) * layer)
        moved = [span for span in phase.asked.forward.spans if span.track == "link"]
        assert len(moved) == 64 - 64 // dp
        assert moved[0].layer_id == 0, "it waits for the first"
    together = forecast(sharding("Qwen3-32B", ParallelLayout(pcp=dp), transport="pull"), device)
    assert together.phases[0].asked.forward.fetch == pytest.approx(64 * layer)


def test_nothing_is_estimated_without_the_links_rate() -> None:
    """A table of broadcasts, which calibrate writes, says nothing of copies between devices."""
    device = replace(profile("H200"), intra_node=None)
    assert device.lacking(ranks(8)) == ()
    said = forecast(sharding(placement="striped"), device)
    assert said.lacking == ("link within a node",)
    assert said.verdict.startswith("no estimate: H200 lacks link within a node")
    assert isinstance(said, Abstention)


@pytest.mark.parametrize(
    ("found", "device", "where", "instead"),
    [
        (sharding(layout=ParallelLayout(dp=16), transport="pull"), "H200", "16 ranks that pull "
         "from each other lie on 2 nodes of 8 H200", "use transport 'broadcast'"),
        (sharding(layout=ParallelLayout(dp=16), placement="striped"), "H200", "2 nodes of 8",
         "use placement 'round_robin', which ranks in lockstep broadcast"),
        (sharding("Qwen3-32B", ParallelLayout(dp=2, tp=8)), "A100", "2 ranks that pull from each "
         "other lie on 2 nodes", "a node holds no two data-parallel replicas here: leave"),
        (sharding("Qwen3-32B", ParallelLayout(dp=16)), "A100", "16 ranks that pull from each "
         "other lie on 2 nodes", "launch a server on each node"),
        (sharding(placement="striped"), "GB200", "8 ranks that pull from each other lie on 2 "
         "nodes of 4 GB200", "use placement 'round_robin'"),
    ],
)  # fmt: skip
def test_ranks_on_several_hosts_cannot_pull(
    found: Sharding, device: str, where: str, instead: str
) -> None:
    with pytest.raises(PlanError) as error:
        forecast(found, profile(device))
    assert str(error.value).startswith("layer_sharding: ")
    assert where in str(error.value)
    assert "a rank reads the memory of its own node only" in str(error.value)
    assert instead in str(error.value)


ACROSS = ParallelLayout(pcp=8, pp=2)
"""Those that share are on one node of eight; the deployment is on two."""


@pytest.mark.parametrize(
    ("options", "instead"),
    [
        ({"transport": "pull"}, "use transport 'broadcast'"),
        ({"placement": "striped"}, "use placement 'round_robin', which ranks in lockstep"),
        (
            {"placement": "striped", "transport": "pull"},
            "use placement 'round_robin' and transport 'broadcast', which ranks in lockstep",
        ),
        ({"placement": "replicated", "transport": "pull"}, "use transport 'broadcast'"),
    ],
)
def test_a_deployment_of_several_nodes_cannot_pull_though_each_group_is_on_one(
    options: dict[str, Any], instead: str
) -> None:
    """As its server: tests/vllm/hooks/test_settings.py."""
    found = sharding("Qwen3-32B", ACROSS, **options)
    assert all(len({rank // 8 for rank in ranks}) == 1 for g in found.groups for ranks in g.ranks)
    with pytest.raises(PlanError) as error:
        forecast(found, profile("H200"))
    assert str(error.value).startswith(
        "layer_sharding: its 16 ranks lie on 2 nodes of 8 H200, and a server whose ranks pull has "
        "all of them on one node, wherever those that share are; "
    )
    assert instead in str(error.value)


def test_a_deployment_of_several_nodes_broadcasts_within_each() -> None:
    assert isinstance(forecast(sharding("Qwen3-32B", ACROSS), profile("H200")), Estimate)


def test_a_file_may_say_what_a_pull_needs(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    given = {"base": "H20", "peer_link": 25e9, "host_size": 4, "copy_launch": 0}
    path.write_text(json.dumps(given))
    device = profile(str(path))
    seconds = pull_seconds(1 << 30, ranks(4), device, striped=False)
    assert seconds == pytest.approx((1 << 30) / (0.7 * 25e9))
    with pytest.raises(PlanError, match="lie on 2 nodes of 4 mine"):
        forecast(sharding(placement="striped"), device)
    assert forecast(sharding(layout=ParallelLayout(dp=4), placement="striped"), device).phases
    path.write_text(json.dumps({"base": "GB200", "host_size": None, "node_size": 8}))
    assert forecast(sharding(placement="striped"), profile(str(path))).phases[0].asked.forward


def test_auto_finds_more_to_hide_among_stripes() -> None:
    def chosen(placement: str, transport: str) -> int:
        template = LayerShardConfig(
            layers=("o_proj",),
            placement=placement,  # type: ignore[arg-type]
            transport=transport,  # type: ignore[arg-type]
        )
        deployment = Deployment(ParallelLayout(dp=8), True)
        model, device = read_model("DeepSeek-V3"), profile("H200")
        return min(choose(model, deployment, device, template, ("prefill",)).saved_bytes)

    assert chosen("striped", "auto") > chosen("round_robin", "pull")
