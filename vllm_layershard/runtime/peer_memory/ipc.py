"""IpcExports: weights in a device's memory, which other processes of the node map.

torch shares a storage as eight values (`UntypedStorage._share_cuda_`, `_new_shared_cuda`), and
torch_npu does as torch. What is relied on was read in these files of torch near 2.13 and has not
been run; the tests for it are in tests/gpu:

- torch/csrc/StorageSharing.cpp: the handle is of the whole block that the allocator got from the
  driver, with the storage's offset in it. The first value is the device to map it on: the reader
  gives its own, as torch's test/distributed/test_p2p_ipc.py does, and opening enables peer access.
- aten/src/ATen/native/cuda/Copy.cu: a copy runs on the current stream of its *source's* device.
  Mapped on the reader's own device that is the side stream, and one cudaMemcpyAsync; mapped on the
  peer's it would be another stream, which no graph could capture.
- torch/csrc/CudaIPCTypes.cpp: each sharing has a reference counter, in POSIX shared memory of
  torch's, which is 1 until one reader has let go. So every reader gets a sharing of its own, and
  memory that is still mapped somewhere is not given to others by its owner. Addresses stay.
- The same: an event is recorded with the sharing, and opening makes the reader's stream wait for
  it; from the thousandth on torch waits itself.
- What was received from another process cannot be shared on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch

from vllm_layershard.errors import NodeError
from vllm_layershard.runtime.peer_memory.base import (
    Exports,
    Parts,
    Sizes,
    checked_sizes,
    strange_handles,
)
from vllm_layershard.runtime.peer_memory.processes import Peers, address
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.tensors import byte_line

INSTEAD = "use transport 'broadcast' where the ranks run in lockstep, or leave layer sharding out"


class Shared(NamedTuple):
    """What torch says of a shared storage; the order is torch's."""

    device: int
    handle: bytes
    nbytes: int
    offset: int
    counter: bytes
    counter_offset: int
    event: bytes
    must_wait: bool

    def plain(self) -> list[Any]:
        """As JSON can say it."""
        return [value.hex() if isinstance(value, bytes) else value for value in self]

    @classmethod
    def read(cls, plain: Sequence[Any], device: int) -> Shared:
        """What `plain` gave, to be mapped on a device of this process."""
        given = cls(*plain)
        return given._replace(
            device=device,
            handle=bytes.fromhex(plain[1]),
            counter=bytes.fromhex(plain[4]),
            event=bytes.fromhex(plain[6]),
        )


class _Part(NamedTuple):
    """A tensor's bytes in a shared storage."""

    shared: Shared
    offset: int
    nbytes: int

    @classmethod
    def read(cls, plain: Sequence[Any], offset: int, nbytes: int, device: int) -> _Part:
        """What a peer says, to be mapped on a device of this process.

        Raises:
            TypeError, ValueError: it is not what a sharing looks like, or lies outside its storage.
        """
        shared = Shared.read(plain, device)
        if not 0 <= offset <= offset + nbytes <= shared.nbytes:
            raise ValueError(offset, nbytes)
        return cls(shared, offset, nbytes)


class IpcExports(Exports):
    """On one device; a subclass says how it shares a storage and what it cannot share."""

    def __init__(self, group: Group, torch_device: torch.device, accelerator: ModuleType) -> None:
        self._rank = group.ranks[group.group_rank]
        self._readers = tuple(rank for rank in group.ranks if rank != self._rank)
        self._accelerator = accelerator
        index = torch_device.index
        self._index: int = accelerator.current_device() if index is None else index
        self._device = torch.device(torch_device.type, self._index)
        self._stored: dict[int, Parts] = {}
        self._peers = Peers(self._rank)

    @abstractmethod
    def _share(self, storage: torch.UntypedStorage) -> Shared:
        """A sharing of its own, for one reader."""

    @abstractmethod
    def _map(self, shared: Shared) -> torch.UntypedStorage:
        """What a peer has shared, on this rank's device."""

    @abstractmethod
    def _identity(self) -> str:
        """What the device is called by every process of the node."""

    @abstractmethod
    def _check_reach(self, rank: int, identity: str) -> None:
        """Return unless the device of global rank `rank` is known to be out of reach.

        Raises:
            NodeError: names both ranks and devices, and the alternative.
        """

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The same tensors: device memory is shared where it is.

        But a part of a larger storage gets one of its own, so that the rest can be freed.
        """
        stored = tuple(_alone(tensor) for tensor in tensors)
        self._stored[position] = tuple(byte_line(tensor) for tensor in stored)
        return stored

    def handles(self) -> Any:
        """A sharing for each reader. Blocks until the device has done all it was given."""
        self._accelerator.synchronize(self._device)
        try:
            shared = {str(rank): self._shared_once() for rank in self._readers}
        except RuntimeError as error:
            raise NodeError(
                f"rank {self._rank}: the memory of its weights on {self._device} cannot be shared "
                f"with other processes ({_first_line(error)}), as that of a pluggable allocator "
                f"(vLLM's sleep mode) or of another process cannot; {INSTEAD}"
            ) from error
        return {"process": address(), "device": self._identity(), "for": shared}

    def _shared_once(self) -> dict[str, Any]:
        return {
            str(position): [
                [self._share(line.untyped_storage()).plain(), line.storage_offset(), line.numel()]
                for line in lines
            ]
            for position, lines in self._stored.items()
        }

    def open(self, rank: int, handles: Any, expected: Mapping[int, Sizes]) -> Mapping[int, Parts]:
        try:
            process, device = handles["process"], str(handles["device"])
            shared = {
                int(position): [
                    _Part.read(plain, offset, nbytes, self._index)
                    for plain, offset, nbytes in parts
                ]
                for position, parts in handles["for"][str(self._rank)].items()
            }
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
            raise strange_handles(rank, "no handles of device memory") from None
        sizes = {p: tuple(part.nbytes for part in parts) for p, parts in shared.items()}
        checked_sizes(rank, sizes, expected)
        try:
            if int(process["pid"]) < 1:
                raise ValueError(process["pid"])
            self._peers.watch(rank, process)
        except (KeyError, OverflowError, TypeError, ValueError):
            raise strange_handles(rank, "an address that no process has") from None
        self._check_reach(rank, device)
        try:
            return {p: tuple(map(self._opened, parts)) for p, parts in shared.items()}
        except RuntimeError as error:
            raise NodeError(
                f"rank {self._rank} on {self._device} ({self._identity()}) cannot map the memory "
                f"of rank {rank} on device {device} ({_first_line(error)}); where "
                "expandable_segments is set, unset it or allow the processes to trace each other "
                f"(CAP_SYS_PTRACE); otherwise {INSTEAD}"
            ) from error

    def _opened(self, part: _Part) -> torch.Tensor:
        storage = self._map(part.shared)
        line = torch.empty(0, dtype=torch.uint8, device=self._device)
        return line.set_(storage, part.offset, (part.nbytes,), (1,))

    def whereabouts(self) -> Any:
        return None

    def reopen(self, rank: int, whereabouts: Any) -> None:
        """Whose process ends takes its memory along: `check_peers` says so, and all restart."""

    def settle(self) -> None:
        """Device memory has no names."""

    def check_peers(self) -> None:
        self._peers.check()


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    whole = tensor.untyped_storage().nbytes()
    return tensor if whole == tensor.numel() * tensor.element_size() else tensor.clone()


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().split("\n")[0]
