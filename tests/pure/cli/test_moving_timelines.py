"""Timelines of forwards that move activations: collectives, and no movement of a weight."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from console import document, layershard, said
from vllm_layershard import Layout, plan_model
from vllm_layershard.planner.results.timelines import timelines_of

LAYERS = 61
PLAN = ["plan", "--model", "DeepSeek-V3", "--dp", "8", "--ep", "--layers", "o_proj"]
AUTO = ["--hardware", "RTX-PRO-6000", "--move", "auto"]
"""A prefill of 8,192 tokens a rank moves weights there, a decode of 64 activations."""


def _events(tmp_path: Path, *flags: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Of the prefill and of the decode."""
    path = tmp_path / "trace.json"
    said(*PLAN, *flags, "--trace", str(path))
    events = json.loads(path.read_text())["traceEvents"]
    prefill, decode = ([event for event in events if event["pid"] == pid] for pid in (0, 1))
    return prefill, decode


def _of(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("cat") == kind]


def _end(events: list[dict[str, Any]]) -> float:
    return max(event["ts"] + event["dur"] for event in events if event["ph"] == "X")


@pytest.mark.parametrize("placement", ["round_robin", "striped"])
def test_a_trace_shows_what_each_phase_moves(placement: str, tmp_path: Path) -> None:
    flags = [*AUTO, "--placement", placement]
    prefill, decode = _events(tmp_path, *flags)
    moved = document(*PLAN, *flags, "--json")["move"]["phases"]
    assert [phase["moves"] for phase in moved] == ["weights", "activations"]
    assert len(_of(prefill, "link")) == LAYERS
    assert not [event for kind in ("there", "product", "back") for event in _of(prefill, kind)]
    assert _end(prefill) == pytest.approx(moved[0]["compute_us"] + moved[0]["weights_us"], rel=1e-6)
    assert not _of(decode, "link")
    parts = list(zip(*(_of(decode, kind) for kind in ("there", "product", "back")), strict=True))
    assert [there["args"]["layer"] for there, _, _ in parts] == list(range(LAYERS))
    for there, product, back in parts:
        for event, key in ((there, "there_us"), (product, "product_us"), (back, "back_us")):
            assert event["dur"] == pytest.approx(moved[1][key], abs=0.1)
        assert product["ts"] == pytest.approx(there["ts"] + there["dur"], abs=0.002)
        assert back["ts"] == pytest.approx(product["ts"] + product["dur"], abs=0.002)
    assert len(_of(decode, "stall")) == 2 * LAYERS
    longer = moved[1]["compute_us"] + moved[1]["activations_us"]
    assert _end(decode) == pytest.approx(longer, rel=1e-6)


