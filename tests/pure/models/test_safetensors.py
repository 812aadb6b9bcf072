"""Headers are read as the format's own implementation reads them, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from checkpoints import deepseek, header_of, small_config, write, write_raw
from fuzz import targets
from vllm_layershard.errors import ModelError
from vllm_layershard.models.checkpoint.files import MissingFilesError, read_checkpoint
from vllm_layershard.models.checkpoint.safetensors import DTYPE_BITS, parse_header

FILTERED = settings(suppress_health_check=[HealthCheck.filter_too_much])

names = st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 5), max_size=4)
WRITABLE = {"uint8": "U8", "float32": "F32", "float16": "F16", "int64": "I64", "bool": "BOOL"}


@FILTERED
@given(tensors=st.dictionaries(names, st.tuples(st.sampled_from(sorted(WRITABLE)), shapes)))
def test_what_the_reference_writes_is_read(tensors: dict[str, tuple[str, list[int]]]) -> None:
    data = {name: numpy.zeros(shape, dtype) for name, (dtype, shape) in tensors.items()}
    found = targets.file(save(data))
    assert found is not None
    assert {n: (t.dtype, list(t.shape)) for n, t in found.tensors.items()} == {
        name: (WRITABLE[dtype], shape) for name, (dtype, shape) in tensors.items()
    }


offsets = st.integers(-1, 24)
odd = st.none() | st.booleans() | st.floats() | st.text(max_size=3) | st.integers()
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*DTYPE_BITS, "F7"]) | odd,
        "shape": st.lists(st.integers(-1, 4), max_size=3) | st.lists(odd, max_size=3) | odd,
        "data_offsets": st.tuples(offsets, offsets) | st.lists(odd, max_size=3) | odd,
    },
    optional={"extra": odd},
)


def file_of(header: object, data_bytes: int) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(data_bytes)


@FILTERED
@example(
    header={
        "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
        "b": {"dtype": "I8", "shape": [], "data_offsets": [8, 9]},
    },
    data_bytes=9,
)
@given(header=st.dictionaries(names, entries | odd, max_size=3), data_bytes=st.integers(0, 24))
def test_what_is_read_the_reference_reads_alike(header: object, data_bytes: int) -> None:
    file = file_of(header, data_bytes)
    found = targets.file(file)
    if found is None:
        return
    theirs = dict(deserialize(file))
    assert {n: (t.dtype, list(t.shape)) for n, t in found.tensors.items()} == {
        name: (tensor["dtype"], tensor["shape"]) for name, tensor in theirs.items()
    }


GOOD = file_of(*header_of({"a.weight": ("BF16", [2, 3]), "b": ("F32", [1]), "c": ("U8", [0])}))


@FILTERED
@given(at=st.integers(0, len(GOOD) - 1), change=st.binary(max_size=4), gone=st.integers(0, 4))
def test_changed_bytes_are_refused_or_read_as_the_reference_reads_them(
    at: int, change: bytes, gone: int
) -> None:
    file = GOOD[:at] + change + GOOD[at + gone :]
    found = targets.file(file)
    if found is not None:
        theirs = dict(deserialize(file))
        assert {n: (t.dtype, list(t.shape)) for n, t in found.tensors.items()} == {
            name: (tensor["dtype"], tensor["shape"]) for name, tensor in theirs.items()
        }


@FILTERED
@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused_in_one_message(data: bytes) -> None:
    for target in ("file", "header", "weight_map", "description", "additional"):
        targets.TARGETS[target](data)


def test_keys_in_another_order_are_read() -> None:
    raw = b'{"a": {"shape": [2], "data_offsets": [0, 8], "dtype": "F32"}, "__metadata__": {}}'
    (tensor,) = parse_header(raw, 8, "x")
    assert (tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) == ("a", "F32", (2,), 8)


def test_packed_and_scaling_dtypes() -> None:
    for dtype, shape, nbytes in (("F4", [4, 32], 64), ("F8_E8M0", [3], 3), ("F6_E2M3", [4], 3)):
        raw = json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}})
        (tensor,) = parse_header(raw.encode(), nbytes, "x")
        assert tensor.nbytes == nbytes
        assert [t for t, _ in deserialize(file_of(raw.encode(), nbytes))] == ["a"]


def test_the_reference_knows_no_dtype_that_is_unknown_here() -> None:
    with pytest.raises(SafetensorError) as error:
        deserialize(file_of({"a": {"dtype": "F7", "shape": [], "data_offsets": [0, 0]}}, 0))
    named = str(error.value).partition("expected one of ")[2].partition(" at line")[0]
    assert {name.strip("` ") for name in named.split(",")} <= set(DTYPE_BITS)


@pytest.mark.parametrize("shards", [1, 3])
def test_all_shards_of_a_directory_are_read(tmp_path: Path, shards: int) -> None:
    tensors = deepseek(small_config())
    write(tmp_path, tensors, shards)
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert len(found.files) == shards
    assert {n: (t.dtype, list(t.shape)) for n, t in found.tensors.items()} == {
        name: (dtype, list(shape)) for name, (dtype, shape) in tensors.items()
    }
    assert found.nbytes == header_of(tensors)[1]


def test_shards_without_an_index_are_read_and_mistrals_own_file_is_not(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) is None
    for name in ("a", "b"):
        write_raw(tmp_path / f"{name}.safetensors", *header_of({name: ("BF16", [2])}))
    write_raw(tmp_path / "consolidated.safetensors", *header_of({"a": ("BF16", [2])}))
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found.files == ("a.safetensors", "b.safetensors")


def test_files_of_the_index_alone_are_read(tmp_path: Path) -> None:
    write(tmp_path, {"a": ("BF16", [2]), "b": ("BF16", [2])}, shards=2)
    (tmp_path / "other.safetensors").write_bytes(b"nonsense")
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert set(found.tensors) == {"a", "b"}


def test_a_missing_shard_says_how_to_go_on(tmp_path: Path) -> None:
    write(tmp_path, {"a": ("BF16", [2]), "b": ("BF16", [2])}, shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(MissingFilesError, match=r"1 of 2 files.*--model .*config\.json"):
        read_checkpoint(tmp_path)


def test_a_tensor_in_two_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_raw(tmp_path / f"{name}.safetensors", *header_of({"twice": ("BF16", [2])}))
    with pytest.raises(ModelError, match="'twice' is in an earlier file, too"):
        read_checkpoint(tmp_path)
