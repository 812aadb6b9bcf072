"""Stay: every rank stores every layer, and nothing moves (the `replicated` placement)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import torch

from vllm_layershard.config import TransportName
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.transport.base import Transport


class Stay(Transport):
    """`name` is the transport that would move the layers if they were sharded."""

    def __init__(self, name: TransportName) -> None:
        self.name = name
        self._stored: dict[int, tuple[torch.Tensor, ...]] = {}

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        self._stored[position] = tuple(tensors)
        return self._stored[position]

    def open(self, plan: SeriesPlan, slots: SlotPool) -> None:
        """There is no slot to fill."""

    def start(self, position: int, slot: int) -> NoReturn:
        raise AssertionError("plan/schedule.py: a series that stays starts nothing")

    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        for stored, new in zip(self._stored[position], tensors, strict=True):
            stored.copy_(new)