@pytest.mark.parametrize(
    ("placement", "names"),
    [
        (
            "round_robin",
            (
                "gathers all tokens of self_attn.o_proj on its owner",
                "self_attn.o_proj on its owner, for all ranks",
                "sends the results of self_attn.o_proj back",
            ),
        ),
        (
            "striped",
            (
                "gathers all tokens of self_attn.o_proj",
                "each rank's rows of self_attn.o_proj, for all ranks",
                "sends the results of self_attn.o_proj back",
            ),
        ),
    ],
)
def test_trace_and_page_say_who_computes(
    placement: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    flags = [*AUTO, "--placement", placement]
    _, decode = _events(tmp_path, *flags)
    for kind, name in zip(("there", "product", "back"), names, strict=True):
        first = _of(decode, kind)[0]
        assert first["name"] == f"layer 0: {name}"
        assert first["tid"] == (0 if kind == "product" else 1)
    named = [event["args"]["name"] for event in decode if event["name"] == "process_name"]
    assert named == ["decode, 64 tokens a rank, activations move"]
    path = tmp_path / "plan.html"
    said(*PLAN, *flags, "--html", str(path))
    of_decode = unescape(path.read_text()).partition("<h3>decode")[2]
    for name in names:
        assert of_decode.count(f": {name}, ") == LAYERS
    assert "moves self_attn.o_proj" not in of_decode


def test_the_page_has_the_times_of_what_each_phase_moves(tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    said(*PLAN, *AUTO, "--html", str(path))
    _, decode = document(*PLAN, *AUTO, "--json")["move"]["phases"]
    collectives = LAYERS * (decode["there_us"] + decode["back_us"])
    titles = re.findall("<h3>(.*?)</h3>", path.read_text())
    assert titles[0].startswith("prefill, 8,192 tokens a rank: compute ")
    assert re.fullmatch(r"prefill, .* movement [\d.,]+ ms, exposed [\d.]+ ms", titles[0])
    told = re.fullmatch(
        r"decode, 64 tokens a rank: activations move, compute ([\d.]+) ms, "
        r"collectives ([\d.]+) ms, longer by ([\d.]+) ms",
        titles[1],
    )
    assert told is not None
    us = (decode["compute_us"], collectives, decode["activations_us"])
    assert [float(ms) * 1e3 for ms in told.groups()] == pytest.approx(us, abs=15)
    assert "a ring is as this plan moves" in path.read_text()


def test_the_drawing_has_collectives_on_the_link() -> None:
    shown = said(*PLAN, *AUTO, "--timeline")
    prefill, decode = re.findall(r"^(?:prefill|decode), 6 layers to scale \(.*\)$", shown, re.M)
    assert prefill.endswith(" movement)")
    assert decode.endswith(" collectives of activations)")
    drawn = shown.partition(decode)[2].splitlines()
    compute, link = drawn[2], drawn[3]
    assert compute.startswith("compute ")
    assert link.startswith("link ")
    waits = [mark in "\N{LIGHT SHADE}." for mark in compute[9:]]
    moves = [mark in "\N{BOX DRAWINGS HEAVY HORIZONTAL}\N{BOX DRAWINGS LIGHT HORIZONTAL}=-"
             for mark in link[9:].ljust(len(compute) - 9)]  # fmt: skip
    assert any(waits)
    assert all(moving for waiting, moving in zip(waits, moves, strict=True) if waiting)


@pytest.mark.parametrize(
    ("model", "layout"),
    [
        ("DeepSeek-V3", Layout(dp=8, ep=True)),
        ("DeepSeek-V3", Layout(dp=4, pp=2, ep=True)),
        ("DeepSeek-V3", Layout(dp=4, pp=3, ep=True)),
        ("Qwen3-235B-A22B", Layout(dp=8, ep=True)),
        ("DeepSeek-V2-Lite", Layout(tp=2, dp=2)),
    ],
)
def test_a_timeline_is_as_long_as_the_judge_says(model: str, layout: Layout) -> None:
    """Of the default linears: several series, one of which may be of other layers."""
    result = plan_model(model, layout=layout, hardware="H200", move="activations", traced=True)
    assert result.move is not None
    timelines = timelines_of(result.planned, result.forecast)
    for timeline, told in zip(timelines, result.move.phases, strict=True):
        forward = timeline.forward
        assert forward is not None
        assert timeline.moves == "activations"
        assert forward.exposed * 1e6 == pytest.approx(told.activations_us, abs=0.1)
        assert forward.compute * 1e6 == pytest.approx(told.activations_compute_us, abs=0.1)
        last = forward.spans[-1]
        assert last.start_s + last.seconds == pytest.approx(forward.total)
        assert sum(span.track in ("there", "back") for span in forward.spans) == told.collectives


@pytest.fixture(name="lacking")
def _lacking(tmp_path: Path) -> str:
    """A device whose broadcasts were measured, as `calibrate` does, and whose link is not known."""
    path = tmp_path / "device.json"
    table = {"ranks": 8, "sizes": [2**20, 2**27], "seconds": [1e-4, 1e-3]}
    figures = {"memory_bytes": 150e9, "memory_bandwidth": 4e12, "bf16": 9e14, "low_bit": 1.9e15}
    path.write_text(json.dumps({"name": "timed", **figures, "broadcast": [table]}))
    return str(path)


def test_what_is_not_estimated_is_not_drawn(lacking: str, tmp_path: Path) -> None:
    trace, page = tmp_path / "trace.json", tmp_path / "page.html"
    flags = ["--hardware", lacking, "--move", "auto", "--move-weights-from", "100"]
    shown = said(*PLAN, *flags, "--trace", str(trace), "--html", str(page))
    assert f"note: {trace} has no decode: how long its activations move is not estimated" in shown
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["pid"] for event in events} == {0}
    heading = "decode, 64 tokens a rank: activations move, how long is not estimated"
    assert f"<h3>{heading}</h3>" in page.read_text()
    always = ["--hardware", lacking, "--move", "activations"]
    trace.unlink()
    shown = said(*PLAN, *always, "--trace", str(trace))
    assert f"note: {trace} was not written: nothing is estimated" in shown
    assert not trace.exists()


def test_a_check_of_what_is_not_estimated_fails_by_name(lacking: str) -> None:
    flags = ["--hardware", lacking, "--move", "activations", "--check"]
    ended = layershard(*PLAN, *flags, "--hide-in", "decode")
    assert ended.code == 1
    assert ended.stderr == "check failed: decode is not estimated\n"
