"""Exports: memory of this rank's that other ranks may read, and theirs as this rank sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

Parts = tuple[torch.Tensor, ...]
"""The tensors of one position, each as a flat alias of its bytes: [nbytes] of uint8."""


class Exports(ABC):
    """One rank's side of one series.

    In this order: `store` for each position that this rank has something of, `handles` once, `open`
    for each peer, and `settle` in a group to which nobody comes back. Then forwards; after a
    reload, between two of them, `reload` and `follow`.
    """

    @abstractmethod
    def store(self, position: int, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """Tensors alike, with the same bytes, in memory that others can map; at fixed addresses.

        Raises:
            NodeError: there is no such memory, or not so much of it.
        """

    @abstractmethod
    def handles(self) -> Any:
        """What the others need to see all that is stored: plain data."""

    @abstractmethod
    def open(self, rank: int, handles: Any) -> Mapping[int, Parts]:
        """What global rank `rank` stores, by position; to be read only.

        Raises:
            NodeError: its memory cannot be seen from here: names both ranks, why, and the remedy.
            TransportError: it is gone.
        """

    @abstractmethod
    def settle(self, *, followed: bool) -> None:
        """All peers have opened what is stored, and no other will come: nobody finds it any more.

        `followed`: they may `follow` a reload, and need to find who is alive.
        """

    @abstractmethod
    def reload(self, position: int, tensors: Sequence[torch.Tensor]) -> None:
        """Serve these bytes for what is stored of `position`, as its next version, to who follows.

        The others go on to see the version that they see, and find those between. No address
        changes.

        Raises:
            NodeError: this device's memory cannot be shared in versions.
        """

    @abstractmethod
    def follow(self, versions: Mapping[tuple[int, int], int]) -> None:
        """See these versions, by global rank and position; waits for those to come.

        What was there when loading ended is version 0; each `reload` makes the next one.

        Raises:
            TransportError: one did not come in bounded time, or its rank is gone.
        """

    @abstractmethod
    def check_peers(self) -> None:
        """Before a forward: see that what was opened is still there.

        Raises:
            TransportError: a peer is gone, and with it the memory that it stored.
        """
