"""Transport and Ticket: how one layer's bytes get into a slot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from vllm_layershard.runtime.device import Device


class Ticket:
    """A movement under way, and the event of its arrival."""

    __slots__ = ("_arrived", "_device")

    def __init__(self, device: Device, arrived: Any) -> None:
        self._device = device
        self._arrived = arrived

    def wait(self) -> None:
        """Return when whatever compute follows will see the bytes. On a device the host goes on.

        Raises:
            RuntimeError: they did not arrive.
        """
        self._device.join(self._arrived)


class Transport(ABC):
    """Moves layers of one series between the ranks of its group."""

    @abstractmethod
    def start(self, position: int, slot: int) -> Ticket:
        """Begin to move `position` into `slot` on every rank that does not own it.

        Ordered after all compute that was given before, so that a slot's last reader is done. On a
        transport in lockstep, all ranks start the same positions in the same order.
        """
