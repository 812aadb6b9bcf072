"""Exports: memory of this rank's that other ranks may read, and theirs as this rank sees it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from vllm_layershard.errors import MismatchError

Parts = tuple[torch.Tensor, ...]
"""The tensors of one position, each as a flat alias of its bytes: [nbytes] of uint8."""

Sizes = tuple[int, ...]
"""The bytes of each tensor of one position."""


class Exports(ABC):
    """One rank's side of one series.

    In this order: `store` for each position that this rank has something of, `handles` once, `open`
    for each peer, and `settle` in a group to which nobody comes back. Then forwards. What is stored
    may be written anew while nobody reads: see runtime/reload/.
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
    def open(self, rank: int, handles: Any, expected: Mapping[int, Sizes]) -> Mapping[int, Parts]:
        """What global rank `rank` stores, by position; to be read only.

        `expected` are the bytes of its tensors, by position, as the plan has them: what is mapped
        is this and nothing else.

        Raises:
            NodeError: its memory cannot be seen from here: names both ranks, why, and the remedy.
            TransportError: it is gone.
            MismatchError: what it handed over is not what the plan says that it stores.
        """

    @abstractmethod
    def whereabouts(self) -> Any:
        """What `reopen` needs of this rank, as plain data; None where nobody comes back."""

    @abstractmethod
    def reopen(self, rank: int, whereabouts: Any) -> None:
        """See the memory of a rank, which may have been started again, at the same addresses.

        Raises:
            NodeError, TransportError, MismatchError: as from `open`.
        """

    @abstractmethod
    def settle(self) -> None:
        """All peers have opened what is stored, and no other will come: it loses its names."""

    @abstractmethod
    def check_peers(self) -> None:
        """Before a forward: see that what was opened is still there.

        Raises:
            TransportError: a peer is gone, and with it the memory that it stored.
        """


def checked_sizes(rank: int, sizes: Mapping[int, Sizes], expected: Mapping[int, Sizes]) -> None:
    """Return if a rank hands over what the plan says that it stores.

    Raises:
        MismatchError: it does not.
    """
    if sizes != expected:
        raise strange_handles(rank, "other weights than the plan gives it")


def strange_handles(rank: int, fault: str) -> MismatchError:
    """What to raise where the handles of a rank are not as this version makes them."""
    return MismatchError(
        f"rank {rank} handed over {fault}: it runs another version of vllm-layershard, or its "
        "message was forged; nothing of it was mapped; give every rank the same version"
    )
