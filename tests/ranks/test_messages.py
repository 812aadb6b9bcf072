"""What ranks tell each other is data: a forged message is named, and nothing in it runs."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from gloo.ranks import run_ranks
from vllm_layershard.errors import MismatchError
from vllm_layershard.runtime.ranks import messages
from vllm_layershard.runtime.ranks.group import group_over

VALUES = [None, 7, "a layer", [1, [2, 3]], {"3": [0, 256]}, ["x" * 100_000], True, 0.5]


def told(rank: int) -> list[bool]:
    """Each rank's value has a length of its own."""
    group = group_over(None)
    return [
        group.gather([value] * (rank + 1)) == [[value] * (other + 1) for other in range(group.size)]
        for value in VALUES
    ]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_rank_is_told_what_each_has_said(tmp_path, size):
    assert run_ranks(size, told, tmp_path) == [[True] * len(VALUES)] * size


class Touches:
    """What makes a file where it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.file),)


FORGED = {
    "a pickle": lambda file: pickle.dumps(Touches(file)),
    "text": lambda file: b"rank 0",
    "half a document": lambda file: b'{"prefix": "layershard-',
    "bytes that are no text": lambda file: b"\xff\xfe\x00",
    "deep JSON": lambda file: b"[" * 100_000,
}


def forged(rank: int, kind: str, file: str) -> str:
    if rank == 1:
        messages._encoded = lambda value: FORGED[kind](file)
    try:
        return f"believed {group_over(None).gather(None)}"
    except MismatchError as error:
        return str(error)


@pytest.mark.parametrize("kind", FORGED)
def test_a_forged_message_is_named_and_runs_nothing(tmp_path, kind):
    file = tmp_path / "touched"
    for said in run_ranks(2, forged, tmp_path, kind, str(file)):
        assert said.startswith("what rank 1 sent is no JSON ("), said
    assert not file.exists()
    if kind == "a pickle":
        pickle.loads(FORGED[kind](str(file)))
        assert file.exists(), "the forgery works where it is unpickled"


def too_long(rank: int) -> str:
    messages.MOST_BYTES = 1000
    try:
        return f"believed {len(group_over(None).gather('x' * 999 if rank else None))}"
    except MismatchError as error:
        return str(error)


def test_a_message_that_is_too_long_is_named_on_every_rank(tmp_path):
    for said in run_ranks(2, too_long, tmp_path):
        assert said.startswith("what rank 1 sent announces 1001 bytes, at most 1000 are read")
