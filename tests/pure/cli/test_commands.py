"""`map`, `check`, tables, help, and what the command may import."""

import json
import os
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from console import layershard, said
from layershard_cli.main import COMMANDS
from vllm_layershard import __version__


def test_map_as_json() -> None:
    flags = ["--model", "DeepSeek-V3", "--dp", "8", "--layers", "o_proj", "--json"]
    (group,) = json.loads(said("map", *flags))["groups"]
    (series,) = group["series"]
    assert series["owned_layers"][5] == [5, 13, 21, 29, 37, 45, 53]
    assert [layer % 8 for layer in series["layer_ids"]] == series["owner"]


def test_map_as_table() -> None:
    text = said("map", *["--model", "DeepSeek-V2-Lite", "--dp", "4"])
    assert "0 4 8 12 16 20 24" in text


@pytest.mark.parametrize(
    "text",
    ['{"layer_sharding": ["o_proj"], "other": 1}', '["o_proj"]', '{"layers": ["o_proj"]}'],
)
def test_check_takes_the_whole_object_or_the_value(text: str) -> None:
    assert "saves at least 5,989,466,112 bytes" in said(
        "check", text, *["--model", "DeepSeek-V3", "--dp", "8"]
    )


def test_check_reads_a_file(tmp_path: Path) -> None:
    path = tmp_path / "additional.json"
    path.write_text('{"layer_sharding": {"layers": ["o_proj"], "prefetch_step": 0}}')
    assert "1 slot," in said("check", f"@{path}", *["--model", "DeepSeek-V3", "--dp", "8"])


def test_the_launch_command_passes_its_own_check() -> None:
    flags = [
        "--model",
        "DeepSeek-V3",
        "--dp",
        "8",
        "--ep",
        "--layers",
        "o_proj",
        "--prefetch-step",
        "2",
    ]
    words = shlex.split(json.loads(said("plan", *flags, "--json"))["launch"])
    value = words[words.index("--additional-config") + 1]
    assert json.loads(value) == {"layer_sharding": {"layers": ["o_proj"], "prefetch_step": 2}}
    said("check", value, *["--model", "DeepSeek-V3", "--dp", "8", "--ep"])


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_tables_fit_the_terminal(columns: str) -> None:
    text = said("plan", "--model", "DeepSeek-V3", COLUMNS=columns, NO_COLOR="1")
    lines = [line for line in text.splitlines() if not line.startswith("vllm serve")]
    assert max(map(len, lines)) <= int(columns)
    assert "\x1b" not in text
    assert "assumed one node of 8" in " ".join(text.split())


def test_version() -> None:
    assert said("--version") == f"layershard {__version__}\n"


@pytest.mark.parametrize(
    ("words", "commands"),
    [
        (["--version"], []),
        (["models"], ["models"]),
        (["--", "models"], sorted(COMMANDS)),
        (["--help"], []),
        ([], []),
    ],
)
def test_only_the_commands_that_are_asked_for_are_imported(
    words: list[str], commands: list[str]
) -> None:
    script = (
        "import atexit, sys\nfrom layershard_cli.main import run\n"
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr))\nrun()"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    prefix = "layershard_cli.commands."
    found = [name for name in result.stderr.split() if name.startswith(prefix)]
    assert sorted(name.removeprefix(prefix) for name in found) == commands


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_lists_a_command_by_the_first_line_of_its_own(name: str) -> None:
    module = import_module(f"layershard_cli.commands.{name}")
    first = (getattr(module, f"{name}_command").__doc__ or "").partition("\n")[0]
    assert COMMANDS[name] == first


def test_a_slip_of_a_command_is_told_the_nearest() -> None:
    slip = layershard("plam", "--model", "DeepSeek-V3")
    assert slip.code == 2
    assert "No such command 'plam'. Did you mean 'plan'" in slip.stderr


def test_runs_where_torch_and_vllm_cannot_be_imported() -> None:
    script = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "vllm", "vllm_ascend", "transformers"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
from layershard_cli.main import run
run()
"""
    for command in (
        ["plan", "--model", "DeepSeek-V3"],
        ["plan", "--model", "DeepSeek-V3", "--json"],
        ["map", "--model", "DeepSeek-V3"],
        ["check", '["o_proj"]', "--model", "DeepSeek-V3"],
        ["hardware", "H200"],
    ):
        result = subprocess.run(
            [sys.executable, "-c", script, *command], capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr


def test_check_says_when_vllm_would_not_see_the_value() -> None:
    model = ("--model", "DeepSeek-V3", "--dp", "8")
    alone = layershard("check", '["o_proj"]', *model)
    assert "this is the value of 'layer_sharding' alone" in alone.stderr
    whole = layershard("check", '{"layer_sharding": ["o_proj"]}', *model)
    assert "alone" not in whole.stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("layershard co", ["compare"]),
        ("layershard plan --hi", ["--hide-in"]),
        ("layershard plan --model Mixtral", ["Mixtral-8x22B-v0.1"]),
        ("layershard plan --hardware 910B", ["910B1", "910B2", "910B3", "910B4"]),
        ("layershard plan --model con", ["config.json", "configs/"]),
        ("layershard plan --model /no/such/pla", []),
    ],
)
def test_a_shell_completes(words: str, offered: list[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "configs").mkdir()
    (tmp_path / "con.txt").touch()
    asked = {
        "_LAYERSHARD_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    found = subprocess.run(
        [str(Path(sys.executable).with_name("layershard"))],
        capture_output=True,
        text=True,
        env=os.environ | asked,
        cwd=tmp_path,
        check=True,
    )
    assert found.stdout.split() == offered


def test_without_an_argument_the_help_is_printed_and_nothing_has_failed() -> None:
    bare = layershard()
    assert bare == layershard("--help")
    assert (bare.code, bare.stderr) == (0, "")
    assert "\\n" not in bare.stdout
    assert len(bare.stdout.splitlines()) > 10
