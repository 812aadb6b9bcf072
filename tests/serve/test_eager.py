"""Eager servers on two data-parallel ranks: as transformers, then as each other to the bit."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from servers.answers import ask, compare
from servers.plan import planned_series
from servers.server import Server

pytestmark = pytest.mark.serve

FOUR = ["o_proj", "q_b_proj", "shared_experts.down_proj", "mlp.gate_up_proj"]


def reports(directory: Path) -> list[dict]:
    """Both ranks' reports, written after the last forward: they follow it within a second."""
    deadline = time.monotonic() + 30
    while True:
        files = [directory / f"layershard-rank{rank}.json" for rank in (0, 1)]
        found = [json.loads(file.read_text()) for file in files]
        series = [s for report in found for s in report["series"]]
        at_rest = all(s["waits"] == s["forwards"] * len(s["layer_ids"]) > 0 for s in series)
        if at_rest or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def check_reports(directory: Path, model: Path, layers: list[str], prefetch_step: int) -> None:
    """Bytes measured by each rank equal, to the byte, those that the planner says."""
    planned = planned_series(model, layers, prefetch_step)
    for rank, report in enumerate(reports(directory)):
        assert [s["name"] for s in report["series"]] == layers
        for series in report["series"]:
            plan = planned[series["name"]]
            assert series["group_ranks"] == [0, 1]
            assert series["layer_ids"] == plan["layer_ids"]
            assert series["replicated_bytes"] == plan["replicated_bytes"]
            assert series["resident_bytes"] == plan["resident_bytes"][rank]
            assert series["slot_bytes"] == plan["slot_bytes"]
            owned = [i for i, owner in zip(plan["layer_ids"], plan["owner"], strict=True)
                     if owner == rank]  # fmt: skip
            assert series["owned_layers"] == owned
            assert series["forwards"] > 0
            moved = series["forwards"] * len(plan["layer_ids"])
            assert series["launches"] == series["waits"] == moved


def test_the_unsharded_server_says_what_transformers_says(plain_eager, reference):
    assert [answer.token_ids for answer in plain_eager] == reference


TWO = ["o_proj", "q_b_proj"]


def asking(layers: list[str], prefetch_step: int, directory: Path) -> dict:
    return {
        "layers": layers,
        "prefetch_step": prefetch_step,
        "report_dir": str(directory / "reports"),
        "verify": True,
    }


@pytest.mark.parametrize("prefetch_step", [0, 3])
def test_four_names(model, prompts, plain_eager, tmp_path, prefetch_step):
    with Server(model, tmp_path / "log", sharding=asking(FOUR, prefetch_step, tmp_path)) as server:
        difference = compare(ask(server, prompts), plain_eager)
        check_reports(tmp_path / "reports", model, FOUR, prefetch_step)
    assert difference.same_tokens == difference.of == 32
    assert difference.identical_logprobs


def test_two_names_and_that_the_bytes_really_travel(model, prompts, plain_eager, tmp_path):
    """One server: first as it is, then with its slots poisoned and an owner's weight changed."""
    few = prompts[:8]
    probe = {"PYTHONPATH": str(Path(__file__).parents[1]), "VLLM_SERVER_DEV_MODE": "1"}
    with Server(
        model,
        tmp_path / "log",
        sharding=asking(TWO, 1, tmp_path),
        arguments=("--worker-extension-cls", "servers.probe.Probe"),
        environment=probe,
    ) as server:
        difference = compare(ask(server, prompts), plain_eager)
        check_reports(tmp_path / "reports", model, TWO, 1)
        assert difference.same_tokens == difference.of == 32
        assert difference.identical_logprobs

        before = ask(server, few, rank=1)
        addresses = server.post("/collective_rpc", {"method": "addresses"})

        poisoned = server.post("/collective_rpc", {"method": "poison_slots"})
        assert poisoned["results"] == ["2"]  # vLLM runs it on all ranks and shows the first's
        assert ask(server, few, rank=1) == before

        changed = server.post("/collective_rpc", {"method": "negate_owned", "args": [0, 4]})
        assert changed["results"] == [["o_proj", "q_b_proj"]]
        assert ask(server, few, rank=1) != before, "rank 0's new weight did not reach rank 1"

        server.post("/collective_rpc", {"method": "negate_owned", "args": [0, 4]})
        assert ask(server, few, rank=1) == before
        assert server.post("/collective_rpc", {"method": "addresses"}) == addresses
    assert [answer.token_ids for answer in before] == [a.token_ids for a in plain_eager[:8]]
