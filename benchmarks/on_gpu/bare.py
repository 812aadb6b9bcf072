"""Bare: a few layers in the peer's memory, as many in one's own, and windows to copy them into."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vllm_layershard.runtime.device import device_of
from vllm_layershard.runtime.peer_memory import exports_of
from vllm_layershard.runtime.ranks.group import group_over

LAYERS = 4
LAYER_BYTES = 128 << 20


def device_for(rank: int) -> torch.device:
    """A GPU of its own for each of two ranks, where there are two; current from now on."""
    device = torch.device("cuda", rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def between() -> str:
    """What a pull of two ranks crosses here."""
    return "two GPUs" if torch.cuda.device_count() > 1 else "two processes on one GPU"


class Bare:
    """Made by both ranks; the first copies, and the second keeps its memory meanwhile."""

    def __init__(self, rank: int, device: torch.device) -> None:
        group = group_over(None)
        self._exports = exports_of(device_of(device), group, "bare")
        self.own = [
            torch.ones(LAYER_BYTES, dtype=torch.uint8, device=device) for _ in range(LAYERS)
        ]
        if rank == 1:
            self._exports.store(0, self.own)
        handles = group.gather(self._exports.handles())
        self.theirs: Sequence[torch.Tensor] = self.own
        if rank == 0:
            stored = {0: (LAYER_BYTES,) * LAYERS}
            self.theirs = self._exports.open(group.ranks[1], handles[1], stored)[0]
        self._windows = [torch.empty_like(line) for line in self.own]

    def pairs(
        self, sources: Sequence[torch.Tensor], slice_bytes: int
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Each slice of a source, as target and source, into the first windows."""
        return [
            pair
            for window, source in zip(self._windows, sources, strict=False)
            for pair in zip(
                window.split(slice_bytes or LAYER_BYTES),
                source.split(slice_bytes or LAYER_BYTES),
                strict=True,
            )
        ]

    def copy(self, sources: Sequence[torch.Tensor], slice_bytes: int) -> None:
        """All of them, on the current stream."""
        for target, piece in self.pairs(sources, slice_bytes):
            target.copy_(piece, non_blocking=True)
