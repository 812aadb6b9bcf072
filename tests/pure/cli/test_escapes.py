"""Nothing that a user, a file or the environment says makes a terminal act.

Every parameter of every command is given an escape: those that are added later, too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from checkpoints import deepseek, small_config, write
from console import Ended, layershard
from layershard_cli.completion import complete_hardware, complete_model
from layershard_cli.main import COMMANDS, application

ESCAPES = {
    "a title": "\x1b]0;x\x07",
    "a colour": "\x1b[31m",
    "one byte": "\x9b31m",
    "a return": "\r",
    "a line": "\n",
    "right to left": "‮",
    "a backspace": "\b",
}
"""Sequences that a terminal acts on."""

ACTED_ON = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")

BASES = {
    "plan": ["--model", "DeepSeek-V3", "--dp", "8", "--ep"],
    "map": ["--model", "DeepSeek-V3", "--dp", "8", "--ep"],
    "check": ["--model", "DeepSeek-V3", "--dp", "8", "--ep"],
    "compare": ["--model", "DeepSeek-V3"],
    "models": [],
    "hardware": [],
    "calibrate": ["--backend", "none"],
    "sweep": [],
}
"""Arguments with which each does not measure anything for a minute."""


def parameters() -> Iterator[tuple[str, str]]:
    """Each command and parameter that takes a value; an argument has no dashes."""
    found: Any = typer.main.get_command(application())
    for name, command in found.commands.items():
        for parameter in command.params:
            if not getattr(parameter, "is_flag", False):
                yield name, next((o for o in parameter.opts if o.startswith("--")), parameter.name)


PARAMETERS = list(parameters())


def require_escaped(ended: Ended, lines: int | None = None) -> None:
    for text in (ended.stdout, ended.stderr):
        assert not ACTED_ON.search(text), text
        assert "Traceback" not in text
    if lines is not None:
        assert ended.stderr.count("\n") == lines, ended.stderr


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))


def test_every_command_has_a_base() -> None:
    assert set(BASES) == set(COMMANDS)
    assert {command for command, _ in PARAMETERS} == set(BASES) - {"models", "sweep"}
    assert len(PARAMETERS) > 40


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize(("command", "parameter"), PARAMETERS)
def test_a_value_with_an_escape_is_shown_and_not_obeyed(
    command: str, parameter: str, escape: str
) -> None:
    value = f"a{ESCAPES[escape]}b"
    given = [parameter, value] if parameter.startswith("--") else [value]
    ended = layershard(command, *BASES[command], *given)
    require_escaped(ended)
    if ended.code:
        assert ended.stdout == ""
        assert sum(
            line.startswith(("layershard: ", "Error: ")) for line in ended.stderr.split("\n")
        )


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("command", [*BASES, ""])
def test_names_of_commands_and_flags_too(command: str, escape: str) -> None:
    words = [command] if command else []
    require_escaped(layershard(*words, f"--x{ESCAPES[escape]}y"))
    require_escaped(layershard(*words, f"x{ESCAPES[escape]}y", "z"))


def good(place: Path, escape: str) -> dict[str, list[str]]:
    """Commands that end well, with an escape in every path and in what the files hold."""
    bad = ESCAPES[escape]
    model = place / f"model{bad}"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(small_config()))
    tensors = deepseek(small_config())
    tensors["model.layers.0.self_attn.o_proj.weight"] = ("BF16", [256, 64])
    tensors[f"model.layers.0.self_attn.o_proj.{bad}"] = ("BF16", [1])
    write(model, tensors)
    device = place / f"device{bad}.json"
    device.write_text('{"base": "H200", "name": "ours", "memory_bandwidth": 3e12}')
    additional = place / f"additional{bad}.json"
    additional.write_text('{"layer_sharding": {"layers": ["o_proj"], "report_dir": "a b"}}')
    shared = ["--model", str(model), "--pcp", "2"]
    html, trace = str(place / f"page{bad}.html"), str(place / f"trace{bad}.json")
    plan = ["plan", *shared, "--hardware", str(device)]
    return {
        "plan": [*plan, "--ledger", "--timeline"],
        "plan as JSON": [*plan, "--json"],
        "plan written": [*plan, "--html", html, "--trace", trace],
        "map": ["map", *shared],
        "check": ["check", f"@{additional}", *shared],
        "compare": ["compare", "--model", str(model), "--hardware", str(device), "--layout", "tp2"],
        "hardware": ["hardware", str(device)],
        "hardware as JSON": ["hardware", str(device), "--json"],
    }


@pytest.mark.parametrize("escape", ESCAPES)
def test_paths_and_what_files_hold_are_shown_and_not_obeyed(escape: str, tmp_path: Path) -> None:
    for what, words in good(tmp_path, escape).items():
        ended = layershard(*words)
        assert ended.code == 0, (what, ended)
        require_escaped(ended)
    page = (tmp_path / f"page{ESCAPES[escape]}.html").read_text()
    assert not ACTED_ON.search(page)


VARIABLES = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_CACHE", "HF_HOME", "COLUMNS", "NO_COLOR")


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("variable", VARIABLES)
def test_the_environment_is_not_obeyed_either(
    variable: str, escape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    if variable != "HF_ENDPOINT":
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for value in (ESCAPES[escape], f"http://127.0.0.1:9/{ESCAPES[escape]}x"):
        require_escaped(layershard("plan", "--model", "some/model", **{variable: value}))
        require_escaped(layershard("plan", "--model", "DeepSeek-V3", **{variable: value}))


def test_a_colour_of_ours_gets_through() -> None:
    """Or the rest would show nothing."""
    assert "\x1b[1m" in layershard("map", "--model", "DeepSeek-V3", FORCE_COLOR="1").stdout


def test_a_shell_is_offered_no_name_that_would_act(tmp_path: Path) -> None:
    for name in ("good.json", "go\x1b[31mod.json"):
        (tmp_path / name).touch()
    assert complete_model("go") == complete_hardware("go") == ["good.json"]
