"""Broken: takes a transport's place where a reload failed half-way; every forward is an error."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from vllm_layershard.errors import TransportError
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.slots import SlotPool
from vllm_layershard.runtime.transport.base import Transport


class Broken(Transport):
    """`reason` is what each forward says; `former` serves again once a reload has succeeded."""

    def __init__(self, former: Transport, reason: str) -> None:
        self.name = former.name
        self.former = former
        self._reason = reason

    def begin(self) -> NoReturn:
        raise TransportError(self._reason)

    def check_peers(self) -> NoReturn:
        raise TransportError(self._reason)

    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> NoReturn:
        raise AssertionError("a series is broken after it was loaded, not before")

    def open(self, plan: SeriesPlan, slots: SlotPool) -> NoReturn:
        raise AssertionError("a series is broken after it was loaded, not before")

    def start(self, position: int, slot: int) -> NoReturn:
        raise TransportError(self._reason)

    def whereabouts(self) -> Any:
        return self.former.whereabouts()

    def meet(self, whereabouts: Sequence[Any]) -> None:
        self.former.meet(whereabouts)

    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        self.former.reload(position, tensors)
