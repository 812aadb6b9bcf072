"""Striped layers and pulls, as the commands show them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from console import complaint, document, said

V3 = ("--model", "DeepSeek-V3", "--dp", "8", "--ep", "--layers", "o_proj")
STRIPED = (*V3, "--placement", "striped")


def planned(*arguments: str) -> dict[str, Any]:
    return document("plan", *arguments)


def test_every_rank_saves_the_same() -> None:
    plan = planned(*STRIPED)
    (series,) = plan["series"]
    assert set(series["owner"]) == {-2}
    part = 117_440_512 // 8
    assert series["stripes"] == [[rank * part, (rank + 1) * part] for rank in range(8)]
    assert series["resident_bytes"] == [61 * part] * 8
    saved = 61 * 117_440_512 - 61 * part - 2 * 117_440_512
    assert series["saved_bytes"] == [saved] * 8
    assert plan["memory"]["saved_bytes_min"] == plan["memory"]["saved_bytes_max"] == saved
    assert saved > planned(*V3)["memory"]["saved_bytes_min"]


@pytest.mark.parametrize(
    ("flags", "transport", "movement"),
    [
        (V3, "auto", "broadcast"),
        ((*V3, "--transport", "broadcast"), "broadcast", "broadcast"),
        ((*V3, "--transport", "pull"), "pull", "pull"),
        (STRIPED, "auto", "pull"),
        ((*V3, "--placement", "replicated"), "auto", None),
        (("--model", "Qwen3-32B", "--dp", "2"), "auto", "pull"),
        (("--model", "Qwen3-32B", "--pcp", "2"), "auto", "pull"),  # two GPUs
        (("--model", "Qwen3-32B", "--pcp", "4"), "auto", "broadcast"),
    ],
)
def test_the_document_says_what_was_asked_for_and_what_comes_of_it(
    flags: tuple[str, ...], transport: str, movement: str | None
) -> None:
    sharding = planned(*flags)["sharding"]
    assert (sharding["transport"], sharding["movement"]) == (transport, movement)
    assert sharding["slice_bytes"] == 0


@pytest.mark.parametrize(
    ("flags", "need"),
    [
        (V3, (None, None)),
        ((*V3, "--transport", "pull"), (61 * 117_440_512, 8)),
        (STRIPED, (61 * 117_440_512, 61)),
        ((*V3, "--placement", "replicated"), (None, None)),
    ],
)
def test_what_pulls_take_on_a_cpu_is_printed(
    flags: tuple[str, ...], need: tuple[int | None, int | None]
) -> None:
    memory = planned(*flags)["memory"]
    assert (memory["shared_memory_bytes"], memory["shared_memory_files"]) == need
    lines = [line for line in said("plan", *flags).splitlines() if line.startswith("if on a CPU")]
    assert bool(lines) == (need[0] is not None)
    for line in lines:
        assert f"({need[0]:,} bytes) for all ranks; a rank keeps up to {need[1]} files" in line


def test_the_launch_command_carries_the_flags_and_passes_its_own_check() -> None:
    flags = ("--transport", "pull", "--slice-bytes", "1048576")
    plan = planned(*STRIPED, *flags)
    assert plan["sharding"]["slice_bytes"] == 1 << 20
    words = shlex.split(plan["launch"])
    value = words[words.index("--additional-config") + 1]
    assert json.loads(value)["layer_sharding"] == {
        "layers": ["o_proj"],
        "placement": "striped",
        "transport": "pull",
        "slice_bytes": 1 << 20,
    }
    checked = said("check", value, *V3[:-2], "--json")
    (group,) = json.loads(checked)["groups"]
    assert group["series"][0]["stripes"] == plan["series"][0]["stripes"]
    saved = plan["memory"]["saved_bytes_min"]
    assert f"saves at least {saved:,} bytes a rank" in said("check", value, *V3[:-2])


def test_a_map_says_that_all_keep_a_part() -> None:
    (group,) = json.loads(said("map", *STRIPED, "--json"))["groups"]
    (series,) = group["series"]
    assert series["owned_layers"] == [[]] * 8, "no rank owns one"
    assert series["owner"] == [-2] * 61
    assert series["stripes"][7] == [7 * 14_680_064, 117_440_512]
    text = said("map", *STRIPED)
    assert text.count("14.00 MiB of each") == 8
    assert text.count("all, in parts") == 61
    whole = json.loads(said("map", *V3, "--json"))["groups"][0]["series"][0]
    assert whole["stripes"] == []
    assert "parts" not in said("map", *V3)


def test_the_page_says_it_too(tmp_path: Path) -> None:
    path = tmp_path / "plan.html"
    said("plan", *STRIPED, "--html", str(path))
    text = path.read_text()
    assert text.count("<td>all, in parts</td>") == 61
    assert not re.search(r"<td>-2</td>", text)
    assert "pull of a stripe from each of 7 peers in turn" in text


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        (V3, "broadcast of whole layers (transport auto)"),
        (STRIPED, "pull of stripes (transport auto)"),
        (
            (*STRIPED, "--slice-bytes", "1048576"),
            "pull of stripes, in slices of 1,048,576 bytes (transport auto)",
        ),
        ((*V3, "--slice-bytes", "4096"), "broadcast of whole layers (transport auto)"),
        ((*V3, "--placement", "replicated"), "none: every rank stores every layer"),
    ],
)
def test_a_plan_names_the_movement(flags: tuple[str, ...], shown: str) -> None:
    (line,) = [
        line
        for line in said("plan", *flags, COLUMNS="200").splitlines()
        if line.startswith("movement ")
    ]
    assert line.split(maxsplit=1)[1] == shown


def test_owners_out_of_balance_are_no_matter_of_stripes() -> None:
    """Three layers have three owners among eight ranks, and all have stripes of them."""
    few = ("--model", "DeepSeek-V3", "--dp", "8", "--layers", "mlp.down_proj")
    assert any("own no layer" in note for note in planned(*few)["warnings"])
    striped = planned(*few, "--placement", "striped")["warnings"]
    assert not any("own no layer" in note or "out of balance" in note for note in striped)
    assert not any("saves nothing" in note for note in striped), "of three, two slots and 3/8"


def test_warnings_on_pulls() -> None:
    def remarks(*flags: str) -> str:
        return " ".join(planned(*flags)["warnings"])

    assert "the one source of 7 pulls at once" in remarks(*V3, "--transport", "pull")
    assert "source" not in remarks(*STRIPED)
    assert "source" not in remarks("--model", "Qwen3-32B", "--dp", "2")
    for flags in ((), ("--placement", "replicated")):
        assert "only pulls are sliced" in remarks(*V3, *flags, "--slice-bytes", "4096")
    assert "sliced" not in remarks(*STRIPED, "--slice-bytes", "4096")


def test_without_a_device_the_map_notes_that_pulls_stay_on_a_host() -> None:
    dense = ("--model", "Qwen3-32B", "--layers", "o_proj")
    assert "must be on one node" in said("map", *dense, "--dp", "16")
    assert "must be on one node" not in said("map", *dense, "--dp", "8")
    assert "must be on one node" not in said(
        "map", *dense, "--dp", "16", "--placement", "replicated"
    )
    assert "must be on one node" not in said("map", *V3[:2], "--dp", "16")


def test_compare_takes_stripes_and_replicas_of_a_dense_model() -> None:
    layouts = [word for text in ("dp8+ep+shard", "dp8+ep+striped") for word in ("--layout", text)]
    found = json.loads(said("compare", *V3[:2], "--layers", "o_proj", *layouts, "--json"))
    whole, striped = found["layouts"]
    for each, flags in ((whole, V3), (striped, STRIPED)):
        assert each["weight_bytes"] == planned(*flags)["memory"]["weight_bytes_sharded"]
    assert striped["tokens"] > whole["tokens"]
    dense = json.loads(said("compare", "--model", "Qwen3-32B", "--json"))["layouts"]
    assert [each["layout"] for each in dense] == ["tp8", "dp8", "dp8+shard"]
    assert dense[2]["weight_bytes"] < dense[1]["weight_bytes"]


def test_compare_refuses_pulls_between_hosts() -> None:
    flags = ("--layout", "dp16+ep+striped", "--hardware", "H200")
    code, message = complaint("compare", *V3[:2], *flags)
    assert code == 2
    assert "lie on 2 nodes of 8 H200" in message


def test_auto_goes_with_stripes() -> None:
    plan = planned(*V3[:-1], "auto", "--placement", "striped", "--tokens", "16K")
    assert plan["sharding"]["placement"] == "striped"
    assert plan["prefetch"]["phases"][0]["hidden"]
    assert len(plan["sharding"]["layers"]) > 1
