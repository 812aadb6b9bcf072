"""Two GPUs of a node that share: the planner plans the pull that the plugin chooses there.

Each group is judged by its own ranks. Elsewhere a broadcast is planned, as the plugin does.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_layershard.estimate import profile
from vllm_layershard.estimate.nodes import Spread
from vllm_layershard.estimate.pull import pull_seconds
from vllm_layershard.estimate.transfer import Transfer, gpus_reach
from vllm_layershard.models import Operation
from vllm_layershard.planner.layout import Layout
from vllm_layershard.planner.plan import plan_model

MODEL = "DeepSeek-V3"
SAID = "reach each other's memory over a link faster than PCIe"


@pytest.mark.parametrize(
    ("device", "layout", "movement"),
    [
        ("H200", Layout(dp=2, ep=True), "pull"),
        ("H200", Layout(dp=2, pp=4, ep=True), "pull"),
        ("H200", Layout(dp=2, pp=8, ep=True), "broadcast"),  # two nodes
        ("H200", Layout(dp=3, ep=True), "broadcast"),
        ("GB200", Layout(dp=2, pp=2, ep=True), "pull"),
        ("GB200", Layout(dp=2, pp=4, ep=True), "broadcast"),  # one fast link, two nodes
        ("RTX-PRO-6000", Layout(dp=2, ep=True), "broadcast"),  # PCIe
        ("L40S", Layout(dp=2, ep=True), "broadcast"),
        ("MI300X", Layout(dp=2, ep=True), "broadcast"),  # no CUDA
        ("910B2", Layout(dp=2, ep=True), "broadcast"),
    ],
)
def test_two_gpus_of_a_node_with_a_fast_link_are_planned_to_pull(device, layout, movement):
    found = plan_model(MODEL, ["o_proj"], layout, hardware=device)
    assert found.sharding.movement == movement
    assert any(SAID in said for said in found.forecast.assumptions) == (movement == "pull")
    asked = plan_model(MODEL, ["o_proj"], layout, hardware=device, transport="broadcast")
    assert asked.sharding.movement == "broadcast"


def test_a_pair_has_the_times_and_the_contention_of_a_pull():
    layout = Layout(dp=2, ep=True)
    found, pulled, broadcast = (
        plan_model(MODEL, ["o_proj"], layout, hardware="H200", **options)
        for options in ({}, {"transport": "pull"}, {"transport": "broadcast"})
    )
    assert found.prefetch.phases == pulled.prefetch.phases != broadcast.prefetch.phases
    assert found.forecast.contention == (0.0, 0.0) != broadcast.forecast.contention
    assert [group.digest for group in found.groups] == [group.digest for group in broadcast.groups]
    assert found.memory.shared_memory_bytes is None, "on a CPU it would broadcast"
    assert pulled.memory.shared_memory_bytes


def test_each_group_is_judged_by_its_own_ranks():
    """Split linears lie on pairs, whole ones on all four ranks."""
    layout = Layout(tp=2, dp=2, ep=True)
    names = ["o_proj", "fused_qkv_a_proj"]
    found = plan_model(MODEL, names, layout, hardware="H200")
    groups = found.planned.groups
    assert {(g.plan.group_size, g.transport_name) for g in groups} == {
        (2, "pull"),
        (4, "broadcast"),
    }
    assert found.sharding.movement == "broadcast and pull"
    device = profile("H200")
    transfer = Transfer(found.planned, device)
    pair = next(group for group in groups if group.plan.group_size == 2)
    nbytes = pair.plan.series[0].series.layer_bytes
    spread = Spread(ranks=2, domains=1, in_a_domain=2)
    alone = pull_seconds(nbytes, spread, device, striped=False)
    assert transfer.seconds(nbytes, pair) == alone
    assert transfer.contention == device.contention, "a broadcast takes cores"
    split = plan_model(MODEL, ["o_proj"], layout, hardware="H200")
    assert split.sharding.movement == "pull", "no group of four shares anything"
    whole = plan_model(MODEL, ["fused_qkv_a_proj"], layout, hardware="H200")
    assert whole.sharding.movement == "broadcast"


def test_beside_both_ways_compute_is_slowed_by_whichever_takes_more():
    """Products as beside a broadcast, memory traffic no less than beside each way alone."""
    both, pulled, broadcast = (
        Transfer(
            plan_model(MODEL, names, Layout(tp=2, dp=2, ep=True), hardware="H200").planned,
            profile("H200"),
        ).roofline()
        for names in (["o_proj", "fused_qkv_a_proj"], ["o_proj"], ["fused_qkv_a_proj"])
    )
    products = Operation("", 1e12, 1e6, "bf16")
    assert both.slowdown(products) == broadcast.slowdown(products) > pulled.slowdown(products) == 0
    memory = Operation("", 1e6, 1e9, "bf16")
    assert pulled.slowdown(memory) > broadcast.slowdown(memory) > 0
    assert both.slowdown(memory) == pytest.approx(pulled.slowdown(memory))


def test_a_device_of_which_no_link_is_stated_is_not_taken_to_reach():
    assert gpus_reach(profile("H200"), 2)
    assert not gpus_reach(replace(profile("H200"), intra_node=None), 2)
    assert not gpus_reach(replace(profile("H200"), compute_capability=None), 2)
