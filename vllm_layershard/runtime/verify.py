"""FirstArrivals: with `verify`, each layer's first arrival is held against its owner's bytes."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch

from vllm_layershard.errors import MismatchError
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.group import RankGroup


def checksum(tensors: Sequence[torch.Tensor]) -> int:
    """CRC-32 over the tensors' bytes in logical order. Copies to the host; blocks."""
    crc = 0
    for tensor in tensors:
        data = tensor.detach().cpu().contiguous().view(torch.uint8).numpy()
        crc = zlib.crc32(data.tobytes(), crc)
    return crc


class FirstArrivals:
    """Knows the owners' checksums; checks every position once. Its making is collective."""

    def __init__(
        self,
        group: RankGroup,
        name: str,
        plan: SeriesPlan,
        resident: Mapping[int, Sequence[torch.Tensor]],
    ) -> None:
        mine = {position: checksum(tensors) for position, tensors in resident.items()}
        self._group = group
        self._name = name
        self._plan = plan
        self._expected = {p: crc for rank in group.gather(mine) for p, crc in rank.items()}

    def forget(self, position: int) -> None:
        """Its owner has another weight now, whose checksum nobody has told."""
        self._expected.pop(position, None)

    def check(self, position: int, arrived: Sequence[torch.Tensor]) -> None:
        """Compare the first arrival of `position`.

        Raises:
            MismatchError: the bytes are not the owner's.
        """
        expected = self._expected.pop(position, None)
        if expected is not None and checksum(arrived) != expected:
            rank = self._group.ranks[self._group.group_rank]
            owner = self._group.ranks[self._plan.owner[position]]
            raise MismatchError(
                f"rank {rank}: layer {self._plan.series.layer_ids[position]} of series "
                f"{self._name!r} arrived with other bytes than its owner, rank {owner}, holds; "
                "the link or the transport is at fault: do not serve"
            )
