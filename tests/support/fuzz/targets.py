"""What the fuzzer and the property tests throw bytes at: each ends in a result or a named error."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from checkpoints import small_config
from layershard_cli.additional_config import read_additional
from vllm_layershard.errors import LayerShardError
from vllm_layershard.estimate import DEFAULT, forecast, profile
from vllm_layershard.models import Deployment, FoundModel, model_of, shard_model
from vllm_layershard.models.checkpoint.compare import compare
from vllm_layershard.models.checkpoint.files import Checkpoint, read_checkpoint
from vllm_layershard.models.checkpoint.safetensors import PREFIX_BYTES, header_bytes, parse_header
from vllm_layershard.models.checkpoint.weight_map import INDEX, parse_weight_map
from vllm_layershard.models.quantization.methods.modelslim import parse_description
from vllm_layershard.models.sources.config_file import parse_config
from vllm_layershard.never_sharded import refusal_of
from vllm_layershard.plan import Linear, ParallelLayout
from vllm_layershard.plan.linear import suffix_of
from vllm_layershard.schema import validated

LAYOUTS = (
    Deployment(ParallelLayout(dp=2), ep=True),
    Deployment(ParallelLayout(tp=2, dp=2)),
    Deployment(ParallelLayout(pcp=2, pp=2)),
)


def _check(error: LayerShardError, start: str = "fuzz: ") -> None:
    """It says something, and of which file."""
    assert str(error)
    assert str(error).startswith(start), error


def config(data: bytes) -> bool:
    """A config.json: read, planned on several layouts, estimated. Whether any was planned."""
    try:
        model = model_of(FoundModel("fuzz", "local:fuzz", parse_config(data, "fuzz")))
    except LayerShardError as error:
        _check(error)
        return False
    planned = False
    for deployment in LAYOUTS:
        try:
            linears = model.linears(deployment)
            suffixes = (suffix_of(linear.prefix) for linear in reversed(linears))
            names = [next(suffix for suffix in suffixes if refusal_of(suffix) is None)]
            sharding = shard_model(model, deployment, validated(names))
            sharding.stage_kv_bytes("auto")
            forecast(sharding, profile(DEFAULT), 512)
        except LayerShardError as error:
            _check(error, "")
            continue
        planned = True
    return planned


def file(data: bytes) -> Checkpoint | None:
    """A safetensors file; None where it is refused."""
    try:
        length = header_bytes(data[:PREFIX_BYTES], len(data), "fuzz")
    except LayerShardError as error:
        _check(error)
        return None
    raw = data[PREFIX_BYTES : PREFIX_BYTES + length]
    return header(raw, len(data) - PREFIX_BYTES - length)


def header(raw: bytes, data_bytes: int) -> Checkpoint | None:
    """A header; None where it is refused."""
    try:
        tensors = list(parse_header(raw, data_bytes, "fuzz"))
    except LayerShardError as error:
        _check(error)
        return None
    assert sum(tensor.nbytes for tensor in tensors) == data_bytes
    return Checkpoint(("fuzz",), {tensor.name: tensor for tensor in tensors})


def stored(data: bytes) -> bool:
    """A header after two bytes of data length, compared with a model; whether it could be read."""
    checkpoint = header(data[2:], int.from_bytes(data[:2], "little"))
    if checkpoint is None:
        return False
    comparison = compare(*_small(), checkpoint)
    assert comparison.disagreements, "nothing that short holds the whole model"
    return True


@cache
def _small() -> tuple[tuple[Linear, ...], int]:
    """The linears of a small model, and its layers."""
    text = json.dumps(small_config()).encode()
    model = model_of(FoundModel("small", "local:small", parse_config(text, "small")))
    return model.linears(Deployment(ParallelLayout())), model.num_layers


def weight_map(data: bytes) -> bool:
    """An index; whether it could be read."""
    try:
        files = parse_weight_map(data, "fuzz")
    except LayerShardError as error:
        _check(error)
        return False
    values = json.loads(data)["weight_map"]
    assert set(files) == set(values.values())
    assert sum(files.values()) == len(values)
    assert all(Path(file).name == file for file in files)
    return True


def description(data: bytes) -> bool:
    """A quant_model_description.json; whether it could be read."""
    try:
        kinds, caches, _ = parse_description(data, "fuzz")
    except LayerShardError as error:
        _check(error)
        return False
    values = json.loads(data.decode())
    assert all(
        kind in (values.get(f"{module}.weight"), values.get(f"{module}.weight_packed"))
        for module, kind in kinds.items()
    )
    assert all(values[key] == kind for key, kind in caches.items())
    return True


def directory(data: bytes) -> bool:
    """A directory with an index and one file, both of these bytes; whether it could be read."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / INDEX).write_bytes(data)
        (Path(place) / "model.safetensors").write_bytes(data)
        try:
            read_checkpoint(Path(place))
        except LayerShardError:
            return False
    return True


def additional(data: bytes) -> bool:
    """What `layershard check` is given; whether it is a configuration."""
    try:
        read_additional(data.decode("utf-8", "surrogateescape"))
    except LayerShardError as error:
        _check(error, "")
        return False
    return True


TARGETS: dict[str, Callable[[bytes], object]] = {
    "config": config,
    "file": lambda data: file(data) is not None,
    "header": stored,
    "weight_map": weight_map,
    "description": description,
    "directory": directory,
    "additional": additional,
}
