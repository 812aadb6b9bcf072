"""What the command says of a model's source, revision and stored tensors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import console
from checkpoints import deepseek, header_of, small_config, write
from console import document, layershard
from layershard_cli.output import printable
from layershard_cli.render.sheet import Column, Sheet

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def planned(*arguments: str, command: str = "plan") -> dict:
    return document(command, *arguments, "--pcp", "2", "--layers", "o_proj,q_b_proj")


def said(*arguments: str, **environment: str) -> str:
    """What is printed, its words a space apart."""
    return " ".join(console.said(*arguments, **environment).split())


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(small_config()))
    write(tmp_path / "model", deepseek(small_config()), shards=2)
    return tmp_path / "model"


def test_a_directory_states_what_it_stores(stored: Path) -> None:
    plan = planned("--model", str(stored))
    tensors = deepseek(small_config())
    main = {k: v for k, v in tensors.items() if not k.startswith("model.layers.9.")}
    o_proj = {k: v for k, v in main.items() if "o_proj" in k}
    q_b_proj = {k: v for k, v in main.items() if "q_b_proj" in k}
    assert plan["checkpoint"] == {
        "source": f"local:{stored / 'config.json'}",
        "files": 2,
        "tensors": len(tensors),
        "bytes": header_of(tensors)[1],
        "draft_bytes": header_of(tensors)[1] - header_of(main)[1],
        "series": [
            {"name": "o_proj", "pp_stage": 0, "linears": 9, "stored_bytes": header_of(o_proj)[1]},
            {
                "name": "q_b_proj",
                "pp_stage": 0,
                "linears": 9,
                "stored_bytes": header_of(q_b_proj)[1],
            },
        ],
        "disagreements": [],
    }
    for series, checkpoint in zip(plan["series"], plan["checkpoint"]["series"], strict=True):
        assert checkpoint["stored_bytes"] == series["replicated_bytes"]
    assert plan["model"]["revision"] is None


def test_a_config_by_its_path_leaves_the_stored_tensors_alone(stored: Path) -> None:
    (stored / "model-00001-of-00002.safetensors").write_bytes(b"broken")
    assert planned("--model", str(stored / "config.json"))["checkpoint"] is None


def test_a_disagreement_is_a_note_everywhere(stored: Path) -> None:
    tensors = deepseek(small_config())
    for layer in range(5):
        tensors[f"model.layers.{layer}.self_attn.o_proj.weight"] = ("BF16", [256, 64])
    write(stored, tensors, shards=2)
    note = "disagree on 5 tensors: model.layers.0.self_attn.o_proj.weight: expected bfloat16"
    plan, layers = planned("--model", str(stored)), planned("--model", str(stored), command="map")
    for each in (plan, layers):
        assert any(note in w and "and 2 more" in w for w in each["warnings"])
    assert plan["checkpoint"]["disagreements"][4] == {
        "tensor": "model.layers.4.self_attn.o_proj.weight",
        "expected": "bfloat16 [256, 128]",
        "stored": "BF16 [256, 64]",
    }
    flags = ["--model", str(stored), "--pcp", "2"]
    assert "the plan's linears disagree on 5" in said("plan", *flags, COLUMNS="200")
    assert note in layershard("check", '["o_proj"]', *flags).stderr


def test_tables_name_source_revision_and_checkpoint(stored: Path) -> None:
    text = said("plan", "--model", str(stored), "--pcp", "2", COLUMNS="300")
    assert f"(local:{stored / 'config.json'})" in text
    assert "tensors of" in text
    assert "the plan's linears match them; routed experts match (" in text
    text = said("map", "--model", "DeepSeek-V3", COLUMNS="300")
    assert "revision ai-dynamo/aiconfigurator@095f58a51c4c" in text


def test_check_names_them_too(stored: Path) -> None:
    text = said("check", '["o_proj"]', "--model", str(stored), "--pcp", "2")
    assert f"config: local:{stored / 'config.json'} checkpoint: " in text
    where = f"(local:{stored / 'config.json'})"
    assert f"the plan's linears match them; routed experts match {where}" in text
    text = said("check", '["o_proj"]', "--model", "DeepSeek-V3", "--dp", "8")
    assert "config: bundled:deepseek-ai/DeepSeek-V3, revision ai-dynamo/aiconfigurator@" in text


def test_revisions_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundled = planned("--model", "DeepSeek-V3")["model"]
    assert bundled["source"] == "bundled:deepseek-ai/DeepSeek-V3"
    assert bundled["revision"] == "ai-dynamo/aiconfigurator@095f58a51c4c"
    repository = tmp_path / "models--deepseek-ai--DeepSeek-V3"
    (repository / "snapshots" / COMMIT).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots" / COMMIT / "config.json").write_text(json.dumps(small_config()))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("deepseek-v3", "deepseek-ai/DeepSeek-V3"):
        cached = planned("--model", name)["model"]
        assert cached["source"] == f"cache:deepseek-ai/DeepSeek-V3@{COMMIT[:12]}"
        assert (cached["revision"], cached["num_layers"]) == (COMMIT, 9)


def test_exact_is_refused_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_config()))
    command = [sys.executable, "-m", "layershard_cli", "plan", "--exact", "--pcp", "2", "--model"]
    finished = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True)
    assert finished.returncode == 3
    assert "--exact needs safetensors files" in finished.stderr
    offline = subprocess.run(
        [*command, "DeepSeek-V3"],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert offline.returncode == 3
    assert "HF_HUB_OFFLINE forbids" in offline.stderr
    assert offline.stderr.count("\n") == 1


def test_brackets_backslashes_and_control_characters_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a[bold]\\[red]x[/]\x1b[31m" / "model\\"
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(small_config()))
    text = said("plan", "--model", str(path), "--pcp", "2", COLUMNS="500", NO_COLOR="1")
    assert f"(local:{printable(str(path / 'config.json'))})" in text
    assert text.startswith(printable(str(path)) + ":")
    assert "\x1b" not in text


@pytest.mark.parametrize(
    "text", ["a\\[b]c", "x\\", "\\\\[red]", "[/]", "[1]", "a[link=x]b", "\\[", "[bold]x\\[/bold]"]
)
def test_text_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Sheet().note(text)
    assert capsys.readouterr().out.strip() == f"note: {text}"
    Sheet().line(text)
    assert capsys.readouterr().out.strip() == text
    Sheet().table("title", [Column("series"), Column("layers", right=True)], [[text, "1"]])
    assert text in capsys.readouterr().out
    Sheet().pairs([("name", text)])
    assert capsys.readouterr().out.split() == ["name", *text.split()]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a\\nb"), ("\x1b[31m", "\\x1b[31m"), ("\u202e", "\\u202e"), ("caf\xe9", "caf\xe9")],
)
def test_what_a_terminal_would_act_on_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown


@pytest.mark.parametrize("command", ["plan", "map"])
def test_no_cell_is_cut_in_a_narrow_terminal(command: str) -> None:
    flags = ["--model", "DeepSeek-V3", "--layers", "mlp.shared_experts.down_proj"]
    narrow = said(command, *flags, COLUMNS="40", NO_COLOR="1")
    assert "…" not in narrow
