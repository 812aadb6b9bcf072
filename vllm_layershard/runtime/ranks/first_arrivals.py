"""FirstArrivals: with `verify`, each layer's first arrival is held against its owner's bytes."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch

from vllm_layershard.errors import MismatchError
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.ranks.group import Group
from vllm_layershard.runtime.tensors import bytes_of


def checksum(tensors: Sequence[torch.Tensor]) -> int:
    """CRC-32 over the tensors' bytes in logical order. Copies to CPU memory; blocks."""
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(bytes_of(tensor), crc)
    return crc


class FirstArrivals:
    """Knows the loaders' checksums of whole layers; checks every position once."""

    def __init__(self, group: Group, plan: SeriesPlan) -> None:
        self._group = group
        self._plan = plan
        self._mine: dict[int, int] = {}
        self._expected: dict[int, int] = {}

    def note(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        """On the rank that loaded it: the layer as processed."""
        self._mine[position] = checksum(tensors)

    def gather(self) -> None:
        """Learn what the loaders noted. All ranks of the group do so."""
        told = self._group.gather({str(p): crc for p, crc in self._mine.items()})
        for position, loader in enumerate(self._plan.loader):
            self._expected[position] = told[loader][str(position)]

    def forget(self, position: int) -> None:
        """There is another weight now, whose checksum nobody has told."""
        self._expected.pop(position, None)

    def check(self, position: int, arrived: Sequence[torch.Tensor]) -> None:
        """Compare the first arrival of `position`.

        Raises:
            MismatchError: the bytes are not those that were loaded.
        """
        expected = self._expected.pop(position, None)
        if expected is not None and checksum(arrived) != expected:
            rank = self._group.ranks[self._group.group_rank]
            loader = self._group.ranks[self._plan.loader[position]]
            owner = f"its owner, rank {loader}, holds"
            whose = f"rank {loader} loaded" if self._plan.is_striped else owner
            raise MismatchError(
                f"rank {rank}: {self._plan.layer_name(position)} arrived with other bytes than "
                f"{whose}; the link or the transport is at fault: do not serve"
            )
