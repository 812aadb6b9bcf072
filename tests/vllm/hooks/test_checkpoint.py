"""What a reload sees of a checkpoint before it begins: that all of it is there, and which it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hosted.child import run_child
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.reload.checkpoint import checked_checkpoint


def config(model: Path, load_format: str = "auto") -> Any:
    return SimpleNamespace(
        model_config=SimpleNamespace(model=str(model), revision=None),
        load_config=SimpleNamespace(load_format=load_format, download_dir=None),
    )


@pytest.fixture
def model(tmp_path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    files = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        tensor = torch.full((1000,), float(number))
        save_file({f"layers.{number}.weight": tensor}, directory / name)
        files[f"layers.{number}.weight"] = name
    index = {"weight_map": files}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return directory


def test_a_copy_is_the_same_and_other_values_are_not(model, tmp_path):
    seen = checked_checkpoint(config(model), None)
    assert sorted(seen) == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    copied = shutil.copytree(model, tmp_path / "copy")
    assert checked_checkpoint(config(tmp_path), str(copied)) == seen
    file = copied / "model-00001-of-00002.safetensors"
    save_file({"layers.1.weight": torch.full((1000,), 3.0)}, file)
    assert checked_checkpoint(config(tmp_path), str(copied)) != seen


@pytest.mark.parametrize("kept", [0, 7, 100, 3000])
def test_a_file_that_is_cut_short_is_named(model, kept):
    file = model / "model-00002-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(HostError, match=r"00002-of-00002.safetensors: cannot be read as weights"):
        checked_checkpoint(config(model), None)


def test_a_file_that_the_index_names_and_is_not_there_is_told(model):
    (model / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(HostError, match="not all that its index names"):
        checked_checkpoint(config(model), None)


def test_an_archive_of_torch_that_is_cut_short_is_named(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"weight": torch.ones(1000)}, file)
    assert "pytorch_model.bin" in checked_checkpoint(config(tmp_path), None)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(HostError, match=r"pytorch_model.bin: cannot be read as weights"):
        checked_checkpoint(config(tmp_path), None)


ABSENT = """
from types import SimpleNamespace
from vllm.config import LoadConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.reload.checkpoint import checked_checkpoint

config = SimpleNamespace(
    model_config=SimpleNamespace(model="here", revision=None),
    load_config=LoadConfig(),
)
try:
    checked_checkpoint(config, "nobody/nothing")
    result = "accepted"
except HostError as error:
    result = str(error)
result = [result, config.model_config.model]
"""


def test_what_is_no_directory_and_not_to_be_had_is_named():
    said, model = run_child(ABSENT)
    assert "nobody/nothing: is no directory, and cannot be had as a model of a hub" in said
    assert model == "here", "what it serves is as it was"
