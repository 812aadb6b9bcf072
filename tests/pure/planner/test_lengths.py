"""Prompts and contexts for which the model has no positions: vLLM refuses them, a note says so."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from checkpoints import small_config
from console import document

V3 = ("plan", "--model", "DeepSeek-V3", "--dp", "8", "--ep", "--hardware", "H200")
"""It has positions for 163,840 tokens."""


def notes(*arguments: str) -> list[str]:
    return [text for text in document(*arguments)["warnings"] if "positions" in text]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("", []),
        ("--context 163840 --prompt 163840", []),
        ("--tokens 128K", []),
        ("--context 1M", ["a context of 1,048,576 tokens"]),
        ("--tokens 4M", ["a prompt of 4,194,304 tokens"]),
        ("--tokens 4M --prompt 64K", []),
        ("--prompt 1M --tokens 1M", ["a prompt of 1,048,576 tokens"]),
        ("--tokens 64K --cached 128K", ["a prompt of 196,608 tokens"]),
        ("--context 163841 --tokens 163841", ["a context of", "a prompt of"]),
    ],
)
def test_what_is_longer_than_the_positions_is_said(flags: str, said: list[str]) -> None:
    found = notes(*V3, *flags.split())
    assert len(found) == len(said)
    for note, start in zip(found, said, strict=True):
        assert note.startswith(start)
        assert "longer than the 163,840 for which this model has positions" in note


@pytest.mark.parametrize(
    ("changes", "noted"),
    [
        ({"max_position_embeddings": 2048}, True),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 8}}, False),
        ({"max_position_embeddings": 2048, "model_max_length": 8192}, False),
        ({}, False),
    ],
)
def test_only_what_the_config_says_is_held_against(
    changes: dict[str, object], noted: bool, tmp_path: Path
) -> None:
    """A size that nobody gave is none of the user's."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(small_config(**changes)))
    flags = ("plan", "--model", str(path), "--dp", "2", "--ep")
    assert notes(*flags) == []
    assert bool(notes(*flags, "--context", "4K")) == noted
