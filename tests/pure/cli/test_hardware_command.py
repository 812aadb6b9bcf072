"""`hardware`, the flags of the phases, `--layers auto`, and profile files on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from console import complaint, document, said
from vllm_layershard.estimate import profile, profile_names


def planned(*flags: str) -> dict:
    return document("plan", "--model", "DeepSeek-V3", *flags)


def test_the_list_has_every_device_and_a_dash_for_what_is_unknown() -> None:
    lines = {line.split()[0]: line for line in said("hardware").splitlines()}
    assert lines["MI300X"].split()[-1] == "-"
    assert lines["H200"].split()[-2:] == ["450", "50"]
    assert len(json.loads(said("hardware", "--json"))["hardware"]) == 22


def test_one_device_shows_every_number_with_basis_and_source() -> None:
    text = said("hardware", "h200")
    assert "  memory bandwidth: 4,800,000,000,000 bytes/s (assumed: ai-dynamo/aiconf" in text
    assert "    134,217,728 bytes: 309.0 GB/s" in text
    shown = json.loads(said("hardware", "H200", "--json"))["hardware"]
    for figure in shown["figures"].values():
        assert figure is None or {"value", "unit", "basis", "source"} == set(figure)
    assert shown["bus"][0]["ranks"] == 8


def test_what_the_command_prints_as_json_is_a_profile_file(tmp_path: Path) -> None:
    """The whole document, and the device in it, with their `figures` and units."""
    for name in profile_names():
        printed = document("hardware", name)
        for shape in (printed, printed["hardware"]):
            path = tmp_path / "again.json"
            path.write_text(json.dumps(shape))
            assert profile(str(path)) == profile(name)


def test_the_json_of_a_device_is_all_that_a_profile_file_needs(tmp_path: Path) -> None:
    """Each key that a file may have is shown, so the file made of what is shown is the device."""
    for device in document("hardware")["hardware"]:
        figures = device.pop("figures")
        for figure in figures.values():
            if figure is not None:
                del figure["unit"]
        path = tmp_path / "again.json"
        path.write_text(json.dumps(device | figures))
        assert profile(str(path)) == profile(device["name"])


@pytest.mark.parametrize(
    "command", [["hardware"], ["plan", "--model", "DeepSeek-V3", "--hardware"]]
)
def test_a_bad_profile_ends_in_one_message(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text('{"bf16": "fast"}')
    assert complaint(*command, str(path)) == (
        3,
        f'layershard: --hardware {path}: bf16: "fast" is not a number above 0 to 1e+18',
    )
    code, message = complaint(*command, str(tmp_path / "none.json"))
    assert (code, message.count("\n")) == (3, 0)
    assert "No such file" in message
    code, message = complaint(*command, "H21")
    assert code == 3
    assert "nearest: H20; known are A100" in message


def test_a_profile_file_is_planned_with(tmp_path: Path) -> None:
    path = tmp_path / "fast.json"
    path.write_text(
        json.dumps({"name": "[b]fast[/b]", "base": "H200", "bf16": 1e17, "low_bit": 1e17})
    )
    fast = planned("--hardware", str(path))["prefetch"]
    assert fast["hardware"] == "[b]fast[/b]"
    slow = planned("--hardware", "H200")["prefetch"]
    assert fast["phases"][0]["compute_us"] < slow["phases"][0]["compute_us"]
    text = " ".join(said("plan", "--model", "DeepSeek-V3", "--hardware", str(path)).split())
    assert "(estimate for [b]fast[/b])" in text


def test_a_lacking_number_leaves_nulls_and_a_reason() -> None:
    plan = planned("--dp", "16", "--ep", "--hardware", "MI300X")["prefetch"]
    assert plan["lacking"] == ["link between nodes (16 ranks on 2 nodes of 8)"]
    assert plan["recommended_step"] is plan["break_even_tokens"] is None
    for phase in plan["phases"]:
        assert phase["compute_us"] is phase["fetch_us"] is phase["exposed_us"] is None
    flags = ["--model", "DeepSeek-V3", "--dp", "16", "--ep", "--hardware", "MI300X"]
    text = " ".join(said("plan", *flags).split())
    assert "no estimate: MI300X lacks link between nodes" in text


def test_the_phases_are_what_the_flags_say() -> None:
    prefill, decode = planned("--batch", "7", "--context", "1K", "--tokens", "3k")["prefetch"][
        "phases"
    ]
    assert (prefill["tokens"], decode["tokens"], decode["context"]) == (3000, 7, 1024)


def test_auto_names_its_choice() -> None:
    plan = planned(
        "--dp", "8", "--ep", "--layers", "auto", "--tokens", "16K", "--hide-in", "prefill"
    )
    assert "auto" not in plan["sharding"]["layers"]
    assert plan["prefetch"]["phases"][0]["hidden"]
    assert any("--layers auto chose " in warning for warning in plan["warnings"])
    assert "auto" not in plan["launch"]


@pytest.mark.parametrize(
    ("flags", "code", "expected"),
    [
        (["--hide-in", "decode"], 2, "--hide-in goes with --layers auto or --check"),
        (["--layers", "auto,o_proj"], 2, "--layers auto stands alone"),
        (
            ["--layers", "auto", "--hide-in", "both"],
            2,
            "--hide-in: 'both' is not one of prefill, d",
        ),
        (["--layers", "auto", "--placement", "mirrored"], 2, "placement"),
        (
            ["--dp", "16", "--layers", "auto", "--hardware", "MI300X"],
            3,
            "--layers auto: MI300X lacks link between nodes",
        ),
        (["--batch", "0"], 2, "Invalid value for '--batch'"),
        (["--context", "x"], 2, "'x' is not a number of tokens"),
    ],
)
def test_flags_of_devices_and_phases_are_refused_in_one_message(
    flags: list[str], code: int, expected: str
) -> None:
    found, message = complaint("plan", "--model", "DeepSeek-V3", *flags)
    assert found == code, message
    assert expected in message
