"""Stripes are offered where they do better, with their figures, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from console import document, said
from vllm_layershard.estimate import Estimate, profile
from vllm_layershard.estimate.forwards.overlap import Forward
from vllm_layershard.planner import paying
from vllm_layershard.planner.layout import Layout
from vllm_layershard.planner.paying import costs_less
from vllm_layershard.planner.plan import plan_model

V3 = "DeepSeek-V3"
SHORT, LONG = 50, 100
"""Seconds that two pipeline stages compute."""
NODE = Layout(dp=8, ep=True)


def planned(model: str, layout: Layout, device: Any, **options: Any):
    return plan_model(model, options.pop("layers", None), layout, hardware=device, **options)


OFFERED = {
    "hides at fewer tokens, and decode costs less": (V3, NODE, "H200", {}),
    "whole layers are pulled": (V3, NODE, "H200", {"transport": "pull"}),
    "replicas of a dense model": ("Qwen3-32B", Layout(dp=8), "H200", {}),
    "over PCIe": ("Qwen3-235B-A22B", NODE, "RTX-PRO-6000", {}),
    "a pair": ("DeepSeek-V2-Lite", Layout(dp=2, ep=True), "H200", {}),
    "tokens exchanged": (
        V3,
        Layout(tp=8, ep=True),
        "H200",
        {"layers": "o_proj", "token_exchange": ("o_proj",), "tokens": 32768},
    ),
}


@pytest.mark.parametrize("case", OFFERED)
def test_stripes_are_offered_with_the_figures_of_their_own_plan(case):
    model, layout, device, options = OFFERED[case]
    found = planned(model, layout, device, **options)
    striped = planned(model, layout, device, **options, placement="striped")
    assert found.sharding.placement == "round_robin"
    assert "striped" not in found.launch, "the plan stays as it was asked for"
    assert found.offer is not None
    assert found.offer.planned.groups == striped.planned.groups
    one, other = found.offer, striped.forecast
    assert isinstance(other, Estimate)
    assert one.forwards == {phase.name: phase.asked.forward for phase in other.phases}
    assert all(phase.least is None for phase in other.phases), "a pull has no range"
    assert one.hidden_from == other.thresholds.hidden_most
    whole = found.forecast
    fewest, least = other.thresholds.hidden_most, whole.thresholds.hidden_least
    costs_less = [
        s.asked.forward.exposed < w.with_least.exposed and not w.hidden
        for s, w in zip(other.phases, whole.phases, strict=True)
    ]
    assert any(costs_less) or (fewest is not None and (least is None or fewest < least))
    part = f"; with placement striped a prefill hides from {fewest:,} tokens a rank, "
    assert part in whole.verdict
    assert striped.offer is None
    assert "with placement striped" not in other.verdict


NOT_OFFERED = {
    "stripes do no better: one link at a time over a mesh": (V3, NODE, "MI300X", {}),
    "stripes do worse": ("Meta-Llama-3.1-70B", Layout(dp=2), "H200", {}),
    "several nodes": (V3, Layout(dp=16, ep=True), "H200", {}),
    "groups of one node, a deployment of two": ("Qwen3-32B", Layout(tp=8, pp=2), "H200", {}),
    "a broadcast is asked for": (V3, NODE, "H200", {"transport": "broadcast"}),
    "nothing moves": (V3, NODE, "H200", {"placement": "replicated"}),
    "striped already": (V3, NODE, "H200", {"placement": "striped"}),
    "activations may move": (V3, NODE, "H200", {"move": "auto"}),
    "activations move": (V3, NODE, "H200", {"move": "activations"}),
    "it does not fit": (V3, Layout(dp=2, ep=True), "H200", {}),
}


@pytest.mark.parametrize("case", NOT_OFFERED)
def test_stripes_are_not_offered_where_they_do_no_better_or_would_be_refused(case):
    model, layout, device, options = NOT_OFFERED[case]
    if case.startswith("groups of one node"):
        options = {"layers": ["o_proj"], "token_exchange": ("o_proj",)}
    found = planned(model, layout, device, **options)
    assert found.offer is None
    assert "with placement striped" not in found.forecast.verdict


def test_nothing_is_offered_without_an_estimate():
    device = replace(profile("H200"), memory_bandwidth=None)
    found = planned(V3, NODE, device)
    assert found.forecast.lacking
    assert found.offer is None


def test_an_offer_that_costs_more_in_decode_says_but():
    """Over the links of a mesh a rank reads one peer at a time."""
    found = planned("DeepSeek-V2-Lite", NODE, "910B2")
    assert found.offer is not None
    whole, striped = found.forecast.phases[1], found.offer.forwards["decode"]
    assert striped.exposed > whole.asked.forward.exposed
    assert ", but decode at batch 64 would slow by " in found.forecast.verdict


def test_the_table_shows_the_offer_ahead_of_the_launch_and_the_json_its_verdict_only():
    flags = ("--model", V3, "--dp", "8", "--ep", "--hardware", "H200")
    text = said("plan", *flags, COLUMNS="400")
    *_, offered, heading, launch = text.splitlines()
    assert (heading, launch[:11]) == ("Launch:", "vllm serve "), "the plan's own is the last line"
    assert "striped" not in launch
    assert offered == (
        "Offered: --placement striped, saved per rank at least 7.43 GiB (7,972,847,616 bytes), "
        "exposed in prefill 0.62 ms (0.09%), in decode 4.84 ms (12%)"
    )
    asked = said("plan", *flags, "--placement", "striped", COLUMNS="400")
    for part in ("at least 7.43 GiB (7,972,847,616 bytes)", "0.62 ms (0.09%)", "4.84 ms (12%)"):
        assert part in asked
    assert "Offered" not in asked
    told = document("plan", *flags)
    assert "striped" not in told["launch"]
    assert told["launches"] == [told["launch"]]
    assert "with placement striped" in told["prefetch"]["verdict"]


@pytest.mark.parametrize(
    ("exposed", "less"),
    [
        (((0, 5, 5), (4, 1, 1)), False),  # the largest is less, of the other stage
        (((1, 5, 5), (5, 5, 5)), True),  # the largest is as large, of the other stage
        (((4.4, 5, 5), (5, 5, 5)), True),  # 1 % of the stage's own compute, not of the longer one's
        (((0.4, 0.3, 5), (5, 5, 5)), True),  # it hides, whatever the contention
        (((1, 0.3, 5), (1, 5, 5)), False),  # with the least contention whole layers lose less
    ],
)
def test_stripes_are_compared_with_whole_layers_of_the_same_stage(exposed, less):
    stages = [
        tuple(Forward(compute, 0, each, 0) for each in stage)
        for compute, stage in zip((SHORT, LONG), exposed, strict=True)
    ]
    assert costs_less(stages) is less


@pytest.mark.parametrize("pp", [1, 2])
def test_the_stages_that_are_compared_are_those_of_both_plans(monkeypatch, pp):
    seen = []
    monkeypatch.setattr(paying, "costs_less", seen.append)
    found = planned(V3, Layout(dp=8 // pp, pp=pp, ep=True), "MI300X")
    shown = [phase for phase in found.forecast.phases if not phase.hidden]
    assert [len(stages) for stages in seen] == [pp] * len(shown) != []
    for stages, phase in zip(seen, shown, strict=True):
        _, least, most = zip(*stages, strict=True)
        assert max(one.exposed for one in most) == phase.asked.forward.exposed
        assert max(one.exposed for one in least) == phase.with_least.exposed
        assert len({forward.compute for forward in stages[0]}) == 1
