"""A checkpoint that lacks or breaks a sharded layer's tensor ends as it does without sharding.

That is vLLM's own error, on every rank. (vLLM 0.32 has none for a missing weight of a linear.)
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hosted.engines import load, run_engines
from recital import model_path

NAME = "model.layers.3.self_attn.o_proj.weight"
FILE = "model.safetensors"


def without(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[NAME]


def with_a_row_less(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NAME] = tensors[NAME][1:].clone()


def construct_and_load(rank: int, config) -> str:
    load(config, lambda model: None)
    return "loaded"


def broken(directory: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    shutil.copytree(model_path(), directory)
    tensors = load_file(directory / FILE)
    change(tensors)
    save_file(tensors, directory / FILE, metadata={"format": "pt"})
    return directory


def cut_short(directory: Path) -> Path:
    shutil.copytree(model_path(), directory)
    data = (directory / FILE).read_bytes()
    (directory / FILE).write_bytes(data[: len(data) // 2])
    return directory


CASES = {
    "a row less": lambda place: broken(place, with_a_row_less),
    "missing": lambda place: broken(place, without),
    "cut short": cut_short,
}


@pytest.mark.matrix(part="faults")
@pytest.mark.parametrize("case", CASES)
def test_the_error_is_the_same_as_without_sharding(case, tmp_path):
    model = CASES[case](tmp_path / "model")
    plain, sharded = (
        [said.splitlines()[0] for said in run_engines(model, asked, construct_and_load)]
        for asked in (None, {"layers": ["o_proj"]})
    )
    assert ("loaded" in plain) == (case == "missing")
    assert sharded == plain
