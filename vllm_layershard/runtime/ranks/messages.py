"""Messages between ranks: JSON and nothing else, so that what a rank sends never runs as code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from vllm_layershard.errors import MismatchError
from vllm_layershard.runtime.tensors import bytes_of

MOST_BYTES = 64 << 20
"""Of one message. The longest, the IPC handles of a model's layers for every reader, have a few
hundred kilobytes."""


def exchange(value: Any, process_group: dist.ProcessGroup, ranks: Sequence[int]) -> list[Any]:
    """Every rank's value, in the order of `ranks`, the global ranks of the group. Collective.

    `value` is plain data of JSON's types, and comes back as JSON has it: lists, and keys of text.

    Raises:
        MismatchError: what a rank sent is no JSON, or too long; on every rank if it is too long.
        RuntimeError: a rank did not take part.
    """
    device = _device_of(process_group)
    sent = torch.frombuffer(bytearray(_encoded(value)), dtype=torch.uint8).to(device)
    length = torch.tensor([sent.numel()], dtype=torch.int64, device=device)
    lengths = [torch.empty_like(length) for _ in ranks]
    dist.all_gather(lengths, length, group=process_group)
    nbytes = [int(each) for each in lengths]
    for rank, count in zip(ranks, nbytes, strict=True):
        if not 0 < count <= MOST_BYTES:
            raise _strange(rank, f"announces {count} bytes, at most {MOST_BYTES} are read")
    padded = torch.zeros(max(nbytes), dtype=torch.uint8, device=device)
    padded[: sent.numel()] = sent
    received = [torch.empty_like(padded) for _ in ranks]
    dist.all_gather(received, padded, group=process_group)
    return [
        decoded(rank, bytes_of(line[:count]))
        for rank, line, count in zip(ranks, received, nbytes, strict=True)
    ]


def _encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def decoded(rank: int, raw: bytes) -> Any:
    """The plain data that a rank has sent or shown as JSON.

    Raises:
        MismatchError: it is no JSON.
    """
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _strange(rank, f"is no JSON ({error})") from None


def _strange(rank: int, fault: str) -> MismatchError:
    return MismatchError(
        f"what rank {rank} sent {fault}: it runs another version of vllm-layershard, or none; "
        "give every rank the same"
    )


def _device_of(process_group: dist.ProcessGroup) -> torch.device:
    """Where the group's backend wants its tensors: on the CPU, if it takes them there."""
    kinds = [device.type for device in process_group._device_types]
    return torch.device("cpu" if "cpu" in kinds else kinds[0])
