"""Transport and Ticket: how one layer's bytes get into a slot."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Ticket(ABC):
    """A movement under way."""

    @abstractmethod
    def wait(self) -> None:
        """Return when whatever compute follows will see the bytes. On a device the host goes on."""


class Transport(ABC):
    """Moves layers of one series between the ranks of its group."""

    @abstractmethod
    def start(self, position: int, slot: int) -> Ticket:
        """Begin to move `position` into `slot` on every rank that does not own it.

        Ordered after all compute that was given before, so that a slot's last reader is done. On a
        transport in lockstep, all ranks start the same positions in the same order.
        """
