"""Dense MLPs in parts over the ranks of a real server, beside the server that has them whole.

A sum of two parts is rounded otherwise than the whole product: tokens are equal, logprobs nearly.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.answers import ask, check_to_rounding
from serving.layout import TWO_RANKS, Layout
from serving.reports import check_reports, reports
from serving.server import Server
from serving.streams import cut_off

pytestmark = [pytest.mark.serve, pytest.mark.timeout(900)]

KEY = "denseffn_tensor_parallel_size"
WHOLE_BYTES = 4 * 3 * 128 * 256 * 2
"""Of the four dense MLPs of the test model in bfloat16."""


def asking(size: int, **beside: Any) -> tuple[str, ...]:
    return ("--additional-config", json.dumps({KEY: size, **beside}))


def check_ffn(directory: Path, layout: Layout, groups: list[list[int]], whole: int) -> None:
    """What every rank holds and saves of its stage's MLPs, and that it computed them."""
    for rank, report in enumerate(reports(directory, layout)):
        ffn, (group,) = report["ffn"], [group for group in groups if rank in group]
        assert ffn["group_ranks"] == group
        assert group[ffn["group_rank"]] == rank
        assert ffn["held_bytes"] == whole // len(group)
        assert ffn["saved_bytes"] == whole - ffn["held_bytes"]
        assert ffn["forwards"] > 0


def test_beside_layer_sharding_with_uneven_loads_and_an_idle_rank(
    model, prompts, plain_eager, reference, tmp_path
):
    """`gate_up_proj` names the dense MLPs, too: only the shared experts' are sharded."""
    sharding = {"layers": ["o_proj", "gate_up_proj"], "report_dir": str(tmp_path / "reports")}
    arguments = asking(2, layer_sharding=sharding)
    with Server(model, tmp_path / "log", arguments=arguments) as server:
        answers = ask(server, prompts)
        assert [answer.token_ids for answer in answers] == reference
        check_to_rounding(answers, plain_eager)
        assert cut_off(server, prompts[:4]) == 4
        alone = ask(server, prompts[:4], rank=1)
        assert [answer.token_ids for answer in alone] == reference[:4]
        check_ffn(tmp_path / "reports", TWO_RANKS, [[0, 1]], WHOLE_BYTES)
        series = [
            s for report in reports(tmp_path / "reports", TWO_RANKS) for s in report["series"]
        ]
        assert {s["name"]: s["layer_ids"] for s in series} == {
            "o_proj": list(range(9)),
            "gate_up_proj": list(range(4, 9)),
        }


@pytest.mark.matrix(part="mlps")
@pytest.mark.parametrize("eager", [False, True])
def test_without_layer_sharding(model, prompts, reference, tmp_path, eager):
    with Server(model, tmp_path / "log", eager=eager, arguments=asking(2)) as server:
        assert [answer.token_ids for answer in ask(server, prompts)] == reference
        alone = ask(server, prompts[:4], rank=1)
        assert [answer.token_ids for answer in alone] == reference[:4]
        log = server.log_text()
    held = f"{WHOLE_BYTES // 2} bytes instead of {WHOLE_BYTES}"
    for part in range(2):
        assert f"Dense MLPs: 4 over 2 ranks: this rank holds part {part}, {held}" in log
    assert "Layer sharding: series" not in log


@pytest.mark.matrix(part="mlps")
@pytest.mark.parametrize(
    ("layout", "eager", "groups", "whole"),
    [
        (Layout(dp=2, tp=2), True, [[0, 2], [1, 3]], WHOLE_BYTES // 2),
        (Layout(dp=4), False, [[0, 1], [2, 3]], WHOLE_BYTES),
        (Layout(dp=2, pp=2), False, [[0, 2], [1, 3]], None),
    ],
    ids=["dp2 tp2", "dp4", "dp2 pp2"],
)
def test_on_four_ranks(model, prompts, reference, tmp_path, layout, eager, groups, whole):
    """Of two pipeline stages the first has all dense layers, and the second none."""
    sharding = {"layers": ["o_proj"], "report_dir": str(tmp_path / "reports")}
    arguments = asking(2, layer_sharding=sharding)
    with Server(model, tmp_path / "log", layout=layout, eager=eager, arguments=arguments) as server:
        assert [answer.token_ids for answer in ask(server, prompts)] == reference
        check_reports(tmp_path / "reports", model, ["o_proj"], layout=layout)
        if whole is not None:
            check_ffn(tmp_path / "reports", layout, groups, whole)
            return
        for rank, report in enumerate(reports(tmp_path / "reports", layout)):
            first = layout.stage_of(rank) == 0
            assert report["ffn"]["held_bytes"] == (WHOLE_BYTES // 2 if first else 0)
            assert len(report["ffn"]["mlps"]) == (4 if first else 0)
