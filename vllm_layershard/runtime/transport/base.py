"""Transport and Ticket: how one layer's bytes get into a slot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from vllm_layershard.config import TransportName
from vllm_layershard.plan import SeriesPlan
from vllm_layershard.runtime.device import Device
from vllm_layershard.runtime.slots import SlotPool


class Ticket:
    """A movement under way, and the event of its arrival.

    If it is `captured`, it was started while a graph was captured: it moves when that is replayed.
    """

    __slots__ = ("_arrived", "_device", "captured")

    def __init__(self, device: Device, arrived: Any) -> None:
        self._device = device
        self._arrived = arrived
        self.captured = device.is_capturing()

    def may_wait(self) -> bool:
        """Whether both are within a capture, the start and what comes now, or neither."""
        return self.captured == self._device.is_capturing()

    def wait(self) -> None:
        """Return when whatever compute follows will see the bytes. On a device the CPU goes on.

        Raises:
            RuntimeError: they did not arrive.
        """
        self._device.join(self._arrived)


class Transport(ABC):
    """Moves layers of one series between the ranks of its group.

    `store` for each position of which this rank stores something, then `open`, then forwards.
    """

    name: TransportName
    device: Device | None = None
    """Whose side stream it moves on; None if it moves nothing."""

    @abstractmethod
    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Take this rank's tensors of `position`; returns tensors alike, with the same bytes.

        Those returned are what the others read. They may be the given ones.

        Raises:
            HostError: there is no memory that the others can read.
        """

    @abstractmethod
    def open(self, plan: SeriesPlan, slots: SlotPool) -> None:
        """Get ready to fill the slots as the final plan says; all ranks of the group do so.

        Raises:
            HostError, TransportError: a rank cannot be reached.
        """

    def begin(self) -> None:  # noqa: B027 - a broadcast has nothing to do here
        """At the start of a forward, with nothing in flight.

        Raises:
            TransportError: a rank on which the forward depends is gone.
        """

    def check_peers(self) -> None:  # noqa: B027 - a broadcast sees nobody
        """Before a step, also one that is replayed: see that what the others read is still there.

        Raises:
            TransportError: a rank on which the step depends is gone, or a reload has failed.
        """

    @abstractmethod
    def start(self, position: int, slot: int) -> Ticket | None:
        """Begin to move `position` into `slot`, if this rank needs it there; else None.

        Ordered after all compute that was given before, so that a slot's last reader is done. On a
        transport in lockstep, all ranks start the same positions in the same order.
        """

    def whereabouts(self) -> Any:
        """What the others need to find this rank's memory again, as plain data; None for nothing.

        A rank that was started again has other memory than its peers see.
        """
        return None

    def meet(self, whereabouts: Sequence[Any]) -> None:  # noqa: B027 - most have nothing to do
        """Between two forwards: find the memory of all ranks of the group, at the same addresses.

        Raises:
            NodeError, TransportError, MismatchError: that of a rank cannot be seen.
        """

    @abstractmethod
    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        """While nobody reads: this rank has other bytes for what it stores of `position`.

        They go where the former ones are. `tensors` is empty on a rank that stores nothing of it.
        """
