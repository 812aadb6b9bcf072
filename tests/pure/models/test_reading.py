"""What the readers of untrusted files do for their bytes: in proportion, and up to a limit."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from vllm_layershard.errors import ModelError
from vllm_layershard.models.checkpoint.safetensors import parse_header
from vllm_layershard.models.checkpoint.weight_map import parse_weight_map
from vllm_layershard.models.quantization.methods.modelslim import parse_description
from work import TooMuchError, Work

FEW, MANY = 1000, 4000
STEPS_EACH = 250
"""The most that any entry takes: one of a header whose keys stand in another order."""

LIMIT = 1 << 19


def index(raw: bytes) -> None:
    parse_weight_map(raw, "index")


def header(raw: bytes) -> None:
    assert len(list(parse_header(raw, 4, "header"))) == raw.count(b"data_offsets")


def description(raw: bytes) -> None:
    parse_description(raw, "description")


def joined(entry: str, count: int, start: str, end: str) -> bytes:
    return (start + ",".join(entry % i for i in range(count)) + end).encode()


def tensors(count: int, name: str = '"layers.%d"') -> bytes:
    return joined(f'{name}:"a.safetensors"', count, '{"weight_map":{', "}}")


def lists(count: int) -> bytes:
    return b'{"metadata":[' + b"[]," * (count - 1) + b'[]],"weight_map":{"a":"a.safetensors"}}'


def entries(text: str) -> Callable[[int], bytes]:
    first = '{"first":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
    return lambda count: joined(f'"%d":{text}', count, first, "}")


FILES: dict[str, tuple[Callable[[bytes], None], Callable[[int], bytes]]] = {
    "an index": (index, tensors),
    "an index of escaped names": (index, lambda count: tensors(count, '"\\u0061%d"')),
    "an index with lists beside it": (index, lists),
    "a header": (header, entries('{"dtype":"F32","shape":[0],"data_offsets":[4,4]}')),
    "a header in another order": (
        header,
        entries('{"data_offsets":[4,4],"dtype":"F32","shape":[0]}'),
    ),
    "a header's metadata": (
        header,
        lambda count: (
            joined('"%d":"b"', count, '{"__metadata__":{', "},")
            + entries("{}")(0)[1:].replace(b",}", b"}")
        ),
    ),
    "a description": (description, lambda count: joined('"%d.weight":"W8A8"', count, "{", "}")),
    "a description of numbers": (description, lambda count: joined('"%d":1', count, "{", "}")),
}


@pytest.mark.parametrize("file", FILES)
def test_the_work_grows_as_the_file_does(file: str) -> None:
    read, make = FILES[file]
    steps = []
    for count in (FEW, MANY):
        raw = make(count)
        with Work(STEPS_EACH * count) as work:
            read(raw)
        steps.append(work.steps)
    assert steps[1] < MANY / FEW * steps[0] * 1.01


def test_a_reader_that_looks_back_is_caught() -> None:
    """So the measure itself is one that can fail."""

    def looks_back(raw: bytes) -> None:
        seen: list[str] = []
        for name in json.loads(raw)["weight_map"]:
            assert not any(name == other for other in seen)
            seen.append(name)

    with pytest.raises(TooMuchError, match="more than 250,000 steps"), Work(STEPS_EACH * FEW):
        looks_back(tensors(FEW))


@pytest.mark.parametrize(
    ("read", "make", "each"),
    [
        (index, tensors, 1),
        (index, lists, 8),
        (description, FILES["a description"][1], 1),
        (description, FILES["a description of numbers"][1], 8),
    ],
)
def test_so_many_values_are_read_and_no_more(
    read: Callable[[bytes], None], make: Callable[[int], bytes], each: int
) -> None:
    read(make(LIMIT // each - 16))
    with pytest.raises(ModelError, match="more values than are read: 524,288 strings in a row"):
        read(make(LIMIT // each + 1))
