"""What a rank tells of its checkpoint: enough to find another one, and little to read."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from vllm_layershard.runtime.ranks import checkpoint as module
from vllm_layershard.runtime.ranks.checkpoint import Checkpoint, fault_in, holdings

NAMES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.down_proj", "input_layernorm")
LAYERS = 8


def tensors(num_layers: int = LAYERS, names: tuple[str, ...] = NAMES) -> list[str]:
    return [f"model.layers.{i}.{name}.weight" for i in range(num_layers) for name in names]


def written(path: Path, names: list[str], nbytes: int = 2048, changed: str = "") -> Path:
    """A safetensors file whose tensors have bytes of their own; all of `changed` are others."""
    header, content = {}, b""
    for number, name in enumerate(names):
        header[name] = {
            "dtype": "U8",
            "shape": [nbytes],
            "data_offsets": [len(content), len(content) + nbytes],
        }
        content += bytes([(number + 1 + 100 * (name == changed)) % 256]) * nbytes
    said = json.dumps(header).encode()
    path.write_bytes(len(said).to_bytes(8, "little") + said + content)
    return path


def told(files: list[Path], commit: str | None = None) -> dict:
    return Checkpoint("somewhere", commit, holdings(files))._asdict()


def test_another_value_in_any_tensor_is_found_where_there_are_windows_for_all(tmp_path):
    names = tensors()
    base = holdings([written(tmp_path / "a", names)])
    assert base == holdings([written(tmp_path / "a", names)])
    for name in names:
        other = holdings([written(tmp_path / "a", names, changed=name)])
        assert other["a"]["header"] == base["a"]["header"]
        assert other["a"]["values"] != base["a"]["values"], name


def test_windows_are_spread_over_all_layers_of_every_kind(tmp_path):
    experts = tuple(f"mlp.experts.{e}.up_proj" for e in range(64))
    names = tensors(61, (*NAMES, *experts))
    file = written(tmp_path / "a", names, nbytes=8)
    raw = file.read_bytes()
    header = raw[8 : 8 + int.from_bytes(raw[:8], "little")]
    budget = 61 * (len(NAMES) + 1)
    starts = module._windows(header, len(raw), budget)
    found = {n for n, (a, b) in module._tensors(header, len(raw)).items() for s in starts if a == s}
    assert len(starts) == len(found) == budget
    assert set(tensors(61)) <= found, "many experts leave no layer out"
    assert {name.split(".")[2] for name in found if "experts" in name} == set(map(str, range(61)))


def test_a_bounded_part_is_read_of_however_many_files(tmp_path, monkeypatch):
    files = [written(tmp_path / f"{i}.safetensors", tensors(), nbytes=16_384) for i in range(40)]
    monkeypatch.setattr(module, "MOST_WINDOWS", 40 * 20)
    read: list[int] = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, n, at: read.append(n) or pread(fd, n, at))
    holdings(files)
    assert len(read) == 40 * 20
    assert set(read) == {module.WINDOW_BYTES}


def test_of_other_formats_the_length_and_places_all_over_the_file_are_compared(tmp_path):
    file = tmp_path / "pytorch_model.bin"
    raw = random.Random(0).randbytes(1 << 20)
    file.write_bytes(raw)
    base = holdings([file])
    assert base[file.name]["bytes"] == 1 << 20
    for place in (0, 1 << 19, (1 << 20) - 600):
        other = bytearray(raw)
        other[place : place + 600] = bytes(600)
        file.write_bytes(other)
        assert holdings([file]) != base, place


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"123",
        bytes(8),
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"[]" + b"weights",
        (9).to_bytes(8, "little") + b'{"a": {}}',
        (4000).to_bytes(8, "little") + b"[" * 4000 + b"weights",
        (41).to_bytes(8, "little") + b'{"a": {"data_offsets": [-90, 18446744073}}',
        (43).to_bytes(8, "little") + b'{"a": {"data_offsets": [50, 9999999999999]}}',
        (37).to_bytes(8, "little") + b'{"a": {"data_offsets": ["b", null]}} ' + b"weights",
    ],
)
def test_what_is_no_safetensors_file_is_compared_as_any_other(tmp_path, raw):
    file = tmp_path / "model.safetensors"
    file.write_bytes(raw)
    found = holdings([file])
    assert found == holdings([file])
    assert found[file.name]["bytes"] == len(raw)
    file.write_bytes(raw[:-1] + b"\x01" if raw else b"\x01")
    assert holdings([file]) != found


def test_what_cannot_be_read_is_said_and_nothing_is_raised(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    assert holdings([tmp_path / "model.safetensors"]) == {
        "model.safetensors": {"unreadable": "is a pipe, not a regular file"}
    }
    gone = holdings([tmp_path / "gone"])["gone"]["unreadable"]
    assert gone == "cannot be read: No such file or directory"
    file = written(tmp_path / "gone", tensors())
    assert (fault_in([told([file]), told([file]) | {"files": {"gone": {"unreadable": gone}}}])) == (
        "the ranks of layer sharding were given different checkpoints, whose layers would be "
        "mixed; give every rank the same files, or the same commit. rank 1 against rank 0: "
        "gone of rank 1 cannot be read: No such file or directory (somewhere; somewhere)"
    )


def test_after_the_patience_lengths_are_compared_and_nothing_that_one_rank_does_not_know(tmp_path):
    file = written(tmp_path / "a", tensors())
    late = holdings([file], patience_s=-1.0)
    assert late == {"a": {"bytes": file.stat().st_size, "header": None, "values": None}}
    assert fault_in([told([file]), Checkpoint("late", None, late)._asdict()]) is None
    written(file, tensors()[:-1])
    assert "a has " in fault_in([told([file]), Checkpoint("late", None, late)._asdict()])
