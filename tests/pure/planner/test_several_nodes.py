"""A plan of several nodes names what each of them launches.

That vLLM reads the commands so is shown in tests/vllm/truth/launch.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from console import document, said

V3 = ("plan", "--model", "DeepSeek-V3", "--ep", "--hardware", "H200")


def test_each_node_has_a_command_in_the_json_and_a_line_in_the_table() -> None:
    flags = (*V3, "--dp", "20", "--layers", "o_proj")
    plan = document(*flags)
    first, second, third = plan["launches"]
    assert plan["launch"] == first
    assert "--data-parallel-size-local 8 --data-parallel-address ADDRESS" in first
    assert "headless" not in first
    assert second == f"{first} --headless --data-parallel-start-rank 8"
    assert third == (
        f"{first} --headless --data-parallel-start-rank 16 --data-parallel-size-local 4"
    )
    (note,) = [text for text in plan["warnings"] if "ADDRESS" in text]
    assert note.startswith("the plan takes 3 nodes of 8 H200, and vllm serve runs on each")
    assert said(*flags).splitlines()[-5:] == [
        "Launch, on the first of 3 nodes:",
        first,
        "On the others the same command, followed by what stands here:",
        f"  node 2: ...{second.removeprefix(first)}",
        f"  node 3: ...{third.removeprefix(first)}",
    ]


def test_an_engine_over_several_nodes_is_launched_by_their_number() -> None:
    first, *others = document(*V3, "--tp", "16", "--dp", "2")["launches"]
    assert "--data-parallel-size 2 --nnodes 4 --master-addr ADDRESS" in first
    assert [line.removeprefix(first) for line in others] == [
        f" --node-rank {node} --headless" for node in (1, 2, 3)
    ]


def test_one_node_launches_as_ever() -> None:
    plan = document(*V3, "--dp", "8")
    assert plan["launches"] == [plan["launch"]]
    assert not any(word in plan["launch"] for word in ("local", "nnodes", "ADDRESS"))
    assert not any("ADDRESS" in text for text in plan["warnings"])


@pytest.mark.parametrize(
    ("hardware", "flags", "nodes"),
    # A fast link of 72 devices joins nodes of four; it is on nodes that a server is launched.
    [
        ("GB200", "--dp 8", 2),
        ("GB200", "--dp 72", 18),
        ("B200", "--dp 64", 8),
        ("B300", "--dp 8", 1),
    ],
)
def test_a_node_is_what_has_one_operating_system(hardware: str, flags: str, nodes: int) -> None:
    words = ("plan", "--model", "DeepSeek-V3", "--ep", "--hardware", hardware, *flags.split())
    plan = document(*words)
    assert plan["launch"] is not None or plan["memory"]["fits"] is False
    assert len(plan["launches"]) == nodes
    if nodes > 16:
        lines = said(*words).splitlines()
        assert lines[-2:] == [
            "  ... (--json has all of them)",
            f"  node {nodes}: ... --headless --data-parallel-start-rank {4 * (nodes - 1)}",
        ]


def test_what_vllm_cannot_place_so_is_said() -> None:
    (uneven,) = [
        text for text in document(*V3, "--dp", "5", "--pp", "3")["warnings"] if "places" in text
    ]
    assert uneven == (
        "vLLM places 6 ranks on a node, since an engine has 3; the times count with 8 on each"
    )
    dense = ("plan", "--model", "Qwen3-32B", "--layers", "o_proj", "--token-exchange", "o_proj")
    plan = document(*dense, "--tp", "16", "--dp", "2", "--hardware", "H200")
    assert "--data-parallel" not in plan["launch"]
    assert len(plan["launches"]) == 2
    (apart,) = [text for text in plan["warnings"] if "of its own" in text]
    assert "launch each of the 2 engines as a server of its own" in apart


def test_the_page_has_what_every_node_launches(tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    plan = document(*V3, "--dp", "16", "--html", str(page))
    text = page.read_text()
    assert "On the first of 2 nodes" in text
    assert "node 2: ... --headless --data-parallel-start-rank 8" in text
    assert json.dumps(plan["launch"]).count("ADDRESS") == text.count("--data-parallel-address")
